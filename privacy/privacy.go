// Package privacy is the one place that decides what the server may store,
// relay and log.
//
// Its rule in the default mode, Required, is that the content of conversations
// is ciphertext: rooms are made encrypted, and what is not encrypted is refused
// when it comes from here and erased when it comes from elsewhere. The other
// packages ask before they act; they hold no such rule themselves. Start reading
// at Policy; events.go has the rules for events, uploads.go those for files.
package privacy

import (
	"fmt"
	"strings"

	"hanok/matrix"
)

// Mode says how strict the server is about encryption.
type Mode string

const (
	// Required: ciphertext only.
	Required Mode = "required"
	// Default: new rooms are encrypted unless their creator says otherwise; nothing is refused.
	Default Mode = "default"
	// Allowed: plain Matrix.
	Allowed Mode = "allowed"
)

// Options are the operator's choices.
type Options struct {
	Mode Mode // "" means Required
	// AllowTypes are further message-like event types that may travel
	// unencrypted; a trailing * matches any ending.
	AllowTypes []string
	// UnencryptedUpload is the size limit, in bytes, of unencrypted images; 0 allows none.
	UnencryptedUpload int64
	// KeepIP allows client addresses and user agents in the log and beside devices.
	KeepIP bool
	// Notices is the account that speaks for the server, "" for none: what it says is the operator's word to one user, no
	// conversation, and stays in the clear. spec: client-server-api#server-notices
	Notices matrix.UserID
}

// Policy answers what may be done. It is immutable and safe for concurrent use.
type Policy struct {
	mode     Mode
	exact    map[string]bool
	prefixes []string
	upload   int64
	keepIP   bool
	notices  matrix.UserID
}

// neverEncrypted are the message-like types that clients send in the clear even in
// encrypted rooms, and ciphertext itself.
var neverEncrypted = []string{
	"m.room.encrypted",
	"m.room.redaction",
	"m.reaction",
	// Verification starts before both sides know that the room is encrypted; it carries public keys only.
	"m.key.verification.*",
	// Who is in a call, and how to reach them: the end of it is scheduled ahead, which clients do not encrypt.
	"m.rtc.member",
	"org.matrix.msc4143.rtc.member",
}

// New makes a policy.
func New(o Options) (*Policy, error) {
	p := &Policy{mode: o.Mode, exact: map[string]bool{}, upload: o.UnencryptedUpload, keepIP: o.KeepIP, notices: o.Notices}
	switch o.Mode {
	case "":
		p.mode = Required
	case Required, Default, Allowed:
	default:
		return nil, fmt.Errorf("unknown encryption mode %q: choose required, default or allowed", o.Mode)
	}
	for _, t := range append(neverEncrypted[:len(neverEncrypted):len(neverEncrypted)], o.AllowTypes...) {
		if prefix, ok := strings.CutSuffix(t, "*"); ok {
			p.prefixes = append(p.prefixes, prefix)
		} else {
			p.exact[t] = true
		}
	}
	return p, nil
}

// Mode returns the mode in force.
func (p *Policy) Mode() Mode { return p.mode }

// KeepIP reports whether client addresses and user agents may be stored and logged.
func (p *Policy) KeepIP() bool { return p.keepIP }

func (p *Policy) allowsType(eventType string) bool {
	if p.exact[eventType] {
		return true
	}
	for _, prefix := range p.prefixes {
		if strings.HasPrefix(eventType, prefix) {
			return true
		}
	}
	return false
}
