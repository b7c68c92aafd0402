package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"hanok/cmd/hanok/server"
	"hanok/config"
	"hanok/matrix"
	"hanok/users"
)

type quickstartCommand struct {
	Dir  string `default:"hanok" help:"The folder for configuration and data, made if need be."`
	Name string `default:"localhost" help:"The server's name, the domain in user IDs. Cannot be changed later."`
	IP   string `name:"ip" default:"127.0.0.1" help:"The address to listen on; 0.0.0.0 in a container."`
	Port int    `default:"8008" help:"The port for plain HTTP."`
	TLS  int    `name:"tls-port" default:"8448" help:"The port for TLS."`
}

func (quickstartCommand) Help() string {
	return `Example:
  hanok quickstart --dir /srv/hanok --name example.org

Everything it makes is kept: run it again to serve again. Nothing that exists is overwritten.`
}

func (q quickstartCommand) Run(ctx context.Context, c console) error {
	if _, err := matrix.ParseServerName(q.Name); err != nil {
		return fmt.Errorf("%q is not a server name; write it as in example.org", q.Name)
	}
	dir, err := filepath.Abs(q.Dir)
	if err != nil {
		return fmt.Errorf("find the folder %s: %w", q.Dir, err)
	}
	file := filepath.Join(dir, "hanok.yaml")
	if err := q.prepare(dir, file); err != nil {
		return err
	}
	cfg, err := config.Load(file)
	if err != nil {
		return err
	}
	return serve(ctx, cfg, c, func(s *server.Server) error { return welcome(ctx, s, cfg, file, c) })
}

// prepare makes what is missing. The config comes last: if it is there, all is.
func (q quickstartCommand) prepare(dir, file string) error {
	if _, err := os.Stat(file); err == nil {
		return nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("look for %s: %w", file, err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make the folder: %w", err)
	}
	if err := selfSign(q.Name, filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key")); err != nil {
		return fmt.Errorf("make a TLS certificate: %w", err)
	}
	text := fmt.Sprintf(`# Made by 'hanok quickstart'. Every key is explained by 'hanok config describe'.
server:
  name: %q
  data_dir: data
  listeners:
    # For clients on this machine, or a reverse proxy.
    - address: %q
      serve: [client, federation]
    # TLS with a certificate that only this machine's browsers may be told to trust.
    - address: %q
      serve: [client, federation]
      tls_certificate: tls.crt
      tls_key: tls.key
privacy:
  encryption: required
`, q.Name, net.JoinHostPort(q.IP, strconv.Itoa(q.Port)), net.JoinHostPort(q.IP, strconv.Itoa(q.TLS)))
	tmp := file + ".new"
	if err := os.WriteFile(tmp, []byte(text), 0o600); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	if err := os.Rename(tmp, file); err != nil {
		return fmt.Errorf("write the configuration: %w", err)
	}
	return nil
}

// selfSign makes a certificate for a name and this machine.
func selfSign(name, certFile, keyFile string) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return err
	}
	now := time.Now()
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "Hanok on " + name},
		NotBefore:    now.Add(-time.Hour),
		NotAfter:     now.AddDate(2, 0, 0),
		KeyUsage:     x509.KeyUsageDigitalSignature,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:     []string{"localhost"},
		IPAddresses:  []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback},

		BasicConstraintsValid: true,
	}
	if host := matrix.ServerName(name).Host(); host != "localhost" && net.ParseIP(host) == nil {
		template.DNSNames = append(template.DNSNames, host)
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600); err != nil {
		return err
	}
	return os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), 0o644)
}

// welcome makes the first admin on an empty server and says what to do next.
func welcome(ctx context.Context, s *server.Server, cfg *config.Config, file string, c console) error {
	first := ""
	accounts, err := s.Users().Accounts.List(ctx, "", 1)
	if err != nil {
		return fmt.Errorf("look for accounts: %w", err)
	}
	if len(accounts) == 0 {
		password := rand.Text()[:20]
		admin, err := s.Users().Accounts.Register(ctx, users.Registration{Localpart: "admin", Password: password, Admin: true})
		if err != nil {
			return fmt.Errorf("make the first admin: %w", err)
		}
		first = fmt.Sprintf("\n  Your first account  %s\n  Its password        %s   (shown only now)\n", admin.UserID, password)
	}
	program := "hanok"
	if len(os.Args) > 0 && filepath.Base(os.Args[0]) == "hanok" {
		program = os.Args[0]
	}
	// go run builds to a folder that is gone tomorrow.
	if rel, err := filepath.Rel(os.TempDir(), program); err == nil && filepath.IsLocal(rel) {
		program = "go run ./cmd/hanok"
	}
	_, err = fmt.Fprintf(c.out, `
  Hanok serves %s.
%s
  For clients         http://%s
  With TLS            https://%s
  Configuration       %s
  Data                %s

  What next
    Log in            Element > Sign in > Edit the homeserver > http://%[3]s
    More people       %[7]s user create NAME --config %[5]s
    Your own domain   see "A real domain" in README.md
    Stop              Ctrl-C

`, cfg.Server.Name, first, s.Address(0), s.Address(1), file, cfg.Server.DataDir, program)
	return err
}
