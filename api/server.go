package api

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // the algorithm that TURN servers check
	"encoding/base64"
	"fmt"
	"time"

	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/matrix/roomversion"
)

// spec: cs/getVersions
func (a *API) versions(*endpoint.Request) (any, error) {
	return struct {
		Versions []string        `json:"versions"`
		Unstable map[string]bool `json:"unstable_features"`
	}{
		Versions: []string{
			"r0.0.1", "r0.1.0", "r0.2.0", "r0.3.0", "r0.4.0", "r0.5.0", "r0.6.0", "r0.6.1",
			"v1.1", "v1.2", "v1.3", "v1.4", "v1.5", "v1.6", "v1.7", "v1.8", "v1.9", "v1.10", "v1.11", "v1.12",
			"v1.13", "v1.14", "v1.15", "v1.16", "v1.17", "v1.18", "v1.19",
		},
		Unstable: map[string]bool{
			"org.matrix.msc2285.stable":               true, // private read receipts
			"org.matrix.msc3440.stable":               true, // threads
			"org.matrix.msc4140":                      true, // delayed events
			"org.matrix.msc4140.stable":               true,
			"org.matrix.msc4143":                      true, // transports of calls
			"fi.mau.msc2659.stable":                   true, // pings of application services
			"org.matrix.msc4155":                      true, // filtering of invites
			"org.matrix.msc4222":                      true, // state_after in /sync
			"org.matrix.msc4354":                      true, // sticky events
			"org.matrix.msc4306":                      true, // thread subscriptions
			"org.matrix.simplified_msc3575":           true, // sliding sync
			"org.matrix.msc4380.stable":               true, // blocking of invites
			"uk.half-shot.msc2666.query_mutual_rooms": true, // mutual rooms
			"uk.tcpip.msc4133":                        true, // custom profile fields
			"uk.tcpip.msc4133.stable":                 true,
			"org.matrix.e2e_cross_signing":            true,
			"io.element.e2ee_forced.public":           a.Encryption == "required",
			"io.element.e2ee_forced.private":          a.Encryption == "required",
			"io.element.e2ee_forced.trusted_private":  a.Encryption == "required",
		},
	}, nil
}

// spec: cs/getCapabilities
func (a *API) capabilities(r *endpoint.Request) (any, error) {
	available := make(map[roomversion.ID]string)
	for _, id := range append(roomversion.Supported(), roomversion.Experimental()...) {
		available[id] = "stable"
		if v, _ := roomversion.Get(id); !v.Stable {
			available[id] = "unstable"
		}
	}
	type enabled struct {
		Enabled bool `json:"enabled"`
	}
	delays := map[string]int64{"max_delay_ms": a.Delayed.MaxDelay.Milliseconds(), "max_scheduled": int64(a.Delayed.MaxScheduled)}
	capabilities := map[string]any{
		"m.delayed_events":                  delays, // spec: MSC4140#delayed-event-limits-as-a-capability
		"org.matrix.msc4140.delayed_events": delays,
		"m.preview_url":                     enabled{a.Previews != nil}, // spec: MSC4452
		"io.element.msc4452.preview_url":    enabled{a.Previews != nil},
		"m.change_password":                 enabled{a.Registration.PasswordLogin},
		"m.room_versions": map[string]any{
			"default":   a.Rooms.DefaultVersion(),
			"available": available,
		},
		"m.set_displayname":          enabled{true},
		"m.set_avatar_url":           enabled{true},
		"m.profile_fields":           enabled{true},
		"m.3pid_changes":             enabled{false},
		"m.get_login_token":          enabled{a.Registration.PasswordLogin},
		"m.forget_forced_upon_leave": enabled{a.ForgetOnLeave},
	}
	if requester(r).Admin {
		capabilities["m.account_moderation"] = map[string]bool{"suspend": true, "lock": true}
	}
	return map[string]any{"capabilities": capabilities}, nil
}

// spec: cs/getWellknown
func (a *API) wellKnown(*endpoint.Request) (any, error) {
	if a.BaseURL == "" {
		return nil, matrix.NotFound("This server does not say where clients reach it.")
	}
	doc := map[string]any{"m.homeserver": map[string]string{"base_url": a.BaseURL}}
	if a.Encryption == "required" {
		doc["io.element.e2ee"] = map[string]bool{"default": true}
	}
	if len(a.LiveKit) > 0 {
		doc["org.matrix.msc4143.rtc_foci"] = a.rtcTransportList() // where clients looked before there was an endpoint
	}
	return doc, nil
}

// spec: cs/getWellknownSupport
func (a *API) wellKnownSupport(*endpoint.Request) (any, error) {
	return nil, matrix.NotFound("This server names no contact.")
}

// Credentials are made as TURN servers with a shared secret check them: the user name is when they
// expire, the password an HMAC over it. spec: cs/getTurnServer
func (a *API) turnServer(r *endpoint.Request) (any, error) {
	if len(a.TURN.URIs) == 0 {
		return nil, nil
	}
	ttl := a.TURN.TTL
	if ttl <= 0 {
		ttl = 24 * time.Hour
	}
	if a.TURN.Secret == "" {
		return turnAnswer{a.TURN.Username, a.TURN.Password, int64(ttl.Seconds()), a.TURN.URIs}, nil
	}
	name := fmt.Sprintf("%d:%s", time.Now().Add(ttl).Unix(), requester(r).UserID)
	mac := hmac.New(sha1.New, []byte(a.TURN.Secret))
	mac.Write([]byte(name))
	return turnAnswer{name, base64.StdEncoding.EncodeToString(mac.Sum(nil)), int64(ttl.Seconds()), a.TURN.URIs}, nil
}

type turnAnswer struct {
	Username string   `json:"username"`
	Password string   `json:"password"`
	TTL      int64    `json:"ttl"` // seconds
	URIs     []string `json:"uris"`
}
