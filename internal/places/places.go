// Package places bounds what is open on one address that the server listens on: connections, and on those that carry several requests
// at a time (HTTP/2) each request beside the first.
//
// When all places are taken, somebody has to go for who comes: a connection on which no request is being answered, of the address that
// has most of those; or else one of the address that has most places of all, if that is more than the newcomer's has. So one address
// cannot keep others out, and where nobody wants a place, one address may have them all (a company behind one).
//
// Start reading at Listener.
package places

import (
	"container/heap"
	"container/list"
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/netip"
	"sync"
)

// Options are what a Listener is made with.
type Options struct {
	Places int // at least 1
	// BehindProxy: what comes is from a reverse proxy, which stands for many. One on this machine is known without.
	BehindProxy bool
	// Full is told when somebody had to go, or was turned away, because all places are taken; nil for nobody. It must not block.
	Full func()
}

// Listener gives a place to every connection that it accepts. Hook makes the requests known that are on them.
type Listener struct {
	net.Listener
	opts Options

	mu      sync.Mutex
	taken   int
	byKey   map[netip.Prefix]*holder
	ranking ranking // all of byKey
	proxies holder
	turns   uint64
	ended   Ended
}

// Ended counts connections that had to go.
type Ended struct {
	Idle   int64 // no request was being answered on them
	Busy   int64 // their address had more places than others
	Turned int64 // were turned away
}

// New makes a Listener of another one.
func New(l net.Listener, o Options) *Listener {
	return &Listener{Listener: l, opts: o, byKey: map[netip.Prefix]*holder{}}
}

// Taken is how many places are taken.
func (l *Listener) Taken() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.taken
}

// Ended is how many had to go so far.
func (l *Listener) Ended() Ended {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.ended
}

// holder is an address (IPv6: the /64 that a subscriber gets), or all proxies.
type holder struct {
	key  netip.Prefix
	idle list.List // its connections without a request, who was so for longest first
	busy list.List // those with one
	has  int       // places of all
	at   int       // in the ranking
}

// connection is one that has a place, and one for each request beside the first.
type connection struct {
	net.Conn
	l        *Listener
	holder   *holder
	element  *list.Element // in holder.idle or holder.busy; nil once it is over
	turn     uint64        // when it came, or its last request ended
	requests int
}

// Accept waits for a connection for which there is a place.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c := l.admit(conn); c != nil {
			return c, nil
		}
		_ = conn.Close() // there is nobody to tell
	}
}

func (l *Listener) admit(conn net.Conn) *connection {
	l.mu.Lock()
	h := l.holder(conn.RemoteAddr())
	victim, room := l.makeRoom(h)
	var c *connection
	if room {
		l.turns++
		c = &connection{Conn: conn, l: l, holder: h, turn: l.turns}
		c.element = h.idle.PushBack(c)
		l.take(h, 1)
	}
	l.mu.Unlock()
	l.tell(victim, room)
	return c
}

// holder is who comes from an address. It is in the books only while it has places.
func (l *Listener) holder(remote net.Addr) *holder {
	tcp, ok := remote.(*net.TCPAddr)
	if !ok || l.opts.BehindProxy || tcp.IP.IsLoopback() {
		return &l.proxies
	}
	addr := tcp.AddrPort().Addr().Unmap().WithZone("")
	bits := 64
	if addr.Is4() {
		bits = 32
	}
	key, err := addr.Prefix(bits)
	if err != nil {
		return &l.proxies
	}
	if h := l.byKey[key]; h != nil {
		return h
	}
	return &holder{key: key}
}

// makeRoom finds a place for h, and takes the victim that has to go for it out of the books.
func (l *Listener) makeRoom(h *holder) (victim *connection, room bool) {
	if l.taken < l.opts.Places {
		return nil, true
	}
	var most *holder
	if len(l.ranking) > 0 {
		most = l.ranking[0]
	}
	share := h.has
	if h == &l.proxies {
		share = 0 // each of the many behind it has few
	}
	switch {
	case most != nil && most.idle.Len() > 0:
		victim = most.idle.Front().Value.(*connection)
		l.ended.Idle++
	case l.proxies.idle.Len() > 0:
		victim = l.proxies.idle.Front().Value.(*connection)
		l.ended.Idle++
	case most != nil && most.has > share+1:
		victim = most.busy.Front().Value.(*connection)
		l.ended.Busy++
	default:
		l.ended.Turned++
		return nil, false
	}
	l.remove(victim)
	return victim, true
}

// tell ends what makeRoom has found, outside the lock.
func (l *Listener) tell(victim *connection, room bool) {
	if victim != nil {
		_ = victim.Conn.Close() // whoever reads from it or writes to it sees that
	}
	if (victim != nil || !room) && l.opts.Full != nil {
		l.opts.Full()
	}
}

// take counts n places more, or less, for h.
func (l *Listener) take(h *holder, n int) {
	l.taken += n
	h.has += n
	if h == &l.proxies {
		return
	}
	switch {
	case h.has == 0:
		heap.Remove(&l.ranking, h.at)
		delete(l.byKey, h.key)
	case h.has == n:
		l.byKey[h.key] = h
		heap.Push(&l.ranking, h)
	default:
		heap.Fix(&l.ranking, h.at)
	}
}

// remove takes a connection out of the books.
func (l *Listener) remove(c *connection) {
	c.detach()
	l.take(c.holder, -max(1, c.requests))
}

func (c *connection) detach() {
	if c.requests > 0 {
		c.holder.busy.Remove(c.element)
	} else {
		c.holder.idle.Remove(c.element)
	}
	c.element = nil
}

// Close gives the connection's places back.
func (c *connection) Close() error {
	c.l.mu.Lock()
	if c.element != nil {
		c.l.remove(c)
	}
	c.l.mu.Unlock()
	return c.Conn.Close()
}

// CloseWrite lets net/http end an answer to a request that it has not read to its end.
func (c *connection) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// begin takes a place for a request; the first one on a connection uses the connection's.
func (c *connection) begin() (room bool) {
	l := c.l
	l.mu.Lock()
	if c.element == nil { // it had to go a moment ago
		l.mu.Unlock()
		return true
	}
	var victim *connection
	room = true
	if c.requests == 0 {
		c.detach()
		c.element = c.holder.busy.PushBack(c)
		c.requests = 1
		l.take(c.holder, 0)
	} else if victim, room = l.makeRoom(c.holder); room {
		c.requests++
		l.take(c.holder, 1)
	}
	l.mu.Unlock()
	l.tell(victim, room)
	return room
}

func (c *connection) end() {
	l := c.l
	l.mu.Lock()
	defer l.mu.Unlock()
	if c.element == nil {
		return
	}
	if c.requests > 1 {
		c.requests--
		l.take(c.holder, -1)
		return
	}
	c.detach()
	c.requests = 0
	l.turns++
	c.turn = l.turns
	c.element = c.holder.idle.PushBack(c)
	l.take(c.holder, 0)
}

type connKey struct{}

// Hook has the server count its requests. Those for which there is no place go to full, which must answer at once.
func (l *Listener) Hook(s *http.Server, full http.Handler) {
	s.ConnContext = func(ctx context.Context, conn net.Conn) context.Context {
		if t, ok := conn.(*tls.Conn); ok {
			conn = t.NetConn()
		}
		return context.WithValue(ctx, connKey{}, conn)
	}
	next := s.Handler
	s.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if c, ok := r.Context().Value(connKey{}).(*connection); ok {
			if !c.begin() {
				full.ServeHTTP(w, r)
				return
			}
			defer c.end()
		}
		next.ServeHTTP(w, r)
	})
}

// ranking is a heap of holders: the most idle connections first, then the most places; among equals who was idle for longest.
type ranking []*holder

func (r ranking) Len() int { return len(r) }

func (r ranking) Less(i, j int) bool {
	a, b := r[i], r[j]
	switch {
	case a.idle.Len() != b.idle.Len():
		return a.idle.Len() > b.idle.Len()
	case a.has != b.has:
		return a.has > b.has
	case a.idle.Len() > 0:
		return a.idle.Front().Value.(*connection).turn < b.idle.Front().Value.(*connection).turn
	}
	return false
}

func (r ranking) Swap(i, j int) {
	r[i], r[j] = r[j], r[i]
	r[i].at, r[j].at = i, j
}

// Push is for container/heap.
func (r *ranking) Push(x any) {
	h := x.(*holder)
	h.at = len(*r)
	*r = append(*r, h)
}

// Pop is for container/heap.
func (r *ranking) Pop() any {
	old := *r
	h := old[len(old)-1]
	old[len(old)-1] = nil
	*r = old[:len(old)-1]
	return h
}
