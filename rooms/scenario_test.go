package rooms_test

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/roomversion"
	"hanok/rooms"
)

// TestScenarios runs testdata/*.txt, each for every room version. A scenario is one room, told line by line:
//
//	versions 7-            only these room versions
//	alice@a creates private_chat
//	bob@b joins via a      (also: knocks, leaves, forgets)
//	bob@b says TEXT
//	alice@a sets TYPE KEY JSON    KEY "-" is the empty one; a name like bob@b in KEY or JSON is that user's ID
//	alice@a invites bob@b  (also: kicks, bans, unbans)
//	alice@a redacts TEXT   the last message with that text
//	refused: LINE          the line fails with M_FORBIDDEN (or the code after "refused CODE:")
//	split a b, heal a b    nothing passes between two servers, then it does again
//	lose a                 what a has not sent yet is lost
//	settle                 everything is delivered
//	restart a
//	bob@b sees TEXT ...    the messages, oldest first
//	agree                  all servers that are in the room have the same state
//	bob@b is MEMBERSHIP on a
//	on a TYPE KEY has PATH VALUE
//	asked a CALL N         server a made that many requests so far
func TestScenarios(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scenarios", err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			low, high := 1, 12
			for line := range strings.Lines(string(text)) {
				if rest, ok := strings.CutPrefix(strings.TrimSpace(line), "versions "); ok {
					from, to, _ := strings.Cut(rest, "-")
					low, _ = strconv.Atoi(from)
					if to != "" {
						high, _ = strconv.Atoi(to)
					}
				}
			}
			for v := low; v <= high; v++ {
				t.Run("v"+strconv.Itoa(v), func(t *testing.T) {
					s := &scenario{t: t, net: newNetwork(t), version: roomversion.ID(strconv.Itoa(v)), said: make(map[string]matrix.EventID)}
					for i, line := range strings.Split(string(text), "\n") {
						line = strings.TrimSpace(line)
						if line == "" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, "versions ") {
							continue
						}
						if err := s.line(line); err != nil {
							t.Fatalf("%s:%d: %s: %v", file, i+1, line, err)
						}
					}
				})
			}
		})
	}
}

type scenario struct {
	t       *testing.T
	net     *network
	version roomversion.ID
	room    matrix.RoomID
	said    map[string]matrix.EventID
}

func (s *scenario) server(short string) *server {
	name := matrix.ServerName(short + ".example")
	if srv := s.net.servers[name]; srv != nil {
		return srv
	}
	return s.net.server(name)
}

func (s *scenario) user(short string) (*server, matrix.UserID) {
	name, at, _ := strings.Cut(short, "@")
	srv := s.server(at)
	return srv, srv.user(name)
}

// ids replaces names like bob@b in a text.
func (s *scenario) ids(text string) string {
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(`"{}:,[] `, r) }) {
		if name, at, ok := strings.Cut(word, "@"); ok && name != "" && len(at) == 1 {
			text = strings.ReplaceAll(text, word, "@"+name+":"+at+".example")
		}
	}
	return text
}

func (s *scenario) line(line string) error {
	if rest, ok := strings.CutPrefix(line, "refused"); ok {
		code, rest, _ := strings.Cut(rest, ":")
		if code = strings.TrimSpace(code); code == "" {
			code = "M_FORBIDDEN"
		}
		if err := s.line(strings.TrimSpace(rest)); !matrix.HasCode(err, code) {
			return fmt.Errorf("want %s, got %v", code, err)
		}
		return nil
	}
	w := strings.Fields(line)
	switch w[0] {
	case "split", "heal":
		s.net.split(s.server(w[1]), s.server(w[2]), w[0] == "split")
		return nil
	case "lose":
		srv := s.server(w[1])
		srv.mu.Lock()
		srv.outbox = nil
		srv.mu.Unlock()
		return nil
	case "settle":
		s.net.settle()
		return nil
	case "restart":
		s.server(w[1]).restart()
		return nil
	case "agree":
		return s.agree()
	case "ends": // how many forward extremities a server has
		snap, err := s.server(w[1]).Snapshot(ctx, s.room)
		if err == nil && strconv.Itoa(len(snap.Extremities)) != w[2] {
			err = fmt.Errorf("there are %s", snap.Extremities)
		}
		return err
	case "asked":
		if got := s.net.count(w[1] + ".example " + w[2]); strconv.Itoa(got) != w[3] {
			return fmt.Errorf("%d times", got)
		}
		return nil
	case "on":
		return s.stateHas(s.server(w[1]), w[2], w[3], w[5], strings.Join(w[6:], " "))
	}
	srv, user := s.user(w[0])
	return s.act(srv, user, w[1], w[2:])
}

func (s *scenario) act(srv *server, user matrix.UserID, verb string, w []string) (err error) {
	q := rooms.MemberRequest{Room: s.room, Sender: user}
	if len(w) > 0 && strings.Contains(w[0], "@") {
		_, q.Target = s.user(w[0])
	}
	rest := strings.Join(w, " ")
	switch verb {
	case "creates":
		s.room, err = srv.CreateRoom(ctx, rooms.CreateRequest{Creator: user, Version: s.version, Preset: w[0]})
	case "joins", "knocks":
		for _, via := range w {
			if via != "via" {
				q.Via = append(q.Via, s.server(via).name)
			}
		}
		if verb == "joins" {
			_, err = srv.Join(ctx, q)
		} else {
			_, err = srv.Knock(ctx, q)
		}
	case "leaves":
		_, err = srv.Leave(ctx, q)
	case "forgets":
		err = srv.Forget(ctx, user, s.room)
	case "invites":
		_, err = srv.Invite(ctx, q)
	case "kicks":
		_, err = srv.Kick(ctx, q)
	case "bans":
		_, err = srv.Ban(ctx, q)
	case "unbans":
		_, err = srv.Unban(ctx, q)
	case "says":
		s.said[rest], err = srv.Send(ctx, rooms.SendRequest{Room: s.room, Sender: user, Type: "m.room.message", Content: []byte(`{"body":` + strconv.Quote(rest) + `,"msgtype":"m.text"}`)})
	case "redacts":
		_, err = srv.Redact(ctx, rooms.SendRequest{Room: s.room, Sender: user, Redacts: s.said[rest]}, "")
	case "sets":
		key := s.ids(w[1])
		if key == "-" {
			key = ""
		}
		_, err = srv.Send(ctx, rooms.SendRequest{Room: s.room, Sender: user, Type: w[0], StateKey: &key, Content: []byte(s.ids(strings.Join(w[2:], " ")))})
	case "sees":
		return s.sees(srv, user, w)
	case "is":
		var m rooms.Membership
		if m, err = s.server(w[2]).MembershipOf(ctx, s.room, user); err == nil && m.Membership != w[0] {
			err = fmt.Errorf("membership is %q", m.Membership)
		}
	default:
		err = fmt.Errorf("unknown verb %q", verb)
	}
	return err
}

func (s *scenario) sees(srv *server, user matrix.UserID, want []string) error {
	page, err := srv.Messages(ctx, rooms.MessagesRequest{Room: s.room, User: user, Backward: true, Limit: 100, Filter: func(ev *rooms.Event) bool { return ev.Type() == "m.room.message" }})
	if err != nil {
		return err
	}
	got := []string{}
	for _, ev := range page.Events {
		body, ok := ev.ContentString("body")
		if !ok {
			body = "(erased)"
		}
		got = append(got, body)
	}
	slices.Reverse(got)
	if diff := cmp.Diff(want, got); diff != "" {
		return fmt.Errorf("-want +got\n%s", diff)
	}
	return nil
}

func (s *scenario) agree() error {
	var first []string
	var name matrix.ServerName
	for _, n := range s.net.names() {
		srv := s.net.servers[n]
		snap, err := srv.Snapshot(ctx, s.room)
		if err != nil || !snap.Resident {
			continue
		}
		state := srv.state(s.room)
		if first == nil {
			first, name = state, n
			continue
		}
		if diff := cmp.Diff(first, state); diff != "" {
			return fmt.Errorf("-%s +%s\n%s", name, n, diff)
		}
	}
	return nil
}

func (s *scenario) stateHas(srv *server, typ, key, path, want string) error {
	if key == "-" {
		key = ""
	}
	snap, err := srv.Snapshot(ctx, s.room)
	if err != nil {
		return err
	}
	ev, err := snap.State.Event(ctx, typ, s.ids(key))
	if err != nil || ev == nil {
		return fmt.Errorf("no such state: %v", err)
	}
	if got, _ := ev.ContentString(path); got != want {
		return fmt.Errorf("%s is %q", path, got)
	}
	return nil
}
