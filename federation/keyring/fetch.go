package keyring

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"hanok/federation/client"
	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/signing"
	"hanok/storage"
)

// When a server is asked again although it was asked before.
const (
	retryAfterAnswer  = 10 * time.Second // a key it did not list may be a new one
	retryAfterFailure = time.Minute
)

// Bounds of fetching.
const (
	fetchTimeout = 15 * time.Second
	// batchTimeout bounds the wait for all servers of one batch. Who has not answered by then
	// goes on being asked, for the next time.
	batchTimeout = 30 * time.Second
	// manyServers is from where on a notary is asked before the servers themselves:
	// a join of a big room needs keys of thousands, many of them gone.
	manyServers = 16
	notaryBatch = 100
)

// ensure fetches what is needed and not known. Failures are not errors: what is missing
// shows in the result of load.
func (r *Ring) ensure(ctx context.Context, needs map[matrix.ServerName][]need, p purpose) error {
	missing, err := r.missing(ctx, needs)
	if err != nil {
		return err
	}
	if len(missing) > manyServers && len(r.opts.Notaries) > 0 {
		r.askNotaries(ctx, r.dueAtNotaries(missing))
		if missing, err = r.missing(ctx, missing); err != nil {
			return err
		}
	}
	r.askDirectly(ctx, missing, p)
	if len(r.opts.Notaries) == 0 {
		return ctx.Err()
	}
	if missing, err = r.missing(ctx, missing); err != nil {
		return err
	}
	r.askNotaries(ctx, r.dueAtNotaries(missing))
	return ctx.Err()
}

// dueAtNotaries leaves out servers of which notaries were asked a moment ago.
func (r *Ring) dueAtNotaries(missing map[matrix.ServerName][]need) map[matrix.ServerName][]need {
	now := r.opts.Now()
	due := make(map[matrix.ServerName][]need, len(missing))
	for server, list := range missing {
		if known, ok := r.cache.Peek(server); !ok || now.Sub(known.triedNotaries) >= retryAfterFailure {
			due[server] = list
		}
	}
	return due
}

// missing returns the part of needs that is not satisfied.
func (r *Ring) missing(ctx context.Context, needs map[matrix.ServerName][]need) (map[matrix.ServerName][]need, error) {
	out := map[matrix.ServerName][]need{}
	for server, list := range needs {
		if server == r.opts.ServerName {
			continue
		}
		known, err := r.load(ctx, server)
		if err != nil {
			return nil, err
		}
		for _, n := range list {
			if !known.satisfies(n) {
				out[server] = append(out[server], n)
			}
		}
	}
	return out, nil
}

// askDirectly asks servers for their own keys, all at once within the bound.
func (r *Ring) askDirectly(ctx context.Context, missing map[matrix.ServerName][]need, p purpose) {
	ctx, cancel := context.WithTimeout(ctx, batchTimeout)
	defer cancel()
	var wg sync.WaitGroup
	for server := range missing {
		if !r.due(server) {
			continue
		}
		wg.Go(func() { r.fetch(ctx, server, p) })
	}
	wg.Wait()
}

// due says whether a server may be asked now.
func (r *Ring) due(server matrix.ServerName) bool {
	known, ok := r.cache.Peek(server)
	if !ok || known.tried.IsZero() {
		return true
	}
	wait := retryAfterAnswer
	if known.failed {
		wait = retryAfterFailure
	}
	return r.opts.Now().Sub(known.tried) >= wait
}

// fetch asks one server, once for all who want it now for the same purpose and because of the same server. The attempt outlives a
// caller that gives up.
func (r *Ring) fetch(ctx context.Context, server matrix.ServerName, p purpose) {
	cause, _ := ctx.Value(causeKey{}).(matrix.ServerName)
	done := r.flights.DoChan(string(p)+" "+string(cause)+" "+string(server), func() (any, error) {
		ctx := context.WithoutCancel(ctx)
		queued, cancel := context.WithTimeout(ctx, batchTimeout)
		defer cancel()
		leave, err := r.enter(queued, p)
		if err != nil {
			return nil, err
		}
		defer leave()
		ctx, cancel = context.WithTimeout(ctx, fetchTimeout)
		defer cancel()
		if !r.due(server) {
			return nil, nil // another flight landed between the caller's look and this one
		}
		raw, err := r.opts.Fetch.ServerKeys(ctx, server, p == forRequests || p == forStrangers) // who makes a request is there
		if err == nil {
			err = r.accept(ctx, server, raw)
		}
		if err != nil {
			r.opts.Log.Debug().Err(err).Str("server", string(server)).Msg("federation: no keys")
			r.change(server, func(next *serverKeys) { next.tried, next.failed = r.opts.Now(), true })
		}
		return nil, nil
	})
	select {
	case <-done:
	case <-ctx.Done():
	}
}

// accept checks and stores a document.
func (r *Ring) accept(ctx context.Context, server matrix.ServerName, raw []byte) error {
	keys, err := parse(raw, server, r.now())
	if err != nil {
		return err
	}
	return r.store(ctx, server, keys, func(next *serverKeys) { next.tried, next.failed = r.opts.Now(), false })
}

// maxKnownKeys bounds how many keys of one server are kept: those that it listed last.
const maxKnownKeys = 200

// store adds keys to those of a server, on disk and then in memory. attempt changes what is noted of the last attempt to get them; nil for nothing.
func (r *Ring) store(ctx context.Context, server matrix.ServerName, keys []storage.ServerKey, attempt func(*serverKeys)) error {
	known, err := r.load(ctx, server)
	if err != nil {
		return err
	}
	all := maps.Clone(known.keys)
	for _, k := range keys {
		all[k.KeyID] = k
	}
	gone := leastRecent(all, len(all)-maxKnownKeys)
	err = r.opts.DB.Write(ctx, func(tx *storage.Tx) error {
		if err := storage.PutServerKeys(ctx, tx, keys); err != nil || len(gone) == 0 {
			return err
		}
		return storage.DeleteServerKeys(ctx, tx, server, gone)
	})
	if err != nil {
		return fmt.Errorf("store keys: %w", err)
	}
	r.change(server, func(next *serverKeys) {
		for _, k := range keys {
			next.keys[k.KeyID] = k
		}
		for _, id := range gone {
			delete(next.keys, id)
		}
		if attempt != nil {
			attempt(next)
		}
	})
	return nil
}

// leastRecent picks keys that were listed least lately; among those of one document, old ones before current ones.
func leastRecent(keys map[matrix.KeyID]storage.ServerKey, count int) []matrix.KeyID {
	if count <= 0 {
		return nil
	}
	ids := slices.SortedFunc(maps.Keys(keys), func(a, b matrix.KeyID) int {
		x, y := keys[a], keys[b]
		return cmp.Or(cmp.Compare(x.FetchedAt, y.FetchedAt), cmp.Compare(validUntil(x), validUntil(y)), cmp.Compare(a, b))
	})
	return ids[:count]
}

// change brings the cache up to date.
func (r *Ring) change(server matrix.ServerName, change func(next *serverKeys)) {
	r.cache.Update(server, func(known *serverKeys, ok bool) *serverKeys {
		next := &serverKeys{keys: map[matrix.KeyID]storage.ServerKey{}}
		if ok {
			*next = *known
			next.keys = maps.Clone(known.keys)
		}
		change(next)
		return next
	})
}

// askNotaries asks the notaries in turn for what is missing, in batches.
func (r *Ring) askNotaries(ctx context.Context, missing map[matrix.ServerName][]need) {
	for _, notary := range r.opts.Notaries {
		if len(missing) == 0 || ctx.Err() != nil {
			return
		}
		if notary == r.opts.ServerName {
			continue
		}
		batch := client.KeyCriteria{}
		for server, list := range missing {
			if server == notary {
				continue
			}
			batch[server] = map[matrix.KeyID]matrix.Timestamp{}
			for _, n := range list {
				if n.id != "" {
					batch[server][n.id] = max(n.validAt, batch[server][n.id])
				}
			}
			if len(batch) == notaryBatch {
				r.askNotary(ctx, notary, batch)
				batch = client.KeyCriteria{}
			}
		}
		if len(batch) > 0 {
			r.askNotary(ctx, notary, batch)
		}
		var err error
		if missing, err = r.missing(ctx, missing); err != nil {
			r.opts.Log.Error().Err(err).Msg("federation: read keys")
			return
		}
	}
}

// askNotary takes the documents of a notary: each must carry the notary's signature besides its server's own.
func (r *Ring) askNotary(ctx context.Context, notary matrix.ServerName, batch client.KeyCriteria) {
	if err := r.ensureNotary(ctx, notary); err != nil {
		r.opts.Log.Warn().Err(err).Str("notary", string(notary)).Msg("federation: notary has no valid key")
		return
	}
	ctx, cancel := context.WithTimeout(ctx, 2*fetchTimeout)
	defer cancel()
	for server := range batch {
		r.change(server, func(next *serverKeys) { next.triedNotaries = r.opts.Now() })
	}
	documents, err := r.opts.Fetch.QueryNotary(ctx, notary, batch)
	if err != nil {
		r.opts.Log.Debug().Err(err).Str("notary", string(notary)).Msg("federation: notary does not answer")
		return
	}
	for i, raw := range documents {
		if i >= 10*len(batch) {
			break // several documents per server are normal, any number is not
		}
		if err := r.acceptFromNotary(ctx, notary, batch, raw); err != nil {
			r.opts.Log.Debug().Err(err).Str("notary", string(notary)).Msg("federation: document from notary refused")
		}
	}
}

func (r *Ring) ensureNotary(ctx context.Context, notary matrix.ServerName) error {
	known, err := r.load(ctx, notary)
	if err != nil {
		return err
	}
	want := need{validAt: r.now()}
	if known.satisfies(want) {
		return nil
	}
	if r.due(notary) {
		r.fetch(ctx, notary, forEvents)
	}
	if known, err = r.load(ctx, notary); err != nil {
		return err
	}
	if !known.satisfies(want) {
		return fmt.Errorf("no key of %s that is valid now", notary)
	}
	return nil
}

func (r *Ring) acceptFromNotary(ctx context.Context, notary matrix.ServerName, batch client.KeyCriteria, raw []byte) error {
	canonical, err := canonicaljson.Canonical(raw, canonicaljson.Strict)
	if err != nil {
		return err
	}
	name, _ := canonicaljson.GetString(canonical, "server_name")
	server := matrix.ServerName(name)
	if _, asked := batch[server]; !asked {
		return fmt.Errorf("nobody asked for %q", name)
	}
	known, err := r.load(ctx, notary)
	if err != nil {
		return err
	}
	err = signing.ErrMissing
	for _, id := range signing.KeyIDs(string(notary), canonical) {
		k, ok := known.keys[id]
		if !ok || k.Expired || validUntil(k) < r.now() {
			continue
		}
		if err = signing.Verify(string(notary), id, k.Public, canonical); err == nil {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("notary's signature on the keys of %s: %w", server, err)
	}
	return r.acceptOlder(ctx, server, canonical)
}

// acceptOlder is accept for a document that may be older than what we have: it must not
// shorten the life of a key, revive one that its server has given up, or put another one in its place.
func (r *Ring) acceptOlder(ctx context.Context, server matrix.ServerName, raw []byte) error {
	keys, err := parse(raw, server, r.now())
	if err != nil {
		return err
	}
	known, err := r.load(ctx, server)
	if err != nil {
		return err
	}
	fresh := keys[:0]
	for _, k := range keys {
		if old, ok := known.keys[k.KeyID]; ok && (old.Expired || !k.Expired && old.ValidUntil >= k.ValidUntil || !bytes.Equal(old.Public, k.Public)) {
			continue
		}
		fresh = append(fresh, k)
	}
	if len(fresh) == 0 {
		return nil
	}
	return r.store(ctx, server, fresh, nil)
}
