package pushrules

import "testing"

// spec: MSC3930
func TestPolls(t *testing.T) {
	compiled := Compile("@me:example.org", DefaultWithPolls("@me:example.org"))
	poll := func(kind string) *Flat {
		return flat(t, `{"type":"org.matrix.msc3381.poll.`+kind+`","sender":"@you:example.org","room_id":"!r:example.org","content":{}}`)
	}
	for _, c := range []struct {
		kind          string
		members       int
		notify, sound bool
	}{
		{"start", 2, true, true}, {"start", 3, true, false}, {"end", 2, true, true}, {"end", 3, true, false},
		{"response", 2, false, false}, {"response", 3, false, false},
	} {
		got := compiled.Evaluate(poll(c.kind), Room{MemberCount: c.members})
		if got.Notify != c.notify || (got.Sound == "default") != c.sound {
			t.Errorf("%s among %d: %+v", c.kind, c.members, got)
		}
	}
	if got := Compile("@me:example.org", Default("@me:example.org")).Evaluate(poll("start"), Room{MemberCount: 2}); got.Notify {
		t.Errorf("without the rules: %+v", got)
	}
}
