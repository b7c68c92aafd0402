package stateres_test

import (
	"fmt"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/matrix/stateres"
)

// memory is a Source that has everything at hand.
type memory struct {
	numbers map[matrix.EventID]stateres.Ref
	events  map[stateres.Ref]*event.Event
	shared  map[matrix.StateKey]stateres.Ref // what all states agree on
}

func (m memory) Events(refs []stateres.Ref) ([]stateres.Entry, error) {
	entries := make([]stateres.Entry, len(refs))
	for i, ref := range refs {
		entries[i].Event = m.events[ref]
	}
	return entries, nil
}

func (m memory) AuthEvents(refs []stateres.Ref) ([][]stateres.Ref, error) {
	lists := make([][]stateres.Ref, len(refs))
	for i, ref := range refs {
		for _, id := range m.events[ref].AuthEvents() {
			lists[i] = append(lists[i], m.numbers[id])
		}
	}
	return lists, nil
}

func (m memory) Unconflicted(key matrix.StateKey) (stateres.Ref, error) { return m.shared[key], nil }

func (m memory) Shared(_ []stateres.Ref, yield func(stateres.Ref) bool) error {
	for _, ref := range m.shared {
		if !yield(ref) {
			break
		}
	}
	return nil
}

// Two servers set the topic at the same time. The states agree on all but that.
func Example() {
	v, _ := roomversion.Get("12")
	m := memory{make(map[matrix.EventID]stateres.Ref), make(map[stateres.Ref]*event.Event), make(map[matrix.StateKey]stateres.Ref)}
	const alice = "@alice:example.org"
	var room matrix.RoomID
	add := func(eventType, stateKey, content string, ts matrix.Timestamp, prev, auth []matrix.EventID) *event.Event {
		e, err := event.Build(v, event.Proto{
			RoomID: room, Sender: alice, Type: eventType, StateKey: &stateKey, Content: []byte(content),
			PrevEvents: prev, AuthEvents: auth, OriginServerTS: ts, Depth: int64(len(m.events)),
		}, "example.org")
		if err != nil {
			panic(err)
		}
		room = e.RoomID()
		m.numbers[e.ID()] = stateres.Ref(len(m.events) + 1)
		m.events[m.numbers[e.ID()]] = e
		return e
	}
	create := add("m.room.create", "", `{}`, 1, nil, nil)
	join := add("m.room.member", alice, `{"membership":"join"}`, 2, []matrix.EventID{create.ID()}, nil)
	m.shared[matrix.StateKey{Type: "m.room.create"}] = m.numbers[create.ID()]
	m.shared[matrix.StateKey{Type: "m.room.member", Key: alice}] = m.numbers[join.ID()]
	joined := []matrix.EventID{join.ID()}
	one := add("m.room.topic", "", `{"topic":"one"}`, 3, joined, joined)
	two := add("m.room.topic", "", `{"topic":"two"}`, 4, joined, joined)

	topic := matrix.StateKey{Type: "m.room.topic"}
	won, err := stateres.Resolve(v, []stateres.Conflict{
		{Key: topic, Values: []stateres.Ref{m.numbers[one.ID()], m.numbers[two.ID()]}},
	}, stateres.NewMemory(), m)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Printf("%s\n", m.events[won[topic]].Content())
	// Output: {"topic":"two"}
}
