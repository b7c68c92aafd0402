package users

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"time"

	"hanok/matrix"
	"hanok/storage"
)

// Sessions are logins: each is a device with an access token, and a refresh token if the client can refresh.
// The database has hashes of the tokens only.
type Sessions struct{ *core }

// Requester is who makes a request.
type Requester struct {
	UserID    matrix.UserID
	DeviceID  matrix.DeviceID
	Kind      Kind
	Admin     bool
	Locked    bool // may do nothing but log out: M_USER_LOCKED
	Suspended bool
}

// NewSession asks for a session.
type NewSession struct {
	UserID matrix.UserID
	// DeviceID of an existing device, whose other tokens end, or of a new one; "" makes one up.
	DeviceID matrix.DeviceID
	// DisplayName for a new device; ignored if the device exists.
	DisplayName string
	// Refreshable gives the session a refresh token and its access token a short life.
	Refreshable bool
}

// Session is what a client gets from login, register and refresh.
type Session struct {
	UserID       matrix.UserID
	DeviceID     matrix.DeviceID
	AccessToken  string
	RefreshToken string        // "" if not refreshable
	ExpiresIn    time.Duration // 0 if the access token does not expire
}

// The lives of tokens that are redeemed once.
const (
	loginTokenLifetime  = 2 * time.Minute
	openIDTokenLifetime = time.Hour
)

var (
	errUnknownToken = matrix.Errorf(http.StatusUnauthorized, "M_UNKNOWN_TOKEN", "The access token is unknown or has ended")
	errExpiredToken = matrix.Errorf(http.StatusUnauthorized, "M_UNKNOWN_TOKEN", "The access token has expired").With("soft_logout", true)
	errLocked       = matrix.Errorf(http.StatusUnauthorized, "M_USER_LOCKED", "This account has been locked").With("soft_logout", true)
	errLoginToken   = matrix.Forbidden("The login token is unknown, used or expired")
)

// newToken makes a token of 256 random bits; the prefix lets people and scanners recognise it.
func newToken(prefix string) (token string, hash []byte) {
	var b [32]byte
	rand.Read(b[:])
	token = prefix + base64.RawURLEncoding.EncodeToString(b[:])
	return token, hashToken(token)
}

func hashToken(token string) []byte {
	h := sha256.Sum256([]byte(token))
	return h[:]
}

// Authenticate finds who holds an access token: M_UNKNOWN_TOKEN (401) if nobody, with soft_logout: true if it
// has expired and can be refreshed. What a locked account may do is up to the caller.
// spec: client-server-api#using-access-tokens
func (s *Sessions) Authenticate(ctx context.Context, accessToken string) (*Requester, error) {
	h, err := storage.GetTokenHolder(ctx, s.DB, hashToken(accessToken))
	if errors.Is(err, storage.ErrNotFound) {
		return nil, errUnknownToken
	}
	if err != nil {
		return nil, fmt.Errorf("authenticate: %w", err)
	}
	switch {
	case h.Deactivated:
		return nil, errUnknownToken
	case h.ExpiresAt != nil && *h.ExpiresAt <= s.now():
		if h.RefreshHash == nil {
			return nil, errUnknownToken
		}
		return nil, errExpiredToken
	case h.Replaces != nil:
		// First use of a refreshed token: from now on the client has it, and the one before ends.
		err := s.DB.Write(ctx, func(tx *storage.Tx) error { return storage.RevokeRefreshToken(ctx, tx, h.Replaces) })
		if err != nil {
			return nil, fmt.Errorf("end replaced session token: %w", err)
		}
	}
	return &Requester{
		UserID: h.UserID, DeviceID: h.DeviceID, Kind: Kind(h.Kind), Admin: h.Admin, Locked: h.Locked, Suspended: h.Suspended,
	}, nil
}

// Create logs in: it makes or reuses the device and gives it tokens. M_USER_DEACTIVATED, or M_INVALID_PARAM for a device ID that is
// one of the user's cross-signing keys.
func (s *Sessions) Create(ctx context.Context, n NewSession) (*Session, error) {
	if n.DeviceID == "" {
		n.DeviceID = matrix.DeviceID(rand.Text()[:10])
	}
	if err := checkDeviceID(n.DeviceID); err != nil {
		return nil, err
	}
	if len(n.DisplayName) > maxDeviceName {
		return nil, matrix.InvalidParam("The device name is longer than %d bytes", maxDeviceName)
	}
	aud, err := s.audienceOf(ctx, n.UserID)
	if err != nil {
		return nil, err
	}
	var out *Session
	err = s.DB.Write(ctx, func(tx *storage.Tx) error {
		account, err := storage.GetAccount(ctx, tx, n.UserID)
		if err != nil {
			return err
		}
		if account.Deactivated {
			return errDeactivated
		}
		if err := storage.DeleteTokensOfDevice(ctx, tx, n.UserID, n.DeviceID); err != nil {
			return err
		}
		if _, err := s.makeDevice(ctx, tx, n.UserID, n.DeviceID, n.DisplayName, aud); err != nil {
			return err
		}
		out, err = s.issue(ctx, tx, n.UserID, n.DeviceID, n.Refreshable, nil)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("create session: %w", err)
	}
	return out, nil
}

// issue stores new tokens. replaces is the refresh token they were got with.
func (s *Sessions) issue(ctx context.Context, tx *storage.Tx, user matrix.UserID, device matrix.DeviceID, refreshable bool, replaces []byte) (*Session, error) {
	out := &Session{UserID: user, DeviceID: device}
	t := storage.AccessToken{UserID: user, DeviceID: device, Replaces: replaces}
	out.AccessToken, t.Hash = newToken("hat_")
	if refreshable {
		out.RefreshToken, t.RefreshHash = newToken("hrt_")
		out.ExpiresIn = s.AccessTokenLifetime
		expires := s.now().Add(s.AccessTokenLifetime)
		t.ExpiresAt = &expires
		r := storage.RefreshToken{Hash: t.RefreshHash, UserID: user, DeviceID: device, Replaces: replaces}
		if err := storage.InsertRefreshToken(ctx, tx, r); err != nil {
			return nil, err
		}
	}
	return out, storage.InsertAccessToken(ctx, tx, t)
}

// Refresh exchanges a refresh token; M_UNKNOWN_TOKEN (401) if it is unknown or was used. The old one stays good until one of the
// new tokens is used, so that a lost answer does not end the session. spec: cs/refresh
func (s *Sessions) Refresh(ctx context.Context, refreshToken string) (*Session, error) {
	hash := hashToken(refreshToken)
	var out *Session
	err := s.DB.Write(ctx, func(tx *storage.Tx) error {
		t, err := storage.GetRefreshToken(ctx, tx, hash)
		if errors.Is(err, storage.ErrNotFound) {
			return errUnknownToken
		}
		if err != nil {
			return err
		}
		account, err := storage.GetAccount(ctx, tx, t.UserID)
		if err != nil {
			return err
		}
		if account.Deactivated {
			return errUnknownToken
		}
		if account.Locked {
			return errLocked
		}
		if t.Replaces != nil {
			if err := storage.RevokeRefreshToken(ctx, tx, bytes.Clone(t.Replaces)); err != nil {
				return err
			}
		}
		// Answers that got lost leave tokens which nobody knows.
		if err := storage.DropReplacements(ctx, tx, hash); err != nil {
			return err
		}
		out, err = s.issue(ctx, tx, t.UserID, t.DeviceID, true, hash)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("refresh: %w", err)
	}
	return out, nil
}

// Logout ends a session and deletes its device. spec: cs/logout
func (s *Sessions) Logout(ctx context.Context, user matrix.UserID, device matrix.DeviceID) error {
	return s.logout(ctx, user, func(d matrix.DeviceID) bool { return d == device })
}

// LogoutAll ends all sessions of a user and deletes the devices. spec: cs/logout_all
func (s *Sessions) LogoutAll(ctx context.Context, user matrix.UserID) error {
	return s.logout(ctx, user, func(matrix.DeviceID) bool { return true })
}

func (s *Sessions) logout(ctx context.Context, user matrix.UserID, which func(matrix.DeviceID) bool) error {
	aud, err := s.audienceOf(ctx, user)
	if err != nil {
		return err
	}
	err = s.DB.Write(ctx, func(tx *storage.Tx) error { return s.deleteDevices(ctx, tx, user, aud, which) })
	if err != nil {
		return fmt.Errorf("logout: %w", err)
	}
	return nil
}

// LoginToken makes a token for m.login.token, good for one login within the returned time. spec: cs/generateLoginToken
func (s *Sessions) LoginToken(ctx context.Context, user matrix.UserID) (token string, expiresIn time.Duration, err error) {
	token, hash := newToken("hlt_")
	expires := s.now().Add(loginTokenLifetime)
	err = s.DB.Write(ctx, func(tx *storage.Tx) error { return storage.InsertLoginToken(ctx, tx, hash, user, expires) })
	if err != nil {
		return "", 0, fmt.Errorf("make login token: %w", err)
	}
	return token, loginTokenLifetime, nil
}

// RedeemLoginToken uses up a login token: M_FORBIDDEN if it is unknown, used or expired.
func (s *Sessions) RedeemLoginToken(ctx context.Context, token string) (matrix.UserID, error) {
	var user matrix.UserID
	var expires matrix.Timestamp
	err := s.DB.Write(ctx, func(tx *storage.Tx) (err error) {
		user, expires, err = storage.TakeLoginToken(ctx, tx, hashToken(token))
		return err
	})
	if errors.Is(err, storage.ErrNotFound) || err == nil && expires <= s.now() {
		return "", errLoginToken
	}
	if err != nil {
		return "", fmt.Errorf("redeem login token: %w", err)
	}
	return user, nil
}

// OpenIDToken makes a token with which a third party can ask who the user is. spec: cs/requestOpenIdToken
func (s *Sessions) OpenIDToken(ctx context.Context, user matrix.UserID) (token string, expiresIn time.Duration, err error) {
	token, hash := newToken("hid_")
	expires := s.now().Add(openIDTokenLifetime)
	err = s.DB.Write(ctx, func(tx *storage.Tx) error { return storage.InsertOpenIDToken(ctx, tx, hash, user, expires) })
	if err != nil {
		return "", 0, fmt.Errorf("make openid token: %w", err)
	}
	return token, openIDTokenLifetime, nil
}

// OpenIDUser finds whose an OpenID token is: M_UNKNOWN_TOKEN (401) if nobody's. spec: ss/exchangeOpenIdToken
func (s *Sessions) OpenIDUser(ctx context.Context, token string) (matrix.UserID, error) {
	user, err := storage.GetOpenIDToken(ctx, s.DB, hashToken(token), s.now())
	if errors.Is(err, storage.ErrNotFound) {
		return "", errUnknownToken
	}
	if err != nil {
		return "", fmt.Errorf("openid user: %w", err)
	}
	return user, nil
}
