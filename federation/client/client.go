// Package client makes requests to other servers: discovery, signing, limits
// and back-off, and one method for each endpoint of the server-server API.
//
// Start reading at Do; the files beside it are named for what they ask about.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
	"github.com/rs/zerolog"

	"hanok/federation/discovery"
	"hanok/federation/peers"
	"hanok/federation/xmatrix"
	"hanok/internal/budget"
	"hanok/matrix"
	"hanok/matrix/signing"
)

// Options are what a Client works with.
type Options struct {
	ServerName matrix.ServerName
	Key        signing.Key
	Resolver   *discovery.Resolver
	Peers      *peers.Peers
	Version    string // of this software, for the User-Agent header
	Log        zerolog.Logger
	// Observe is told of every finished request; status 0 means there was no response. class is the server's before it. nil for none.
	Observe func(operation string, class peers.Class, status int, elapsed time.Duration)
	// MaxConnections is how many connections may be open before those that are idle are closed; 0 is 500.
	MaxConnections int
	// Transport takes the requests in place of connections of our own, in tests.
	Transport http.RoundTripper
}

// Client makes signed requests.
type Client struct {
	opts Options
	http *http.Client
	// answers is what is read of answers, by the server that gives them.
	answers *budget.Budget
	// sweepAt is the number of open connections at which those that are idle are closed.
	sweepAt atomic.Int64

	mu     sync.Mutex
	probed map[matrix.ServerName]bool // servers that did not answer lately and are asked all the same just now
}

// Limits of what a peer may cost us, unless a request says otherwise.
const (
	defaultTimeout  = 30 * time.Second
	defaultMaxBytes = 1 << 20
	maxErrorBytes   = 64 << 10
	maxHeaderBytes  = 64 << 10

	// answersBudget is what all answers together may hold until nobody works with them any more, and answersShare those of one server while
	// others have none; beside others it has to leave a quarter of what they leave. The beginning of an answer, which is all that most have, does not count: big ones that come slowly must not keep it out.
	answersBudget = 256 << 20
	answersShare  = stateMaxBytes
	uncounted     = 1 << 20
)

// maxConnections is a default: an idle connection takes about 50 kB.
const maxConnections = 500

// New makes a client.
func New(o Options) *Client {
	if o.MaxConnections == 0 {
		o.MaxConnections = maxConnections
	}
	c := &Client{opts: o, answers: budget.New(answersBudget, answersShare), probed: map[matrix.ServerName]bool{}}
	c.sweepAt.Store(int64(o.MaxConnections))
	if o.Transport == nil {
		o.Transport = &http.Transport{
			DialTLSContext:         c.dial,
			ForceAttemptHTTP2:      true,
			MaxIdleConnsPerHost:    4,
			MaxConnsPerHost:        32,
			IdleConnTimeout:        2 * time.Minute,
			MaxResponseHeaderBytes: maxHeaderBytes,
			DisableCompression:     false,
			HTTP2: &http.HTTP2Config{
				SendPingTimeout: 30 * time.Second,
				PingTimeout:     15 * time.Second,
			},
		}
	}
	c.http = &http.Client{
		Transport: o.Transport,
		// Requests are signed for one destination: nothing to follow.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return c
}

// Agent is the User-Agent header of a version of this software.
func Agent(version string) string { return "Hanok/" + version }

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// poolHost is the key under which the transport pools connections: the name that a server delegates to, so that a server that moves gets
// new connections, and servers that live together share them. Port 0 stands for a name without port: "example.org" and
// "example.org:443" are different servers.
func poolHost(delegated matrix.ServerName) string {
	if delegated.HasPort() {
		return string(delegated)
	}
	return string(delegated) + ":0"
}

// dial connects to the server that a pool key names.
func (c *Client) dial(ctx context.Context, _, addr string) (net.Conn, error) {
	server, err := c.opts.Resolver.Locate(ctx, matrix.ServerName(strings.TrimSuffix(addr, ":0")))
	if err != nil {
		return nil, err
	}
	c.makeRoom()
	conn, err := c.opts.Resolver.Dial(ctx, server)
	if err != nil {
		return nil, err
	}
	var _ *tls.Conn = conn // net/http speaks HTTP/2 only over this very type
	return conn, nil
}

// makeRoom closes idle connections when there are too many open ones: an event may go to thousands of servers, each of which would keep
// one for minutes. http.Transport.MaxIdleConns does not count those of HTTP/2. If many are busy, the next look is some time off.
func (c *Client) makeRoom() {
	most := int64(c.opts.MaxConnections)
	at := c.sweepAt.Load()
	open := int64(c.opts.Resolver.Open())
	if open < at {
		if at > most && open < most/2 {
			c.sweepAt.CompareAndSwap(at, most)
		}
		return
	}
	if !c.sweepAt.CompareAndSwap(at, math.MaxInt64) {
		return // somebody else does it
	}
	c.http.CloseIdleConnections()
	c.sweepAt.Store(max(most, int64(c.opts.Resolver.Open())+most/4))
}

// Request is one request to another server.
type Request struct {
	Operation   string // operationId in the specification
	Method      string
	Destination matrix.ServerName
	Path        []string // segments, unescaped
	Query       url.Values
	Body        []byte // JSON; nil for none
	Unsigned    bool   // no Authorization header: the endpoint is public
	// Urgent requests are made although the server did not answer lately: somebody is waiting.
	Urgent bool
	// Probe is Urgent for one request to a server at a time.
	Probe bool
	// Made says that the body is an event of our making: whatever is wrong with it is not our client's fault.
	Made bool
	// Own lets the request go to our own name: what it asks for may be served by another program there.
	Own      bool
	Timeout  time.Duration // 0 means 30 s
	MaxBytes int64         // of the response; 0 means 1 MiB
}

func (r Request) uri() string {
	var b strings.Builder
	for _, s := range r.Path {
		b.WriteByte('/')
		b.WriteString(escape(s))
	}
	if len(r.Query) > 0 {
		b.WriteByte('?')
		b.WriteString(r.Query.Encode())
	}
	return b.String()
}

// escape percent-encodes everything but unreserved characters, so that no proxy on the way has a
// reason to rewrite the path that is signed.
func escape(s string) string {
	const hex = "0123456789ABCDEF"
	var b strings.Builder
	for i := range len(s) {
		c := s[i]
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.IndexByte("-._~", c) >= 0 {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('%')
		b.WriteByte(hex[c>>4])
		b.WriteByte(hex[c&15])
	}
	return b.String()
}

// Do makes a request and decodes the JSON answer into out (nil: it only has to be a 200), as it comes: what makes up the answer is not kept besides.
// Every failure is an *Error.
func (c *Client) Do(ctx context.Context, r Request, out any) error {
	if out == nil {
		_, err := c.Raw(ctx, r)
		return err
	}
	return c.read(ctx, r, func(body *answer) error {
		err := json.UnmarshalRead(body, out)
		if body.failed == nil && err != nil {
			return &Error{Destination: r.Destination, Status: http.StatusOK, Cause: fmt.Errorf("answer to %s: %w", r.Operation, err)}
		}
		return err
	})
}

// Raw makes a request and returns the body of the answer.
func (c *Client) Raw(ctx context.Context, r Request) (raw []byte, err error) {
	err = c.read(ctx, r, func(body *answer) (err error) {
		raw, err = io.ReadAll(body)
		return err
	})
	return raw, err
}

// read makes a request and has the answer read. An error of take is returned as it is, unless the answer could not be read.
func (c *Client) read(ctx context.Context, r Request, take func(body *answer) error) error {
	if r.Timeout == 0 {
		r.Timeout = defaultTimeout
	}
	if r.MaxBytes == 0 {
		r.MaxBytes = defaultMaxBytes
	}
	ctx, cancel := context.WithTimeout(ctx, r.Timeout)
	defer cancel()
	ctx, end := context.WithCancelCause(ctx)
	defer end(nil)
	start := time.Now()
	res, err := c.Open(ctx, r)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	held := c.answers.Hold(string(r.Destination), end)
	defer held.Done(ctx)
	body := newAnswer(res, r.MaxBytes, held)
	err = take(body)
	if err == nil {
		return nil
	}
	held.Release()
	failed := body.failed
	if failed == nil {
		return err
	}
	if cause := context.Cause(ctx); errors.Is(cause, budget.ErrSpent) {
		failed = cause // the room that it took is needed for the answers of others
	}
	if !errors.Is(failed, ErrTooLarge) && !errors.Is(failed, budget.ErrSpent) && !gaveUp(ctx, start) {
		c.opts.Peers.Failed(r.Destination, 0, reason(failed))
	}
	return &Error{Destination: r.Destination, Status: res.StatusCode, Retry: !errors.Is(failed, ErrTooLarge), Cause: fmt.Errorf("answer to %s: %w", r.Operation, failed)}
}

// Open makes a request and returns the response of a 200, whose body the caller
// reads and closes within the life of ctx. Timeout and MaxBytes are not applied.
func (c *Client) Open(ctx context.Context, r Request) (*http.Response, error) {
	fail := func(err error) error { return &Error{Destination: r.Destination, Retry: true, Cause: err} }
	switch {
	case r.Destination != c.opts.ServerName:
		if err := c.opts.Peers.Check(r.Destination); err != nil {
			return nil, err
		}
	case !r.Own:
		return nil, &Error{Destination: r.Destination, Cause: errors.New("a request to ourselves")}
	}
	at, wait := c.opts.Peers.RetryAt(r.Destination)
	if wait && r.Probe && c.probe(r.Destination) {
		defer c.probeEnds(r.Destination)
	} else if wait && !r.Urgent {
		return nil, fail(fmt.Errorf("%w: next attempt at %s", ErrBackingOff, at.UTC().Format(time.RFC3339)))
	}
	if err := ctx.Err(); err != nil {
		return nil, fail(err) // which says nothing about the peer
	}
	start, class := time.Now(), c.opts.Peers.ClassOf(r.Destination)
	res, err := c.send(ctx, r)
	status := 0
	if err == nil {
		status = res.StatusCode
	}
	if c.opts.Observe != nil {
		c.opts.Observe(r.Operation, class, status, time.Since(start))
	}
	if err != nil {
		if !gaveUp(ctx, start) {
			c.opts.Peers.Failed(r.Destination, 0, reason(err))
		}
		return nil, fail(err)
	}
	if res.StatusCode == http.StatusOK {
		c.opts.Peers.Answered(r.Destination)
		return res, nil
	}
	defer res.Body.Close()
	return nil, c.refused(r, res)
}

// probe says whether the caller may ask a server that did not answer lately: one may at a time.
func (c *Client) probe(server matrix.ServerName) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.probed[server] {
		return false
	}
	c.probed[server] = true
	return true
}

func (c *Client) probeEnds(server matrix.ServerName) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.probed, server)
}

// reason is a failure on one line, without the address of the request.
func reason(err error) string {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	return strings.ReplaceAll(err.Error(), "\n", "; ")
}

// fairChance is how long a peer must have had for an answer before our giving up says something about it.
const fairChance = 3 * time.Second

// gaveUp reports whether it was our own side that gave up on a request, in a way that says nothing about the peer.
func gaveUp(ctx context.Context, start time.Time) bool {
	err := ctx.Err()
	return errors.Is(err, context.Canceled) || err != nil && time.Since(start) < fairChance
}

func (c *Client) send(ctx context.Context, r Request) (*http.Response, error) {
	host, err := c.opts.Resolver.Delegate(ctx, r.Destination)
	if err != nil {
		return nil, err
	}
	uri := r.uri()
	req, err := http.NewRequestWithContext(ctx, r.Method, "https://"+poolHost(host)+uri, bytes.NewReader(r.Body))
	if err != nil {
		return nil, err
	}
	if r.Body == nil {
		req.Body, req.GetBody, req.ContentLength = nil, nil, 0
	} else {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Host = string(host)
	req.Header.Set("User-Agent", Agent(c.opts.Version))
	if !r.Unsigned {
		auth, err := xmatrix.Request{
			Method: r.Method, URI: uri, Origin: c.opts.ServerName, Destination: r.Destination, Content: r.Body,
		}.Sign(c.opts.Key)
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", auth)
	}
	return c.http.Do(req)
}

// refused turns a response that is no 200 into an error. A server that says no is well;
// one that fails or is overloaded backs off.
func (c *Client) refused(r Request, res *http.Response) error {
	e := &Error{Destination: r.Destination, Status: res.StatusCode, made: r.Made}
	e.Retry = res.StatusCode >= 500 || res.StatusCode == http.StatusTooManyRequests || res.StatusCode == http.StatusUnauthorized
	body, err := io.ReadAll(newAnswer(res, maxErrorBytes, nil))
	if err == nil {
		e.Peer, e.RetryAfter = peerError(res.StatusCode, body)
	}
	if wait := retryAfter(res.Header.Get("Retry-After"), time.Now()); wait > 0 {
		e.RetryAfter = wait // the newer form of it
	}
	if e.Peer == nil {
		e.Cause = fmt.Errorf("%s: not a Matrix error response", r.Operation)
	} else if e.Peer.Code == "M_UNABLE_DUE_TO_PARTIAL_STATE" {
		e.Retry = true // it is still fetching the members of the room. spec: MSC3895
	}
	if (res.StatusCode >= 500 || res.StatusCode == http.StatusTooManyRequests) && !e.aboutFile() {
		c.opts.Peers.Failed(r.Destination, e.RetryAfter, e.answer())
	} else {
		c.opts.Peers.Answered(r.Destination)
	}
	return e
}

// retryAfter reads the header of that name, a number of seconds or a date; 0 if it says nothing. spec: client-server-api#rate-limiting
func retryAfter(header string, now time.Time) time.Duration {
	if s, err := strconv.ParseUint(header, 10, 31); err == nil {
		return time.Duration(s) * time.Second
	}
	if at, err := http.ParseTime(header); err == nil {
		return max(0, at.Sub(now))
	}
	return 0
}

// peerError reads a standard error response; nil if the body is none. Members that
// clients are meant to see (room_version) are kept.
func peerError(status int, body []byte) (*matrix.Error, time.Duration) {
	var doc struct {
		Code         string         `json:"errcode"`
		Message      string         `json:"error"`
		RetryAfterMS jsontext.Value `json:"retry_after_ms"`
		RoomVersion  string         `json:"room_version"`
	}
	if err := json.Unmarshal(body, &doc); err != nil || doc.Code == "" {
		return nil, 0
	}
	e := matrix.Errorf(status, doc.Code, "%s", doc.Message)
	if doc.RoomVersion != "" {
		e = e.With("room_version", doc.RoomVersion)
	}
	ms, err := strconv.ParseUint(string(doc.RetryAfterMS), 10, 40)
	if err != nil {
		return e, 0
	}
	return e, time.Duration(ms) * time.Millisecond
}

// answer is the body of a response, of at most so many bytes, for which room is taken as they come.
type answer struct {
	body   io.Reader
	left   int64        // of the limit
	free   int64        // of what does not count
	held   *budget.Hold // nil: nothing counts
	failed error        // why it could not be read to its end
}

// newAnswer reads a response. One that announces more than it may have is not read at all.
func newAnswer(res *http.Response, limit int64, held *budget.Hold) *answer {
	a := &answer{body: res.Body, left: limit, free: uncounted, held: held}
	if res.ContentLength > limit {
		a.failed = fmt.Errorf("%w: %d bytes", ErrTooLarge, res.ContentLength)
	}
	return a
}

func (a *answer) Read(p []byte) (int, error) {
	if a.failed != nil {
		return 0, a.failed
	}
	// One byte beyond the limit shows that there are more.
	n, err := a.body.Read(p[:min(int64(len(p)), a.left+1)])
	if a.left -= int64(n); a.left < 0 {
		a.failed = ErrTooLarge
		return 0, a.failed
	}
	if a.free -= int64(n); a.free < 0 && a.held != nil {
		if spent := a.held.Take(-a.free); spent != nil {
			a.failed = spent
			return 0, spent
		}
		a.free = 0
	}
	if err != nil && err != io.EOF {
		a.failed = err
	}
	return n, err
}
