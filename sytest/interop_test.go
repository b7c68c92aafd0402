package sytest

import (
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

// foreignEnv names programs that start a homeserver of other software from the variables which sytest/launch
// describes, such as sytest/synapse, separated like those in PATH. The same with _LOGS names a folder for what the servers print.
const foreignEnv = "HANOK_INTEROP"

// pair are two servers of different software, in either order.
type pair struct {
	home *homeserver.Server // most scenarios make their room here
	away *homeserver.Server
	ours *homeserver.Server // whichever is Hanok
	// lacks are reasons why the other software is not asked for something, see shortcomings.
	lacks map[string]string
}

// TestInterop holds Hanok against other homeservers: every scenario with the room on either side.
func TestInterop(t *testing.T) {
	for _, launch := range foreignSoftware(t) {
		t.Run(filepath.Base(launch), func(t *testing.T) { interop(t, startForeign(t, launch)) })
	}
}

func interop(t *testing.T, both pair) {
	for _, scenario := range []struct {
		name string
		run  func(*testing.T, pair)
	}{
		{"rooms", interopRooms},
		{"invites", interopInvites},
		{"restricted rooms", interopRestricted},
		{"knocks", interopKnocks},
		{"spaces", interopSpaces},
		{"directory", interopDirectory},
		{"directory pages", interopDirectoryPages},
		{"history", interopHistory},
		{"upgrade", interopUpgrade},
		{"ephemeral", interopEphemeral},
		{"devices", interopDevices},
		{"cross-signing", interopCrossSigning},
		{"media", interopMedia},
		{"access lists", interopAccessLists},
		{"outages", interopOutages},
		{"long outage", interopLongOutage},
		{"under fire", interopUnderFire},
		{"restored", interopRestored},
		{"key rotation", interopKeyRotation},
		{"forks", interopForks},
		{"large room", interopLargeRoom},
		{"old room", interopOldRoom},
		{"apart", interopApart},
		{"bans", interopBans},
		{"creators", interopCreators},
		{"moves", interopMoves},
		{"redactions", interopRedactions},
		{"gaps", interopGaps},
		{"crashes", interopCrashes},
		{"half joined", interopHalfJoined},
		{"elsewhere", interopElsewhere},
		{"private", interopPrivate},
		{"keys after a rejoin", interopKeysAfterRejoin},
		{"profile fields", interopProfileFields},
		{"files", interopFiles},
		{"files elsewhere", interopFilesElsewhere},
		{"odd content", interopOddContent},
		{"odd keys", interopOddKeys},
		{"odd events", interopOddEvents},
		{"large events", interopLargeEvents},
		{"conversation", func(t *testing.T, p pair) { converse(t, [2]*homeserver.Server{p.home, p.away}, "ENCRYPTION=asked") }},
	} {
		both.part(t, scenario.name, func(t *testing.T) { both.eachWay(t, scenario.run) })
	}
	other := filepath.Base(t.Name())
	reportComplaints(t, "hanok-"+other, both.home)
	reportComplaints(t, other, both.away)
}

// TestInteropOwn runs between two Hanoks what nothing else in this package does between two servers.
func TestInteropOwn(t *testing.T) {
	n := homeserver.NewNetwork(t)
	both := pair{home: n.Start(homeserver.Options{}), away: n.Start(homeserver.Options{})}
	t.Run("directory pages", func(t *testing.T) { interopDirectoryPages(t, both) })
	t.Run("files elsewhere", func(t *testing.T) { interopFilesElsewhere(t, both) })
}

// foreignSoftware lists the programs that start other homeservers, or skips the test.
func foreignSoftware(t *testing.T) []string {
	t.Helper()
	list := filepath.SplitList(os.Getenv(foreignEnv))
	if len(list) == 0 {
		t.Skip(foreignEnv + " names no program that starts another homeserver: see docs/contributing.md")
	}
	return list
}

// startForeign starts Hanok and another server.
func startForeign(t *testing.T, launch string) pair {
	t.Helper()
	n := homeserver.NewNetwork(t)
	ours := n.Start(homeserver.Options{Cuttable: true})
	away := n.Start(homeserver.Options{Cuttable: true, Launch: launch, Host: "127.0.0.1"})
	return pair{home: ours, away: away, ours: ours, lacks: shortcomings(t, away)}
}

// eachWay runs a scenario with either server as its home.
func (p pair) eachWay(t *testing.T, run func(*testing.T, pair)) {
	for i, way := range []pair{p, {home: p.away, away: p.home, ours: p.ours, lacks: p.lacks}} {
		p.part(t, []string{"here", "there"}[i], func(t *testing.T) {
			defer func() { // a scenario that failed may have left them so
				for _, s := range []*homeserver.Server{p.home, p.away} {
					s.EnsureStarted()
					s.Heal()
				}
			}()
			run(t, way)
		})
	}
}

// part runs a part of a scenario, unless the other software is known not to do what it is about.
func (p pair) part(t *testing.T, name string, run func(*testing.T)) {
	t.Run(name, func(t *testing.T) {
		_, path, _ := strings.Cut(strings.TrimPrefix(t.Name(), "TestInterop/"), "/")
		if reason := p.lacks[path]; reason != "" {
			t.Skip(reason)
		}
		run(t)
	})
}

// can reports whether something may be asked of a user's server: Hanok can all, the others lack something.
func (p pair) can(c *homeserver.Client, what string) bool {
	return p.lacks[what] == "" || c.Server() == p.ours
}

// patience is how long a server may take. Dendrite takes up what one of its parts had in hand when it was killed 30 seconds later only (AckWait of JetStream).
const patience = time.Minute

// eventually asks until there is no problem, or for as long as patience lasts.
func eventually(t *testing.T, what string, problem func() string) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for {
		p := problem()
		if p == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Errorf("%s: %s", what, p)
			return
		}
		time.Sleep(100 * time.Millisecond) // there is nothing to wait for that both kinds of server would tell
	}
}

// stateOf is a room's current state as a client sees it: event IDs by type and key.
func stateOf(c *homeserver.Client, room string) (map[string]string, string) {
	status, raw := c.Raw("GET", "/v3/rooms"+homeserver.Path(room, "state"), nil)
	if status != http.StatusOK {
		return nil, fmt.Sprintf("%s: %d %s", c.UserID, status, raw)
	}
	events, err := decodeList(raw)
	if err != nil {
		return nil, err.Error()
	}
	out := map[string]string{}
	for _, e := range events {
		out[fmt.Sprintf("%v|%v", e["type"], e["state_key"])] = fmt.Sprint(e["event_id"])
	}
	return out, ""
}

// sameState waits until two users see the same current state of a room.
func sameState(t *testing.T, room string, a, b *homeserver.Client) {
	t.Helper()
	eventually(t, "the state of "+room, func() string {
		of, problem := stateOf(a, room)
		if problem != "" {
			return problem
		}
		other, problem := stateOf(b, room)
		if problem != "" {
			return problem
		}
		var differ []string
		for _, key := range slices.Sorted(maps.Keys(merged(of, other))) {
			if of[key] != other[key] {
				differ = append(differ, fmt.Sprintf("%s is %q for %s and %q for %s", key, of[key], a.UserID, other[key], b.UserID))
			}
		}
		return strings.Join(differ, "\n")
	})
}

func merged(a, b map[string]string) map[string]string {
	out := maps.Clone(a)
	maps.Copy(out, b)
	return out
}

// sees waits until a user can read an event, and returns it.
func sees(t *testing.T, c *homeserver.Client, room, eventID string) json {
	t.Helper()
	var found json
	eventually(t, c.UserID+" reads "+eventID, func() (problem string) {
		found, problem = readable(c, room, eventID)
		return problem
	})
	return found
}

// readable returns an event, or why a user cannot read it.
func readable(c *homeserver.Client, room, eventID string) (json, string) {
	status, e := c.Do("GET", "/v3/rooms"+homeserver.Path(room, "event", eventID), nil)
	if status != http.StatusOK {
		return nil, fmt.Sprint(status, e)
	}
	return e, ""
}

// member waits until a user's membership in a room is what it should be, as another user sees it.
func member(t *testing.T, c *homeserver.Client, room, user, membership string) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s sees %s as %s", c.UserID, user, membership), func() string {
		status, content := c.Do("GET", "/v3/rooms"+homeserver.Path(room, "state", "m.room.member", user), nil)
		if status != http.StatusOK || content["membership"] != membership {
			return fmt.Sprint(status, content)
		}
		return ""
	})
}

// stateIs waits until a user sees a member of a state event's content.
func stateIs(t *testing.T, c *homeserver.Client, room, eventType, key, member string, want any) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s sees %s of %s", c.UserID, member, eventType), func() string {
		status, content := c.Do("GET", "/v3/rooms"+homeserver.Path(room, "state", eventType, key), nil)
		if status != http.StatusOK || fmt.Sprint(content[member]) != fmt.Sprint(want) {
			return fmt.Sprintf("%d %v, want %v", status, content, want)
		}
		return ""
	})
}

// forbidden is for requests that must be refused. Servers differ in the errcode.
func forbidden(t *testing.T, c *homeserver.Client, method, path string, body any) {
	t.Helper()
	if status, res := c.Do(method, path, body); status != http.StatusForbidden {
		t.Errorf("%s %s as %s: %d %v, want 403", method, path, c.UserID, status, res)
	}
}

// setPower gives a user a level.
func setPower(c *homeserver.Client, room, user string, level int) {
	changePower(c, room, func(content json) {
		users, _ := content["users"].(json)
		if users == nil {
			users = json{}
		}
		users[user] = level
		content["users"] = users
	})
}

func changePower(c *homeserver.Client, room string, change func(content json)) {
	content := c.Must("GET", "/v3/rooms"+homeserver.Path(room, "state", "m.room.power_levels", ""), nil)
	change(content)
	c.SetState(room, "m.room.power_levels", "", content)
}

// versions are the room versions that both servers support.
func (p pair) versions(t *testing.T) []string { return roomVersions(t, p.home, p.away) }

// roomVersions are those that all servers support.
func roomVersions(t *testing.T, servers ...*homeserver.Server) (out []string) {
	supported := map[string]int{}
	for _, s := range servers {
		available, _ := homeserver.Dig(s.Register(t, "versions").Must("GET", "/v3/capabilities", nil), "capabilities", "m.room_versions", "available").(json)
		for version := range available {
			supported[version]++
		}
	}
	for v := 1; v <= 12; v++ {
		if version := fmt.Sprint(v); supported[version] == len(servers) {
			out = append(out, version)
		}
	}
	return out
}

// atLeast compares a room version of the specification.
func atLeast(version string, least int) bool {
	n, err := strconv.Atoi(version)
	return err == nil && n >= least
}

var varying = regexp.MustCompile(`[@!$#][^\s,'"]+|[0-9]+`)

// complaint is how a line begins that Synapse, Hanok or Dendrite warns with.
var complaint = regexp.MustCompile(`^\S+ \S+ (WARNING|ERROR) |"level":"(warn|error)"|level=(warning|error)`)

// reportComplaints prints what a server warned of, each kind of line once, for people to read.
func reportComplaints(t *testing.T, name string, s *homeserver.Server) {
	t.Helper()
	log := s.Log()
	if dir := os.Getenv(foreignEnv + "_LOGS"); dir != "" {
		if err := os.WriteFile(filepath.Join(dir, name+".log"), []byte(log), 0o600); err != nil {
			t.Error(err)
		}
	}
	count, example := map[string]int{}, map[string]string{}
	for line := range strings.Lines(log) {
		if complaint.MatchString(line) {
			kind := varying.ReplaceAllString(line, "#")
			count[kind]++
			example[kind] = line
		}
	}
	for _, kind := range slices.SortedFunc(maps.Keys(count), func(a, b string) int { return count[b] - count[a] }) {
		t.Logf("%s warned %d times: %.400s", s.Name, count[kind], example[kind])
	}
}
