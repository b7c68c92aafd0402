// Package homeserver runs the real binary for system tests: a network of servers
// that trust one certificate authority, each started, killed and started again through
// sytest/launch, and a small client that speaks to them.
package homeserver

import (
	"bufio"
	"bytes"
	"cmp"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Network is servers that federate with each other over TLS on loopback.
type Network struct {
	t      testing.TB
	dir    string
	caCert *x509.Certificate
	caKey  *ecdsa.PrivateKey
	caFile string
}

// NewNetwork makes an empty network with a certificate authority of its own.
func NewNetwork(t testing.TB) *Network {
	t.Helper()
	n := &Network{t: t, dir: t.TempDir()}
	n.caKey = newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &n.caKey.PublicKey, n.caKey)
	must(t, err)
	n.caCert, err = x509.ParseCertificate(der)
	must(t, err)
	n.caFile = n.write("ca.pem", "CERTIFICATE", der)
	return n
}

// Options are how a server differs from the usual one.
type Options struct {
	Database    string // "" is SQLite; or a postgres:// URL
	ExtraConfig string // YAML merged over the configuration
	Env         []string
	// Launch is the program that starts the server, of any software, from the variables that
	// sytest/launch describes; "" is sytest/launch.
	Launch string
	// Cuttable lets other servers reach it through the test process, which Cut stops.
	Cuttable bool
	// Host is the host in the server's name: "localhost" if empty, or an address of loopback.
	Host string
}

// Server is one homeserver process. Its data survives Kill and Stop.
type Server struct {
	Name      string // host and port of its federation listener
	ClientURL string
	// MetricsURL is on the operator's listener.
	MetricsURL string

	t       testing.TB
	network *Network
	launch  string
	link    *link // nil if not Cuttable
	dataDir string
	env     []string
	log     string
	mu      sync.Mutex
	process *exec.Cmd
	exited  chan error
}

// Start starts a new server and waits until it answers. It is stopped with the test.
func (n *Network) Start(o Options) *Server {
	n.t.Helper()
	ports := freePorts(n.t, 3)
	clientPort, fedPort, metricsPort := ports[0], ports[1], ports[2]
	var way *link
	namePort := fedPort
	if o.Cuttable {
		way = n.newLink(cmp.Or(o.Host, "127.0.0.1"), fedPort)
		namePort = way.port
	}
	name := cmp.Or(o.Host, "localhost") + ":" + strconv.Itoa(namePort)
	dir, err := os.MkdirTemp(n.dir, "hs")
	must(n.t, err)
	data := filepath.Join(dir, "data")
	must(n.t, os.Mkdir(data, 0o700))
	cert, key := n.certificate(filepath.Base(dir))
	s := &Server{
		Name: name, ClientURL: fmt.Sprintf("http://127.0.0.1:%d", clientPort), t: n.t, network: n, launch: o.Launch, link: way, dataDir: data, MetricsURL: fmt.Sprintf("http://127.0.0.1:%d/metrics", metricsPort), log: filepath.Join(dir, "log"),
		env: append(os.Environ(), "SERVER_NAME="+name, "BIND_ADDR=127.0.0.1", "CLIENT_PORT="+strconv.Itoa(clientPort),
			"FED_PORT="+strconv.Itoa(fedPort), "CA_CERT="+n.caFile, "TLS_CERT="+cert, "TLS_KEY="+key, "DATA_DIR="+data,
			"REG_SHARED_SECRET="+SharedSecret, "DATABASE="+o.Database),
	}
	extra := filepath.Join(dir, "extra.yaml")
	must(n.t, os.WriteFile(extra, fmt.Appendf(nil, "metrics: {address: \"127.0.0.1:%d\"}\n%s", metricsPort, o.ExtraConfig), 0o600))
	s.env = append(s.env, "HANOK_EXTRA_CONFIG="+extra)
	s.env = append(s.env, o.Env...)
	s.Start()
	n.t.Cleanup(func() {
		s.Kill()
		if n.t.Failed() {
			n.t.Logf("log of %s:\n%s", s.Name, s.LogTail())
		}
	})
	return s
}

// SharedSecret is what every server's shared-secret registration is set to.
const SharedSecret = "test-secret"

// Start starts the process again and waits until it answers.
func (s *Server) Start() {
	s.t.Helper()
	launch := s.launch
	if launch == "" {
		_, here, _, _ := runtime.Caller(0)
		launch = filepath.Join(filepath.Dir(here), "..", "launch")
	}
	log, err := os.OpenFile(s.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(s.t, err)
	defer log.Close()
	cmd := exec.Command(launch)
	cmd.Env, cmd.Stdout, cmd.Stderr = s.env, log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	must(s.t, cmd.Start())
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	s.mu.Lock()
	s.process, s.exited = cmd, exited
	s.mu.Unlock()
	deadline := time.Now().Add(2 * time.Minute) // the first start may have to build the binary
	for {
		res, err := http.Get(s.ClientURL + "/_matrix/client/versions")
		if err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return
			}
		}
		select {
		case err := <-exited:
			s.t.Fatalf("%s ended before it was ready: %v\n%s", s.Name, err, s.LogTail())
		case <-time.After(20 * time.Millisecond):
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s is not ready: %v\n%s", s.Name, err, s.LogTail())
		}
	}
}

// EnsureStarted starts the process unless it runs.
func (s *Server) EnsureStarted() {
	s.t.Helper()
	s.mu.Lock()
	down := s.process == nil
	s.mu.Unlock()
	if down {
		s.Start()
	}
}

// Kill ends the process with SIGKILL, as a power cut would.
func (s *Server) Kill() { s.signal(syscall.SIGKILL) }

// Stop ends the process with SIGTERM and returns how it ended.
func (s *Server) Stop() error { return s.signal(syscall.SIGTERM) }

func (s *Server) signal(sig syscall.Signal) error {
	s.mu.Lock()
	cmd, exited := s.process, s.exited
	s.process = nil
	s.mu.Unlock()
	if cmd == nil {
		return nil
	}
	if err := cmd.Process.Signal(sig); err != nil {
		return err
	}
	select {
	case err := <-exited:
		return err
	case <-time.After(30 * time.Second):
		_ = cmd.Process.Kill()
		return fmt.Errorf("%s did not end within 30 s of %v", s.Name, sig)
	}
}

// DataDir is where the server keeps everything (but what is in PostgreSQL).
func (s *Server) DataDir() string { return s.dataDir }

// Metric is the value of a metric, named with its labels as in the list of them.
func (s *Server) Metric(name string) float64 {
	s.t.Helper()
	v, ok := s.FindMetric(name)
	if !ok {
		s.t.Fatalf("there is no metric %s", name)
	}
	return v
}

// FindMetric is Metric for one that there may not be yet.
func (s *Server) FindMetric(name string) (value float64, ok bool) {
	s.t.Helper()
	res, err := http.Get(s.MetricsURL)
	must(s.t, err)
	defer res.Body.Close()
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		if rest, ok := strings.CutPrefix(lines.Text(), name+" "); ok {
			value, err = strconv.ParseFloat(rest, 64)
			must(s.t, err)
			return value, true
		}
	}
	return 0, false
}

// PID is the process's number.
func (s *Server) PID() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.process.Process.Pid
}

// Log is all that the server printed since it was first started.
func (s *Server) Log() string {
	b, err := os.ReadFile(s.log)
	must(s.t, err)
	return string(b)
}

// LogTail is the end of what the server printed.
func (s *Server) LogTail() string {
	b, err := os.ReadFile(s.log)
	if err != nil {
		return err.Error()
	}
	const most = 16 << 10
	if len(b) > most {
		b = b[len(b)-most:]
	}
	return string(bytes.TrimSpace(b))
}

func (n *Network) certificate(name string) (certFile, keyFile string) {
	key := newKey(n.t)
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	must(n.t, err)
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: "localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv4(127, 0, 0, 2)},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}, n.caCert, &key.PublicKey, n.caKey)
	must(n.t, err)
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	must(n.t, err)
	return n.write(name+".crt", "CERTIFICATE", der), n.write(name+".key", "PRIVATE KEY", pkcs8)
}

func (n *Network) write(name, kind string, der []byte) string {
	path := filepath.Join(n.dir, name)
	must(n.t, os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	return path
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	return key
}

// freePorts finds different ports on which nothing listens. They are below those that the
// system gives to outgoing connections: one of these could take a server's port while it is
// down, and the server could not start again.
func freePorts(t testing.TB, count int) []int {
	t.Helper()
	var ports []int
	for tries := 0; len(ports) < count; tries++ {
		port := 10_000 + mathrand.IntN(20_000)
		l, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port))
		if err != nil && tries < 1000 {
			continue
		}
		must(t, err)
		defer l.Close() // after all are found, so that none is found twice
		ports = append(ports, port)
	}
	return ports
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
