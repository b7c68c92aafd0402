package rooms

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"

	"hanok/internal/fold"
	"hanok/matrix"
	"hanok/storage"
	"hanok/storage/statetree"
)

// published is the public directory in memory, with those of the networks of application services: of each room in it what decides on which page it is. It is read when it is first asked
// for; from then on a room is looked at again when its state has changed, by the next request.
type published struct {
	e       *Engine
	refresh chan struct{} // holds a token while somebody brings it up to date

	mu       sync.Mutex
	loaded   bool
	byNID    map[storage.RoomNID]*listing
	outdated map[storage.RoomNID]bool
	order    []*listing // biggest first; immutable
}

// listing is a room in the directory.
type listing struct {
	nid       storage.RoomNID
	room      matrix.RoomID
	joined    int
	published bool     // in the directory of this server
	networks  []string // of application services, in whose directories it is
	roomType  string
	localOnly bool
	search    string // name, topic and alias, folded
}

// maxListed bounds the bytes of a name or a topic in which a search looks.
const maxListed = 1024

func newPublished(e *Engine) *published {
	return &published{e: e, refresh: make(chan struct{}, 1), byNID: make(map[storage.RoomNID]*listing), outdated: make(map[storage.RoomNID]bool)}
}

// published notes that a room came into the directory or went out of it.
func (p *published) published(nid storage.RoomNID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.loaded {
		p.outdated[nid] = true
	}
}

// changed notes that a room's state changed; those that are not in the directory do not matter.
func (p *published) changed(nid storage.RoomNID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.byNID[nid] != nil {
		p.outdated[nid] = true
	}
}

// listings is the directory as of now, biggest rooms first. Shared: do not change it.
func (p *published) listings(ctx context.Context) ([]*listing, error) {
	select {
	case p.refresh <- struct{}{}:
		defer func() { <-p.refresh }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	todo, err := p.take(ctx)
	if err != nil {
		return nil, err
	}
	fresh := make(map[storage.RoomNID]*listing, len(todo))
	for _, nid := range todo {
		l, err := p.e.listing(ctx, nid)
		if err != nil {
			p.giveBack(todo)
			return nil, fmt.Errorf("directory entry of room %d: %w", nid, err)
		}
		fresh[nid] = l
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(fresh) > 0 {
		p.apply(fresh)
	}
	return p.order, nil
}

// take returns the rooms to look at, all at first. Of one that changes from now on the next request takes care.
func (p *published) take(ctx context.Context) ([]storage.RoomNID, error) {
	p.mu.Lock()
	loaded := p.loaded
	p.loaded = true // what is published from now on is noted
	p.mu.Unlock()
	var all []storage.RoomNID
	if !loaded {
		var err error
		if all, err = storage.PublishedRoomsAnywhere(ctx, p.e.db); err != nil {
			p.mu.Lock()
			p.loaded = false
			p.mu.Unlock()
			return nil, err
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for nid := range p.outdated {
		all = append(all, nid)
	}
	clear(p.outdated)
	for _, nid := range all {
		if p.byNID[nid] == nil {
			p.byNID[nid] = &listing{} // so that a change of it is noted
		}
	}
	return all, nil
}

func (p *published) giveBack(rooms []storage.RoomNID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, nid := range rooms {
		p.outdated[nid] = true
	}
}

// apply puts rooms in the place of what was known of them, nil for those that do not belong there. p.mu is held.
func (p *published) apply(fresh map[storage.RoomNID]*listing) {
	order := make([]*listing, 0, len(p.order)+len(fresh))
	for _, l := range p.order {
		if _, replaced := fresh[l.nid]; !replaced {
			order = append(order, l)
		}
	}
	kept := len(order)
	for nid, l := range fresh {
		if l == nil {
			delete(p.byNID, nid)
			continue
		}
		p.byNID[nid] = l
		if l.joined > 0 { // else nobody is there to let anybody in
			order = append(order, l)
		}
	}
	if len(order)-kept < 8 {
		for i := kept; i < len(order); i++ {
			l := order[i]
			at, _ := slices.BinarySearchFunc(order[:i], l, compareListings)
			copy(order[at+1:i+1], order[at:i])
			order[at] = l
		}
	} else {
		slices.SortFunc(order, compareListings)
	}
	p.order = order
}

func compareListings(a, b *listing) int {
	return cmp.Or(cmp.Compare(b.joined, a.joined), cmp.Compare(a.room, b.room))
}

// listing reads what the directory must know of a room, nil if it is not in it. It does not take the room into memory.
func (e *Engine) listing(ctx context.Context, nid storage.RoomNID) (*listing, error) {
	row, err := storage.RoomByNID(ctx, e.db, nid)
	if err != nil {
		return nil, ignoreNotFound(err)
	}
	networks, err := storage.NetworksOfRoom(ctx, e.db, nid)
	if err != nil || !row.Published && len(networks) == 0 {
		return nil, err
	}
	state := State{e, e.forest.At(statetree.Ref(row.State))}
	events, err := state.Events(ctx, matrix.StateKey{Type: "m.room.create"}, matrix.StateKey{Type: "m.room.name"},
		matrix.StateKey{Type: "m.room.topic"}, matrix.StateKey{Type: "m.room.canonical_alias"})
	if err != nil {
		return nil, err
	}
	l := &listing{nid: nid, room: row.ID, published: row.Published, networks: networks, roomType: fold.Cut(textIn(events[0], "type"), matrix.MaxIDLength), localOnly: localOnly(events[0])}
	text := []string{fold.Cut(textIn(events[1], "name"), maxListed), fold.Cut(textIn(events[2], "topic"), maxListed), textIn(events[3], "alias")}
	l.search = fold.Text(strings.Join(text, "\n"))
	l.joined, err = storage.CountMembers(ctx, e.db, nid, storage.MembershipJoin)
	return l, err
}

// directoryToken is a place in the directory: before or after where a room of some size stands. Rooms that come and go elsewhere do not
// move it. The zero token is the beginning.
type directoryToken struct {
	back   bool // the page ends there
	joined int
	room   matrix.RoomID
}

func (l *listing) after() directoryToken  { return directoryToken{false, l.joined, l.room} }
func (l *listing) before() directoryToken { return directoryToken{true, l.joined, l.room} }

func (t directoryToken) String() string {
	direction := "n"
	if t.back {
		direction = "p"
	}
	return direction + strconv.Itoa(t.joined) + "_" + string(t.room)
}

func parseDirectoryToken(s string) (t directoryToken, ok bool) {
	rest, forward := strings.CutPrefix(s, "n")
	if !forward {
		if rest, t.back = strings.CutPrefix(s, "p"); !t.back {
			return t, false
		}
	}
	joined, room, ok := strings.Cut(rest, "_")
	if !ok {
		return t, false
	}
	var err error
	if t.joined, err = strconv.Atoi(joined); err != nil || t.joined < 0 {
		return t, false
	}
	t.room, err = matrix.ParseRoomID(room)
	return t, err == nil
}

// page finds the page of a list that begins or ends at the token.
func (t directoryToken) page(all []*listing, limit int) (start, end int) {
	if t.room == "" {
		return 0, min(limit, len(all))
	}
	at, found := slices.BinarySearchFunc(all, &listing{joined: t.joined, room: t.room}, compareListings)
	if t.back {
		return max(0, at-limit), at
	}
	if found {
		at++
	}
	return at, min(at+limit, len(all))
}
