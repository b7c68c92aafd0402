package rooms

import (
	"encoding/json"
	"testing"

	"hanok/matrix"
)

// FuzzHierarchy reads what another server says about a space: whatever it is, what is kept of it is in order.
func FuzzHierarchy(f *testing.F) {
	f.Add([]byte(`{"room_id":"!s:x","room_type":"m.space","children_state":[{"type":"m.space.child","state_key":"!a:x","content":{"via":["x"],"order":"a"},"origin_server_ts":1,"sender":"@u:x"}]}`))
	f.Add([]byte(`{"room_id":"!s:x","room_type":"m.space","allowed_room_ids":["!r:x"],"children_state":[null,{},[],{"type":"m.space.child","state_key":"!a:x","content":{"via":[null,"","x"]}}]}`))
	f.Fuzz(func(t *testing.T, answer []byte) {
		var h HierarchyRoom
		if json.Unmarshal(answer, &h) != nil {
			return
		}
		if h.checked("!another:x") != nil && h.RoomID != "!another:x" {
			t.Error("it is about another room")
		}
		out := h.checked(h.RoomID)
		if len(out.children) != len(out.ChildrenState) || len(out.children) > maxChildren {
			t.Errorf("%d children, %d events", len(out.children), len(out.ChildrenState))
		}
		for i, c := range out.children {
			if _, err := matrix.ParseRoomID(string(c.room)); err != nil || len(c.via) == 0 || len(c.via) > maxVia || !json.Valid(c.stripped) {
				t.Errorf("%+v", c)
			}
			if i > 0 && compareChildren(out.children[i-1], c) > 0 {
				t.Error("out of order")
			}
		}
	})
}
