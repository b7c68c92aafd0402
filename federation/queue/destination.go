package queue

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"net/http"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"hanok/federation/client"
	"hanok/internal/backoff"
	"hanok/matrix"
	"hanok/storage"
)

// destination is a server for which there may be something to send.
type destination struct {
	running  bool  // it sends, or waits in a lane to do so
	lane     *lane // in which it waits, nil while it does not
	again    bool  // woken while running
	volatile []volatileEDU
	only     string                   // the transaction besides which nothing was queued; "" once the destination was woken for more
	standing map[storage.RoomNID]bool // rooms of which a queued event stands for those that follow; see collapse.go
	timer    *time.Timer              // set while waiting: for the end of a back-off, or for company

	// refused is the transaction that the server answered with a client error, and how often.
	refused  string
	refusals int
	// doubted is the transaction whose signature it did not believe last, and doubts how often; believed says that it believes others.
	doubted  string
	doubts   int
	believed bool

	failures  int // transactions in a row that the server answered with an error
	notBefore time.Time
}

// volatileEDU is an EDU that is not stored.
type volatileEDU struct {
	eduType string
	content []byte
	stale   time.Time
}

// addVolatile keeps the newest MaxEDUs.
func (d *destination) addVolatile(e volatileEDU) {
	if len(d.volatile) == MaxEDUs {
		d.volatile = append(d.volatile[:0], d.volatile[1:]...)
	}
	d.volatile = append(d.volatile, e)
}

func (d *destination) stop() {
	if d.timer != nil {
		d.timer.Stop()
		d.timer = nil
	}
}

// destination finds or makes the entry; q.mu is held.
func (q *Queue) destination(server matrix.ServerName) *destination {
	d := q.busy[server]
	if d == nil {
		d = &destination{}
		q.busy[server] = d
	}
	return d
}

// wake starts the senders of destinations, or lets them look again.
func (q *Queue) wake(servers ...matrix.ServerName) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.wakeLocked(servers...)
}

// wakeLocked is wake while q.mu is held.
func (q *Queue) wakeLocked(servers ...matrix.ServerName) {
	if q.ctx == nil || q.ctx.Err() != nil {
		return // Run starts them all
	}
	for _, server := range servers {
		d := q.destination(server)
		d.stop()
		d.only = ""
		if d.running {
			d.again = true
			if d.lane != nil && d.lane != q.laneOf(server) {
				q.line(server, d) // it was heard from since it began to wait
			}
			continue
		}
		if at, wait := q.waitUntil(server, d); wait {
			d.timer = time.AfterFunc(at.Sub(q.opts.Now()), func() { q.wake(server) })
			continue
		}
		d.running = true
		q.line(server, d)
	}
}

// soon is how long an EDU waits that can: for others, or for an event that it travels with.
const soon = 300 * time.Millisecond

// wakeSoon is wake after a while, unless something else wakes the destination before.
func (q *Queue) wakeSoon(servers ...matrix.ServerName) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.ctx == nil || q.ctx.Err() != nil {
		return
	}
	for _, server := range servers {
		d := q.destination(server)
		d.only = ""
		switch {
		case d.running:
			d.again = true
		case d.timer == nil:
			d.timer = time.AfterFunc(soon, func() { q.wake(server) })
		}
	}
}

func (q *Queue) waitUntil(server matrix.ServerName, d *destination) (time.Time, bool) {
	at, wait := q.opts.Peers.RetryAt(server)
	if d.notBefore.After(at) && d.notBefore.After(q.opts.Now()) {
		return d.notBefore, true
	}
	return at, wait
}

// serve sends one transaction to a destination, and says what is next: another one, waiting for the end of a failure, or nothing.
func (q *Queue) serve(ctx context.Context, server matrix.ServerName, d *destination) {
	q.mu.Lock()
	d.again = false
	q.mu.Unlock()
	more, err := q.deliver(ctx, server, d)
	if err != nil && ctx.Err() == nil {
		q.opts.Log.Debug().Err(err).Str("destination", string(server)).Msg("federation: not delivered")
		q.collapse(ctx, server)
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	switch {
	case ctx.Err() != nil:
		d.running = false
	case err != nil:
		d.running, d.again, d.volatile = false, false, nil
		d.notBefore = q.opts.Now().Add(d.pause(err))
		q.wakeLocked(server) // sets the timer
	case more || d.again:
		d.failures = 0
		q.line(server, d)
	default:
		delete(q.busy, server)
	}
}

const (
	// atLeast keeps a failure of our own, or a back-off that has ended meanwhile, from making the sender spin.
	atLeast = time.Second
	// maxErrorPause is for a server that works and does not take our transactions.
	maxErrorPause = 10 * time.Minute
	// maxOutagePause is for one that says it does not work: it may be heard from as soon as it does.
	maxOutagePause = 10 * time.Second
	// maxAskedPause is how long a server may ask to be left alone even while it is heard from.
	maxAskedPause = time.Hour
)

// pause is how long a destination is left alone after a failure, whatever else is heard from it. That comes on top of the back-off of a
// server that does not answer (peers), which ends with any sign of life: one that answers every transaction with an error lives.
func (d *destination) pause(err error) time.Duration {
	var e *client.Error
	if !errors.As(err, &e) || e.Status == 0 {
		return atLeast
	}
	d.failures++
	longest := maxErrorPause
	if e.Status >= http.StatusInternalServerError {
		longest = maxOutagePause
	}
	grown := backoff.Doubled(time.Second, longest, d.failures)
	return max(grown, min(e.RetryAfter, maxAskedPause))
}

// deliver sends one transaction; more says whether there may be another.
func (q *Queue) deliver(ctx context.Context, server matrix.ServerName, d *destination) (more bool, err error) {
	txn, pdus, edus, rest, err := q.next(ctx, server, d)
	if err != nil {
		return false, err
	}
	volatile, left := q.takeVolatile(d, MaxEDUs-len(edus))
	t, err := q.compose(ctx, pdus, edus, volatile)
	if err != nil {
		return false, err
	}
	stored := txn.LastPDU > 0 || txn.LastEDU > 0
	if len(t.PDUs)+len(t.EDUs) > 0 {
		body, err := json.Marshal(t, json.FormatNilSliceAsNull(false))
		if err != nil {
			return false, err
		}
		done := Delivery{Class: q.opts.Peers.ClassOf(server), PDUs: len(t.PDUs), EDUs: len(t.EDUs)}
		results, err := q.opts.Sender.SendTransaction(ctx, server, txn.ID, body)
		if done.Dropped = err != nil; done.Dropped {
			err = q.judgeSignature(ctx, server, d, txn.ID, err)
			if q.narrow(ctx, server, d, txn, pdus, edus, err) {
				return true, nil
			}
			if !q.giveUp(server, d, txn, err) {
				return false, err
			}
		}
		if q.opts.Delivered != nil {
			if t.oldest > 0 {
				done.Oldest = q.opts.Now().Sub(t.oldest.Time())
			}
			q.opts.Delivered(done)
		}
		for id, r := range results {
			if r.Error != "" {
				q.opts.Log.Debug().Str("destination", string(server)).Str("event", string(id)).Str("error", r.Error).Msg("federation: event refused")
			}
		}
	}
	if !stored {
		return false, nil
	}
	if len(pdus) > 0 {
		txn.LastPDU = pdus[len(pdus)-1].Position // what was not sent must not be removed
	}
	if len(edus) > 0 {
		txn.LastEDU = edus[len(edus)-1].ID
	}
	err = q.opts.DB.Write(ctx, func(tx *storage.Tx) error { return storage.FinishOutboxTransaction(ctx, tx, txn) })
	return rest || left, err
}

// next returns the transaction under way, or makes and stores the next one. One
// without ID positions holds nothing that is stored. rest says that more may be queued than it holds, besides what d is woken for.
func (q *Queue) next(ctx context.Context, server matrix.ServerName, d *destination) (txn storage.OutboxTransaction, pdus []storage.OutboxPDU, edus []storage.OutboxEDU, rest bool, err error) {
	txn, err = storage.GetOutboxTransaction(ctx, q.opts.DB, server)
	resumed := err == nil
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return txn, nil, nil, false, err
	}
	lastPDU, lastEDU := storage.Position(q.passed.Load()), everything
	if resumed {
		lastPDU, lastEDU = txn.LastPDU, txn.LastEDU
	}
	for stood := lastPDU > 0; stood; {
		q.mu.Lock()
		d.standing = nil // before looking: what follows has rows of its own again
		q.mu.Unlock()
		if pdus, err = storage.FindOutboxPDUs(ctx, q.opts.DB, server, lastPDU, MaxPDUs); err != nil {
			return txn, nil, nil, false, err
		}
		if stood = !resumed; stood {
			stood, err = q.settle(ctx, pdus)
		}
		if err != nil {
			return txn, nil, nil, false, err
		}
	}
	if lastEDU > 0 {
		if edus, err = storage.FindOutboxEDUs(ctx, q.opts.DB, server, lastEDU, MaxEDUs); err != nil {
			return txn, nil, nil, false, err
		}
	}
	full := len(pdus) == MaxPDUs || len(edus) == MaxEDUs
	fitting := withinSize(edus)
	full = full || len(fitting) < len(edus)
	edus = fitting
	if resumed {
		q.mu.Lock()
		defer q.mu.Unlock()
		rest, d.only = txn.ID != d.only, "" // what is queued until the next attempt does not wake it
		return txn, pdus, edus, rest, nil
	}
	txn = storage.OutboxTransaction{Destination: server, ID: q.newID()}
	if len(pdus) > 0 {
		txn.LastPDU = pdus[len(pdus)-1].Position
	}
	if len(edus) > 0 {
		txn.LastEDU = edus[len(edus)-1].ID
	}
	if txn.LastPDU > 0 || txn.LastEDU > 0 {
		err = q.opts.DB.Write(ctx, func(tx *storage.Tx) error { return storage.PutOutboxTransaction(ctx, tx, txn) })
	}
	return txn, pdus, edus, full, err
}

const everything = storage.Position(1<<63 - 1)

// maxEDUBytes keeps a transaction well below the body limits of reverse proxies.
const maxEDUBytes = 4 << 20

// withinSize keeps as many EDUs as fit, one at least. It depends on nothing but the EDUs, so
// that a transaction is the same when it is made again.
func withinSize(edus []storage.OutboxEDU) []storage.OutboxEDU {
	size := 0
	for i, e := range edus {
		size += len(e.Content)
		if size > maxEDUBytes && i > 0 {
			return edus[:i]
		}
	}
	return edus
}

// newID makes a transaction ID that this server has never used.
func (q *Queue) newID() string {
	var b [6]byte
	rand.Read(b[:]) // never fails
	return strconv.FormatInt(q.opts.Now().UnixMilli(), 36) + "-" + hex.EncodeToString(b[:])
}

// takeVolatile takes as many as fit, and says whether some are left.
func (q *Queue) takeVolatile(d *destination, limit int) (taken []volatileEDU, left bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(limit, len(d.volatile))
	taken = append([]volatileEDU(nil), d.volatile[:n]...)
	d.volatile = append(d.volatile[:0], d.volatile[n:]...)
	return taken, len(d.volatile) > 0
}

// transaction is the body of a transaction. spec: ss/sendTransaction
type transaction struct {
	Origin         matrix.ServerName `json:"origin"`
	OriginServerTS matrix.Timestamp  `json:"origin_server_ts"`
	PDUs           []jsontext.Value  `json:"pdus"`
	EDUs           []edu             `json:"edus,omitempty"`

	oldest matrix.Timestamp // when the oldest of the events came into being here
}

type edu struct {
	Type    string         `json:"edu_type"`
	Content jsontext.Value `json:"content"`
}

// compose fills a transaction, with what is still worth sending.
func (q *Queue) compose(ctx context.Context, pdus []storage.OutboxPDU, edus []storage.OutboxEDU, volatile []volatileEDU) (*transaction, error) {
	now := q.opts.Now()
	t := &transaction{Origin: q.opts.ServerName, OriginServerTS: matrix.TimestampOf(now)}
	for _, p := range pdus {
		e, err := q.rooms.Event(ctx, p.EventID)
		if matrix.HasCode(err, "M_NOT_FOUND") {
			continue // purged since
		}
		if err != nil {
			return nil, err
		}
		if !q.rooms.Federates(e.RoomID()) {
			continue // any more
		}
		t.PDUs = append(t.PDUs, e.JSON())
		if t.oldest == 0 || e.ReceivedTS < t.oldest {
			t.oldest = e.ReceivedTS
		}
	}
	for _, e := range edus {
		if e.ExpiresAt == 0 || e.ExpiresAt > matrix.TimestampOf(now) {
			t.EDUs = append(t.EDUs, edu{e.Type, e.Content})
		}
	}
	for _, e := range volatile {
		if e.stale.After(now) {
			t.EDUs = append(t.EDUs, edu{e.eduType, e.content})
		}
	}
	return t, nil
}

// A server that stumbles over one event must not be kept from all others: a transaction that is refused narrowAfter times is
// tried by halves, and the one thing that is left in the end is dropped after maxRefusals.
const (
	narrowAfter = 4
	maxRefusals = 8
)

// refusal is the answer of a server that works and does not want what is in a transaction; nil for any other failure.
func refusal(err error) *client.Error {
	var e *client.Error
	if !errors.As(err, &e) || e.Retry || e.Status < 400 || e.Status >= 500 {
		return nil
	}
	return e
}

// judgeSignature finds out whether a server that does not believe our signature believes none, or only that of this transaction. Dendrite makes
// something else of JSON with quotes or backslashes in its keys before it checks: one event of such content would end all that is sent to it.
// An empty transaction shows it, which is tried now and then.
func (q *Queue) judgeSignature(ctx context.Context, server matrix.ServerName, d *destination, txn string, err error) error {
	var e *client.Error
	if !errors.As(err, &e) || e.Status != http.StatusUnauthorized {
		return err
	}
	ours := *e
	ours.Retry = false
	q.mu.Lock()
	if d.doubted != txn {
		d.doubted, d.doubts, d.believed = txn, 0, false
	}
	d.doubts++
	believed, try := d.believed, d.doubts%(2*maxRefusals) == 2
	q.mu.Unlock()
	if believed {
		return &ours
	} else if !try {
		return err
	}
	empty, bad := json.Marshal(transaction{Origin: q.opts.ServerName, OriginServerTS: matrix.TimestampOf(q.opts.Now())}, json.FormatNilSliceAsNull(false))
	if bad != nil {
		return err
	}
	if _, refused := q.opts.Sender.SendTransaction(ctx, server, q.newID(), empty); refused != nil {
		return err
	}
	q.mu.Lock()
	d.believed = true
	q.mu.Unlock()
	return &ours
}

// aboutUs says whether a refusal is about this server or about the whole endpoint, not about what is in the transaction.
func aboutUs(e *client.Error) bool {
	return e.Status == http.StatusForbidden || e.Status == http.StatusNotFound
}

// narrow replaces a transaction that was refused time and again by its first half.
func (q *Queue) narrow(ctx context.Context, server matrix.ServerName, d *destination, txn storage.OutboxTransaction, pdus []storage.OutboxPDU, edus []storage.OutboxEDU, err error) bool {
	e := refusal(err)
	if e == nil || aboutUs(e) || len(pdus)+len(edus) < 2 {
		return false
	}
	q.mu.Lock()
	again := d.refused == txn.ID && d.refusals+1 >= narrowAfter
	q.mu.Unlock()
	if !again {
		return false
	}
	half := storage.OutboxTransaction{Destination: server, ID: q.newID()}
	if len(pdus) > 0 {
		half.LastPDU = pdus[(len(pdus)-1)/2].Position
	} else {
		half.LastEDU = edus[(len(edus)-1)/2].ID
	}
	if err := q.opts.DB.Write(ctx, func(tx *storage.Tx) error { return storage.PutOutboxTransaction(ctx, tx, half) }); err != nil {
		q.opts.Log.Error().Err(err).Msg("federation: divide a transaction")
		return false
	}
	return true
}

// giveUp counts how often a transaction was refused by a server that works, and says when it is enough.
func (q *Queue) giveUp(server matrix.ServerName, d *destination, txn storage.OutboxTransaction, err error) bool {
	e := refusal(err)
	if e == nil {
		return false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if d.refused != txn.ID {
		d.refused, d.refusals = txn.ID, 0
	}
	d.refusals++
	if d.refusals < maxRefusals || aboutUs(e) {
		return false
	}
	q.opts.Log.Warn().Str("destination", string(server)).Int("status", e.Status).Msg("federation: transaction dropped, the server refuses it")
	return true
}
