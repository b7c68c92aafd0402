package rooms

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"hanok/internal/wake"
	"hanok/matrix"
	"hanok/storage"
	"hanok/storage/statetree"
)

// A room of another server is joined without its members, where that server leaves them out: the user is in at once, and
// resync.go fetches the whole state afterwards. Until then the room's state is partial: of other servers' users it has the
// memberships that came after our join and a few more. An event that follows on such a state has a flag, its own state
// is as partial, and it is checked against that state and its auth events. restate.go makes good for it.
//
// spec: ss/sendJoinV2 omit_members

// partialRoom is a room whose state is partial. Immutable but for full, which partials guards.
type partialRoom struct {
	nid     storage.RoomNID
	id      matrix.RoomID
	servers []matrix.ServerName // those in the room before our join, but for this server
	full    storage.Position    // when the whole state is about to be known; 0: that is not under way
	done    chan struct{}       // closed when the room is not partial any more, or partial anew
	heard   chan struct{}       // that one of its servers has sent something: it can be asked again
	wanted  chan struct{}       // that somebody waits for the members
	lately  recentSenders

	// When all servers that answer say that we are not in the room, our join has not lasted: what waits for the members waits
	// in vain, and whoever joins has to join anew. They may still come to say something else.
	refused atomic.Bool
	refusal chan struct{} // closed when that is found out for the first time
}

// newPartialRoom is of a room of which the servers were in it before our join.
func newPartialRoom(nid storage.RoomNID, id matrix.RoomID, servers ...matrix.ServerName) *partialRoom {
	return &partialRoom{nid: nid, id: id, servers: servers, done: make(chan struct{}), heard: make(chan struct{}, 1), wanted: make(chan struct{}, 1), refusal: make(chan struct{})}
}

// setRefused notes whether the servers of the room say that we are not in it, and reports whether that is new. Only resync calls it.
func (pr *partialRoom) setRefused(yes bool) (new bool) {
	was := pr.refused.Swap(yes)
	if yes {
		select {
		case <-pr.refusal:
		default:
			close(pr.refusal)
		}
	}
	return yes && !was
}

// partials knows the rooms whose state is partial, and when those became whole that were.
type partials struct {
	count atomic.Int32 // of ongoing, so that those who ask about other rooms need no lock
	news  chan struct{}

	mu      sync.RWMutex
	ongoing map[storage.RoomNID]*partialRoom
	full    map[storage.RoomNID]storage.Position
	order   []completed // by position
}

type completed struct {
	room storage.RoomNID
	pos  storage.Position
}

func loadPartials(ctx context.Context, db *storage.DB) (*partials, error) {
	p := &partials{
		news:    make(chan struct{}, 1),
		ongoing: make(map[storage.RoomNID]*partialRoom),
		full:    make(map[storage.RoomNID]storage.Position),
	}
	rows, err := storage.PartialRooms(ctx, db)
	if err != nil {
		return nil, fmt.Errorf("rooms with partial state: %w", err)
	}
	for _, row := range rows {
		if row.FullPos != 0 {
			p.complete(row.Room, row.FullPos)
			continue
		}
		pr := newPartialRoom(row.Room, row.ID)
		if err := json.Unmarshal(row.Servers, &pr.servers); err != nil {
			return nil, fmt.Errorf("servers of room %d: %w", row.Room, err)
		}
		p.begin(pr)
	}
	return p, nil
}

// get returns a room whose state is partial, nil if it is whole.
func (p *partials) get(room storage.RoomNID) *partialRoom {
	if p.count.Load() == 0 {
		return nil
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.ongoing[room]
}

// has says whether a room has partial state and a server is known to have been in it before our join.
func (p *partials) has(room storage.RoomNID, server matrix.ServerName) bool {
	pr := p.get(room)
	return pr != nil && slices.Contains(pr.servers, server)
}

// refused lists the rooms whose servers say that we are not in them; nil if there are none.
func (p *partials) refused() map[matrix.RoomID]bool {
	if p.count.Load() == 0 {
		return nil
	}
	var out map[matrix.RoomID]bool
	for _, pr := range p.all() {
		if pr.refused.Load() {
			if out == nil {
				out = make(map[matrix.RoomID]bool)
			}
			out[pr.id] = true
		}
	}
	return out
}

// nudge is called when a server has sent an event of a room.
func (p *partials) nudge(room storage.RoomNID, from matrix.ServerName) {
	if pr := p.get(room); pr != nil {
		if slices.Contains(pr.servers, from) {
			pr.lately.add(from)
		}
		wake.Up(pr.heard)
	}
}

// want has the members of a room fetched soon, because somebody waits for them.
func (pr *partialRoom) want() { wake.Up(pr.wanted) }

// recentSenders are those servers that have sent something last.
type recentSenders struct {
	mu    sync.Mutex
	names []matrix.ServerName
}

// maxRecentSenders is few enough to leave others their turn.
const maxRecentSenders = 3

func (r *recentSenders) add(server matrix.ServerName) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Contains(r.names, server) {
		return
	}
	if len(r.names) == maxRecentSenders {
		r.names = r.names[1:]
	}
	r.names = append(r.names, server)
}

// take returns them, and forgets them.
func (r *recentSenders) take() []matrix.ServerName {
	r.mu.Lock()
	defer r.mu.Unlock()
	names := r.names
	r.names = nil
	return names
}

// all lists the rooms whose state is partial.
func (p *partials) all() []*partialRoom {
	p.mu.RLock()
	defer p.mu.RUnlock()
	out := make([]*partialRoom, 0, len(p.ongoing))
	for _, pr := range p.ongoing {
		out = append(out, pr)
	}
	return out
}

// begin is called before the commit of the join: nobody must see the room and take its state for whole.
// It returns what was known of the room before, for restore.
func (p *partials) begin(pr *partialRoom) (before *partialRoom) {
	p.mu.Lock()
	defer p.mu.Unlock()
	before = p.ongoing[pr.nid]
	p.ongoing[pr.nid] = pr
	p.count.Store(int32(len(p.ongoing)))
	if before != nil {
		close(before.done)
	}
	return before
}

// start makes the fetching of states look for rooms that are new.
func (p *partials) start() { wake.Up(p.news) }

// restore takes begin back.
func (p *partials) restore(room storage.RoomNID, before *partialRoom) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pr := p.ongoing[room]; pr != nil {
		close(pr.done)
		delete(p.ongoing, room)
	}
	if before != nil {
		again := newPartialRoom(before.nid, before.id, before.servers...)
		again.full = before.full
		p.ongoing[room] = again
	}
	p.count.Store(int32(len(p.ongoing)))
}

// completing notes the position from which on a room's state is whole, before the commit: whoever reads up to that
// position or further sees the whole state. 0 takes it back.
func (p *partials) completing(room storage.RoomNID, pos storage.Position) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if pr := p.ongoing[room]; pr != nil {
		pr.full = pos
	}
}

// finish is called when that is visible.
func (p *partials) finish(room storage.RoomNID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pr := p.ongoing[room]
	if pr == nil {
		return
	}
	delete(p.ongoing, room)
	p.count.Store(int32(len(p.ongoing)))
	p.complete(room, pr.full)
	close(pr.done)
}

func (p *partials) complete(room storage.RoomNID, pos storage.Position) {
	if was := p.full[room]; was != 0 {
		p.order = slices.DeleteFunc(p.order, func(c completed) bool { return c.room == room })
	}
	p.full[room] = pos
	i, _ := slices.BinarySearchFunc(p.order, pos, func(c completed, pos storage.Position) int { return int(c.pos - pos) })
	p.order = slices.Insert(p.order, i, completed{room, pos})
}

// PartialAt lists the rooms whose state is partial when the stream stands at a position: what there is of their
// members then is not what clients expect that load all of them. nil if there are none.
func (e *Engine) PartialAt(pos storage.Position) map[storage.RoomNID]bool {
	p := e.partials
	p.mu.RLock()
	defer p.mu.RUnlock()
	var out map[storage.RoomNID]bool
	add := func(room storage.RoomNID) {
		if out == nil {
			out = make(map[storage.RoomNID]bool)
		}
		out[room] = true
	}
	for nid, pr := range p.ongoing {
		if pr.full == 0 || pr.full > pos {
			add(nid)
		}
	}
	for i := len(p.order) - 1; i >= 0 && p.order[i].pos > pos; i-- {
		add(p.order[i].room)
	}
	return out
}

// CompletedIn lists the rooms whose state was partial and became whole in (since, until]; nil if there are none.
func (e *Engine) CompletedIn(since, until storage.Position) map[storage.RoomNID]bool {
	p := e.partials
	p.mu.RLock()
	defer p.mu.RUnlock()
	var out map[storage.RoomNID]bool
	add := func(room storage.RoomNID, pos storage.Position) {
		if pos <= since || pos > until {
			return
		}
		if out == nil {
			out = make(map[storage.RoomNID]bool)
		}
		out[room] = true
	}
	for nid, pr := range p.ongoing {
		add(nid, pr.full)
	}
	for i := len(p.order) - 1; i >= 0 && p.order[i].pos > since; i-- {
		add(p.order[i].room, p.order[i].pos)
	}
	return out
}

// maxFullWait bounds how long a request waits for the whole state.
const maxFullWait = 2 * time.Minute

var errStillPartial = matrix.Errorf(http.StatusGatewayTimeout, "M_UNKNOWN",
	"The members of this room are still being fetched from its other servers. Try again in a minute.")

// refusedHere reports whether a room is partial, and its other servers say that this one is not in it.
func (e *Engine) refusedHere(room storage.RoomNID) bool {
	pr := e.partials.get(room)
	return pr != nil && pr.refused.Load()
}

// awaitFull returns when the state of a room is not partial.
func (e *Engine) awaitFull(ctx context.Context, room storage.RoomNID) error {
	pr := e.partials.get(room)
	if pr == nil {
		return nil
	}
	timer := time.NewTimer(maxFullWait)
	defer timer.Stop()
	for ; pr != nil; pr = e.partials.get(room) {
		refusal := pr.refusal
		if pr.refused.Load() {
			return errStillPartial
		}
		select {
		case <-refusal: // it was refused before, and may be again
			refusal = nil
		default:
		}
		select {
		case <-pr.done:
		case <-refusal:
		case <-timer.C:
			return errStillPartial
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// AwaitMembers returns when all members of a room that a user is in are known. Who is not in it is not shown them, or those of
// the time when they left.
func (e *Engine) AwaitMembers(ctx context.Context, user matrix.UserID, id matrix.RoomID) error {
	if e.partials.count.Load() == 0 {
		return nil
	}
	r, err := e.room(ctx, id)
	if err != nil {
		return hideRoom(err)
	}
	defer r.release()
	if e.partials.get(r.nid) == nil {
		return nil
	}
	m, err := e.membershipIn(ctx, r.nid, user)
	if err != nil || m.Membership != storage.MembershipJoin {
		return err
	}
	return e.awaitWanted(ctx, r.nid)
}

// awaitWanted is awaitFull for a local user, for whom the members are to be fetched soon.
func (e *Engine) awaitWanted(ctx context.Context, room storage.RoomNID) error {
	if pr := e.partials.get(room); pr != nil {
		pr.want()
	}
	return e.awaitFull(ctx, room)
}

// known says whether a partial state tells a user's membership. It does not of those whom this server knew when it was in the room before: their
// memberships have ended without an event.
func (m Membership) known() bool { return m.Event != "" }

// awaitMember returns when it is known whether a user is in a room: at once, if a partial state says so.
func (e *Engine) awaitMember(ctx context.Context, id matrix.RoomID, sender, user matrix.UserID) error {
	if e.partials.count.Load() == 0 || e.isLocal(user) {
		return nil
	}
	m, err := e.MembershipOf(ctx, id, user)
	if err != nil || m.known() {
		return err
	}
	return e.AwaitMembers(ctx, sender, id)
}

// MayBeJoined reports whether a user of another server is in a room, or may be, as far as a partial state tells.
func (e *Engine) MayBeJoined(ctx context.Context, id matrix.RoomID, user matrix.UserID) (bool, error) {
	m, err := e.MembershipOf(ctx, id, user)
	if err != nil || m.known() {
		return m.Membership == "join", err
	}
	nid, err := e.RoomNID(ctx, id)
	if err != nil {
		return false, err
	}
	return e.partials.has(nid, domain(user)), nil
}

// PartialServers lists the servers in those of a user's rooms whose state is partial, as far as we were told on joining. They
// are not known by their users.
func (e *Engine) PartialServers(ctx context.Context, user matrix.UserID) ([]matrix.ServerName, error) {
	if e.partials.count.Load() == 0 {
		return nil, nil
	}
	l, err := e.userList(ctx, user)
	if err != nil {
		return nil, err
	}
	var out []matrix.ServerName
	for nid := range l.joined {
		if pr := e.partials.get(nid); pr != nil && !e.isolation.has(pr.id) {
			out = append(out, pr.servers...)
		}
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// PartialAudience lists the local users in rooms whose state is partial and that a server was in when we joined: its users may share
// those rooms with them.
func (e *Engine) PartialAudience(ctx context.Context, server matrix.ServerName) ([]matrix.UserID, error) {
	if e.partials.count.Load() == 0 {
		return nil, nil
	}
	var out []matrix.UserID
	for _, pr := range e.partials.all() {
		if !slices.Contains(pr.servers, server) || e.isolation.has(pr.id) {
			continue
		}
		local, err := e.LocalUsers(ctx, pr.id)
		if err != nil {
			return nil, err
		}
		out = append(out, local...)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}

// SharesPartialRoom reports whether a server was in one of our rooms whose state is partial when we joined: its users may be in it.
func (e *Engine) SharesPartialRoom(server matrix.ServerName) bool {
	if e.partials.count.Load() == 0 {
		return false
	}
	return slices.ContainsFunc(e.partials.all(), func(pr *partialRoom) bool {
		return slices.Contains(pr.servers, server) && !e.isolation.has(pr.id)
	})
}

// SenderMember is the membership that an event names for its sender, nil if none is known. Where the state before
// the event is partial it may be all there is.
func (e *Engine) SenderMember(ctx context.Context, ev *Event) (*Event, error) {
	auths, err := e.eventMap(ctx, ev.auths)
	if err != nil {
		return nil, err
	}
	for _, a := range auths {
		if a.Is("m.room.member", string(ev.Sender())) {
			return a, nil
		}
	}
	return nil, nil
}

// guestPatience is how long a server waits that wants a user to enter or leave a room through us, which is partial for an instant as a rule.
const guestPatience = 2 * time.Second

// refusePartial refuses what a partial state cannot tell: M_NOT_FOUND, upon which servers ask another one.
func (r *room) refusePartial(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, guestPatience)
	defer cancel()
	if r.e.awaitFull(ctx, r.nid) != nil {
		return matrix.NotFound("this server has joined the room just now and does not know its members yet")
	}
	return nil
}

// merge resolves states of which some are partial. What a partial state lacks is unknown, not absent: where there is a whole
// state beside it, it is taken from there.
func (r *room) merge(ctx context.Context, whole, partial []statetree.Tree) (statetree.Tree, error) {
	trees := slices.Clone(whole)
	for _, p := range partial {
		if len(whole) > 0 {
			var err error
			if p, err = overlay(ctx, whole[0], p); err != nil {
				return statetree.Tree{}, err
			}
		}
		trees = append(trees, p)
	}
	return r.resolve(ctx, trees)
}

// overlay returns a state with what another one has of the same and of other keys.
func overlay(ctx context.Context, base, over statetree.Tree) (statetree.Tree, error) {
	return follow(ctx, base, base, over)
}

// withAuth completes a partial state by an event's auth events, which are known: what it lacks is taken from them, what it has
// otherwise is resolved. So MSC3902 has events checked that follow on a partial state.
func (r *room) withAuth(ctx context.Context, before statetree.Tree, auth []matrix.EventID) (statetree.Tree, error) {
	known, err := r.eventsByID(ctx, auth)
	if err != nil {
		return statetree.Tree{}, err
	}
	var lacking, other []statetree.Entry
	for _, ev := range known {
		if ev.skey == 0 || ev.Rejected {
			continue
		}
		has, err := before.Get(ctx, ev.entry().Key)
		switch {
		case err != nil:
			return statetree.Tree{}, err
		case has == 0:
			lacking = append(lacking, ev.entry())
		case has != int64(ev.NID):
			other = append(other, ev.entry())
		}
	}
	completed, err := before.With(ctx, lacking...)
	if err != nil || len(other) == 0 {
		return completed, err
	}
	claimed, err := completed.With(ctx, other...)
	if err != nil {
		return statetree.Tree{}, err
	}
	return r.resolve(ctx, []statetree.Tree{completed, claimed})
}

// knownJoined is a lower bound of how many are in a room, given how many are known to be: while its state is partial there is at least one of each
// server, so that a big room does not look like a chat of two.
func (e *Engine) knownJoined(ctx context.Context, room storage.RoomNID, joined int) (int, error) {
	pr := e.partials.get(room)
	if pr == nil {
		return joined, nil
	}
	local, err := e.LocalUsers(ctx, pr.id)
	return max(joined, len(pr.servers)+len(local)), err
}

// partialRoom is what is remembered of a room joined through a server that left its members out.
func (e *Engine) partialRoom(r *room, via matrix.ServerName, told []matrix.ServerName) *partialRoom {
	pr := newPartialRoom(r.nid, r.id, via)
	seen := map[matrix.ServerName]bool{via: true, e.server: true}
	for _, s := range told {
		if len(pr.servers) < maxToldServers && !seen[s] {
			seen[s] = true
			pr.servers = append(pr.servers, s)
		}
	}
	return pr
}

// maxToldServers bounds the servers that we take another's word for. The largest public rooms have some 10,000.
const maxToldServers = 50_000

func (pr *partialRoom) store(ctx context.Context, tx *storage.Tx, join storage.EventNID) error {
	servers, err := json.Marshal(pr.servers)
	if err != nil {
		return err
	}
	return storage.PutPartialRoom(ctx, tx, pr.nid, join, servers)
}
