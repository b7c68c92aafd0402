// Package xmatrix is request authentication between servers: the signed JSON
// form of a request and the Authorization header that carries the signature.
//
// It is pure: who the keys belong to is the key ring's business.
// spec: server-server-api#request-authentication
package xmatrix

import (
	"errors"
	"fmt"
	"strings"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/signing"
)

// Scheme is the authentication scheme's name; it is matched without regard to case.
const Scheme = "X-Matrix"

// maxHeader bounds what Parse looks at: two server names of 255 bytes, a key ID and a signature fit many times over.
const maxHeader = 8 << 10

// Header holds the parameters of one Authorization header.
type Header struct {
	Origin      matrix.ServerName
	Destination matrix.ServerName // empty from servers older than v1.3 of the specification
	Key         matrix.KeyID
	Signature   string // base64, as sent
}

var (
	errScheme    = errors.New("not an X-Matrix header")
	errMalformed = errors.New("malformed X-Matrix header")
)

// Parse reads the value of an Authorization header. Parameter names are case
// insensitive and may come in any order, unknown ones are ignored, a repeated
// one is an error. Identifiers are parsed, so a Header never holds an unchecked name.
func Parse(value string) (Header, error) {
	var h Header
	if len(value) > maxHeader {
		return h, fmt.Errorf("%w: too long", errMalformed)
	}
	if len(value) <= len(Scheme) || !strings.EqualFold(value[:len(Scheme)], Scheme) || value[len(Scheme)] != ' ' {
		return h, errScheme
	}
	rest := value[len(Scheme):]
	seen := map[string]string{}
	for {
		// RFC 9110 lets list elements be empty, so stray commas are no error.
		rest = strings.TrimLeft(rest, " \t,")
		if rest == "" {
			break
		}
		name, param, tail, err := parameter(rest)
		if err != nil {
			return h, err
		}
		if _, dup := seen[name]; dup {
			return h, fmt.Errorf("%w: %q given twice", errMalformed, name)
		}
		seen[name] = param
		rest = strings.TrimLeft(tail, " \t")
		if rest != "" && rest[0] != ',' {
			return h, fmt.Errorf("%w: parameters not separated by a comma", errMalformed)
		}
	}
	return header(seen)
}

func header(params map[string]string) (Header, error) {
	var h Header
	for _, name := range []string{"origin", "key", "sig"} {
		if params[name] == "" {
			return h, fmt.Errorf("%w: %s is missing", errMalformed, name)
		}
	}
	var err error
	if h.Origin, err = matrix.ParseServerName(params["origin"]); err != nil {
		return Header{}, fmt.Errorf("%w: origin: %w", errMalformed, err)
	}
	if d := params["destination"]; d != "" {
		if h.Destination, err = matrix.ParseServerName(d); err != nil {
			return Header{}, fmt.Errorf("%w: destination: %w", errMalformed, err)
		}
	}
	if h.Key, err = matrix.ParseKeyID(params["key"]); err != nil {
		return Header{}, fmt.Errorf("%w: key: %w", errMalformed, err)
	}
	if h.Key.Algorithm() != "ed25519" {
		return Header{}, fmt.Errorf("%w: unsupported key algorithm", errMalformed)
	}
	h.Signature = params["sig"]
	return h, nil
}

// parameter reads one name=value pair off the front of s.
func parameter(s string) (name, value, tail string, err error) {
	i := 0
	for i < len(s) && isToken(s[i]) {
		i++
	}
	if i == 0 {
		return "", "", "", fmt.Errorf("%w: parameter name expected", errMalformed)
	}
	name = strings.ToLower(s[:i])
	s = strings.TrimLeft(s[i:], " \t")
	if s == "" || s[0] != '=' {
		return "", "", "", fmt.Errorf("%w: %q has no value", errMalformed, name)
	}
	s = strings.TrimLeft(s[1:], " \t")
	if s != "" && s[0] == '"' {
		value, tail, err = quoted(s[1:])
		return name, value, tail, err
	}
	i = 0
	for i < len(s) && isUnquoted(s[i]) {
		i++
	}
	return name, s[:i], s[i:], nil
}

// quoted reads a quoted-string whose opening quote is gone already.
func quoted(s string) (value, tail string, err error) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c == '"' {
			return b.String(), s[i+1:], nil
		}
		if c == '\\' && i+1 < len(s) {
			i++
			c = s[i]
		}
		if c < ' ' && c != '\t' || c == 0x7f {
			return "", "", fmt.Errorf("%w: control character", errMalformed)
		}
		b.WriteByte(c)
	}
	return "", "", fmt.Errorf("%w: unterminated quote", errMalformed)
}

// isToken is tchar of RFC 9110, section 5.6.2.
func isToken(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' ||
		strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// isUnquoted also admits what older servers send without quotes: the colon of
// ports and key IDs, the brackets of IPv6 literals, the alphabet of base64.
func isUnquoted(c byte) bool {
	return isToken(c) || strings.IndexByte(":[]/=", c) >= 0
}

// String is the header in the form that every server understands: lower-case
// names, quoted values, one space, none around commas.
func (h Header) String() string {
	return fmt.Sprintf(`%s origin="%s",destination="%s",key="%s",sig="%s"`,
		Scheme, h.Origin, h.Destination, h.Key, h.Signature)
}

// Request is the part of an HTTP request that is signed.
type Request struct {
	Method      string
	URI         string // path and query as on the request line, escapes included
	Origin      matrix.ServerName
	Destination matrix.ServerName // left out of the signed form if empty
	Content     []byte            // the JSON body; nil if there is none
}

// canonical is the JSON object that is signed, without signatures.
func (r Request) canonical() ([]byte, error) {
	// Members are written in code point order, so that the object is canonical as it stands.
	b := []byte{'{'}
	if r.Content != nil {
		content, err := canonicaljson.Canonical(r.Content, canonicaljson.Lenient)
		if err != nil {
			return nil, err
		}
		b = append(append(append(b, `"content":`...), content...), ',')
	}
	if r.Destination != "" {
		b = canonicaljson.AppendString(append(b, `"destination":`...), string(r.Destination))
		b = append(b, ',')
	}
	b = canonicaljson.AppendString(append(b, `"method":`...), r.Method)
	b = canonicaljson.AppendString(append(b, `,"origin":`...), string(r.Origin))
	b = canonicaljson.AppendString(append(b, `,"uri":`...), r.URI)
	return append(b, '}'), nil
}

// Sign returns the Authorization header value for a request.
func (r Request) Sign(key signing.Key) (string, error) {
	object, err := r.canonical()
	if err != nil {
		return "", fmt.Errorf("sign request: %w", err)
	}
	signed, err := key.Sign(string(r.Origin), object)
	if err != nil {
		return "", fmt.Errorf("sign request: %w", err)
	}
	signatures, _ := canonicaljson.Get(signed, "signatures")
	ours, _ := canonicaljson.Get(signatures, string(r.Origin))
	sig, ok := canonicaljson.GetString(ours, string(key.ID))
	if !ok {
		return "", errors.New("sign request: no signature in the signed object")
	}
	return Header{Origin: r.Origin, Destination: r.Destination, Key: key.ID, Signature: sig}.String(), nil
}

// Verify checks a header's signature of a request. The request's Destination
// is taken from the header: comparing it with our own name is the caller's part.
func (r Request) Verify(h Header, public []byte) error {
	r.Origin, r.Destination = h.Origin, h.Destination
	object, err := r.canonical()
	if err != nil {
		return err
	}
	signatures := []byte(`{`)
	signatures = canonicaljson.AppendString(signatures, string(h.Origin))
	signatures = canonicaljson.AppendString(append(signatures, `:{`...), string(h.Key))
	signatures = canonicaljson.AppendString(append(signatures, ':'), h.Signature)
	signatures = append(signatures, `}}`...)
	return signing.Verify(string(h.Origin), h.Key, public, canonicaljson.Set(object, "signatures", signatures))
}
