package endpoint

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-chi/chi/v5"

	"hanok/internal/budget"
	"hanok/internal/strictjson"
	"hanok/matrix"
)

// Request is one call of an endpoint.
type Request struct {
	*http.Request
	W     http.ResponseWriter
	Route Route

	query    url.Values
	identity any
	body     []byte
	read     bool
	deadline bool // for reading the body
	hold     func(*Request) *budget.Hold
	held     *budget.Hold // nil: nothing
}

// Ctx is the request's context.
func (r *Request) Ctx() context.Context { return r.Request.Context() }

// SetIdentity keeps what Authorise found out about the caller; Identity gives it back.
func (r *Request) SetIdentity(v any) { r.identity = v }

// Identity is what Authorise attached, nil if nothing.
func (r *Request) Identity() any { return r.identity }

// RemoteAddress is the caller's IP, or what a reverse proxy says it is: one on this machine is believed
// unasked, or all who come through it would share one rate limit.
func (r *Request) RemoteAddress(behindProxy bool) string {
	return RemoteAddress(r.Request, behindProxy)
}

// RemoteAddress is Request.RemoteAddress for a request that no route has taken yet.
func RemoteAddress(r *http.Request, behindProxy bool) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		host = r.RemoteAddr
	}
	if behindProxy || net.ParseIP(host).IsLoopback() {
		hops := strings.Split(r.Header.Get("X-Forwarded-For"), ",")
		if last := strings.TrimSpace(hops[len(hops)-1]); last != "" {
			return last
		}
	}
	return host
}

// Caller is what counts as one caller among those who have not proved who they are: an address, or the /64 that a subscriber gets of the newer Internet.
func Caller(r *http.Request, behindProxy bool) string {
	text := RemoteAddress(r, behindProxy)
	a, err := netip.ParseAddr(text)
	if err != nil || a.Unmap().Is4() {
		return text
	}
	prefix, err := a.WithZone("").Prefix(64)
	if err != nil {
		return text
	}
	return prefix.String()
}

// Var is a path variable, unescaped once. Invalid escapes, invalid UTF-8 and NUL are refused
// before any handler runs, so the result is always clean text.
func (r *Request) Var(name string) string {
	s, err := url.PathUnescape(chi.URLParam(r.Request, name))
	if err != nil {
		return ""
	}
	return s
}

// checkVars refuses path variables that cannot be identifiers of anything.
func (r *Request) checkVars() error {
	rc := chi.RouteContext(r.Ctx())
	if rc == nil {
		return nil
	}
	for i, name := range rc.URLParams.Keys {
		s, err := url.PathUnescape(rc.URLParams.Values[i])
		if err != nil || !cleanText(s) {
			return matrix.InvalidParam("The %s in the path is not valid UTF-8 text.", name)
		}
	}
	return nil
}

func cleanText(s string) bool {
	return utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
}

// Query is a query parameter, "" if absent.
func (r *Request) Query(name string) string {
	return r.values().Get(name)
}

// QueryAll is every value of a query parameter that may be repeated.
func (r *Request) QueryAll(name string) []string { return r.values()[name] }

// HasQuery tells an empty parameter from an absent one.
func (r *Request) HasQuery(name string) bool { return r.values().Has(name) }

func (r *Request) values() url.Values {
	if r.query == nil {
		r.query = r.URL.Query()
	}
	return r.query
}

func (r *Request) checkQuery() error {
	for name, values := range r.values() {
		for _, v := range values {
			if !cleanText(v) {
				return matrix.InvalidParam("The query parameter %q is not valid UTF-8 text.", name)
			}
		}
	}
	return nil
}

// QueryInt is a query parameter that is an integer, def if absent.
func (r *Request) QueryInt(name string, def int64) (int64, error) {
	s := r.Query(name)
	if s == "" {
		return def, nil
	}
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil {
		return 0, matrix.InvalidParam("The query parameter %q must be an integer.", name)
	}
	return n, nil
}

// QueryBool is a query parameter that is "true" or "false", def if absent.
func (r *Request) QueryBool(name string, def bool) (bool, error) {
	switch r.Query(name) {
	case "":
		return def, nil
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return false, matrix.InvalidParam("The query parameter %q must be true or false.", name)
}

// A client that sends more slowly than this is cut off: bodyTime for all, and a second for each bodyRate bytes of the limit.
const (
	bodyTime = 30 * time.Second
	bodyRate = 32 << 10
)

// limitReading sets the time in which the body has to come.
func (r *Request) limitReading() {
	if r.ContentLength == 0 { // nothing comes, and net/http watches the connection by reading from it
		return
	}
	until := time.Now().Add(bodyTime + time.Duration(r.maxBody()/bodyRate)*time.Second)
	r.deadline = http.NewResponseController(r.W).SetReadDeadline(until) == nil
}

// restTime is how long net/http may read on in a body that the handler did not want to its end, before it answers.
const restTime = 5 * time.Second

func (r *Request) limitRest() {
	if r.deadline && !r.read {
		r.deadline = http.NewResponseController(r.W).SetReadDeadline(time.Now().Add(restTime)) == nil
	}
}

func (r *Request) maxBody() int64 {
	if r.Route.MaxBody != 0 {
		return r.Route.MaxBody
	}
	return DefaultMaxBody
}

// ErrBusy refuses a request for which there is no memory now, or too much under way already.
var ErrBusy = matrix.Errorf(http.StatusTooManyRequests, "M_LIMIT_EXCEEDED", "Too many requests at once.").With("retry_after_ms", int64(2000))

// smallBody need not be counted: there is one for each connection at most.
const smallBody = 4 << 10

// charged is a body that takes from a budget what is read of it.
type charged struct {
	io.ReadCloser
	held *budget.Hold
}

func (c charged) Read(p []byte) (int, error) {
	n, err := c.ReadCloser.Read(p)
	if n > 0 && c.held.Take(int64(n)) != nil {
		return 0, ErrBusy
	}
	return n, err
}

// release gives back what the body has taken.
func (r *Request) release() {
	if r.held != nil {
		r.held.Release()
		r.held = nil
	}
}

// DropBody forgets the body, for handlers that have made of it what they need and go on to wait for something.
func (r *Request) DropBody() {
	r.body = nil
	r.release()
}

// Body reads the whole body, at most the route's limit. ErrBusy if too much is being received already.
func (r *Request) Body() ([]byte, error) {
	if r.read {
		return r.body, nil
	}
	body := r.Request.Body
	if r.hold != nil && r.held == nil && (r.ContentLength < 0 || r.ContentLength > smallBody) {
		r.held = r.hold(r)
		body = charged{body, r.held}
	}
	b, err := io.ReadAll(http.MaxBytesReader(r.W, body, r.maxBody()))
	if err == nil && r.deadline {
		// It would end the connection under a long poll. (After an error there is another: limitRest.)
		err = http.NewResponseController(r.W).SetReadDeadline(time.Time{})
	}
	if err != nil {
		if refusal, ok := matrix.AsError(err); ok {
			return nil, refusal
		}
		var tooLarge *http.MaxBytesError
		if errors.As(err, &tooLarge) {
			return nil, matrix.TooLarge("The request body is over %d bytes.", tooLarge.Limit)
		}
		return nil, matrix.Errorf(http.StatusBadRequest, "M_UNKNOWN", "The request body could not be read.").Because(err)
	}
	r.body, r.read = b, true
	return b, nil
}

// Decode reads the body into v. Anything that is not JSON gives M_NOT_JSON, JSON of the wrong shape
// M_BAD_JSON. Duplicate keys are refused, unknown members are ignored.
func (r *Request) Decode(v any) error {
	b, err := r.Body()
	if err != nil {
		return err
	}
	return strictjson.Unmarshal(b, v)
}

// DecodeOptional is Decode for endpoints whose body may be missing altogether.
func (r *Request) DecodeOptional(v any) error {
	b, err := r.Body()
	if err != nil {
		return err
	}
	if len(b) == 0 {
		return nil
	}
	return strictjson.Unmarshal(b, v)
}
