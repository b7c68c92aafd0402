package users

import (
	"flag"
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/storage"
	"hanok/storage/storagetest"
)

// joins puts users into a room, as far as the directory looks.
func (w *world) joins(t testing.TB, room storage.RoomNID, list ...matrix.UserID) {
	t.Helper()
	w.joinsAs(t, room, "", list...)
}

// joinsAs puts users into a room in which they have a name.
func (w *world) joinsAs(t testing.TB, room storage.RoomNID, name string, list ...matrix.UserID) {
	t.Helper()
	members, events := make([]storage.MembershipRow, len(list)), make([]*storage.EventRow, len(list))
	for i, user := range list {
		nids, err := w.db.Intern(t.Context(), string(user))
		if err != nil {
			t.Fatal(err)
		}
		nid := storage.EventNID(int64(room)<<32 + int64(nids[0]))
		members[i] = storage.MembershipRow{Room: room, User: nids[0], Membership: storage.MembershipJoin, Event: nid, Pos: 1}
		events[i] = &storage.EventRow{
			NID: nid, ID: matrix.EventID(fmt.Sprint("$", nid)), Room: room, Type: 1, StateKey: nids[0], Sender: nids[0], Depth: 1,
			JSON: encode(map[string]any{"content": map[string]any{"displayname": name, "membership": "join"}}),
		}
	}
	if err := w.db.Write(t.Context(), func(tx *storage.Tx) error {
		if err := storage.InsertEvents(t.Context(), tx, events); err != nil {
			return err
		}
		return storage.UpsertMemberships(t.Context(), tx, members)
	}); err != nil {
		t.Fatal(err)
	}
}

func TestDirectory(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		const alice, bob, carol, far = "@alice:here.test", "@bob:here.test", "@carol.smith:here.test", "@bobby:there.test"
		for _, name := range []string{"alice", "bob", "carol.smith", "gone", "hidden"} {
			w.register(t, name)
		}
		for user, name := range map[matrix.UserID]string{bob: "José Ünder_scored", carol: "한옥 100%"} {
			_, err := w.Profiles.Set(ctx, user, FieldDisplayName, encode(name))
			must(t, err)
		}
		_, err := w.Profiles.Set(ctx, bob, FieldAvatarURL, rawJSON(`"mxc://here.test/bob"`))
		must(t, err)
		nids, err := w.db.Intern(ctx, far)
		must(t, err)
		must(t, w.db.Write(ctx, func(tx *storage.Tx) error {
			if err := storage.PutDirectoryUser(ctx, tx, storage.DirectoryUser{NID: nids[0], Name: "Bobby Far"}, DirectoryWords(far, "Bobby Far")); err != nil {
				return err
			}
			return storage.SetOpenRoom(ctx, tx, 3, true)
		}))
		w.joins(t, 1, alice, bob, "@gone:here.test")
		w.joins(t, 2, alice)
		w.joinsAs(t, 2, "Bobby Far", far)
		w.joins(t, 3, carol)
		w.joins(t, 4, "@hidden:here.test", bob)
		must(t, w.Accounts.Deactivate(ctx, "@gone:here.test", false))
		search := func(asker matrix.UserID, term string, want ...string) {
			t.Helper()
			found, limited, err := w.Directory.Search(ctx, asker, term, 10)
			must(t, err)
			got := []string{}
			for _, m := range found {
				got = append(got, string(m.UserID))
			}
			if diff := cmp.Diff(append([]string{}, want...), got); diff != "" || limited {
				t.Errorf("%s looks for %.20q: limited %v %s", asker, term, limited, diff)
			}
		}
		for term, want := range map[string][]string{
			"BOB": {bob, far}, "@bob": {bob, far}, "bobb": {far}, "jose": {bob}, "unde": {bob}, "scored": {bob}, "core": nil, "b": {bob, far}, "@bob:there": {far}, "bob :there.test": {far},
			"bob far": {far}, "far bob": {far}, "far jose": nil, "하": {carol}, "한옥": {carol}, "100": {carol}, "smith": {carol}, ":here": {bob, carol},
			"alice": nil, "hidden": nil, "gone": nil, "": nil, "%": nil, "\x00": nil, "\xff": nil, "@:": nil, strings.Repeat("x", 1000): nil, strings.Repeat("bob ", 1000): {bob, far},
		} {
			search(alice, term, want...)
		}
		search(bob, "hidden", "@hidden:here.test")
		search("@hidden:here.test", "alice")
		search(carol, "carol", carol) // in an open room
		must(t, w.db.Write(ctx, func(tx *storage.Tx) error { return storage.SetOpenRoom(ctx, tx, 3, false) }))
		search(alice, "carol")

		found, limited, err := w.Directory.Search(ctx, alice, "b", 1)
		must(t, err)
		if diff := cmp.Diff([]DirectoryMatch{{bob, "José Ünder_scored", "mxc://here.test/bob"}}, found); diff != "" || !limited {
			t.Errorf("limited %v %s", limited, diff)
		}
		_, err = w.Profiles.Delete(ctx, bob, FieldDisplayName)
		must(t, err)
		search(alice, "jose")
		search(alice, "bob", bob, far)
	})
}

// A name that somebody of another server has in one room is not shown to those who share another.
func TestDirectoryNameOfRoom(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		const alice, bob, far = matrix.UserID("@alice:here.test"), matrix.UserID("@bob:here.test"), matrix.UserID("@far:there.test")
		w.register(t, "alice")
		w.register(t, "bob")
		w.joins(t, 1, alice)
		w.joinsAs(t, 1, "Far", far)
		w.joins(t, 2, bob)
		w.joinsAs(t, 2, "Secret Nick", far)
		nids, err := w.db.Intern(t.Context(), string(far))
		must(t, err)
		must(t, w.db.Write(t.Context(), func(tx *storage.Tx) error {
			return storage.PutDirectoryUser(t.Context(), tx, storage.DirectoryUser{NID: nids[0], Name: "Secret Nick"}, DirectoryWords(far, "Secret Nick"))
		}))
		for _, c := range []struct {
			asker matrix.UserID
			term  string
			want  []DirectoryMatch
		}{
			{alice, "far", []DirectoryMatch{{far, "Far", ""}}},
			{alice, "nick", []DirectoryMatch{}},
			{alice, "far nick", []DirectoryMatch{}},
			{bob, "nick", []DirectoryMatch{{far, "Secret Nick", ""}}},
		} {
			found, limited, err := w.Directory.Search(t.Context(), c.asker, c.term, 5)
			must(t, err)
			if diff := cmp.Diff(c.want, found); diff != "" || limited {
				t.Errorf("%s looks for %q: limited %v %s", c.asker, c.term, limited, diff)
			}
		}
	})
}

// However many users nobody may see come first, those who may be seen are found, within a bound.
func TestDirectoryLooksBehind(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		const alice = matrix.UserID("@alice:here.test")
		w.register(t, "alice")
		fill(t, w, 1500, "same")
		w.joins(t, 1, alice, "@same1499:there.test")
		found, limited, err := w.Directory.Search(t.Context(), alice, "same", 5)
		must(t, err)
		if len(found) != 1 || found[0].UserID != "@same1499:there.test" || limited {
			t.Errorf("found %v, limited %v", found, limited)
		}
	})
}

// fill puts users of another server into the directory.
func fill(t testing.TB, w *world, n int, name string) []matrix.UserID {
	ctx := t.Context()
	list, names := make([]matrix.UserID, n), make([]string, n)
	for i := range n {
		names[i] = fmt.Sprintf("@%s%d:there.test", name, i)
		list[i] = matrix.UserID(names[i])
	}
	nids, err := w.db.Intern(ctx, names...)
	if err != nil {
		t.Fatal(err)
	}
	err = w.db.Write(ctx, func(tx *storage.Tx) error {
		for i, user := range list {
			shown := fmt.Sprintf("%s Number %d", name, i)
			if err := storage.PutDirectoryUser(ctx, tx, storage.DirectoryUser{NID: nids[i], Name: shown}, DirectoryWords(user, shown)); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return list
}

var directoryUsers = flag.Int("directory-users", 10_000, "users in BenchmarkDirectory")

// BenchmarkDirectory searches among users who all share a room with the one who asks, by a word that all have, by one that few have, and by one
// that only users have who cannot be seen, as many again.
func BenchmarkDirectory(b *testing.B) {
	w := newWorld(storagetest.Open(b))
	const alice = matrix.UserID("@alice:here.test")
	w.joins(b, 1, append(fill(b, w, *directoryUsers, "seen"), alice)...)
	w.joins(b, 2, fill(b, w, *directoryUsers, "unseen")...)
	for _, term := range []string{"seen", "seen77", "unseen"} {
		b.Run(term, func(b *testing.B) {
			b.ReportAllocs()
			for range b.N {
				if _, _, err := w.Directory.Search(b.Context(), alice, term, 10); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
