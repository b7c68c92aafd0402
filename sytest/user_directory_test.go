package sytest

import (
	"slices"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

// finds waits until a search has just these results.
func finds(t *testing.T, c *homeserver.Client, term string, want ...string) {
	t.Helper()
	var got []string
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		got = nil
		for _, u := range homeserver.Events(c.Must("POST", "/v3/user_directory/search", json{"search_term": term}), "results") {
			got = append(got, u["user_id"].(string))
		}
		slices.Sort(got)
		if slices.Equal(got, want) {
			return
		}
	}
	t.Fatalf("%s looks for %q and finds %q, want %q", c.UserID, term, got, want)
}

// Whom one may find follows rooms and their openness, names and other servers, also when it is all read from the database anew.
func TestUserDirectory(t *testing.T) {
	network := homeserver.NewNetwork(t)
	here, there := network.Start(homeserver.Options{}), network.Start(homeserver.Options{})
	alice, bob, zoe := here.Register(t, "alice"), here.Register(t, "bob"), there.Register(t, "zoe")
	zoe.Must("PUT", "/v3"+homeserver.Path("profile", zoe.UserID, "displayname"), json{"displayname": "Zoë Far"})
	finds(t, alice, "bob")
	room := alice.CreateRoom(json{"preset": "private_chat", "invite": []string{bob.UserID}})
	bob.Join(room)
	finds(t, alice, "bob", bob.UserID)
	bob.Must("PUT", "/v3"+homeserver.Path("profile", bob.UserID, "displayname"), json{"displayname": "Robert"})
	finds(t, alice, "rob", bob.UserID)

	alice.Invite(room, zoe.UserID)
	zoe.SyncUntilInvited(room)
	zoe.Join(room, here.Name)
	finds(t, alice, "zoe", zoe.UserID)
	finds(t, zoe, "robert", bob.UserID)
	finds(t, alice, "@zoe:"+there.Name, zoe.UserID)
	zoe.Must("POST", "/v3"+roomPath(room, "leave"), json{})
	finds(t, alice, "zoe")

	stranger := here.Register(t, "stranger")
	finds(t, stranger, "rob")
	open := bob.CreateRoom(json{"preset": "public_chat"})
	finds(t, stranger, "rob", bob.UserID)
	here.Kill()
	here.Start()
	finds(t, stranger, "rob", bob.UserID)
	zoe.Join(open, here.Name)
	finds(t, stranger, "zoe", zoe.UserID)
	bob.SetState(open, "m.room.join_rules", "", json{"join_rule": "invite"})
	finds(t, stranger, "rob")
	finds(t, stranger, "zoe")
	finds(t, alice, "rob", bob.UserID)

	// Of a room that all of this server have left it is not known who is in it.
	elsewhere := zoe.CreateRoom(json{"preset": "public_chat"})
	bob.Join(elsewhere, there.Name)
	finds(t, stranger, "zoe", zoe.UserID)
	bob.Must("POST", "/v3"+roomPath(elsewhere, "leave"), json{})
	finds(t, stranger, "zoe")
}
