package users

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/storage"
)

// changed asks who changed since a position, for alice who shares rooms with carol and bob.
func (w *world) changed(t *testing.T, observer matrix.UserID, from storage.Position) []matrix.UserID {
	t.Helper()
	barrier(w.db)
	sharing := mustGet[[]matrix.UserID](t)(w.rooms.Sharing(t.Context(), observer))
	shares := func(u matrix.UserID) bool { return slices.Contains(sharing, u) }
	out := mustGet[[]matrix.UserID](t)(w.DeviceLists.Changed(t.Context(), w.db, observer, shares, from, w.db.Current()))
	slices.Sort(out)
	return out
}

func TestReceiveDeviceListUpdates(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice, bob := w.register(t, "alice"), w.register(t, "bob")
		w.rooms.join("!r:here.test", alice, carol)
		w.rooms.join("!other:here.test", bob)
		receive := func(content []byte) {
			t.Helper()
			must(t, w.DeviceLists.ReceiveUpdate(ctx, "there.test", content))
		}
		w.remote.lists[carol] = remoteList(t, carol, 5, "C1")

		// Before anybody asked for it, an update makes the list be fetched; then it is told of.
		w.settle()
		from := w.db.Current()
		receive(deviceUpdate(t, "C0", 4, 3))
		if got := w.changed(t, alice, from); len(got) != 0 {
			t.Errorf("before the list is fetched: %v", got)
		}
		w.follow(t)
		if diff := cmp.Diff([]matrix.UserID{carol}, w.changed(t, alice, from)); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]matrix.UserID{alice}, w.notifier.takeUsers()); diff != "" {
			t.Error(diff)
		}
		if len(w.changed(t, bob, from)) != 0 {
			t.Error("bob, who shares no room, is told")
		}

		// An update that follows is applied, without asking.
		fetched := w.remote.fetches
		from = w.db.Current()
		receive(deviceUpdate(t, "C2", 6, 5))
		receive(encode(deviceListUpdate{UserID: carol, DeviceID: "C1", StreamID: 7, PrevID: []int64{6}, Deleted: true}))
		if diff := cmp.Diff([]string{"C2"}, w.carolsDevices(t, alice)); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]matrix.UserID{carol}, w.changed(t, alice, from)); diff != "" {
			t.Error(diff)
		}
		// The same again is nothing new, nor is an update that changes nothing.
		from = w.db.Current()
		receive(deviceUpdate(t, "C2", 6, 5))
		receive(deviceUpdate(t, "C2", 8, 7))
		if len(w.changed(t, alice, from)) != 0 {
			t.Error("a repeated update counts as a change")
		}
		if w.remote.fetches != fetched {
			t.Error("fetched without a gap")
		}
		// Unless it contradicts what is known.
		w.remote.lists[carol] = remoteList(t, carol, 8)
		receive(encode(deviceListUpdate{UserID: carol, DeviceID: "C2", StreamID: 6, PrevID: []int64{5}, Deleted: true}))
		if got := w.carolsDevices(t, alice); len(got) != 0 {
			t.Errorf("a device that was removed with a number known before: %v", got)
		}
		w.follow(t)
		if diff := cmp.Diff([]matrix.UserID{carol}, w.changed(t, alice, from)); diff != "" {
			t.Error(diff)
		}
		from = w.db.Current()

		// After a gap the list is fetched, at the latest when a client asks for it.
		w.remote.lists[carol] = remoteList(t, carol, 10, "C3")
		receive(deviceUpdate(t, "C9", 10, 9))
		if diff := cmp.Diff([]matrix.UserID{carol}, w.changed(t, alice, from)); diff != "" {
			t.Error(diff)
		}
		from = w.db.Current()
		for range 2 {
			if diff := cmp.Diff([]string{"C3"}, w.carolsDevices(t, alice)); diff != "" {
				t.Error(diff)
			}
			w.follow(t)
		}
		if diff := cmp.Diff([]matrix.UserID{carol}, w.changed(t, alice, from)); diff != "" {
			t.Errorf("after the list was fetched: %s", diff)
		}
		// The chain goes on from the fetched list.
		fetched = w.remote.fetches
		receive(deviceUpdate(t, "C4", 11, 10))
		if diff := cmp.Diff([]string{"C3", "C4"}, w.carolsDevices(t, alice)); diff != "" || w.remote.fetches != fetched {
			t.Errorf("%s (%d fetches)", diff, w.remote.fetches-fetched)
		}

		// What is malformed or forged has no effect.
		from = w.db.Current()
		for _, bad := range []string{
			`{}`, `[]`, `{`, `{"user_id":1}`, `{"user_id":"@carol:there.test","device_id":"","stream_id":12}`,
			`{"user_id":"@alice:here.test","device_id":"X","stream_id":12,"prev_id":[11]}`,
			`{"user_id":"@carol:there.test","device_id":"X\u0000","stream_id":12,"prev_id":[11]}`,
			`{"user_id":"@carol:there.test","device_id":"X","stream_id":"12","prev_id":[11]}`,
			`{"user_id":"@carol:there.test","device_id":"X","stream_id":12,"prev_id":[11],"keys":{"user_id":"@alice:here.test","device_id":"X"}}`,
			`{"user_id":"@carol:there.test","device_id":"X","stream_id":12,"prev_id":[11],"keys":[]}`,
			`{"user_id":"@carol:there.test","device_id":"X","stream_id":12,"stream_id":13,"prev_id":[11]}`,
		} {
			receive([]byte(bad))
		}
		must(t, w.DeviceLists.ReceiveUpdate(ctx, "evil.test", deviceUpdate(t, "EVIL", 12, 11)))
		if diff := cmp.Diff([]string{"C3", "C4"}, w.carolsDevices(t, alice)); diff != "" {
			t.Error(diff)
		}
		if got := w.changed(t, alice, from); len(got) != 0 {
			t.Errorf("malformed updates changed %v", got)
		}

		// One that does not follow on the newest is of a server that has lost what came between, and more perhaps.
		w.remote.lists[carol] = remoteList(t, carol, 20, "C3", "C5")
		receive(deviceUpdate(t, "C5", 20, 10))
		if diff := cmp.Diff([]string{"C3", "C5"}, w.carolsDevices(t, alice)); diff != "" {
			t.Error(diff)
		}
	})
}

// A server that is down is asked again later and later; an update of its user makes it soon again.
func TestResyncBackOff(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.registerWithCarol(t)
		w.remote.lists[carol] = remoteList(t, carol, 1, "C1")
		w.remote.down = true
		must(t, w.DeviceLists.ReceiveUpdate(ctx, "there.test", deviceUpdate(t, "C0", 0)))
		for _, wait := range []time.Duration{30 * time.Second, time.Minute, 2 * time.Minute} {
			before := w.remote.fetches
			w.follow(t)
			w.follow(t)
			w.carolsDevices(t, alice)
			if n := w.remote.fetches - before; n != 1 {
				t.Fatalf("fetched %d times", n)
			}
			w.clock.advance(wait - time.Second)
			w.follow(t)
			if n := w.remote.fetches - before; n != 1 {
				t.Fatalf("fetched again before %v", wait)
			}
			w.clock.advance(time.Second)
		}
		w.follow(t)
		before := w.remote.fetches
		must(t, w.DeviceLists.ReceiveUpdate(ctx, "there.test", deviceUpdate(t, "C2", 2, 1)))
		w.remote.down = false
		w.clock.advance(refetchAfter)
		w.follow(t)
		if w.remote.fetches != before+1 {
			t.Error("not fetched after an update")
		}
		w.remote.down = true
		if diff := cmp.Diff([]string{"C1"}, w.carolsDevices(t, alice)); diff != "" {
			t.Error(diff)
		}
	})
}

// An update that comes in while the list is fetched is not lost.
func TestUpdateDuringResync(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.registerWithCarol(t)
		w.remote.lists[carol] = remoteList(t, carol, 1, "OLD")
		w.remote.during = func(matrix.UserID) {
			// The fetch below answers with the list from before this.
			must(t, w.DeviceLists.ReceiveUpdate(ctx, "there.test", deviceUpdate(t, "NEW", 2, 1)))
			w.remote.mu.Lock()
			w.remote.lists[carol] = remoteList(t, carol, 2, "OLD", "NEW")
			w.remote.mu.Unlock()
		}
		if diff := cmp.Diff([]string{"NEW", "OLD"}, w.carolsDevices(t, alice)); diff != "" {
			t.Error(diff)
		}
		w.clock.advance(refetchAfter)
		w.follow(t)
		if w.remote.fetches != 2 {
			t.Errorf("fetched %d times", w.remote.fetches)
		}
		w.remote.down = true
		if diff := cmp.Diff([]string{"NEW", "OLD"}, w.carolsDevices(t, alice)); diff != "" {
			t.Error(diff)
		}
	})
}

// A query does not ask for a list that the background is fetching, but waits for it.
func TestQueryDuringFetch(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		alice := w.registerWithCarol(t)
		w.remote.lists[carol] = remoteList(t, carol, 1, "C1")
		must(t, w.DeviceLists.ReceiveUpdate(t.Context(), "there.test", deviceUpdate(t, "C0", 0)))
		asked := make(chan []string)
		w.remote.during = func(matrix.UserID) {
			go func() { asked <- w.carolsDevices(t, alice) }()
			eventually(t, "the query asks for the list", func() bool { return w.DeviceLists.fetches.Waiting(carol) == 1 })
		}
		w.follow(t)
		if diff := cmp.Diff([]string{"C1"}, <-asked); diff != "" {
			t.Error(diff)
		}
		if w.remote.fetches != 1 || w.remote.queries["there.test"] != 0 {
			t.Errorf("the list was fetched %d times, keys queried %d times", w.remote.fetches, w.remote.queries["there.test"])
		}
	})
}

// A server that does not answer holds up the lists of its own users only.
func TestFetchGoesByServer(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		alice := w.register(t, "alice")
		silent := make(chan struct{})
		w.remote.answer = func(user matrix.UserID) {
			if user.Server() == "silent.test" {
				<-silent
			}
		}
		for i := range 3 * fetchBatch {
			user := matrix.UserID(fmt.Sprintf("@u%d:silent.test", i))
			w.rooms.join("!r:here.test", alice, user)
			must(t, w.DeviceLists.track(t.Context(), []matrix.UserID{user}, w.DeviceLists.now()))
		}
		w.clock.advance(time.Second)
		w.rooms.join("!r:here.test", carol)
		w.remote.lists[carol] = remoteList(t, carol, 1, "C1")
		must(t, w.DeviceLists.ReceiveUpdate(t.Context(), "there.test", deviceUpdate(t, "C0", 0)))
		work := newFetchWork(w.DeviceLists)
		mustGet[time.Duration](t)(work.dispatch(t.Context()))
		eventually(t, "the other server's list is fetched", func() bool {
			lists := mustGet[[]storage.RemoteDeviceList](t)(storage.ListRemoteDeviceLists(t.Context(), w.db, []matrix.UserID{carol}))
			return !lists[0].Stale
		})
		close(silent)
		work.group.Wait()
		// None of the four that were asked for came, so the others were not asked for.
		if n := w.remote.fetches; n != fetchPerServer+1 {
			t.Errorf("%d lists were asked for", n)
		}
		if due := mustGet[[]storage.RemoteDeviceList](t)(storage.StaleDeviceLists(t.Context(), w.db, w.DeviceLists.now(), fetchBatch)); len(due) != 0 {
			t.Errorf("%d lists are due at once", len(due))
		}
	})
}

func TestUntrack(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.registerWithCarol(t)
		w.remote.lists[carol] = remoteList(t, carol, 1, "C1")
		track := func() {
			w.carolsDevices(t, alice)
			w.follow(t)
		}
		tracked := func() bool {
			return len(mustGet[[]storage.RemoteDeviceList](t)(storage.ListRemoteDeviceLists(ctx, w.db, []matrix.UserID{carol}))) == 1
		}
		track()
		must(t, w.DeviceLists.userParted(ctx, carol, false))
		if !tracked() {
			t.Fatal("forgot the list of a user in a shared room")
		}
		w.rooms.leave("!r:here.test", carol)
		must(t, w.DeviceLists.userParted(ctx, carol, false))
		if tracked() {
			t.Fatal("kept the list of a user who left")
		}
		// Nobody here is left in the room: asked for or not, the list is not used any more.
		w.rooms.join("!r:here.test", carol)
		track()
		w.rooms.leave("!r:here.test", alice)
		w.remote.lists[carol] = remoteList(t, carol, 2, "C2")
		if diff := cmp.Diff([]string{"C2"}, w.carolsDevices(t, alice)); diff != "" {
			t.Error(diff)
		}
		must(t, w.DeviceLists.untrackRoom(ctx, "!r:here.test"))
		if tracked() {
			t.Fatal("kept the list of a user of a room that nobody here is in")
		}
		w.rooms.join("!r:here.test", alice)
		w.rooms.leave("!r:here.test", carol)
		// After a crash between leaving and forgetting, the next start forgets.
		w.rooms.join("!r:here.test", carol)
		track()
		w.rooms.leave("!r:here.test", carol)
		must(t, w.DeviceLists.untrackParted(ctx))
		if tracked() {
			t.Fatal("kept the list of a user who left before the start")
		}
		must(t, w.DeviceLists.Untrack(ctx, alice))
	})
}

// Who leaves the last shared room while their list is being fetched is not followed any more: what comes is not kept, or a device that was removed
// later would pass for one of theirs when they come back.
func TestUntrackWhileFetching(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		w.remote.lists[carol] = remoteList(t, carol, 1, "C1")
		for what, meanwhile := range map[string]func(){
			"left": func() {},
			"left and came back": func() {
				w.rooms.join("!r:here.test", carol)
				must(t, w.DeviceLists.ReceiveUpdate(ctx, "there.test", deviceUpdate(t, "C2", 2, 1)))
			},
		} {
			w.rooms.join("!r:here.test", alice, carol)
			must(t, w.DeviceLists.track(ctx, []matrix.UserID{carol}, w.DeviceLists.now()))
			w.remote.answer = func(matrix.UserID) {
				w.remote.answer = nil
				w.rooms.leave("!r:here.test", carol)
				must(t, w.DeviceLists.userParted(ctx, carol, false))
				meanwhile()
			}
			w.clock.advance(time.Minute)
			work := newFetchWork(w.DeviceLists)
			mustGet[time.Duration](t)(work.dispatch(ctx))
			work.group.Wait()
			for _, l := range mustGet[[]storage.RemoteDeviceList](t)(storage.ListRemoteDeviceLists(ctx, w.db, []matrix.UserID{carol})) {
				if !l.Stale {
					t.Errorf("%s: an old list passes for the present one", what)
				}
			}
			w.rooms.leave("!r:here.test", carol)
			must(t, w.DeviceLists.Untrack(ctx, carol))
		}
	})
}

// Run fetches lists and follows memberships by itself.
func TestRun(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		alice := w.register(t, "alice")
		w.login(t, alice, "A")
		_, err := w.Keys.Upload(t.Context(), alice, "A", KeysUpload{DeviceKeys: deviceKeys(t, alice, "A", newKeypair("a"))})
		must(t, err)
		w.rooms.join("!r:here.test", alice, carol)
		w.remote.lists[carol] = remoteList(t, carol, 1, "C1")
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.Service.Run(ctx) }()
		w.settle()
		w.carolsDevices(t, alice)
		eventually(t, "the list is fetched", func() bool {
			lists := mustGet[[]storage.RemoteDeviceList](t)(storage.ListRemoteDeviceLists(t.Context(), w.db, []matrix.UserID{carol}))
			return len(lists) == 1 && !lists[0].Stale
		})
		from := w.db.Current()
		w.DeviceLists.MembershipChanged(alice, "!r:here.test", true)
		var sent []sentEDU
		eventually(t, "the join is announced", func() bool { sent = w.outbox.take(); return len(sent) == 1 })
		var u deviceListUpdate
		must(t, json.Unmarshal(sent[0].Content, &u))
		if u.DeviceID != "A" || len(u.PrevID) != 1 || u.Deleted {
			t.Errorf("announced %+v", u)
		}
		if got := w.changed(t, alice, from); len(got) != 0 {
			t.Errorf("an announcement is a change for %v", got)
		}
		list := mustGet[*DeviceList](t)(w.DeviceLists.List(t.Context(), alice))
		if list.StreamID != u.StreamID {
			t.Errorf("list at %d, announced %d", list.StreamID, u.StreamID)
		}
		// Who was thought to be out of the room is told what it missed, and nobody else who comes.
		w.DeviceLists.MembershipChanged("@new:there.test", "!r:here.test", true)
		w.rooms.mu.Lock()
		w.rooms.unaware = []matrix.UserID{carol}
		w.rooms.mu.Unlock()
		w.DeviceLists.MembershipChanged(carol, "!r:here.test", true)
		eventually(t, "the server that is back is told", func() bool { sent = w.outbox.take(); return len(sent) == 1 })
		var again deviceListUpdate
		must(t, json.Unmarshal(sent[0].Content, &again))
		if again.UserID != alice || len(again.PrevID) != 1 || again.PrevID[0] <= u.StreamID || !slices.Equal(sent[0].To, []matrix.ServerName{"there.test"}) {
			t.Errorf("told %+v to %v", again, sent[0].To)
		}
		w.rooms.leave("!r:here.test", carol)
		w.DeviceLists.MembershipChanged(carol, "!r:here.test", false)
		eventually(t, "the list is forgotten", func() bool {
			return len(mustGet[[]storage.RemoteDeviceList](t)(storage.ListRemoteDeviceLists(t.Context(), w.db, []matrix.UserID{carol}))) == 0
		})
		cancel()
		must(t, <-done)
	})
}

// Joins in series are announced once, and not at all after an update that went to the same servers.
func TestJoinsAreAnnouncedTogether(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice, bob := w.register(t, "alice"), w.register(t, "bob")
		for _, u := range []matrix.UserID{alice, bob} {
			w.login(t, u, "A")
		}
		var waiting announcements
		join := func(user matrix.UserID, room matrix.RoomID) {
			t.Helper()
			w.rooms.join(room, user)
			must(t, w.DeviceLists.announceSoon(ctx, &waiting, user, room))
		}
		update := func(user matrix.UserID, name string) {
			t.Helper()
			_, err := w.Devices.Put(ctx, user, "A", &name, false)
			must(t, err)
		}
		announced := func(want ...matrix.UserID) {
			t.Helper()
			barrier(w.db)
			w.settle()
			for len(waiting.waiting) > 0 {
				must(t, w.DeviceLists.announce(ctx, waiting.next()))
			}
			barrier(w.db)
			var got []matrix.UserID
			for _, e := range w.outbox.take() {
				var u deviceListUpdate
				must(t, json.Unmarshal(e.Content, &u))
				got = append(got, u.UserID)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		}
		w.rooms.join("!r1:here.test", carol)
		w.rooms.join("!r2:here.test", carol, "@dave:elsewhere.test")
		join(alice, "!local:here.test")
		announced()
		join(alice, "!r1:here.test")
		join(bob, "!r1:here.test")
		join(alice, "!r2:here.test")
		announced(alice, bob)
		join(alice, "!r1:here.test")
		update(alice, "one")
		announced()
		// What was sent before the last join did not go to all.
		join(alice, "!r1:here.test")
		update(alice, "two")
		join(alice, "!r2:here.test")
		announced(alice)
		join(bob, "!r1:here.test")
		w.rooms.leave("!r1:here.test", bob)
		w.rooms.leave("!r1:here.test", bob)
		announced()
	})
}

// A join that was not announced when the server was killed is announced when it is there again, once.
func TestJoinsAreAnnouncedAfterDeath(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		alice := w.register(t, "alice")
		w.login(t, alice, "A")
		w.rooms.join("!r:here.test", alice, carol)
		must(t, w.db.Write(t.Context(), func(tx *storage.Tx) error {
			pos, err := tx.NextPosition()
			if err != nil {
				return err
			}
			return storage.PutUnannouncedJoins(t.Context(), tx, []storage.UnannouncedJoin{{UserID: alice, Pos: pos}})
		}))
		w.outbox.take()
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- w.Service.Run(ctx) }()
		var sent []sentEDU
		eventually(t, "the join is announced", func() bool { sent = w.outbox.take(); return len(sent) > 0 })
		cancel()
		must(t, <-done)
		if len(sent) != 1 || !slices.Equal(sent[0].To, []matrix.ServerName{"there.test"}) {
			t.Errorf("announced %+v", sent)
		}
		barrier(w.db)
		if left := mustGet[[]storage.UnannouncedJoin](t)(storage.ListUnannouncedJoins(t.Context(), w.db, "", 10)); len(left) != 0 {
			t.Errorf("still to be announced: %v", left)
		}
	})
}

// A server that comes into a room is told of changes that it may not have been told of while it thought so.
func TestChangesMissedByNewServer(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		const room = "!r:here.test"
		alice, bob := w.register(t, "alice"), w.register(t, "bob")
		w.rooms.join(room, alice, bob, carol)
		w.login(t, bob, "B")
		_, err := w.Keys.Upload(ctx, bob, "B", KeysUpload{DeviceKeys: deviceKeys(t, bob, "B", newKeypair("b"))})
		must(t, err)
		w.clock.advance(3 * time.Hour)
		w.login(t, alice, "A")
		_, err = w.Keys.Upload(ctx, alice, "A", KeysUpload{DeviceKeys: deviceKeys(t, alice, "A", newKeypair("a"))})
		must(t, err)
		dan := w.register(t, "dan") // has no keys that anybody could miss
		w.rooms.join(room, dan)
		w.login(t, dan, "D")
		before := mustGet[*DeviceList](t)(w.DeviceLists.List(ctx, alice)).StreamID
		w.settle()
		w.outbox.take()
		told := func(what string, want ...matrix.UserID) {
			t.Helper()
			must(t, w.DeviceLists.tellReturned(ctx, carol, room))
			barrier(w.db)
			var got []matrix.UserID
			for _, e := range w.outbox.take() {
				var u deviceListUpdate
				must(t, json.Unmarshal(e.Content, &u))
				got = append(got, u.UserID)
				if len(u.PrevID) != 1 || u.PrevID[0] <= before || u.StreamID <= u.PrevID[0] || !slices.Equal(e.To, []matrix.ServerName{"there.test"}) {
					t.Errorf("%s: %+v to %s shows no gap", what, u, e.To)
				}
			}
			slices.Sort(got)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%s: %s", what, diff)
			}
		}
		now := w.DeviceLists.now()
		told("no new server")
		w.rooms.newcomers = map[matrix.UserID]matrix.Timestamp{carol: now}
		told("a device was added just before", alice)
		w.rooms.newcomers[carol] = now - matrix.Span(3*time.Hour)
		told("the join was made long ago", alice, bob)
		w.clock.advance(2 * time.Hour)
		told("it took long until the join was known", alice, bob)
		w.rooms.newcomers[carol] = now + matrix.Span(100*time.Hour)
		told("the join is said to be made in the future, and the change is old")
		w.clock.advance(-2 * time.Hour)
		told("the join is said to be made in the future", alice)
		w.rooms.since = map[matrix.UserID]storage.Position{alice: 1}
		told("the change was told, another room is shared")
		w.rooms.since[alice] = w.db.Current()
		told("another room is shared that was not at the time", alice)

		// The others were told nothing, so the next update does not follow on it.
		name := "new name"
		_, err = w.Devices.Put(ctx, alice, "A", &name, false)
		must(t, err)
		barrier(w.db)
		var u deviceListUpdate
		must(t, json.Unmarshal(w.outbox.take()[0].Content, &u))
		if !slices.Equal(u.PrevID, []int64{before}) {
			t.Errorf("the update after %d follows on %d", before, u.PrevID)
		}
	})
}

// Who leaves a room may not have shared the others with us at the time, as far as their server knew.
func TestChangesMissedWhileParted(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.registerWithCarol(t)
		w.remote.lists[carol] = remoteList(t, carol, 1, "C1")
		w.carolsDevices(t, alice)
		w.follow(t)
		list := func() storage.RemoteDeviceList {
			t.Helper()
			return mustGet[[]storage.RemoteDeviceList](t)(storage.ListRemoteDeviceLists(ctx, w.db, []matrix.UserID{carol}))[0]
		}
		parted := func(what string, left, shared time.Duration, start, want bool) {
			t.Helper()
			now := w.DeviceLists.now()
			w.rooms.partings = map[matrix.UserID][2]matrix.Timestamp{carol: {now + matrix.Span(left), now + matrix.Span(shared)}}
			must(t, w.DeviceLists.userParted(ctx, carol, start))
			if list().Stale != want {
				t.Errorf("%s: the list is stale: %v", what, !want)
			}
			w.clock.advance(time.Minute)
			w.follow(t)
		}
		w.clock.advance(time.Minute)
		fetches := w.remote.fetches
		parted("all is long shared", 0, -24*time.Hour, false, false)
		parted("shared since just before", 0, -time.Second, false, true)
		parted("shared for a while, said to be left before", -5*time.Hour, -2*time.Hour, false, true)
		parted("shared since just before, said to be left in the future", 100*time.Hour, -time.Second, false, true)
		if got := w.remote.fetches - fetches; got != 3 {
			t.Errorf("%d fetches", got)
		}
		parted("at the start, fetched long after it was left", -5*time.Hour, -2*time.Hour, true, false)
		parted("at the start, all is long shared", 0, -24*time.Hour, true, false)
		parted("at the start, left since it was fetched", 0, 0, true, true)
		w.rooms.partings = nil
		must(t, w.DeviceLists.userParted(ctx, carol, false))
		if list().Stale {
			t.Error("nothing is known of a leave, and the list is stale")
		}

		// A list that is being fetched may be too old, too.
		w.remote.lists[carol] = remoteList(t, carol, 2, "C2")
		now := w.DeviceLists.now()
		w.rooms.partings = map[matrix.UserID][2]matrix.Timestamp{carol: {now, now}}
		must(t, w.DeviceLists.userParted(ctx, carol, false))
		w.remote.answer = func(matrix.UserID) {
			w.remote.answer = nil
			must(t, w.DeviceLists.userParted(ctx, carol, false))
		}
		w.clock.advance(time.Minute)
		work := newFetchWork(w.DeviceLists)
		mustGet[time.Duration](t)(work.dispatch(ctx))
		work.group.Wait()
		if !list().Stale {
			t.Error("what was fetched before the leave was known passes for the present list")
		}
	})
}

// eventually waits for background work of another goroutine that gives no sign when it is done.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain: %s", what)
		}
	}
}

// The updates that we send form a chain that other servers can follow.
func TestSentUpdatesFormAChain(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.registerWithCarol(t)
		w.login(t, alice, "A")
		w.login(t, alice, "B")
		_, err := w.Keys.Upload(ctx, alice, "A", KeysUpload{DeviceKeys: deviceKeys(t, alice, "A", newKeypair("a"))})
		must(t, err)
		must(t, w.Sessions.LogoutAll(ctx, alice))
		var prev int64
		deleted := 0
		for i, e := range w.outbox.take() {
			var u deviceListUpdate
			must(t, json.Unmarshal(e.Content, &u))
			if i > 0 && (len(u.PrevID) != 1 || u.PrevID[0] != prev) || u.StreamID <= prev {
				t.Errorf("update %d has stream_id %d, prev_id %v after %d", i, u.StreamID, u.PrevID, prev)
			}
			if u.Deleted {
				deleted++
			}
			prev = u.StreamID
		}
		if deleted != 2 {
			t.Errorf("%d devices reported as deleted", deleted)
		}
		list := mustGet[*DeviceList](t)(w.DeviceLists.List(ctx, alice))
		if list.StreamID != prev || len(list.Devices) != 0 || list.Devices == nil {
			t.Errorf("list %+v after %d", list, prev)
		}
		_, err = w.DeviceLists.List(ctx, "@nobody:here.test")
		wantCode(t, err, 404, "M_NOT_FOUND")
	})
}

// While the members of a room are unknown, changes of device lists are kept for when they are known.
func TestRoomCompleted(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		w.login(t, alice, "A")
		w.rooms.join("!r:here.test", alice)
		w.rooms.partial = []matrix.ServerName{"there.test"}
		w.settle()
		since := w.db.Current()
		// Carol may be in the room; who is of a server that was not in it is not.
		must(t, w.DeviceLists.ReceiveUpdate(ctx, "there.test", deviceUpdate(t, "C1", 2, 1)))
		stranger := encode(deviceListUpdate{UserID: "@eve:elsewhere.test", DeviceID: "E", StreamID: 1})
		must(t, w.DeviceLists.ReceiveUpdate(ctx, "elsewhere.test", stranger))
		if got := w.changed(t, alice, since); len(got) != 0 {
			t.Errorf("told of %v", got)
		}
		w.notifier.takeUsers()
		w.outbox.take()
		name := "new name"
		_, err := w.Devices.Put(ctx, alice, "A", &name, false)
		must(t, err)
		sent := w.outbox.take()
		if len(sent) != 1 || !slices.Equal(sent[0].To, []matrix.ServerName{"there.test"}) {
			t.Errorf("sent %v", sent)
		}
		// Now the members are known, and that late.test had been in the room.
		w.settle()
		from := w.db.Current()
		w.rooms.partial = nil
		w.rooms.join("!r:here.test", carol, "@eve:elsewhere.test")
		must(t, w.db.Write(ctx, func(tx *storage.Tx) error {
			return w.DeviceLists.RoomCompleted(ctx, tx, RoomCompletion{
				Since: since, Local: []matrix.UserID{alice}, Learned: []matrix.UserID{carol, "@eve:elsewhere.test"}, Servers: []matrix.ServerName{"late.test"},
			})
		}))
		if diff := cmp.Diff([]matrix.UserID{carol}, w.changed(t, alice, from)); diff != "" {
			t.Error(diff)
		}
		if !slices.Contains(w.notifier.takeUsers(), alice) {
			t.Error("alice is not woken")
		}
		sent = w.outbox.take()
		if len(sent) != 1 || !slices.Contains(sent[0].To, "late.test") {
			t.Fatalf("sent %v", sent)
		}
		var u deviceListUpdate
		must(t, json.Unmarshal(sent[0].Content, &u))
		if u.DeviceID != "A" || u.DisplayName != "new name" || len(u.PrevID) != 1 {
			t.Errorf("sent %+v", u)
		}
		// Where nothing changed nobody is told anything.
		w.settle()
		from = w.db.Current()
		must(t, w.db.Write(ctx, func(tx *storage.Tx) error {
			return w.DeviceLists.RoomCompleted(ctx, tx, RoomCompletion{Since: from, Local: []matrix.UserID{alice}, Learned: []matrix.UserID{carol}, Servers: []matrix.ServerName{"late.test"}})
		}))
		if len(w.outbox.take()) != 0 || len(w.changed(t, alice, from)) != 0 {
			t.Error("told of changes from before")
		}
		// A list that was kept while its user was not in the room after all is fetched anew.
		kept := storage.RemoteDeviceList{UserID: carol, Seen: encode([]int64{2}), RetryAt: w.DeviceLists.now()}
		must(t, w.db.Write(ctx, func(tx *storage.Tx) error { return storage.PutRemoteDeviceList(ctx, tx, kept) }))
		w.settle()
		from = w.db.Current()
		must(t, w.db.Write(ctx, func(tx *storage.Tx) error {
			return w.DeviceLists.RoomCompleted(ctx, tx, RoomCompletion{Since: from, Local: []matrix.UserID{alice}, Misled: []matrix.UserID{carol, "@eve:elsewhere.test"}})
		}))
		if diff := cmp.Diff([]matrix.UserID{carol}, w.changed(t, alice, from)); diff != "" {
			t.Error(diff)
		}
		lists, err := storage.ListRemoteDeviceLists(ctx, w.db, []matrix.UserID{carol})
		if err != nil || len(lists) != 1 || !lists[0].Stale {
			t.Errorf("kept %+v, %v", lists, err)
		}
	})
}
