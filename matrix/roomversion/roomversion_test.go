package roomversion

import (
	"fmt"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix/canonicaljson"
)

// The features as the pages of the specification state them, version by
// version, one column per version: an x where the feature is on.
func TestFeatures(t *testing.T) {
	features := []struct {
		name string
		get  func(*Version) bool
		want string // versions 1 to 12
	}{
		{"stable", func(v *Version) bool { return v.Stable }, "xxxxxxxxxxxx"},
		{"strict JSON", func(v *Version) bool { return v.JSON == canonicaljson.Strict }, ".....xxxxxxx"},
		{"event ID in event", func(v *Version) bool { return v.EventIDFormat == EventIDInEvent }, "xx.........."},
		{"event ID standard base64", func(v *Version) bool { return v.EventIDFormat == EventIDHash }, "..x........."},
		{"event ID URL-safe base64", func(v *Version) bool { return v.EventIDFormat == EventIDHashURLSafe }, "...xxxxxxxxx"},
		{"state resolution 1", func(v *Version) bool { return v.StateResolution == StateResolutionV1 }, "x..........."},
		{"state resolution 2", func(v *Version) bool { return v.StateResolution == StateResolutionV2 }, ".xxxxxxxxxx."},
		{"state resolution 2.1", func(v *Version) bool { return v.StateResolution == StateResolutionV2_1 }, "...........x"},
		{"redaction v1", func(v *Version) bool { return v.Redaction == RedactionV1 }, "xxxxx......."},
		{"redaction v6", func(v *Version) bool { return v.Redaction == RedactionV6 }, ".....xx....."},
		{"redaction v8", func(v *Version) bool { return v.Redaction == RedactionV8 }, ".......x...."},
		{"redaction v9", func(v *Version) bool { return v.Redaction == RedactionV9 }, "........xx.."},
		{"redaction v11", func(v *Version) bool { return v.Redaction == RedactionV11 }, "..........xx"},
		{"key validity", func(v *Version) bool { return v.EnforceKeyValidity }, "....xxxxxxxx"},
		{"aliases auth", func(v *Version) bool { return v.AliasesAuth }, "xxxxx......."},
		{"redaction auth", func(v *Version) bool { return v.RedactionAuth }, "xx.........."},
		{"notification levels", func(v *Version) bool { return v.NotificationLevels }, ".....xxxxxxx"},
		{"knock", func(v *Version) bool { return v.Knock }, "......xxxxxx"},
		{"restricted", func(v *Version) bool { return v.Restricted }, ".......xxxxx"},
		{"knock_restricted", func(v *Version) bool { return v.KnockRestricted }, ".........xxx"},
		{"integer levels", func(v *Version) bool { return v.IntegerPowerLevels }, ".........xxx"},
		{"implicit creator", func(v *Version) bool { return v.ImplicitCreator }, "..........xx"},
		{"redacts in content", func(v *Version) bool { return v.RedactsInContent }, "..........xx"},
		{"privileged creators", func(v *Version) bool { return v.PrivilegedCreators }, "...........x"},
		{"room ID is create hash", func(v *Version) bool { return v.RoomIDIsCreateHash }, "...........x"},
	}
	for _, f := range features {
		var got strings.Builder
		for _, id := range Supported() {
			v, ok := Get(id)
			if !ok || v.ID != id {
				t.Fatalf("Get(%q) = %v, %v", id, v, ok)
			}
			if f.get(v) {
				got.WriteByte('x')
			} else {
				got.WriteByte('.')
			}
		}
		if got.String() != f.want {
			t.Errorf("%s: got %s, want %s", f.name, got.String(), f.want)
		}
	}
}

func TestSupported(t *testing.T) {
	var want []ID
	for i := 1; i <= 12; i++ {
		want = append(want, ID(fmt.Sprint(i)))
	}
	if diff := cmp.Diff(want, Supported()); diff != "" {
		t.Error(diff)
	}
	if _, ok := Get(Default); !ok {
		t.Error("the default version is not supported")
	}
	Supported()[0] = "changed"
	if Supported()[0] != "1" {
		t.Error("Supported hands out its own slice")
	}
	for _, id := range []ID{"", "0", "13", "01", " 1"} {
		if _, ok := Get(id); ok {
			t.Errorf("Get(%q) found something", id)
		}
	}
}

// A version of a proposal is one of the specification with its name and what the proposal changes.
func TestExperimental(t *testing.T) {
	for _, id := range Experimental() {
		v, ok := Get(id)
		if !ok || v.ID != id || v.Stable || !ValidID(string(id)) {
			t.Fatalf("Get(%q) = %+v, %v", id, v, ok)
		}
		base, _ := Get(id[strings.LastIndexByte(string(id), '.')+1:])
		want := *base
		want.ID, want.Stable, want.OwnedState = id, false, true
		if diff := cmp.Diff(want, *v); diff != "" || base.OwnedState {
			t.Errorf("%s: %s", id, diff)
		}
	}
}

func TestValidID(t *testing.T) {
	good := []string{"1", "1.2", "1.2-beta", "com.example.version", strings.Repeat("a", 32)}
	bad := []string{"", "A", "1 ", "ü", "a_b", "1/2", strings.Repeat("a", 33)}
	for _, s := range good {
		if !ValidID(s) {
			t.Errorf("refused %q", s)
		}
	}
	for _, s := range bad {
		if ValidID(s) {
			t.Errorf("accepted %q", s)
		}
	}
}
