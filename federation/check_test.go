package federation_test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"strings"
	"syscall"
	"testing"

	"hanok/federation"
	"hanok/federation/client"
	"hanok/federation/discovery"
	"hanok/matrix"
)

// Whoever reads that a check failed learns what to do, where that can be told.
func TestHints(t *testing.T) {
	for _, c := range []struct {
		err  error
		hint string
	}{
		{nil, ""},
		{fmt.Errorf("strange"), ""},
		{discovery.ErrPrivateAddress, "federation.allow_private_addresses"},
		{x509.UnknownAuthorityError{}, "federation.trusted_ca_files"},
		{x509.HostnameError{Certificate: &x509.Certificate{}, Host: "a"}, "the name that discovery ends with"},
		{x509.CertificateInvalidError{Reason: x509.Expired}, "renewed"},
		{tls.RecordHeaderError{}, "does not speak TLS"},
		{&net.DNSError{}, "DNS records"},
		{&net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}, "Nothing listens there"},
		{&net.OpError{Op: "dial", Err: syscall.ETIMEDOUT}, "firewall"},
		{&client.Error{Status: 401, Peer: matrix.Errorf(401, "M_UNAUTHORIZED", "no")}, "hanok federation check"},
		{&client.Error{Status: 502}, "reverse proxy"},
		{&client.Error{Status: 403, Peer: matrix.Forbidden("no")}, ""},
	} {
		err := c.err
		if err != nil {
			err = fmt.Errorf("%w: %w", discovery.ErrUnreachable, err)
		}
		hint := federation.Finding{Err: err}.Hint()
		if !strings.Contains(hint, c.hint) || c.hint == "" && hint != "" {
			t.Errorf("%v: %q", c.err, hint)
		}
	}
}
