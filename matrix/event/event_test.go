package event

import (
	"reflect"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/roomversion"
)

// room gives IDs that are right for a room version.
func room(v *roomversion.Version) (roomID matrix.RoomID, parent, auth matrix.EventID) {
	switch v.EventIDFormat {
	case roomversion.EventIDInEvent:
		return "!room:one.example", "$parent:one.example", "$auth:two.example"
	case roomversion.EventIDHash:
		return "!room:one.example", "$acR1l0raoZnm60CBwAVgqbZqoO/mYU81xysh1u7XcJk", "$CD66HAED5npg6074c6pDtLKalHjVfYb2q4Q3LZgrW6o"
	}
	roomID = "!room:one.example"
	if v.RoomIDIsCreateHash {
		roomID = "!Nhcu5BS-UMnFX7hBVfVSoXiD7OgH6iRT-xyIuqDnpYQ"
	}
	return roomID, "$Rqnc-F-dvnEYJTyHq_iKxU2bZ1CI92-kuZq3a5lr5Zg", "$Nhcu5BS-UMnFX7hBVfVSoXiD7OgH6iRT-xyIuqDnpYQ"
}

func allVersions(t *testing.T, f func(*testing.T, *roomversion.Version)) {
	for _, id := range roomversion.Supported() {
		t.Run("v"+string(id), func(t *testing.T) { f(t, version(t, id)) })
	}
}

func ptr(s string) *string { return &s }

func build(t testing.TB, v *roomversion.Version, p Proto) *Event {
	t.Helper()
	e, err := Build(v, p, "one.example")
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// sameEvent compares all that two events hold.
func sameEvent(t interface {
	Helper()
	Errorf(string, ...any)
}, want, got *Event) {
	t.Helper()
	if reflect.DeepEqual(want, got) { // the quick way, for fuzzing
		return
	}
	samePointer := cmp.Comparer(func(a, b *roomversion.Version) bool { return a == b })
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(Event{}), samePointer); diff != "" {
		t.Errorf("-want +got: %s", diff)
	}
}

func TestBuildAndParseAgree(t *testing.T) {
	allVersions(t, func(t *testing.T, v *roomversion.Version) {
		roomID, parent, auth := room(v)
		protos := map[string]Proto{
			"message":   {Type: "m.room.message", Content: []byte(`{"msgtype": "m.text", "body": "hi \"there\"\n"}`)},
			"member":    {Type: "m.room.member", StateKey: ptr("@u:one.example"), Content: []byte(`{"membership":"join","displayname":"U"}`)},
			"odd key":   {Type: "org.example.\u0001", StateKey: ptr("a\"b\\"), Content: []byte(`{}`)},
			"redaction": {Type: "m.room.redaction", Redacts: parent, Content: []byte(`{"reason":"spam"}`)},
		}
		for name, p := range protos {
			t.Run(name, func(t *testing.T) {
				p.RoomID, p.Sender, p.Depth, p.OriginServerTS = roomID, "@u:one.example", 7, 1234567890123
				p.PrevEvents, p.AuthEvents = []matrix.EventID{parent, auth}, []matrix.EventID{auth}
				built := build(t, v, p)
				signed, err := built.Sign("one.example", specKey(t))
				if err != nil {
					t.Fatal(err)
				}
				parsed, err := Parse(v, signed.JSON())
				if err != nil {
					t.Fatal(err)
				}
				if parsed.HashMismatch() {
					t.Error("hash mismatch")
				}
				sameEvent(t, signed, parsed)
				if diff := cmp.Diff(p.PrevEvents, parsed.PrevEvents()); diff != "" {
					t.Error(diff)
				}
				if diff := cmp.Diff(p.AuthEvents, parsed.AuthEvents()); diff != "" {
					t.Error(diff)
				}
				if id, _ := parsed.Redacts(); id != p.Redacts {
					t.Errorf("redacts %q", id)
				}
			})
		}
	})
}
