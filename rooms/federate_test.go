package rooms_test

import (
	"context"
	"encoding/json"
	"testing"

	"hanok/matrix"
	"hanok/rooms"
)

func TestUsersKeptToTheirServer(t *testing.T) {
	n := newNetwork(t)
	a, b := n.server("a.example"), n.server("b.example")
	kept := a.user("kept")
	a.stop()
	a.mayFederate = func(_ context.Context, u matrix.UserID) error {
		if u == kept {
			return matrix.Forbidden("This account is for rooms of its own server only")
		}
		return nil
	}
	a.start()
	alice, bob := a.user("alice"), b.user("bob")
	refused := func(what string, err error) {
		t.Helper()
		if !matrix.HasCode(err, "M_FORBIDDEN") {
			t.Errorf("%s: %v", what, err)
		}
	}
	open, elsewhere := a.create(alice, rooms.CreateRequest{Preset: "public_chat"}), b.create(bob, rooms.CreateRequest{Preset: "public_chat"})
	_, err := a.Join(ctx, rooms.MemberRequest{Room: open, Sender: kept})
	refused("joins a room of this server that federates", err)
	_, err = a.Join(ctx, rooms.MemberRequest{Room: elsewhere, Sender: kept, Via: []matrix.ServerName{"b.example"}})
	refused("joins a room of another server", err)
	_, err = a.Knock(ctx, rooms.MemberRequest{Room: elsewhere, Sender: kept, Via: []matrix.ServerName{"b.example"}})
	refused("knocks", err)
	_, err = a.Invite(ctx, rooms.MemberRequest{Room: open, Sender: alice, Target: kept})
	refused("is invited into a room that federates", err)
	_, err = b.Invite(ctx, rooms.MemberRequest{Room: elsewhere, Sender: bob, Target: kept})
	refused("is invited from elsewhere", err)
	_, err = a.CreateRoom(ctx, rooms.CreateRequest{Creator: kept, Content: json.RawMessage(`{"m.federate":true}`)})
	refused("makes a room that federates", err)

	own := a.create(kept, rooms.CreateRequest{Preset: "public_chat"})
	a.join(alice, own)
	if _, err := b.Join(ctx, rooms.MemberRequest{Room: own, Sender: bob, Via: []matrix.ServerName{"a.example"}}); err == nil {
		t.Error("bob of another server is in the room of somebody who is kept to this one")
	}
	internal := a.create(alice, rooms.CreateRequest{Content: json.RawMessage(`{"m.federate":false}`)})
	a.must(a.Invite(ctx, rooms.MemberRequest{Room: internal, Sender: alice, Target: kept}))
	a.join(kept, internal)
}

func TestRoomsThatAreLocalByDefault(t *testing.T) {
	n := newNetwork(t)
	a, b := n.server("a.example"), n.server("b.example")
	a.stop()
	a.localByDefault = true
	a.start()
	enter := func(content string) error {
		room := a.create(a.user("alice"), rooms.CreateRequest{Preset: "public_chat", Content: json.RawMessage(content)})
		_, err := b.Join(ctx, rooms.MemberRequest{Room: room, Sender: b.user("bob"), Via: []matrix.ServerName{"a.example"}})
		return err
	}
	if err := enter(`{}`); err == nil {
		t.Error("a room is open to other servers although nobody said so")
	}
	if err := enter(`{"m.federate":true}`); err != nil {
		t.Errorf("a room whose creator wants it open: %v", err)
	}
}
