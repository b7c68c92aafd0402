// Package keyring holds the signing keys of servers: it publishes our own,
// fetches, checks and remembers those of others, verifies signatures with them, and
// hands them on as a notary.
//
// Start reading at Ring; fetch.go says when a key is asked for again.
// spec: server-server-api#retrieving-server-keys
package keyring

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/singleflight"

	"hanok/federation/client"
	"hanok/internal/gate"
	"hanok/internal/recent"
	"hanok/matrix"
	"hanok/matrix/signing"
	"hanok/storage"
)

// Fetcher gets key documents from other servers; *client.Client does.
type Fetcher interface {
	ServerKeys(ctx context.Context, server matrix.ServerName, urgent bool) ([]byte, error)
	QueryNotary(ctx context.Context, notary matrix.ServerName, criteria client.KeyCriteria) ([][]byte, error)
}

// Options are what a Ring works with.
type Options struct {
	ServerName matrix.ServerName
	Key        signing.Key
	OldKeys    []OldKey
	DB         *storage.DB
	Fetch      Fetcher
	// Notaries are asked for the keys of servers that do not answer themselves.
	Notaries []matrix.ServerName
	Now      func() time.Time // nil is time.Now
	Log      zerolog.Logger
}

// Ring is the key ring.
type Ring struct {
	opts    Options
	flights singleflight.Group
	// fetches are the places for asking servers, causes those that what one server sent may take.
	fetches map[purpose]chan struct{}
	causes  *gate.Gate[matrix.ServerName]

	cache *recent.Map[matrix.ServerName, *serverKeys]

	ownMu    sync.Mutex
	own      []byte // our signed document
	ownUntil time.Time
}

// serverKeys is what is known of one server. It is immutable: a change makes a new one.
type serverKeys struct {
	keys map[matrix.KeyID]storage.ServerKey
	// tried is when the server was last asked, answered or not.
	tried time.Time
	// failed says that the last attempt brought nothing.
	failed bool
	// triedNotaries is when notaries were last asked.
	triedNotaries time.Time
}

const cachedServers = 5000

// purpose is what a key is fetched for. Each has places of its own, so that keys which anybody can have us fetch keep nobody from
// those of events.
type purpose string

const (
	forEvents    purpose = "events"
	forRequests  purpose = "requests"  // of servers with which somebody here is in a room, or was
	forStrangers purpose = "strangers" // requests of others: anybody can make them up
	forQuestions purpose = "questions" // to us as a notary
)

// maxFetches is how many servers are asked at once. A silent one takes a place for fetchTimeout, and a join of a big room needs the keys of thousands.
func maxFetches() map[purpose]int {
	return map[purpose]int{forEvents: 256, forRequests: 32, forStrangers: 32, forQuestions: 16}
}

// causesAtOnce is how many servers are asked at once because of what one other server sent, and maxCaused how many more wait for that.
const causesAtOnce, maxCaused = 16, 5000

type causeKey struct{}

// OnBehalf returns a context for work on what a server sent: keys that it has us fetch do not take all the places that there are.
func OnBehalf(ctx context.Context, origin matrix.ServerName) context.Context {
	return context.WithValue(ctx, causeKey{}, origin)
}

// enter waits for a place to ask a server for its keys.
func (r *Ring) enter(ctx context.Context, p purpose) (leave func(), err error) {
	gone := func() {}
	if origin, ok := ctx.Value(causeKey{}).(matrix.ServerName); ok {
		if gone, err = r.causes.Enter(ctx, origin); err != nil {
			return nil, err
		}
	}
	slots := r.fetches[p]
	select {
	case slots <- struct{}{}:
		return func() { <-slots; gone() }, nil
	case <-ctx.Done():
		gone()
		return nil, ctx.Err()
	}
}

// New makes a key ring.
func New(o Options) *Ring {
	if o.Now == nil {
		o.Now = time.Now
	}
	fetches := map[purpose]chan struct{}{}
	for p, most := range maxFetches() {
		fetches[p] = make(chan struct{}, most)
	}
	return &Ring{opts: o, cache: recent.NewMap[matrix.ServerName, *serverKeys](cachedServers), fetches: fetches, causes: gate.New[matrix.ServerName](causesAtOnce, maxCaused)}
}

func (r *Ring) now() matrix.Timestamp { return matrix.Timestamp(r.opts.Now().UnixMilli()) }

// load returns what is known of a server without asking anybody.
func (r *Ring) load(ctx context.Context, server matrix.ServerName) (*serverKeys, error) {
	if known, ok := r.cache.Get(server); ok {
		return known, nil
	}
	known := &serverKeys{keys: map[matrix.KeyID]storage.ServerKey{}}
	if server == r.opts.ServerName {
		r.addOwn(known)
	} else {
		stored, err := storage.FindServerKeys(ctx, r.opts.DB, server)
		if err != nil {
			return nil, err
		}
		for _, k := range stored {
			known.keys[k.KeyID] = k
		}
	}
	return r.cache.GetOrPut(server, func() *serverKeys { return known }), nil // somebody may have fetched meanwhile
}

// addOwn makes our own events verify without a request to ourselves.
func (r *Ring) addOwn(known *serverKeys) {
	known.keys[r.opts.Key.ID] = storage.ServerKey{
		Server: r.opts.ServerName, KeyID: r.opts.Key.ID, Public: r.opts.Key.Public(), ValidUntil: forever, FetchedAt: forever - maxValidity,
	}
	for _, k := range r.opts.OldKeys {
		known.keys[k.ID] = storage.ServerKey{
			Server: r.opts.ServerName, KeyID: k.ID, Public: k.Public, ValidUntil: k.Expired, Expired: true,
		}
	}
}

const forever = matrix.Timestamp(1<<63 - 1)

// maxValidity is how long a key is believed after it was fetched, in milliseconds,
// whatever it says of itself. spec: server-server-api#publishing-keys valid_until_ts
const maxValidity = matrix.Timestamp(7 * 24 * time.Hour / time.Millisecond)

// validUntil is until when a key may have signed something.
func validUntil(k storage.ServerKey) matrix.Timestamp {
	if k.Expired {
		return k.ValidUntil
	}
	return min(k.ValidUntil, k.FetchedAt+maxValidity)
}

// need is a demand for a key.
type need struct {
	id matrix.KeyID // "": any
	// validAt is when the key must have been valid; 0: at any time.
	validAt matrix.Timestamp
}

func (s *serverKeys) satisfies(n need) bool {
	if n.id == "" {
		for _, k := range s.keys {
			if !k.Expired && validUntil(k) >= n.validAt {
				return true
			}
		}
		return false
	}
	k, ok := s.keys[n.id]
	// A newer document does not bring an expired key back to life.
	return ok && (k.Expired || validUntil(k) >= n.validAt)
}

// forgetAfter is how long the keys of strangers are kept after they were fetched: they are believed no longer anyway.
const forgetAfter = maxValidity + matrix.Timestamp(24*time.Hour/time.Millisecond)

// Forget removes the keys of servers that asked something once and none of whose users was ever in a room that is known here:
// anybody can make up servers.
func (r *Ring) Forget(ctx context.Context) error {
	const atOnce = 500
	for after := matrix.ServerName(""); ; {
		old, err := storage.FindServersWithOldKeys(ctx, r.opts.DB, after, r.now()-forgetAfter, atOnce)
		if err != nil || len(old) == 0 {
			return err
		}
		after = old[len(old)-1]
		var strangers []matrix.ServerName
		for _, server := range old {
			stranger, err := r.stranger(ctx, server)
			if err != nil {
				return err
			}
			if stranger && server != r.opts.ServerName {
				strangers = append(strangers, server)
			}
		}
		if err := r.opts.DB.Write(ctx, func(tx *storage.Tx) error { return storage.DeleteKeysOfServers(ctx, tx, strangers) }); err != nil {
			return err
		}
		r.cache.Remove(strangers...)
	}
}

// Examine asks a server for its keys and returns until when the last of them may be used, and those of which another key was known before under
// the same ID. ErrOtherServer, ErrNotSigned, ErrNotValid.
func (r *Ring) Examine(ctx context.Context, server matrix.ServerName) (until matrix.Timestamp, replaced []matrix.KeyID, err error) {
	raw, err := r.opts.Fetch.ServerKeys(ctx, server, true)
	if err != nil {
		return 0, nil, err
	}
	keys, err := parse(raw, server, r.now())
	if err != nil {
		return 0, nil, err
	}
	known, err := r.load(ctx, server)
	if err != nil {
		return 0, nil, err
	}
	for _, k := range keys {
		if before, ok := known.keys[k.KeyID]; ok && !bytes.Equal(before.Public, k.Public) {
			replaced = append(replaced, k.KeyID)
		}
		if !k.Expired {
			until = max(until, validUntil(k))
		}
	}
	slices.Sort(replaced)
	if until < r.now() {
		return until, replaced, fmt.Errorf("%w: it was until %s", ErrNotValid, until.Time().UTC().Format(time.RFC3339))
	}
	return until, replaced, r.accept(ctx, server, raw)
}

// What is wrong with a key document.
var (
	ErrOtherServer = errors.New("it is the document of another server")
	ErrNotSigned   = errors.New("it is not signed by any of its keys")
	ErrNotValid    = errors.New("no key is valid now")
)
