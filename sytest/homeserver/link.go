package homeserver

import (
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
)

// link is the way on which other servers reach a server: a listener in the test process that
// passes every connection on, and can be cut.
type link struct {
	host   string
	port   int
	target string

	t        testing.TB
	mu       sync.Mutex
	listener net.Listener // nil while it is cut
	conns    map[net.Conn]struct{}
}

func (n *Network) newLink(host string, port int) *link {
	n.t.Helper()
	l := &link{host: host, port: freePorts(n.t, 1)[0], target: fmt.Sprintf("127.0.0.1:%d", port), t: n.t, conns: map[net.Conn]struct{}{}}
	l.open()
	n.t.Cleanup(l.cut)
	return l
}

func (l *link) open() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.listener != nil {
		return
	}
	listener, err := net.Listen("tcp", fmt.Sprintf("%s:%d", l.host, l.port))
	must(l.t, err)
	l.listener = listener
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return // cut
			}
			go l.pass(conn)
		}
	}()
}

func (l *link) cut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.listener == nil {
		return
	}
	_ = l.listener.Close()
	l.listener = nil
	for conn := range l.conns {
		_ = conn.Close()
	}
	clear(l.conns)
}

// pass connects one caller with the server until either has enough.
func (l *link) pass(caller net.Conn) {
	defer caller.Close()
	callee, err := net.Dial("tcp", l.target)
	if err != nil {
		return
	}
	defer callee.Close()
	l.mu.Lock()
	open := l.listener != nil
	if open {
		l.conns[caller], l.conns[callee] = struct{}{}, struct{}{}
	}
	l.mu.Unlock()
	if !open {
		return
	}
	done := make(chan struct{}, 2)
	for _, ends := range [][2]net.Conn{{caller, callee}, {callee, caller}} {
		go func() {
			_, _ = io.Copy(ends[0], ends[1]) // ends with either connection
			done <- struct{}{}
		}()
	}
	<-done
	l.mu.Lock()
	delete(l.conns, caller)
	delete(l.conns, callee)
	l.mu.Unlock()
}

// Cut separates a server that is Cuttable from all others: nobody reaches it, while it
// reaches those whose way is open.
func (s *Server) Cut() { s.link.cut() }

// Heal undoes Cut.
func (s *Server) Heal() { s.link.open() }
