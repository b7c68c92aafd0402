package appservice_test

import (
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/config"
	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
	"hanok/storage/storagetest"
)

// collect takes transactions until one ends with an event, and returns all events.
func (w *world) collect(last string) (all []string) {
	w.Helper()
	for len(all) == 0 || all[len(all)-1] != last {
		ids := w.next()
		if len(ids) > 100 {
			w.Errorf("%d events in a transaction", len(ids))
		}
		all = append(all, ids...)
	}
	return all
}

// What concerns the service does so as of when it happened, however late the service is told.
func TestInterest(t *testing.T) {
	for _, late := range []bool{false, true} {
		t.Run(map[bool]string{false: "at once", true: "late"}[late], func(t *testing.T) {
			w := newWorld(t, func(r *config.Appservice) { r.Aliases = []config.Namespace{pattern("#_x_")} })
			if late {
				w.stop()
			}
			var want []string
			yes := func(id string) { want = append(want, id) }
			room, quiet := w.create(rooms.CreateRequest{}), w.create(rooms.CreateRequest{})
			w.say(room, alice)
			yes(w.join(room, ghost))
			yes(w.say(room, alice))
			w.say(quiet, alice)
			yes(w.join(room, other))
			yes(w.leave(room, ghost))
			yes(w.say(room, alice)) // the other is still there
			yes(w.leave(room, other))
			w.say(room, alice)
			yes(w.join(room, "@_x:here.test")) // the service's own user
			yes(w.say(room, alice))
			yes(w.leave(room, "@_x:here.test"))
			w.say(room, alice)
			invite, err := w.rooms.Invite(w.Context(), rooms.MemberRequest{Room: quiet, Sender: alice, Target: ghost})
			w.must(err)
			yes(string(invite))
			w.say(quiet, alice) // to be invited is not to be there
			w.join(quiet, bob)
			if late {
				w.run()
			}
			// By alias from when there is one, which is no event: so only what comes afterwards is certain.
			yes(w.join(quiet, ghost))
			w.TB.Logf("%d events", len(want))
			if got := w.collect(want[len(want)-1]); cmp.Diff(want, got) != "" {
				t.Error(cmp.Diff(want, got))
			}
			const alias = matrix.RoomAlias("#_x_room:here.test")
			w.must(w.rooms.CreateAlias(w.Context(), alice, alias, room, false))
			said := w.say(room, alice)
			if d := cmp.Diff([]string{said}, w.collect(said)); d != "" {
				t.Error(d)
			}
			w.must(w.rooms.DeleteAlias(w.Context(), alice, alias, false))
			w.say(room, alice)
			said = w.say(quiet, bob)
			if d := cmp.Diff([]string{said}, w.collect(said)); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestRoomNamespace(t *testing.T) {
	w := newWorld(t, func(r *config.Appservice) { r.Rooms, r.Users = []config.Namespace{pattern("!")}, nil })
	room := w.create(rooms.CreateRequest{})
	said := w.say(room, alice)
	if got := w.collect(said); len(got) < 6 { // those that make the room are of interest, too
		t.Errorf("%d events", len(got))
	}
}

// A service that was away gets everything in order and in full transactions; what it has taken does not come again after a restart.
func TestCatchUp(t *testing.T) {
	storagetest.Each(t, catchUp)
}

func catchUp(t *testing.T, db *storage.DB) {
	w := newWorldOn(t, db, nil)
	room, quiet := w.create(rooms.CreateRequest{}), w.create(rooms.CreateRequest{})
	want := []string{w.join(room, ghost)}
	w.collect(want[0])
	w.settled()
	w.stop()
	want = nil
	for range 250 {
		want = append(want, w.say(room, alice))
		w.say(quiet, alice)
	}
	w.run()
	var got []string
	var sizes []int
	for len(got) < len(want) {
		ids := w.next()
		sizes = append(sizes, len(ids))
		got = append(got, ids...)
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	if d := cmp.Diff([]int{100, 100, 50}, sizes); d != "" {
		t.Error(d)
	}
	w.settled()
	w.stop()
	w.run()
	said := w.say(room, alice)
	if d := cmp.Diff([]string{said}, w.collect(said)); d != "" {
		t.Error(d)
	}
}

// What was not answered for comes again byte for byte, after a restart too.
func TestRepeatedUnchanged(t *testing.T) {
	w := newWorld(t, nil)
	room := w.create(rooms.CreateRequest{})
	w.collect(w.join(room, ghost))
	w.settled()
	w.stop()
	said := w.say(room, alice)
	_, err := w.rooms.Redact(t.Context(), rooms.SendRequest{Room: room, Sender: alice, Redacts: matrix.EventID(said)}, "spam")
	w.must(err)
	w.leave(room, ghost) // with what was before in unsigned
	bodies := make(chan string, 100)
	w.answering(500, func(rw http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		w.must(err)
		bodies <- r.URL.Path + " " + string(body)
		rw.WriteHeader(http.StatusInternalServerError)
	})
	w.run()
	first := <-bodies
	w.stop()
	w.run()
	if again := <-bodies; again != first {
		t.Errorf("%s\n%s", first, again)
	}
	for _, part := range []string{said, "redacted_because", "prev_content", `"age":`, `"room_id":"` + string(room)} {
		if !strings.Contains(first, part) {
			t.Errorf("%q is missing from %s", part, first)
		}
	}
}

// A service that knows only the paths from before there were versions gets everything there.
func TestLegacyPaths(t *testing.T) {
	w := newWorld(t, nil)
	w.answering(200, func(rw http.ResponseWriter, r *http.Request) {
		if !strings.HasPrefix(r.URL.Path, "/transactions/") && r.URL.Path != "/users/"+string(ghost) {
			http.NotFound(rw, r)
			return
		}
		if body, err := io.ReadAll(r.Body); err == nil && len(body) > 0 {
			w.take(body)
		}
	})
	w.must(w.services.MakeUser(t.Context(), ghost))
	room := w.create(rooms.CreateRequest{})
	joined := w.join(room, ghost)
	if d := cmp.Diff([]string{joined}, w.collect(joined)); d != "" {
		t.Error(d)
	}
}

// A service that says no is not asked again; one that fails is, and who waits is told.
func TestQueries(t *testing.T) {
	w := newWorld(t, nil)
	asked := func() (n int) {
		w.mu.Lock()
		defer w.mu.Unlock()
		n, w.paths = len(w.paths), nil
		return n
	}
	w.must(w.services.MakeUser(t.Context(), ghost))
	if n := asked(); n != 1 {
		t.Errorf("asked %d times", n)
	}
	w.must(w.services.MakeUser(t.Context(), alice))
	w.must(w.services.MakeUser(t.Context(), "@_x_ghost:elsewhere.test"))
	w.must(w.services.MakeUser(t.Context(), "@_x:here.test"))
	w.must(w.services.MakeAlias(t.Context(), "#_x_room:here.test"))
	if n := asked(); n != 0 {
		t.Errorf("asked %d times about what is not the service's", n)
	}
	w.answering(503, nil)
	if err := w.services.MakeUser(t.Context(), ghost); !matrix.HasCode(err, "M_UNKNOWN") {
		t.Errorf("a service that fails: %v", err)
	}
	if n := asked(); n != 3 {
		t.Errorf("asked %d times", n)
	}
}
