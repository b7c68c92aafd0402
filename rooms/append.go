package rooms

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/eventauth"
	"hanok/matrix/roomversion"
	"hanok/storage"
	"hanok/storage/statetree"
)

// draft is an event that a local user wants in a room.
type draft struct {
	sender  matrix.UserID
	typ     string
	skey    *string
	content []byte
	redacts matrix.EventID
	ts      matrix.Timestamp
	device  matrix.DeviceID
	txn     string
	delayed bool // txn is the ID under which the event was scheduled
	sticky  *int64
	// commit stores what goes with the event, in its transaction.
	commit func(ctx context.Context, tx *storage.Tx, id matrix.EventID) error

	names [3]storage.NameNID // type, sender, state key
	erase *Event             // the target of a redaction, where it is ours to erase
	early matrix.EventID     // the target of a redaction, where it has not come yet
}

// committing is what goes with the event into its transaction, nil if nothing.
func (d *draft) committing(id matrix.EventID) func(context.Context, *storage.Tx) error {
	if d.commit == nil {
		return nil
	}
	return func(ctx context.Context, tx *storage.Tx) error { return d.commit(ctx, tx, id) }
}

func (e *Engine) internDrafts(ctx context.Context, drafts []*draft) error {
	names := make([]string, 0, 4*len(drafts))
	for _, d := range drafts {
		key := ""
		if d.skey != nil {
			key = *d.skey
		}
		names = append(names, d.typ, string(d.sender), key)
	}
	for _, d := range drafts {
		if d.typ == "m.room.member" && d.skey != nil {
			names = append(names, string(domain(*d.skey)))
		}
	}
	nids, err := e.db.Intern(ctx, names...)
	if err != nil {
		return fmt.Errorf("intern names: %w", err)
	}
	for i, d := range drafts {
		d.names = [3]storage.NameNID(nids[3*i:])
	}
	return nil
}

// authMemo keeps what local events are authorised by, for one state.
type authMemo struct {
	ref    statetree.Ref
	events map[matrix.StateKey]*Event // nil values: known to be absent
}

// headView is a state as seen by who holds the room's lock: it may hold events that are not committed.
type headView struct {
	ctx  context.Context
	r    *room
	tree statetree.Tree
}

func (v headView) get(eventType, stateKey string) (*Event, error) {
	m := &v.r.memo
	if m.events == nil || m.ref != v.tree.Ref() {
		m.ref, m.events = v.tree.Ref(), make(map[matrix.StateKey]*Event)
	}
	k := matrix.StateKey{Type: eventType, Key: stateKey}
	if ev, ok := m.events[k]; ok {
		return ev, nil
	}
	nid, err := v.r.e.lookup(v.ctx, v.tree, eventType, stateKey)
	if err != nil {
		return nil, err
	}
	var ev *Event
	if nid != 0 {
		if ev, err = v.r.event(v.ctx, nid); err != nil {
			return nil, err
		}
	}
	if len(m.events) > 1000 {
		clear(m.events)
	}
	m.events[k] = ev
	return ev, nil
}

// StateEvent implements eventauth.State.
func (v headView) StateEvent(eventType, stateKey string) (*event.Event, error) {
	ev, err := v.get(eventType, stateKey)
	if ev == nil {
		return nil, err
	}
	return ev.Event, nil
}

func (v headView) membership(user matrix.UserID) (string, error) {
	ev, err := v.get("m.room.member", string(user))
	if ev == nil {
		return "", err
	}
	return ev.Membership(), nil
}

// rejection turns an auth failure into what the client is told.
func rejection(err error) error {
	var rej *eventauth.Rejection
	if !errors.As(err, &rej) {
		return err
	}
	if rej.Malformed {
		return matrix.BadJSON("%s", rej.Reason).Because(rej)
	}
	return matrix.Forbidden("%s", rej.Reason).Because(rej)
}

// appendOptions are what goes with local events.
type appendOptions struct {
	// check is asked before the first event is built; the lock is held.
	check  func(v headView) error
	extra  func(ctx context.Context, tx *storage.Tx) error
	create bool // the room is new
	// unchecked leaves the policy out: for what we ourselves add.
	unchecked bool
	// unasked says that nobody waits for the event.
	unasked bool
	signers []matrix.ServerName // those that will sign it after us
}

// append builds events on the head, one upon the other, and queues them as one commit. The caller waits for the entry.
func (r *room) append(ctx context.Context, drafts []*draft, o appendOptions) (*entry, error) {
	if len(drafts) > 1 && !o.create {
		return nil, errors.New("rooms: only the events of a new room are sent together")
	}
	for _, d := range drafts {
		if !r.e.isLocal(d.sender) {
			return nil, fmt.Errorf("an event of %s is not ours to make", domain(d.sender))
		}
	}
	if err := r.e.internDrafts(ctx, drafts); err != nil {
		return nil, err
	}
	r.mu.Lock()
	en, err := r.appendLocked(ctx, drafts, o)
	r.mu.Unlock()
	if errors.Is(err, errAskFirst) {
		return r.appendRecommended(ctx, drafts[0], o)
	}
	if err != nil {
		return nil, err
	}
	r.e.sign(en)
	return en, nil
}

// errAskFirst means that an event needs the signature of the room's policy server.
var errAskFirst = errors.New("rooms: the room has a policy server")

func (r *room) appendLocked(ctx context.Context, drafts []*draft, o appendOptions) (*entry, error) {
	if err := r.load(ctx); err != nil {
		return nil, err
	}
	if !o.create { // a room that is being made has nobody of another server in it
		if s, err := r.policyServer(headView{ctx, r, r.head.state}); err != nil {
			return nil, err
		} else if s != nil {
			return nil, errAskFirst
		}
	}
	if o.check != nil {
		if err := o.check(headView{ctx, r, r.head.state}); err != nil {
			return nil, err
		}
	}
	en := &entry{room: r, line: r.line, head: r.head, extra: o.extra, create: o.create, ready: make(chan struct{})}
	for _, d := range drafts {
		if err := r.build(ctx, en, d, o); err != nil {
			r.pending.drop(en.items)
			return nil, err
		}
	}
	r.head = en.head
	r.e.committer.add(en)
	return en, nil
}

// composed is an event built on a head, not yet part of the room.
type composed struct {
	event   *event.Event
	parents []tip
	auths   []storage.EventNID
}

// compose builds an event on a head and checks that it may be sent. Neither the head nor anything else changes; r.mu is held.
func (r *room) compose(ctx context.Context, h *head, d *draft, o appendOptions) (*composed, error) {
	e := r.e
	view := headView{ctx, r, h.state}
	c := &composed{parents: h.tips}
	if len(c.parents) > maxParents {
		c.parents = deepest(c.parents, maxParents)
	}
	p := event.Proto{
		RoomID: r.id, Sender: d.sender, Type: d.typ, StateKey: d.skey, Content: d.content, Redacts: d.redacts, Sticky: d.sticky,
		PrevEvents: make([]matrix.EventID, len(c.parents)), Depth: min(h.depth(), event.MaxDepth-1) + 1, OriginServerTS: d.ts, Signers: o.signers,
	}
	if p.OriginServerTS == 0 {
		p.OriginServerTS = e.now()
	}
	if d.typ == "m.room.create" && r.version.RoomIDIsCreateHash {
		p.RoomID = ""
	}
	for i, t := range c.parents {
		p.PrevEvents[i] = t.id
	}
	skey := ""
	if d.skey != nil {
		skey = *d.skey
	}
	var keys [8]matrix.StateKey
	for _, k := range eventauth.AppendSelect(keys[:0], r.version, d.typ, skey, d.skey != nil, d.sender, d.content) {
		ev, err := view.get(k.Type, k.Key)
		if err != nil {
			return nil, fmt.Errorf("auth events: %w", err)
		}
		if ev != nil {
			p.AuthEvents = append(p.AuthEvents, ev.ID())
			c.auths = append(c.auths, ev.NID)
		}
	}
	var err error
	if p.ReferenceHashes, err = r.referenceHashes(ctx, c.parents, c.auths); err != nil {
		return nil, err
	}
	if c.event, err = event.Build(r.version, p, e.server); err != nil {
		return nil, err
	}
	if err := r.checker.Check(c.event, view); err != nil {
		return nil, rejection(err)
	}
	if o.unchecked {
		return c, nil
	}
	encryption, err := view.get("m.room.encryption", "")
	if err != nil {
		return nil, err
	}
	return c, e.policy.CheckLocal(ctx, c.event, encryption != nil)
}

// referenceHashes are what events of room versions 1 and 2 state of those that they refer to. spec: rooms/v1#event-format
func (r *room) referenceHashes(ctx context.Context, parents []tip, auths []storage.EventNID) (map[matrix.EventID][sha256.Size]byte, error) {
	if r.version.EventIDFormat != roomversion.EventIDInEvent {
		return nil, nil
	}
	nids := slices.Clone(auths)
	for _, t := range parents {
		nids = append(nids, t.nid)
	}
	hashes := make(map[matrix.EventID][sha256.Size]byte, len(nids))
	for _, nid := range nids {
		ev, err := r.event(ctx, nid)
		if err != nil {
			return nil, fmt.Errorf("reference hashes: %w", err)
		}
		hashes[ev.ID()] = ev.ReferenceHash()
	}
	return hashes, nil
}

// build makes one event on en's head and moves that head.
func (r *room) build(ctx context.Context, en *entry, d *draft, o appendOptions) error {
	e := r.e
	h := en.head
	c, err := r.compose(ctx, h, d, o)
	if err != nil {
		return err
	}
	nid, err := e.db.AllocateEvent(c.auths...)
	if err != nil {
		return err
	}
	ev := &Event{
		Relay: true,
		Event: c.event, NID: nid, RoomNID: r.nid, ReceivedTS: e.now(), stateBefore: h.state.Ref(), auths: c.auths,
		typ: d.names[0], sender: d.names[1], TxnDevice: d.device, TxnID: d.txn, Delayed: d.delayed, prevs: make([]storage.EventNID, len(c.parents)),
		Partial: hasPartial(c.parents),
	}
	for i, t := range c.parents {
		ev.prevs[i] = t.nid
	}
	it := &item{ev: ev, before: h.state, timeline: forward}
	if ev.IsDummy() {
		it.timeline, ev.Relay = nowhere, false
	}
	after := h.state
	if d.skey != nil {
		ev.skey = d.names[2]
		if d.typ == "m.room.member" {
			user := matrix.UserID(*d.skey)
			previous, err := headView{ctx, r, h.state}.membership(user)
			if err != nil {
				return err
			}
			ch, err := e.memberChange(ctx, user, previous, ev)
			if err != nil {
				return err
			}
			en.members = append(en.members, ch)
		}
		if after, err = h.state.With(ctx, ev.entry()); err != nil {
			return err
		}
		it.current, it.moved = after.Ref(), true
	}
	if d.erase != nil {
		it.erased = append(it.erased, r.pending.erase(d.erase, ev))
	}
	if d.early != "" {
		en.extra = both(en.extra, func(ctx context.Context, tx *storage.Tx) error {
			return storage.InsertEarlyRedaction(ctx, tx, d.early, nid)
		})
	}
	en.extra = both(en.extra, d.committing(ev.ID()))
	next := &head{state: after, tips: []tip{{nid: nid, id: ev.ID(), depth: ev.Depth(), after: after, partial: ev.Partial}}}
	if len(c.parents) < len(h.tips) {
		// The tips left over stay extremities; their states are in h.state already.
		for _, t := range h.tips {
			if !hasTip(c.parents, t.nid) {
				next.tips = append(next.tips, t)
			}
		}
	}
	r.addPending(it, after)
	en.items = append(en.items, it)
	en.head = next
	if it.moved {
		return r.takeIn(ctx, en, after)
	}
	return nil
}

// maxParents is how many extremities an event merges: enough to bring their number down, well within event.MaxPrevEvents.
const maxParents = 10

// deepest returns the n deepest tips.
func deepest(tips []tip, n int) []tip {
	out := append([]tip(nil), tips...)
	for i := range n {
		for j := i + 1; j < len(out); j++ {
			if out[j].depth > out[i].depth {
				out[i], out[j] = out[j], out[i]
			}
		}
	}
	return out[:n]
}

func hasPartial(tips []tip) bool {
	for _, t := range tips {
		if t.partial {
			return true
		}
	}
	return false
}

func hasTip(tips []tip, nid storage.EventNID) bool {
	for _, t := range tips {
		if t.nid == nid {
			return true
		}
	}
	return false
}

// memberChange describes a user's membership event for the commit.
func (e *Engine) memberChange(ctx context.Context, user matrix.UserID, previous string, ev *Event) (memberChange, error) {
	server := e.own
	if !e.isLocal(user) {
		nids, err := e.db.Intern(ctx, string(domain(user)))
		if err != nil {
			return memberChange{}, err
		}
		server = nids[0]
	}
	return memberChange{user: ev.skey, server: server, name: user, previous: previous, current: ev.Membership(), event: ev}, nil
}

// sign adds our signature to the events of an entry, outside the room's lock: event IDs do not depend on it.
func (e *Engine) sign(en *entry) {
	defer close(en.ready)
	en.failed = errAbandoned // unless this comes to its end
	for _, it := range en.items {
		if it.promote {
			continue // somebody else's, taken in because of this one
		}
		signed, err := it.ev.Event.Sign(e.server, e.key)
		if err != nil {
			en.failed = fmt.Errorf("sign: %w", err)
			return
		}
		ev := *it.ev
		ev.Event = signed
		it.ev = &ev
	}
	en.failed = nil
}

// SendRequest is an event to be sent by a local user.
type SendRequest struct {
	Room      matrix.RoomID
	Sender    matrix.UserID
	Type      string
	StateKey  *string
	Content   []byte // JSON object
	Redacts   matrix.EventID
	Device    matrix.DeviceID  // scope of TxnID
	TxnID     string           // "" means the request is not idempotent
	Timestamp matrix.Timestamp // origin_server_ts, 0 means now
	Sticky    *int64           // milliseconds for which the event is sticky; nil: it is not. spec: MSC4354
	// Delayed says that the event was scheduled, under the ID in TxnID, which its sender is told instead of a transaction ID.
	Delayed bool
	// Commit, unless nil, is run in the transaction that stores the event. It may run more than once. It does not run if
	// there is nothing to store, because the room has that state already, nor for membership events.
	Commit func(ctx context.Context, tx *storage.Tx, id matrix.EventID) error
}

// txnKey identifies a request that may be repeated.
type txnKey struct {
	sender matrix.UserID
	device matrix.DeviceID
	room   matrix.RoomID
	typ    string
	txn    string
}

// Send appends a message or state event and returns when it is durable.
// Repeating a request with the same device and transaction id returns the first
// event's ID, also after a restart. Membership events are routed to their operation.
// spec: cs/sendMessage, cs/setRoomStateWithKey
func (e *Engine) Send(ctx context.Context, r SendRequest) (matrix.EventID, error) {
	if r.Type == "m.room.member" && r.StateKey != nil {
		return e.sendMember(ctx, r)
	}
	if r.Type == "m.room.create" {
		return "", matrix.InvalidParam("a room is created once")
	}
	return e.once(ctx, r, func(ctx context.Context) (matrix.EventID, error) {
		room, err := e.joinedRoom(ctx, r.Room, r.Sender)
		if err != nil {
			return "", err
		}
		defer room.release()
		if r.StateKey != nil {
			if r.Type == "m.room.canonical_alias" {
				if err := e.checkCanonicalAlias(ctx, room, r.Content); err != nil {
					return "", err
				}
			}
			key := matrix.StateKey{Type: r.Type, Key: *r.StateKey}
			if same, err := room.sameState(ctx, r.Sender, key, r.Content); err != nil || same != "" {
				return same, err
			}
		}
		d := &draft{sender: r.Sender, typ: r.Type, skey: r.StateKey, content: r.Content, redacts: r.Redacts, ts: r.Timestamp, device: r.Device, txn: r.TxnID, delayed: r.Delayed, sticky: r.Sticky, commit: r.Commit}
		if r.Type == "m.room.redaction" {
			if err := room.redactable(ctx, r, d); err != nil {
				return "", err
			}
		}
		check, err := room.checkRelation(ctx, r)
		if err != nil {
			return "", err
		}
		en, err := room.append(ctx, []*draft{d}, appendOptions{check: check})
		if err != nil {
			return "", err
		}
		return en.items[0].ev.ID(), en.wait(ctx)
	})
}

// once runs a request with a transaction id unless it was run already.
func (e *Engine) once(ctx context.Context, r SendRequest, send func(context.Context) (matrix.EventID, error)) (matrix.EventID, error) {
	if r.TxnID == "" {
		return send(ctx)
	}
	id, _, err := e.txns.Do(ctx, txnKey{r.Sender, r.Device, r.Room, r.Type, r.TxnID}, func() (matrix.EventID, error) {
		// Whoever repeats the request while this one runs gets its result, also if the client has given this one up.
		ctx := context.WithoutCancel(ctx)
		id, err := e.sentBefore(ctx, r)
		if err != nil || id != "" {
			return id, err
		}
		return send(ctx)
	})
	return id, err
}

func (e *Engine) sentBefore(ctx context.Context, r SendRequest) (matrix.EventID, error) {
	room, err := e.room(ctx, r.Room)
	if err != nil {
		return "", hideRoom(err)
	}
	nid := room.nid
	room.release()
	sender, err := e.db.LookupName(ctx, string(r.Sender))
	if err == nil {
		var typ storage.NameNID
		if typ, err = e.db.LookupName(ctx, r.Type); err == nil {
			var id matrix.EventID
			if id, err = storage.EventByTxn(ctx, e.db, sender, r.TxnID, r.Device, nid, typ); err == nil {
				return id, nil
			}
		}
	}
	if errors.Is(err, storage.ErrNotFound) {
		return "", nil
	}
	return "", err
}

// joinedRoom returns a room in which this server takes part, pinned. Whether the sender
// may do what they want is for the auth rules to say.
func (e *Engine) joinedRoom(ctx context.Context, id matrix.RoomID, user matrix.UserID) (*room, error) {
	r, err := e.room(ctx, id)
	if err != nil {
		return nil, hideRoom(err)
	}
	ok, err := r.resident(ctx)
	if err == nil && !ok {
		// Who has seen in the stream that they are in may be ahead of what is published of the room.
		ok, err = r.aboutToJoin(ctx, user)
	}
	if err == nil && !ok {
		err = matrix.Forbidden("you are not in this room")
	}
	if err != nil {
		r.release()
		return nil, err
	}
	return r, nil
}

// sameState returns the current state event if it has the sender and content asked for: then nothing needs to be sent.
func (r *room) sameState(ctx context.Context, sender matrix.UserID, key matrix.StateKey, content []byte) (matrix.EventID, error) {
	c, err := r.current(ctx)
	if err != nil {
		return "", err
	}
	ev, err := State{r.e, c.head.state}.Event(ctx, key.Type, key.Key)
	if err != nil || ev == nil || ev.Sender() != sender {
		return "", err
	}
	if content, err = canonicalContent(r.version, content); err != nil {
		return "", err
	}
	if string(content) != string(ev.Content()) {
		return "", nil
	}
	member, err := State{r.e, c.head.state}.Membership(ctx, sender)
	if err != nil || member != "join" {
		return "", err
	}
	return ev.ID(), nil
}

// aboutToJoin says whether a user is joined as of the room's head.
func (r *room) aboutToJoin(ctx context.Context, user matrix.UserID) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.load(ctx); err != nil {
		return false, err
	}
	membership, err := headView{ctx, r, r.head.state}.membership(user)
	return membership == "join", err
}
