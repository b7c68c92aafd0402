package sytest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"hanok/sytest/homeserver"
)

// What SyTest relies on beside the specification; see sytest-run.

// The operator decides which version rooms are made in, and clients are told.
func TestDefaultRoomVersion(t *testing.T) {
	hs := homeserver.NewNetwork(t).Start(homeserver.Options{ExtraConfig: "rooms: {default_version: \"10\"}\n"})
	alice := hs.Register(t, "alice")
	if got := homeserver.Dig(alice.Must("GET", "/v3/capabilities", nil), "capabilities", "m.room_versions", "default"); got != "10" {
		t.Errorf("the version announced: %v", got)
	}
	for body, want := range map[string]string{"": "10", "11": "11"} {
		request := json{}
		if body != "" {
			request["room_version"] = body
		}
		room := alice.CreateRoom(request)
		create := alice.Must("GET", "/v3/rooms"+homeserver.Path(room, "state", "m.room.create", ""), nil)
		if create["room_version"] != want {
			t.Errorf("asked for %q, made in %v", body, create["room_version"])
		}
	}
}

// sytest-check tells regressions from new passes, and --add never takes a line away.
func TestSyTestCheck(t *testing.T) {
	dir := t.TempDir()
	list, results := filepath.Join(dir, "expected"), filepath.Join(dir, "results.tap")
	write := func(path, text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(list, "Broken now\nOnce skipped\nStill good\n")
	write(results, `ok 1 Still good
not ok 2 Broken now
# Started: whenever
  ok 1 a step (Many steps)
ok 3 Many steps (7 subtests)
ok 4 Once skipped # skip lack of can_fly
ok 5 Twice
not ok 6 Twice
ok 7 (odd) name # 1
1..7
`)
	check := func(args ...string) (string, bool) {
		t.Helper()
		cmd := exec.Command("./sytest-check", append(args, results)...)
		cmd.Env = append(os.Environ(), "SYTEST_EXPECTED="+list)
		out, err := cmd.CombinedOutput()
		return string(out), err == nil
	}
	const want = "Passed before, and not now:\n  Broken now\n  Once skipped\nNew passes:\n  (odd) name # 1\n  Many steps\n"
	if out, ok := check(); ok || out != want {
		t.Errorf("a run with regressions: passed %v\n%s", ok, out)
	}
	check("--add")
	after, err := os.ReadFile(list)
	if err != nil {
		t.Fatal(err)
	}
	if got := string(after); got != "(odd) name # 1\nBroken now\nMany steps\nOnce skipped\nStill good\n" {
		t.Errorf("the list after --add:\n%s", got)
	}
	write(list, strings.ReplaceAll(string(after), "Broken now\n", ""))
	write(results, "ok 1 Still good\nok 2 Many steps (1 subtests)\nok 3 Once skipped\nok 4 (odd) name # 1\n")
	if out, ok := check(); !ok || out != "" {
		t.Errorf("a run as expected: passed %v\n%s", ok, out)
	}
}
