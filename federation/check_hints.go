package federation

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"syscall"

	"hanok/federation/client"
	"hanok/federation/discovery"
	"hanok/federation/keyring"
)

// Hint says what to do about a finding; "" if nothing better is known than the failure itself.
func (f Finding) Hint() string {
	if f.Err == nil {
		return f.Advice
	}
	for _, hint := range []func(error) string{hintConnection, hintTLS, hintKeys, hintAnswer} {
		if text := hint(f.Err); text != "" {
			return text
		}
	}
	return ""
}

func hintConnection(err error) string {
	var (
		dns     *net.DNSError
		timeout net.Error
	)
	switch {
	case errors.Is(err, discovery.ErrPrivateAddress):
		return "In a closed network, set federation.allow_private_addresses. Elsewhere the name should lead to a public address."
	case errors.As(err, &dns) && dns.IsNotFound:
		return "The name has no address: look at its DNS records, and at the spelling."
	case errors.As(err, &dns):
		return "The DNS records could not be had: look at the name servers of the domain, and at the resolver of this machine."
	case errors.Is(err, syscall.ECONNREFUSED):
		return "Nothing listens there: look at the port in .well-known/matrix/server or the SRV record; without either it is 8448."
	case errors.Is(err, syscall.ENETUNREACH), errors.Is(err, syscall.EHOSTUNREACH):
		return "There is no way to that address from here: look at the routes and the firewall of this machine, and whether it has IPv6."
	case errors.As(err, &timeout) && timeout.Timeout():
		return "Nothing answers: a firewall may be in the way, there or here."
	}
	return ""
}

func hintTLS(err error) string {
	var (
		unknown  x509.UnknownAuthorityError
		hostname x509.HostnameError
		invalid  x509.CertificateInvalidError
		plain    tls.RecordHeaderError
		op       *net.OpError
	)
	switch {
	case errors.As(err, &unknown):
		return "Nobody that this machine trusts has issued the certificate. Behind a proxy, serve the whole chain; for an authority of your own, set federation.trusted_ca_files."
	case errors.As(err, &hostname):
		return "The certificate must be valid for the name that discovery ends with, not for that of the machine."
	case errors.As(err, &invalid) && invalid.Reason == x509.Expired:
		return "The certificate must be renewed, or the clock of this machine is wrong."
	case errors.As(err, &plain):
		return "What answers there does not speak TLS: set tls_certificate for the listener, or let a reverse proxy do it."
	case errors.As(err, &op) && op.Op == "remote error":
		return "What answers there turns the handshake down: it has no certificate for the name, or wants a version of TLS before 1.2."
	}
	return ""
}

func hintKeys(err error) string {
	switch {
	case errors.Is(err, keyring.ErrOtherServer):
		return "Another server answers there: look at the reverse proxy, and at the server's own idea of its name."
	case errors.Is(err, keyring.ErrNotSigned):
		return "The server does not sign its keys with one of them: it may have been set up anew with another key, or a proxy serves an old copy."
	case errors.Is(err, keyring.ErrNotValid):
		return "Its key document is out of date: its clock is wrong, or that of this machine, or a cache on the way keeps it for too long."
	}
	return ""
}

func hintAnswer(err error) string {
	var answer *client.Error
	if !errors.As(err, &answer) || answer.Status == 0 {
		return ""
	}
	switch {
	case answer.Peer == nil && answer.Status != http.StatusOK:
		return "Something answers that is no homeserver, or cannot reach it: look at the reverse proxy, which must pass on /_matrix/federation and /_matrix/key as they are."
	case answer.Status == http.StatusUnauthorized:
		return "It cannot verify what we sign: can others reach this server? Try 'hanok federation check' without a name. A proxy that changes the path or the Authorization header is another reason."
	case answer.Status == http.StatusForbidden:
		return "It does not want to talk to this server: its operator would have to change that."
	case answer.Status == http.StatusTooManyRequests:
		return "It has too much to do just now: try again later."
	}
	return ""
}
