// Package fedtest is a small Internet for tests: names, a certificate
// authority, TLS servers on loopback and a DNS server, without any of them leaving the process.
package fedtest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// Network is the Internet of one test.
type Network struct {
	t     testing.TB
	Roots *x509.CertPool
	// DNS answers the records given to Record; everything else does not exist.
	DNS *net.Resolver

	caKey  *ecdsa.PrivateKey
	caCert *x509.Certificate

	mu      sync.Mutex
	hosts   map[string]string // host:port to the address of a listener
	records map[string][]dns.RR
	dialed  []string
	asked   []string
}

// NewNetwork makes a network without any hosts.
func NewNetwork(t testing.TB) *Network {
	t.Helper()
	n := &Network{t: t, Roots: x509.NewCertPool(), hosts: map[string]string{}, records: map[string][]dns.RR{}}
	var err error
	if n.caKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Unix(0, 0), NotAfter: time.Now().Add(100 * 365 * 24 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, n.caKey.Public(), n.caKey)
	if err != nil {
		t.Fatal(err)
	}
	if n.caCert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	n.Roots.AddCert(n.caCert)
	n.startDNS()
	return n
}

// Certificate issues a certificate for names and IP addresses.
func (n *Network) Certificate(names ...string) tls.Certificate {
	n.t.Helper()
	return n.CertificateUntil(time.Now().Add(100*365*24*time.Hour), names...)
}

// CertificateUntil is Certificate for one that ends at a certain time.
func (n *Network) CertificateUntil(end time.Time, names ...string) tls.Certificate {
	n.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		n.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), NotBefore: time.Unix(0, 0), NotAfter: end,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	for _, name := range names {
		if ip := net.ParseIP(name); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, name)
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, n.caCert, key.Public(), n.caKey)
	if err != nil {
		n.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// Serve runs a TLS server at "host:port" with a certificate for the names. The port
// is that of the little Internet only: the listener is anywhere on loopback.
func (n *Network) Serve(address string, handler http.Handler, names ...string) *httptest.Server {
	n.t.Helper()
	return n.ServeWith(address, handler, n.Certificate(names...))
}

// ServeWith is Serve with any certificate.
func (n *Network) ServeWith(address string, handler http.Handler, certificate tls.Certificate) *httptest.Server {
	n.t.Helper()
	s := httptest.NewUnstartedServer(handler)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	s.EnableHTTP2 = true
	s.Config.ErrorLog = log.New(discard{}, "", 0) // refused handshakes are what many tests are about
	s.StartTLS()
	n.t.Cleanup(s.Close)
	n.Route(address, s.Listener.Addr().String())
	return s
}

// Route sends connections to "host:port" to another address.
func (n *Network) Route(address, to string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[address] = to
}

// Unplug makes an address refuse connections.
func (n *Network) Unplug(address string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.hosts[address] = ""
}

// Forget makes a host have no address.
func (n *Network) Forget(host string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for address := range n.hosts {
		if strings.HasPrefix(address, host+":") {
			delete(n.hosts, address)
		}
	}
}

// Dial connects to the listener that has the address. A host without any has no address, another port of one that has refuses.
func (n *Network) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	n.mu.Lock()
	to := n.hosts[address]
	n.dialed = append(n.dialed, address)
	host, _, err := net.SplitHostPort(address)
	known := err == nil && net.ParseIP(host) != nil
	for other := range n.hosts {
		known = known || strings.HasPrefix(other, host+":")
	}
	n.mu.Unlock()
	switch {
	case err != nil:
		return nil, err
	case !known:
		return nil, &net.OpError{Op: "dial", Net: network, Err: &net.DNSError{Err: "no such host", Name: host, IsNotFound: true}}
	case to == "":
		return nil, &net.OpError{Op: "dial", Net: network, Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	}
	var d net.Dialer
	return d.DialContext(ctx, network, to)
}

// Dialed lists the addresses of all connections so far.
func (n *Network) Dialed() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.dialed...)
}

// Asked lists the names that DNS was asked for so far, once for each question.
func (n *Network) Asked() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]string(nil), n.asked...)
}

// Record adds a DNS record in zone file form: "_matrix._tcp.example.org. 60 IN SRV 0 0 8449 fed.example.org."
func (n *Network) Record(record string) {
	n.t.Helper()
	rr, err := dns.NewRR(record)
	if err != nil {
		n.t.Fatal(err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	name := strings.ToLower(rr.Header().Name)
	n.records[name] = append(n.records[name], rr)
}

func (n *Network) startDNS() {
	n.t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		n.t.Fatal(err)
	}
	server := &dns.Server{PacketConn: conn, Handler: dns.HandlerFunc(n.answer)}
	done := make(chan struct{})
	started := make(chan struct{})
	server.NotifyStartedFunc = func() { close(started) }
	go func() {
		defer close(done)
		_ = server.ActivateAndServe() // ends with the error of Shutdown
	}()
	<-started
	n.t.Cleanup(func() {
		_ = server.Shutdown()
		<-done
	})
	address := conn.LocalAddr().String()
	n.DNS = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", address)
	}}
}

func (n *Network) answer(w dns.ResponseWriter, q *dns.Msg) {
	reply := new(dns.Msg)
	reply.SetReply(q)
	n.mu.Lock()
	n.asked = append(n.asked, strings.ToLower(q.Question[0].Name))
	all := n.records[strings.ToLower(q.Question[0].Name)]
	for _, rr := range all {
		if rr.Header().Rrtype == q.Question[0].Qtype {
			reply.Answer = append(reply.Answer, rr)
		}
	}
	n.mu.Unlock()
	if len(all) == 0 {
		reply.Rcode = dns.RcodeNameError
	}
	_ = w.WriteMsg(reply) // a client that is gone asks again
}

type discard struct{}

func (discard) Write(p []byte) (int, error) { return len(p), nil }
