package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"math"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"hanok/config"
	"hanok/internal/endpoint"
	"hanok/internal/places"
)

// listener is one open address and what it serves.
type listener struct {
	net.Listener
	http *http.Server
	name string // for people
}

// Listen opens all addresses, so that a port in use is an error at once.
func (s *Server) Listen() error {
	for _, l := range s.cfg.Server.Listeners {
		if err := s.listen(l.Address, s.handler(l), l); err != nil {
			return err
		}
	}
	if a := s.cfg.Metrics.Address; a != "" {
		return s.listen(a, s.operatorHandler(), config.Listener{Address: a, MaxConnections: operatorPlaces})
	}
	return nil
}

// operatorPlaces is how many connections the operator's tools may have.
const operatorPlaces = 100

func (s *Server) listen(address string, handler http.Handler, l config.Listener) error {
	open, err := net.Listen("tcp", address)
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return fmt.Errorf("%s is in use: is another hanok running? Stop it, or change the address in server.listeners", address)
	case errors.Is(err, syscall.EACCES):
		return fmt.Errorf("not allowed to listen on %s: use a port above 1023, or give the program CAP_NET_BIND_SERVICE", address)
	case err != nil:
		return fmt.Errorf("listen on %s: %w", address, err)
	}
	limited := s.limit(open, l)
	open = limited
	scheme := "http"
	if l.TLSCertificate != "" {
		scheme = "https"
		certificate := &certificate{certFile: l.TLSCertificate, keyFile: l.TLSKey}
		if _, err := certificate.get(nil); err != nil {
			return errors.Join(fmt.Errorf("use the certificate %s: %w", l.TLSCertificate, err), open.Close())
		}
		open = tls.NewListener(open, &tls.Config{
			MinVersion: tls.VersionTLS12, GetCertificate: certificate.get, NextProtos: []string{"h2", "http/1.1"},
		})
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetHTTP2(true)
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: 15 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		Protocols:         protocols,
		// Broken handshakes and the like, with addresses in them: nothing an operator can act on.
		ErrorLog:    log.New(io.Discard, "", 0),
		BaseContext: func(net.Listener) context.Context { return s.requests },
	}
	limited.Hook(server, endpoint.Busy(s.part("listener")))
	s.listeners = append(s.listeners, listener{Listener: open, name: scheme + "://" + open.Addr().String(), http: server})
	return nil
}

// limit gives the listener its places, as far as the system lets the process open files: other servers are connected to, too, and the
// database and media are files.
func (s *Server) limit(open net.Listener, l config.Listener) *places.Listener {
	wanted := l.MaxConnections
	n := wanted
	if files, ok := openFiles(); ok {
		n = min(wanted, max(files/2, files-reservedFiles)/len(s.cfg.Server.Listeners))
	}
	if n < wanted {
		s.log.Warn().Str("address", l.Address).Int("max_connections", wanted).Int("connections", n).
			Msg("the process may not open as many files as it may have connections, so it takes fewer: raise the limit (LimitNOFILE of systemd, or ulimit -n), or lower max_connections of the listener")
	}
	full := &atLeast{every: 10 * time.Minute}
	limited := places.New(open, places.Options{Places: n, BehindProxy: s.cfg.Server.BehindProxy, Full: func() {
		if full.passed() {
			s.log.Warn().Str("address", l.Address).Int("connections", n).Msg("all connections of the listener are taken: idle ones are closed, and those of who has most (see docs/operating.md)")
		}
	}})
	s.metrics.watchConnections(l.Address, limited)
	return limited
}

// reservedFiles are left to other things than connections of clients and of other servers.
const reservedFiles = 4000

// openFiles is how many files the process may open.
func openFiles() (int, bool) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, false
	}
	return int(min(limit.Cur, math.MaxInt32)), true
}

// atLeast says something again only after a while.
type atLeast struct {
	every time.Duration
	next  atomic.Int64 // in ns since 1970
}

func (a *atLeast) passed() bool {
	now, next := time.Now().UnixNano(), a.next.Load()
	return now >= next && a.next.CompareAndSwap(next, now+int64(a.every))
}

// Address is where the listener of that number in the configuration listens.
func (s *Server) Address(i int) string { return s.listeners[i].Addr().String() }

// certificate is a TLS certificate that is read again when its file changes.
type certificate struct {
	certFile, keyFile string

	mu      sync.Mutex
	loaded  *tls.Certificate
	changed time.Time // of the file that was loaded
	looked  time.Time
}

func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.loaded != nil && time.Since(c.looked) < 10*time.Second {
		return c.loaded, nil
	}
	c.looked = time.Now()
	info, err := os.Stat(c.certFile)
	if err == nil && (c.loaded == nil || !info.ModTime().Equal(c.changed)) {
		var loaded tls.Certificate
		if loaded, err = tls.LoadX509KeyPair(c.certFile, c.keyFile); err == nil {
			c.loaded, c.changed = &loaded, info.ModTime()
		}
	}
	if c.loaded != nil { // a renewal half written is no reason to stop
		return c.loaded, nil
	}
	return nil, err
}
