package xmatrix

import (
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/signing"
)

func TestParseGood(t *testing.T) {
	want := Header{Origin: "a.example", Destination: "b.example:8448", Key: "ed25519:k", Signature: "AB+/C"}
	noDest := want
	noDest.Destination = ""
	for value, want := range map[string]Header{
		`X-Matrix origin="a.example",destination="b.example:8448",key="ed25519:k",sig="AB+/C"`:               want,
		`x-matrix   sig="AB+/C" , key="ed25519:k"	,	destination="b.example:8448",ORIGIN="a.example"`:         want,
		`X-Matrix origin=a.example,destination=b.example:8448,key=ed25519:k,sig=AB+/C`:                       want,
		`X-Matrix origin="\a.e\xample",destination="b.example:8448",key="ed25519:k",sig="AB+/C"`:             want,
		`X-Matrix origin="a.example",key="ed25519:k",sig="AB+/C"`:                                            noDest,
		`X-Matrix origin="a.example",key="ed25519:k",sig="AB+/C",destination=""`:                             noDest,
		`X-Matrix ,,origin="a.example",, key="ed25519:k",sig="AB+/C",future="\"x\", y=z"`:                    noDest,
		`X-Matrix origin="[2001:db8::1]:1",key="ed25519:k",sig="AB+/C"`:                                      {Origin: "[2001:db8::1]:1", Key: "ed25519:k", Signature: "AB+/C"},
		`X-Matrix origin=[2001:db8::1]:1,key=ed25519:k,sig=AB+/C==`:                                          {Origin: "[2001:db8::1]:1", Key: "ed25519:k", Signature: "AB+/C=="},
		`X-Matrix origin = "a.example" , key = "ed25519:k" , sig = "AB+/C" , destination = "b.example:8448"`: want,
	} {
		got, err := Parse(value)
		if err != nil {
			t.Errorf("%s: %v", value, err)
		} else if d := cmp.Diff(want, got); d != "" {
			t.Errorf("%s: %s", value, d)
		}
		again, err := Parse(got.String())
		if err != nil || again != got {
			t.Errorf("%s does not survive String: %v %v", value, again, err)
		}
	}
}

func TestParseBad(t *testing.T) {
	for _, value := range []string{
		``, `X-Matrix`, `X-Matrix `, `Bearer abc`, `X-MatrixX origin="a"`,
		`X-Matrix origin="a.example",key="ed25519:k"`,                                          // no sig
		`X-Matrix origin="a.example",sig="A"`,                                                  // no key
		`X-Matrix key="ed25519:k",sig="A"`,                                                     // no origin
		`X-Matrix origin="a.example",key="ed25519:k",sig="A`,                                   // unterminated
		`X-Matrix origin="a.example",key="ed25519:k",sig="A\`,                                  // unterminated escape
		`X-Matrix origin="a.example" key="ed25519:k",sig="A"`,                                  // no comma
		`X-Matrix origin="a.example",origin="b.example",key="ed25519:k",sig="A"`,               // twice
		`X-Matrix origin="a.example",Origin="b.example",key="ed25519:k",sig="A"`,               // twice in disguise
		`X-Matrix origin="a b",key="ed25519:k",sig="A"`,                                        // no server name
		`X-Matrix origin="a.example",destination="b/c",key="ed25519:k",sig="A"`,                // no server name
		`X-Matrix origin="a.example",key="rsa:k",sig="A"`,                                      // algorithm
		`X-Matrix origin="a.example",key="ed25519:",sig="A"`,                                   // no version
		"X-Matrix origin=\"a.example\",key=\"ed25519:\xff\",sig=\"A\"",                         // no text
		`X-Matrix origin="a.example",key="ed25519:k",sig="A",=x`,                               // no name
		`X-Matrix origin="a.example",key="ed25519:k",sig="A",novalue`,                          // no value
		"X-Matrix origin=\"a.example\",key=\"ed25519:k\",sig=\"A\x00\"",                        // control character
		"X-Matrix origin=\"a.example\",key=\"ed25519:k\",sig=\"A\\\x7f\"",                      // escaped control character
		`X-Matrix origin="a.example",key="ed25519:k",sig="` + string(make([]byte, 9000)) + `"`, // too long
	} {
		if h, err := Parse(value); err == nil {
			t.Errorf("%q was read as %+v", value, h)
		}
	}
}

func TestSignAndVerify(t *testing.T) {
	key, err := signing.Generate()
	if err != nil {
		t.Fatal(err)
	}
	public, _ := key.Private.Public().(ed25519.PublicKey)
	req := Request{
		Method: "PUT", URI: "/_matrix/federation/v1/send/1?a=%20b", Origin: "a.example", Destination: "b.example",
		Content: []byte(`{"z": 1.50, "a": "\u00e9"}`),
	}
	value, err := req.Sign(key)
	if err != nil {
		t.Fatal(err)
	}
	h, err := Parse(value)
	if err != nil {
		t.Fatal(err)
	}
	same := Request{Method: req.Method, URI: req.URI, Content: []byte(`{"a":"é","z":1.50}`)}
	if err := same.Verify(h, public); err != nil {
		t.Errorf("the same request: %v", err)
	}
	for name, change := range map[string]func(*Request, *Header){
		"method":      func(r *Request, _ *Header) { r.Method = "POST" },
		"uri":         func(r *Request, _ *Header) { r.URI += "&c" },
		"content":     func(r *Request, _ *Header) { r.Content = []byte(`{"z":1.50}`) },
		"no content":  func(r *Request, _ *Header) { r.Content = nil },
		"origin":      func(_ *Request, h *Header) { h.Origin = "c.example" },
		"destination": func(_ *Request, h *Header) { h.Destination = "c.example" },
		"no dest":     func(_ *Request, h *Header) { h.Destination = "" },
		"signature":   func(_ *Request, h *Header) { h.Signature = "AAAA" },
		"no base64":   func(_ *Request, h *Header) { h.Signature = "!" },
	} {
		r, h := same, h
		change(&r, &h)
		if err := r.Verify(h, public); err == nil {
			t.Errorf("verifies with another %s", name)
		}
	}
	if err := same.Verify(h, make([]byte, 3)); err == nil {
		t.Error("verifies with a key of the wrong size")
	}
	if _, err := (Request{Content: []byte(`{"a":1,"a":2}`)}).Sign(key); err == nil {
		t.Error("signs a body with a duplicate key")
	}
}

// The form that the specification shows, keys in order.
func TestCanonicalForm(t *testing.T) {
	got, err := Request{Method: "GET", URI: "/p?q", Origin: "a", Destination: "b"}.canonical()
	if err != nil || string(got) != `{"destination":"b","method":"GET","origin":"a","uri":"/p?q"}` {
		t.Errorf("%s %v", got, err)
	}
	got, err = Request{Method: "PUT", URI: "/p", Origin: "a", Content: []byte(`{}`)}.canonical()
	if err != nil || string(got) != `{"content":{},"method":"PUT","origin":"a","uri":"/p"}` {
		t.Errorf("%s %v", got, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(`X-Matrix origin="a.example",destination="b.example:8448",key="ed25519:k",sig="AB+/C"`)
	f.Add(`X-Matrix origin=a,key=ed25519:k,sig="\"\\"`)
	f.Add(`x-matrix ,=,"`)
	f.Fuzz(func(t *testing.T, value string) {
		h, err := Parse(value)
		if err != nil {
			if h != (Header{}) && !errors.Is(err, errMalformed) {
				t.Errorf("a header beside an error: %+v", h)
			}
			return
		}
		if _, err := matrix.ParseServerName(string(h.Origin)); err != nil {
			t.Errorf("origin %q: %v", h.Origin, err)
		}
		if h.Destination != "" {
			if _, err := matrix.ParseServerName(string(h.Destination)); err != nil {
				t.Errorf("destination %q: %v", h.Destination, err)
			}
		}
		if _, err := matrix.ParseKeyID(string(h.Key)); err != nil {
			t.Errorf("key %q: %v", h.Key, err)
		}
		if strings.ContainsAny(h.Signature+string(h.Key), "\"\\") {
			return // String is for what we send
		}
		if again, err := Parse(h.String()); err != nil || again != h {
			t.Errorf("%s became %+v, %v", h, again, err)
		}
	})
}
