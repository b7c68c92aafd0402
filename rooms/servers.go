package rooms

import (
	"context"
	"maps"
	"slices"
	"sync"

	"hanok/internal/recent"
	"hanok/matrix"
	"hanok/matrix/policyserver"
	"hanok/storage"
	"hanok/storage/statetree"
)

// ServersAt lists the servers joined in the state before an event (and the target's, for a membership event): those who must be sent it.
// While the state is partial, those that were in the room before our join count, too. This server is not included; if it is not in the room
// at the event (it joins through another server), that other server sends the event, and there is nobody for us to send it to.
//
// What we let in for another server we have to send to all that are in the room (spec: ss/sendJoinV2), also to those that came, like this
// server maybe, after what another resident made it upon. Servers may also have come into the room after the state before an event of our own,
// which is asked about elsewhere before it is a part of the room: an invite, and all where there is a policy server.
func (e *Engine) ServersAt(ctx context.Context, ev *Event) ([]matrix.ServerName, error) {
	if e.isolation.has(ev.RoomID()) {
		return nil, nil
	}
	var more []matrix.ServerName // besides those in the state
	if ev.Partial {
		if pr := e.partials.get(ev.RoomNID); pr != nil {
			more = append(more, pr.servers[:min(len(pr.servers), maxToldSent)]...)
		} else {
			// By now the state before it is known.
			stored, err := e.eventByNID(ctx, ev.NID)
			if err != nil {
				return nil, err
			}
			ev = stored
		}
	}
	joined, err := e.servers.at(ctx, e, ev.RoomNID, e.treeBefore(ev))
	if err != nil {
		return nil, err
	}
	letIn := ev.Relay && !e.isLocal(ev.Sender())
	key, ok := ev.StateKey()
	membership := ok && ev.Type() == "m.room.member"
	if joined[e.server] == 0 && !letIn {
		return nil, nil
	}
	invite := membership && ev.Membership() == "invite"
	policed, err := e.lookup(ctx, e.treeBefore(ev), policyserver.EventType, "")
	if err != nil {
		return nil, err
	}
	if letIn || invite || policed != 0 {
		now, err := e.JoinedServers(ctx, ev.RoomID())
		if err != nil {
			return nil, err
		}
		for _, s := range now {
			shown := letIn || invite
			if !shown && joined[s] == 0 {
				if shown, err = (&serverView{e: e, server: s}).sees(ctx, ev); err != nil {
					return nil, err
				}
			}
			if shown {
				more = append(more, s)
			}
		}
		// The invited server got the invite by the invite endpoint. As an event it is for one that is in the room, or was when
		// it was invited.
		membership = membership && (!invite || slices.Contains(now, domain(key)))
	}
	if membership {
		more = append(more, domain(key))
	}
	out := slices.Collect(maps.Keys(joined))
	slices.Sort(more)
	for _, s := range slices.Compact(more) {
		if joined[s] == 0 {
			out = append(out, s)
		}
	}
	return slices.DeleteFunc(out, func(s matrix.ServerName) bool { return s == e.server }), nil
}

// maxToldSent bounds the servers that get our events because another one says that they are in the room: it may have made them up to have us
// send to thousands who have nothing to do with it. In a bigger room the others hear of our events from those who follow on them.
const maxToldSent = 2000

// serverCounts remembers, for the rooms asked about last, how many users of each server
// were joined in the state that was asked about. The next state differs from it
// in little, so that counting costs the difference and not the size of the room.
type serverCounts struct {
	rooms *recent.Map[storage.RoomNID, *roomServers]
}

type roomServers struct {
	mu     sync.Mutex
	state  statetree.Ref
	joined map[matrix.ServerName]int // replaced, never changed: callers read it unlocked
}

const countedRooms = 2000

func newServerCounts() *serverCounts {
	return &serverCounts{recent.NewMap[storage.RoomNID, *roomServers](countedRooms)}
}

// at counts the joined users by server in a state of a room. Do not change the result.
func (c *serverCounts) at(ctx context.Context, e *Engine, room storage.RoomNID, state statetree.Tree) (map[matrix.ServerName]int, error) {
	known := c.rooms.GetOrPut(room, func() *roomServers { return &roomServers{} })
	known.mu.Lock()
	defer known.mu.Unlock()
	if known.joined != nil && known.state == state.Ref() {
		return known.joined, nil
	}
	changes, err := statetree.Diff(ctx, e.forest.At(known.state), state)
	if err != nil {
		return nil, err
	}
	memberType, err := e.db.Intern(ctx, "m.room.member")
	if err != nil {
		return nil, err
	}
	joined := maps.Clone(known.joined)
	if joined == nil {
		joined = make(map[matrix.ServerName]int)
	}
	// The first count of a big room reads all its members: a piece at a time.
	const piece = 500
	var gone, come []storage.EventNID
	count := func() error {
		for nids, by := range map[*[]storage.EventNID]int{&gone: -1, &come: 1} {
			events, err := e.eventsByNID(ctx, *nids)
			if err != nil {
				return err
			}
			for _, ev := range events {
				key, _ := ev.StateKey()
				s := domain(key)
				if ev.Membership() != "join" || s == "" {
					continue
				}
				if joined[s] += by; joined[s] == 0 {
					delete(joined, s)
				}
			}
		}
		gone, come = gone[:0], come[:0]
		return nil
	}
	for _, ch := range changes {
		if ch.Type != int64(memberType[0]) {
			continue
		}
		if ch.Events[0] != 0 {
			gone = append(gone, storage.EventNID(ch.Events[0]))
		}
		if ch.Events[1] != 0 {
			come = append(come, storage.EventNID(ch.Events[1]))
		}
		if len(gone)+len(come) >= piece {
			if err := count(); err != nil {
				return nil, err
			}
		}
	}
	if err := count(); err != nil {
		return nil, err
	}
	known.state, known.joined = state.Ref(), joined
	return joined, nil
}

// inTurn puts servers into the order in which this server asks them about a room. Each server has an order of its own, so that not
// all ask the same ones first; it is the same each time, so that what happens can be repeated.
func (e *Engine) inTurn(room matrix.RoomID, servers []matrix.ServerName) {
	matrix.SortInTurn(servers, string(e.server), string(room))
}

// sortedLast returns servers with some of them behind the others, else in the order that they had.
func sortedLast(servers []matrix.ServerName, last func(matrix.ServerName) bool) []matrix.ServerName {
	behind := make(map[matrix.ServerName]bool)
	for _, s := range servers {
		if last(s) {
			behind[s] = true
		}
	}
	out := slices.Clone(servers)
	slices.SortStableFunc(out, func(a, b matrix.ServerName) int {
		switch {
		case behind[a] == behind[b]:
			return 0
		case behind[b]:
			return -1
		}
		return 1
	})
	return out
}
