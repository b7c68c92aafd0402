package feed

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"hanok/matrix"
	"hanok/storage"
)

func element(eventType, key string) stateElement {
	var e stateElement
	if eventType != "*" {
		e.Type = &eventType
	}
	if key != "*" {
		e.StateKey = &key
	}
	return e
}

func key(eventType, k string) matrix.StateKey { return matrix.StateKey{Type: eventType, Key: k} }

func TestRequiredState(t *testing.T) {
	all := stateRule{Include: []stateElement{{}}}
	lazy := stateRule{Include: []stateElement{{}, element("m.room.member", "@me:x")}, LazyMembers: true}
	nameOnly := stateRule{Include: []stateElement{element("m.room.name", "")}}
	notCreate := stateRule{Include: []stateElement{{}}, Exclude: []stateElement{element("m.room.create", "")}}
	mine := stateRule{Include: []stateElement{element("*", "@me:x")}, LazyMembers: true}
	children := stateRule{Include: []stateElement{element("m.space.child", "*")}}
	for i, x := range []struct {
		rules []stateRule
		yes   []matrix.StateKey
		no    []matrix.StateKey
		lazy  bool
	}{
		{nil, nil, []matrix.StateKey{key("m.room.name", "")}, false},
		{[]stateRule{nameOnly}, []matrix.StateKey{key("m.room.name", "")}, []matrix.StateKey{key("m.room.name", "other"), key("m.room.topic", "")}, false},
		{[]stateRule{all}, []matrix.StateKey{key("m.room.name", ""), key("m.room.member", "@a:x")}, nil, false},
		{[]stateRule{lazy}, []matrix.StateKey{key("m.room.name", ""), key("m.room.member", "@me:x")}, []matrix.StateKey{key("m.room.member", "@a:x")}, true},
		{[]stateRule{lazy, all}, []matrix.StateKey{key("m.room.member", "@a:x")}, nil, false},
		{[]stateRule{notCreate}, []matrix.StateKey{key("m.room.name", "")}, []matrix.StateKey{key("m.room.create", "")}, false},
		{[]stateRule{notCreate, {Include: []stateElement{element("m.room.create", "")}}}, []matrix.StateKey{key("m.room.create", "")}, nil, false},
		{[]stateRule{mine}, []matrix.StateKey{key("m.room.member", "@me:x"), key("any", "@me:x")}, []matrix.StateKey{key("m.room.member", "@a:x")}, true},
		{[]stateRule{children}, []matrix.StateKey{key("m.space.child", "!r")}, []matrix.StateKey{key("m.space.parent", "!r")}, false},
	} {
		s := unite(x.rules)
		for _, k := range x.yes {
			if !s.matches(k) {
				t.Errorf("%d: %v does not match", i, k)
			}
		}
		for _, k := range x.no {
			if s.matches(k) {
				t.Errorf("%d: %v matches", i, k)
			}
		}
		if s.lazy() != x.lazy {
			t.Errorf("%d: lazy is %v", i, s.lazy())
		}
		again, err := parseRequiredState(s.text)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range slices.Concat(x.yes, x.no) {
			if again.matches(k) != s.matches(k) {
				t.Errorf("%d: %s does not say what it was made from", i, s.text)
			}
		}
	}
	for _, x := range []struct {
		known, wanted []stateRule
		covers        bool
	}{
		{[]stateRule{all}, []stateRule{nameOnly, children}, true},
		{[]stateRule{nameOnly}, []stateRule{children}, false},
		{[]stateRule{nameOnly, children}, []stateRule{children}, true},
		{[]stateRule{nameOnly}, []stateRule{nameOnly, {Include: []stateElement{element("m.room.topic", "")}}}, false},
		{[]stateRule{lazy}, []stateRule{all}, false},
		{[]stateRule{all}, []stateRule{lazy}, true},
		{[]stateRule{notCreate}, []stateRule{all}, false},
		{[]stateRule{notCreate}, []stateRule{nameOnly}, true},
		{nil, nil, true},
	} {
		if got := unite(x.known).covers(unite(x.wanted)); got != x.covers {
			t.Errorf("%s covers %s: %v", unite(x.known).text, unite(x.wanted).text, got)
		}
	}
	var none *requiredState
	if none.matches(key("m.room.name", "")) || none.covers(unite(nil)) {
		t.Error("rules that are not known cover nothing")
	}
	if unite([]stateRule{nameOnly, children}).digest != unite([]stateRule{children, nameOnly, nameOnly}).digest {
		t.Error("order and repetition do not matter")
	}
}

// What a set of rules covers, it matches: whatever the rules.
func TestRequiredStateCovers(t *testing.T) {
	types, keys := []string{"m.room.member", "m.room.name", "t"}, []string{"", "@me:x", "@a:x"}
	elements := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) stateElement {
		return element(rapid.SampledFrom(append(types, "*")).Draw(t, "type"), rapid.SampledFrom(append(keys, "*")).Draw(t, "key"))
	}), 0, 3)
	rules := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) stateRule {
		return stateRule{elements.Draw(t, "include"), elements.Draw(t, "exclude"), rapid.Bool().Draw(t, "lazy")}
	}), 0, 3)
	rapid.Check(t, func(t *rapid.T) {
		a, b := unite(rules.Draw(t, "known")), unite(rules.Draw(t, "wanted"))
		if !a.covers(b) {
			return
		}
		for _, typ := range types {
			for _, k := range keys {
				if b.matches(key(typ, k)) && !a.matches(key(typ, k)) {
					t.Fatalf("%s covers %s but for %s %q", a.text, b.text, typ, k)
				}
			}
		}
	})
}

func TestParseRanges(t *testing.T) {
	for in, want := range map[string][]windowRange{
		`[]`:                        nil,
		`[[0,0]]`:                   {{0, 0}},
		`[[0,19]]`:                  {{0, 19}},
		`[[5,9],[0,3]]`:             {{0, 3}, {5, 9}},
		`[[0,5],[3,9],[10,12]]`:     {{0, 12}},
		`[[0,9223372036854775807]]`: {{0, 1<<63 - 1}},
		`[[3,9],[0,100],[7,8]]`:     {{0, 100}},
	} {
		var ranges [][2]int64
		if err := json.Unmarshal([]byte(in), &ranges); err != nil {
			t.Fatal(err)
		}
		if got, err := parseRanges(ranges); err != nil || !slices.Equal(got, want) {
			t.Errorf("%s: %v %v", in, got, err)
		}
	}
}

// A connection is read as it was stored.
func TestConnectionEncoding(t *testing.T) {
	progresses := rapid.Custom(func(t *rapid.T) progress { return progress(rapid.Int64Min(-1).Draw(t, "progress")) })
	rapid.Check(t, func(t *rapid.T) {
		d := newDraft(&connection{})
		for i := range rapid.IntRange(0, 5).Draw(t, "rooms") {
			r := sentRoom{
				events: progresses.Draw(t, "events"), receipts: progresses.Draw(t, "receipts"), accountData: progresses.Draw(t, "account data"),
				dm: rapid.Bool().Draw(t, "dm"), low: storage.Position(rapid.Int64Min(0).Draw(t, "low")), limit: rapid.IntRange(0, maxTimeline).Draw(t, "limit"),
			}
			if rapid.Bool().Draw(t, "has config") {
				r.config = d.number(unite([]stateRule{{Include: []stateElement{element(fmt.Sprint("t", rapid.IntRange(0, 2).Draw(t, "config")), "")}}}))
			}
			d.set(storage.RoomNID(rapid.Int64Range(1, 1<<40).Draw(t, "room")+int64(i)), r)
		}
		c := d.connection()
		got, err := decodeConnection(c.encode())
		if err != nil {
			t.Fatal(err)
		}
		if !maps.Equal(got.rooms, c.rooms) {
			t.Fatalf("%v\n%v", got.rooms, c.rooms)
		}
		for i, cfg := range c.configs {
			if got.configs[i].digest != cfg.digest || string(got.configs[i].text) != string(cfg.text) {
				t.Fatalf("config %d: %s, not %s", i, got.configs[i].text, cfg.text)
			}
		}
	})
}

// Of very long rules only a digest is kept: they are still known to be the same.
func TestConnectionLongRules(t *testing.T) {
	d := newDraft(&connection{})
	var long []*requiredState
	for i := range 4 {
		var r stateRule
		for j := range 500 {
			r.Include = append(r.Include, element(fmt.Sprintf("a rather long type of event, number %d of %d", j, i), "and a key"))
		}
		long = append(long, unite([]stateRule{r}))
		d.set(storage.RoomNID(i+1), sentRoom{events: live, config: d.number(long[i])})
	}
	stored := d.connection().encode()
	if len(stored) > 2*maxConfigText {
		t.Errorf("%d bytes are stored", len(stored))
	}
	c, err := decodeConnection(stored)
	if err != nil {
		t.Fatal(err)
	}
	kept := 0
	for nid, r := range c.rooms {
		cfg := c.config(r)
		if !cfg.covers(long[nid-1]) {
			t.Errorf("the rules of room %d are not known again", nid)
		}
		if len(cfg.text) > 0 {
			kept++
		} else if cfg.covers(unite([]stateRule{{Include: []stateElement{element("t", "")}}})) {
			t.Error("forgotten rules cover others")
		}
	}
	if kept == 0 || kept == 4 {
		t.Errorf("%d rules are kept whole", kept)
	}
}

func TestOutdated(t *testing.T) {
	row := func(v int, conn string, used int) storage.SlidingConnection {
		return storage.SlidingConnection{Version: storage.Position(v), ConnID: conn, UsedAt: matrix.Timestamp(used)}
	}
	rows := []storage.SlidingConnection{row(9, "a", 1), row(8, "a", 1), row(7, "a", 1), row(6, "b", 1), row(5, "a", 1), row(4, "a", 1), row(3, "a", 1), row(2, "a", 1)}
	// Three that may still be on their way stay, what came before the one continued from goes, and never that one.
	for from, want := range map[storage.Position][]storage.Position{3: {5, 4, 2}, 7: {5, 4, 3, 2}, 0: {5, 4, 3, 2}, 2: {5, 4, 3}} {
		if got := outdated(rows, "a", from); !slices.Equal(got, want) {
			t.Errorf("from %d: %v go, want %v", from, got, want)
		}
	}
	rows = nil
	for i := range maxConnections + 2 {
		rows = append(rows, row(100-i, fmt.Sprint("c", i), 50+i%3))
	}
	gone := outdated(rows, "new", 0)
	if len(gone) != 3 || slices.Contains(gone, 100) {
		t.Errorf("of %d connections %v go", len(rows), gone)
	}
	for _, v := range gone {
		if used := rows[100-v].UsedAt; used != 50 {
			t.Errorf("one that was used at %d goes", used)
		}
	}
}

func FuzzDecodeConnection(f *testing.F) {
	d := newDraft(&connection{})
	d.set(5, sentRoom{events: live, low: noEvents, config: d.number(unite([]stateRule{{Include: []stateElement{{}}}}))})
	f.Add(d.connection().encode())
	f.Add([]byte{1, 0, 1, 5, 0, 0, 0, 0, 0, 0, 200})
	f.Fuzz(func(t *testing.T, b []byte) {
		if c, err := decodeConnection(b); err == nil {
			for _, r := range c.rooms {
				c.config(r)
			}
		}
	})
}

func FuzzParseSlidingRequest(f *testing.F) {
	f.Add(`{"lists":{"a":{"ranges":[[0,5],[2,9]],"range":[0,1],"timeline_limit":1,"required_state":[["m.room.member","$LAZY"]],"filters":{"room_types":[null]}}}}`, true)
	f.Add(`{"room_subscriptions":{"!a:b":{"timeline_limit":1,"required_state":{"include":[{}],"exclude":[{"type":"x"}]}}},"extensions":{"to_device":{"enabled":true}}}`, false)
	f.Fuzz(func(t *testing.T, body string, stable bool) {
		d := Unstable
		if stable {
			d = Stable
		}
		q, err := ParseSlidingRequest(d, "@a:x", []byte(body))
		if err != nil {
			if e, ok := matrix.AsError(err); !ok || e.Status != 400 {
				t.Fatalf("%v", err)
			}
			return
		}
		for _, l := range q.Lists {
			for i, r := range l.ranges {
				if r.first > r.last || i > 0 && l.ranges[i-1].last >= r.first {
					t.Fatalf("%v", l.ranges)
				}
			}
			unite([]stateRule{l.state})
		}
	})
}
