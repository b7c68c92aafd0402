package acl

import (
	"fmt"
	"strings"
	"testing"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
)

func compile(t testing.TB, content string) *ACL {
	t.Helper()
	b, err := canonicaljson.Canonical([]byte(content), canonicaljson.Lenient)
	if err != nil {
		t.Fatal(err)
	}
	return Compile(b)
}

func TestAllows(t *testing.T) {
	for _, v := range []struct {
		content string
		yes, no string // server names, separated by blanks
	}{
		// The example of the specification.
		{`{"allow": ["*"], "allow_ip_literals": false, "deny": ["*.evil.com", "evil.com"]}`,
			"example.org example.org:80 notevil.com evil.com.org 256.1.1.1",
			"evil.com EVIL.com evil.com:8448 evil.com:1234 a.evil.com a.b.Evil.COM:1 1.2.3.4 1.2.3.4:80 [::1] [::1]:80 [::ffff:1.2.3.4] 010.1.1.1"},
		{`{}`, "", "a.org 1.2.3.4"},
		{`{"allow": []}`, "", "a.org"},
		{`{"deny": []}`, "", "a.org"},
		{`{"deny": ["a.org"]}`, "", "a.org b.org"},
		{`{"allow": ["*"]}`, "a.org 1.2.3.4 [::1]:80", ""},
		{`{"allow": ["*"], "deny": ["*"]}`, "", "a.org"},
		{`{"allow": ["a.org"]}`, "a.org A.ORG:1", "b.org aa.org a.org.de"},
		{`{"allow": ["A.Org"]}`, "a.org A.ORG:1", "b.org"},
		{`{"allow": ["*.A.Org"]}`, "x.a.org X.A.ORG:1", "a.org xa.org"},
		{`{"allow": ["?.A.org"]}`, "x.a.org X.a.ORG:1", "xx.a.org"},
		{`{"allow": ["*a.org"]}`, "a.org xa.org x.a.org", "b.org"},
		{`{"allow": ["*.*.org"]}`, "a.b.org a.b.c.org", "b.org"},
		{`{"allow": ["*"], "deny": ["1.2.3.*"]}`, "1.2.4.4", "1.2.3.4 1.2.3.4:80"},
		{`{"allow": ["*"], "deny": ["[::1]"]}`, "[::2]", "[::1] [::1]:80"},
		{`{"allow": ["*"], "deny": ["a.org:80"]}`, "a.org a.org:80", ""}, // ports are not supported
		// Of the wrong type.
		{`{"allow": "*"}`, "", "a.org"},
		{`{"allow": {"*": "*"}}`, "", "a.org"},
		{`{"allow": null}`, "", "a.org"},
		{`{"allow": [1, null, ["*"], {"a": "*"}, "a.org", true]}`, "a.org", "b.org"},
		{`{"allow": ["*"], "deny": "a.org"}`, "a.org", ""},
		{`{"allow": ["*"], "deny": [["a.org"], 1, "b.org"]}`, "a.org", "b.org"},
		{`{"allow": ["*"], "allow_ip_literals": "false"}`, "1.2.3.4", ""},
		{`{"allow": ["*"], "allow_ip_literals": 0}`, "1.2.3.4", ""},
		{`{"allow": ["*"], "allow_ip_literals": null}`, "1.2.3.4", ""},
		{`{"allow": ["*"], "allow_ip_literals": true}`, "1.2.3.4", ""},
		{`[]`, "", "a.org"},
		{`"*"`, "", "a.org"},
		{`{"allow": ["\u002a"]}`, "a.org", ""},
	} {
		a := compile(t, v.content)
		for _, s := range strings.Fields(v.yes) {
			if !a.Allows(matrix.ServerName(s)) {
				t.Errorf("%s denies %s", v.content, s)
			}
		}
		for _, s := range strings.Fields(v.no) {
			if a.Allows(matrix.ServerName(s)) {
				t.Errorf("%s allows %s", v.content, s)
			}
		}
	}
	if a := (*ACL)(nil); !a.Allows("a.org") {
		t.Error("no ACL, but denied")
	}
}

func BenchmarkAllows(b *testing.B) {
	var deny []string
	for i := range 2000 {
		deny = append(deny, fmt.Sprintf(`"bad%d.org"`, i), fmt.Sprintf(`"*.bad%d.org"`, i))
	}
	a := compile(b, `{"allow":["*"],"allow_ip_literals":false,"deny":[`+strings.Join(deny, ",")+`]}`)
	b.ReportAllocs()
	for b.Loop() {
		if !a.Allows("matrix.example.org:8448") {
			b.Fatal("denied")
		}
	}
}

func Example() {
	a := Compile([]byte(`{"allow":["*"],"allow_ip_literals":false,"deny":["*.evil.com"]}`))
	fmt.Println(a.Allows("good.org"), a.Allows("matrix.evil.com:8448"), a.Allows("[::1]"))
	// Output: true false false
}
