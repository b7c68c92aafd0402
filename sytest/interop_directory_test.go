package sytest

import (
	"fmt"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

// interopDirectory finds a room by its alias and in the directory of the other server.
func interopDirectory(t *testing.T, p pair) {
	alice, bob := p.home.Register(t, "alice"), p.away.Register(t, "bob")
	local := fmt.Sprintf("room%d", time.Now().UnixNano())
	alias := "#" + local + ":" + p.home.Name
	room := alice.CreateRoom(json{"preset": "public_chat", "visibility": "public", "room_alias_name": local, "name": "Findable " + local, "topic": "Cranes"})
	got := bob.Must("GET", "/v3/directory/room"+homeserver.Path(alias), nil)
	servers, _ := got["servers"].([]any)
	if got["room_id"] != room || !slices.Contains(servers, any(p.home.Name)) {
		t.Errorf("the alias: %v", got)
	}
	unknown := func(alias string) {
		t.Helper()
		if p.can(bob, "unknown aliases") {
			bob.Refused("GET", "/v3/directory/room"+homeserver.Path(alias), nil, http.StatusNotFound, "M_NOT_FOUND")
		} else if status, res := bob.Do("GET", "/v3/directory/room"+homeserver.Path(alias), nil); status == http.StatusOK {
			t.Errorf("%s: %v", alias, res)
		}
	}
	unknown("#nothing:" + p.home.Name)
	listed := func(body json) (found bool) {
		t.Helper()
		since := ""
		for range 50 {
			body["limit"] = 3
			if since != "" {
				body["since"] = since
			}
			res := bob.Must("POST", "/v3/publicRooms?server="+url.QueryEscape(p.home.Name), body)
			for _, r := range homeserver.Events(res, "chunk") {
				if r["room_id"] == room {
					if r["name"] != "Findable "+local || r["topic"] != "Cranes" || r["canonical_alias"] != alias || r["num_joined_members"] != 1.0 {
						t.Errorf("the listing: %v", r)
					}
					return true
				}
			}
			if since, _ = res["next_batch"].(string); since == "" {
				break
			}
		}
		return false
	}
	eventually(t, "the directory", func() string {
		if !listed(json{}) {
			return "the room is not listed"
		}
		return ""
	})
	if !listed(json{"filter": json{"generic_search_term": local}}) {
		t.Error("the room is not found by its name")
	}
	if p.lacks["directory filters"] == "" {
		if listed(json{"filter": json{"generic_search_term": "no such room anywhere"}}) {
			t.Error("the room is found by what it is not called")
		}
		if listed(json{"filter": json{"room_types": []any{"m.space"}}}) {
			t.Error("the room is listed as a space")
		}
	}
	bob.Join(alias)
	member(t, alice, room, bob.UserID, "join")
	alice.Must("DELETE", "/v3/directory/room"+homeserver.Path(alias), nil)
	unknown(alias)
	alice.Must("PUT", "/v3/directory/list/room"+homeserver.Path(room), json{"visibility": "private"})
	eventually(t, "the directory", func() string {
		if listed(json{}) {
			return "the room is still listed"
		}
		return ""
	})
}

// interopDirectoryPages leafs through a directory of seven rooms, forwards and backwards, with and without something to search for.
func interopDirectoryPages(t *testing.T, p pair) {
	alice, bob := p.home.Register(t, "alice"), p.away.Register(t, "bob")
	word := fmt.Sprintf("paged%d", time.Now().UnixNano())
	want := map[any]bool{}
	for i := range 7 {
		want[alice.CreateRoom(json{"preset": "public_chat", "visibility": "public", "room_alias_name": fmt.Sprint(word, i), "name": fmt.Sprint("Room ", i, " ", word)})] = true
	}
	const limit = 3
	for what, search := range map[string]string{"all rooms": "", "rooms of a name": word} {
		path := "/v3/publicRooms?server=" + url.QueryEscape(p.home.Name)
		page := func(since string) json {
			t.Helper()
			if search == "" {
				query := fmt.Sprint("&limit=", limit)
				if since != "" {
					query += "&since=" + url.QueryEscape(since)
				}
				return bob.Must("GET", path+query, nil)
			}
			body := json{"limit": limit, "filter": json{"generic_search_term": search}}
			if since != "" {
				body["since"] = since
			}
			return bob.Must("POST", path, body)
		}
		// walk follows next_batch, or prev_batch, and returns the pages in the order of the directory.
		walk := func(since, token string) (pages [][]any, last json) {
			t.Helper()
			for range 50 {
				last = page(since)
				var rooms []any
				for _, r := range homeserver.Events(last, "chunk") {
					rooms = append(rooms, r["room_id"])
				}
				if len(rooms) > limit {
					t.Errorf("%s: a page of %d rooms", what, len(rooms))
				}
				pages = append(pages, rooms)
				if since, _ = last[token].(string); since == "" {
					break
				}
			}
			return pages, last
		}
		var pages [][]any
		var last json
		eventually(t, what, func() string {
			pages, last = walk("", "next_batch")
			times := map[any]int{}
			for _, room := range slices.Concat(pages...) {
				times[room]++
			}
			for room := range want {
				if times[room] != 1 {
					return fmt.Sprintf("%v is listed %d times: %v", room, times[room], pages)
				}
			}
			if exact := search != "" && p.lacks["directory filters"] == ""; exact && len(times) != len(want) {
				return fmt.Sprint("others are listed as well: ", pages)
			}
			return ""
		})
		if total, _ := last["total_room_count_estimate"].(float64); int(total) < len(want) {
			t.Errorf("%s: %v of them, says %s", what, last["total_room_count_estimate"], p.home.Name)
		}
		if !p.can(alice, "directory backwards") {
			continue
		}
		since, _ := last["prev_batch"].(string)
		if since == "" {
			t.Errorf("%s: no way back from the last page: %v", what, last)
			continue
		}
		back, first := walk(since, "prev_batch")
		slices.Reverse(back)
		if !reflect.DeepEqual(back, pages[:len(pages)-1]) {
			t.Errorf("%s: backwards they are %v, forwards %v", what, back, pages)
		}
		if next, _ := first["next_batch"].(string); next == "" {
			t.Errorf("%s: no way forwards from the first page: %v", what, first)
		} else if again, _ := walk(next, "next_batch"); !reflect.DeepEqual(again, pages[1:]) {
			t.Errorf("%s: forwards again they are %v, at first %v", what, again, pages)
		}
	}
	for room := range want { // what comes after looks at a directory without them
		alice.Must("PUT", "/v3/directory/list/room"+homeserver.Path(fmt.Sprint(room)), json{"visibility": "private"})
	}
}
