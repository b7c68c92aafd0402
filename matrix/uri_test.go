package matrix

import (
	"reflect"
	"strings"
	"testing"
)

func TestContentURI(t *testing.T) {
	for _, v := range []ContentURI{{"matrix.org", "aA0_-"}, {"[::1]:80", "x"}} {
		if got, err := ParseContentURI(v.String()); err != nil || got != v {
			t.Errorf("%s: %v, %v", v, got, err)
		}
	}
	for _, s := range []string{"", "mxc://", "mxc://a", "mxc://a/", "mxc:///x", "mxc:/a/x", "MXC://a/x", "http://a/x", "mxc://a/x/y", "mxc://a/..", "mxc://a/.", "mxc://a/x.y",
		"mxc://a/%41", "mxc://a/é", "mxc://a/x?y", "mxc://a/x#y", "mxc://a b/x", "mxc://../x", "mxc://u@a/x", "mxc://127.0.0.1/../../../some_service/etc/passwd",
		"mxc://a/x\n", " mxc://a/x", "mxc://a/" + long} {
		if got, err := ParseContentURI(s); !HasCode(err, "M_INVALID_PARAM") {
			t.Errorf("%q passed: %v, %v", s, got, err)
		}
	}
}

// TestLinks has the examples of the specification. spec: appendices#uris
func TestLinks(t *testing.T) {
	for _, v := range []struct {
		link     Link
		uri      string
		matrixTo string
		others   []string
	}{
		{Link{Alias: "#somewhere:example.org"}, "matrix:r/somewhere:example.org", "https://matrix.to/#/%23somewhere:example.org",
			[]string{"https://matrix.to/#/%23somewhere%3Aexample.org", "https://matrix.to/#/#somewhere:example.org", "matrix:room/somewhere:example.org", "MATRIX:r/somewhere%3aexample.org"}},
		{Link{Room: "!somewhere:example.org", Via: []ServerName{"elsewhere.ca"}}, "matrix:roomid/somewhere:example.org?via=elsewhere.ca", "https://matrix.to/#/!somewhere:example.org?via=elsewhere.ca",
			[]string{"https://matrix.to/#/%21somewhere%3Aexample.org?via=elsewhere.ca", "matrix:roomid/somewhere:example.org?x=y&via=not%20a%20name&via=elsewhere.ca"}},
		{Link{Room: "!somewhere:example.org", Event: "$event", Via: []ServerName{"elsewhere.ca"}}, "matrix:roomid/somewhere:example.org/e/event?via=elsewhere.ca",
			"https://matrix.to/#/!somewhere:example.org/$event?via=elsewhere.ca", []string{"matrix:roomid/somewhere:example.org/event/event?via=elsewhere.ca"}},
		{Link{Room: "!somewhere:example.org", Event: "$event:example.org", Via: []ServerName{"elsewhere.ca"}}, "matrix:roomid/somewhere:example.org/e/event:example.org?via=elsewhere.ca",
			"https://matrix.to/#/!somewhere:example.org/$event:example.org?via=elsewhere.ca", []string{"https://matrix.to/#/%21somewhere%3Aexample.org/%24event%3Aexample.org?via=elsewhere.ca"}},
		{Link{User: "@alice:example.org", Action: "chat"}, "matrix:u/alice:example.org?action=chat", "", []string{"matrix:user/alice:example.org?action=chat#fragment", "matrix://authority/u/alice:example.org?action=chat"}},
		{Link{User: "@alice:example.org"}, "matrix:u/alice:example.org", "https://matrix.to/#/@alice:example.org", []string{"https://matrix.to/#/%40alice%3Aexample.org"}},
		{Link{Room: "!" + hash, Event: "$a/b+c"}, "matrix:roomid/" + hash + "/e/a%2Fb+c", "https://matrix.to/#/!" + hash + "/$a%2Fb+c", []string{"https://matrix.to/#/!" + hash + "/$a/b+c"}},
		{Link{Alias: "#a b?/%#:[::1]:80", Via: []ServerName{"x:80", "[::1]"}}, "matrix:r/a%20b%3F%2F%25%23:%5B::1%5D:80?via=x:80&via=%5B::1%5D", "https://matrix.to/#/%23a%20b%3F%2F%25%23:%5B::1%5D:80?via=x:80&via=%5B::1%5D", nil},
	} {
		if got := v.link.URI(); got != v.uri {
			t.Errorf("%+v is %s, want %s", v.link, got, v.uri)
		}
		forms := append(v.others, v.uri)
		if v.matrixTo != "" {
			if got := v.link.MatrixTo(); got != v.matrixTo {
				t.Errorf("%+v is %s, want %s", v.link, got, v.matrixTo)
			}
			forms = append(forms, v.matrixTo)
		}
		for _, s := range forms {
			if got, err := ParseLink(s); err != nil || !reflect.DeepEqual(got, v.link) {
				t.Errorf("%s: %+v, %v; want %+v", s, got, err, v.link)
			}
		}
	}
	for _, s := range []string{"", "matrix:", "matrix:u", "matrix:u/", "matrix:u/a", "matrix:x/a:b", "matrix:e/a", "matrix:u/a:b/e/c", "matrix:roomid/a:b/c", "matrix:roomid/a:b/x/c", "matrix:roomid/a:b/e/",
		"matrix:r/a:b/e/c/d", "matrix:u/%zz:b", "matrix://u/a:b", "matrix:u/a%00:b", "matrix:u/%ff:b", "https://matrix.to/", "https://matrix.to/#/", "https://matrix.to/#/@", "https://matrix.to/#/a:b",
		"https://matrix.to/#/%2Bexample%3Aexample.org", "https://matrix.to/#/@a:b/$c", "https://matrix.to/#/%zz", "https://matrix.to/#/!a:b/%zz", "https://matrix.to/#/!a:b/c", "http://matrix.to/#/@a:b",
		"https://example.org/#/@a:b", "matrix:u/a:b?via=%zz", strings.Repeat("matrix:", 1000)} {
		if got, err := ParseLink(s); !HasCode(err, "M_INVALID_PARAM") {
			t.Errorf("%q passed: %+v, %v", s, got, err)
		}
	}
}
