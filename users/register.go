package users

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"hanok/matrix"
	"hanok/storage"
)

// Registration is a new account.
type Registration struct {
	Localpart  string // "" lets the server choose; capitals are lowered unless Historical
	Password   string // "" for an account without password
	Kind       Kind
	Admin      bool
	Token      string // registration token to use up, "" for none
	Session    string // the authentication session that it is made with, "" for none
	Historical bool   // accept the historical user ID grammar (administration, bridges)
}

// parseLocalpart returns the user ID that a localpart makes: M_INVALID_USERNAME.
func (a *Accounts) parseLocalpart(localpart string, historical bool) (matrix.UserID, error) {
	if historical {
		user, err := matrix.ParseUserID("@" + localpart + ":" + string(a.ServerName))
		if err != nil || localpart == "" || !user.Compliant() {
			return "", matrix.Errorf(http.StatusBadRequest, "M_INVALID_USERNAME", "The user name has characters that cannot be used")
		}
		return user, nil
	}
	user, err := matrix.NewUserID(strings.ToLower(localpart), a.ServerName)
	if err != nil {
		if e, ok := matrix.AsError(err); ok {
			return "", matrix.Errorf(http.StatusBadRequest, "M_INVALID_USERNAME", "%s", e.Message)
		}
		return "", err
	}
	return user, nil
}

// UserID is the user ID that a localpart of an application service makes: M_INVALID_USERNAME.
func (a *Accounts) UserID(localpart string) (matrix.UserID, error) {
	return a.parseLocalpart(localpart, true)
}

// CheckLocalpart returns M_INVALID_USERNAME unless localpart may be registered.
// spec: appendices#user-identifiers
func (a *Accounts) CheckLocalpart(localpart string) error {
	_, err := a.parseLocalpart(localpart, false)
	return err
}

// Available returns nil if the localpart is valid and free, else M_INVALID_USERNAME, M_EXCLUSIVE or M_USER_IN_USE.
// spec: cs/checkUsernameAvailability
func (a *Accounts) Available(ctx context.Context, localpart string) error {
	user, err := a.parseLocalpart(localpart, false)
	if err != nil {
		return err
	}
	if a.Reserved(user) {
		return errReserved
	}
	_, err = storage.GetAccount(ctx, a.DB, user)
	switch {
	case err == nil:
		return errUserInUse
	case errors.Is(err, storage.ErrNotFound):
		return nil
	}
	return fmt.Errorf("user name availability: %w", err)
}

// Register makes an account. Errors: M_INVALID_USERNAME, M_EXCLUSIVE unless it is for an application service, M_USER_IN_USE (also for a
// deactivated account), M_WEAK_PASSWORD, M_FORBIDDEN for a registration token that is used up, and for a session with which another account was
// made: with the account that was made with it already, it answers again. spec: cs/register
func (a *Accounts) Register(ctx context.Context, r Registration) (*Account, error) {
	chosen := r.Localpart != ""
	if !chosen {
		r.Localpart = strings.ToLower(rand.Text()[:12])
	}
	user, err := a.parseLocalpart(r.Localpart, r.Historical)
	if err != nil {
		return nil, err
	}
	if r.Kind != KindService && a.Reserved(user) {
		return nil, errReserved
	}
	account := storage.Account{UserID: user, Kind: string(r.Kind), Admin: r.Admin, LocalOnly: a.LocalOnly, CreatedAt: a.now()}
	if chosen {
		// Before the hash, which is dear; the insert decides.
		if taken, err := storage.GetAccount(ctx, a.DB, user); err == nil {
			if r.Session != "" {
				if made, err := a.registeredWith(ctx, a.DB, r.Session); err != nil || made == user {
					return accountOf(taken), err
				}
			}
			return nil, errUserInUse
		}
	}
	if r.Password != "" {
		if err := a.checkPassword(r.Password); err != nil {
			return nil, err
		}
		if account.PasswordHash, err = a.hasher.hash(ctx, r.Password); err != nil {
			return nil, err
		}
	}
	nid, err := a.number(ctx, user)
	if err != nil {
		return nil, err
	}
	var result storage.Account
	err = a.DB.Write(ctx, func(tx *storage.Tx) error {
		result = account
		if r.Session != "" {
			// The same request may run twice at a time, from a client that lost its connection.
			made, err := a.registeredWith(ctx, tx, r.Session)
			switch {
			case err != nil:
				return err
			case made != "" && chosen && made != user:
				return errSessionUsed
			case made != "":
				result, err = storage.GetAccount(ctx, tx, made)
				return err
			}
		}
		if err := a.useToken(ctx, tx, r.Token); err != nil {
			return err
		}
		fresh, err := storage.InsertAccount(ctx, tx, account)
		if err != nil {
			return fmt.Errorf("register: %w", err)
		}
		if !fresh {
			return errUserInUse
		}
		if r.Session != "" {
			if err := a.noteRegistered(ctx, tx, r.Session, user); err != nil {
				return err
			}
		}
		if r.Kind == KindGuest {
			return nil
		}
		if err := storage.PutProfileField(ctx, tx, user, FieldDisplayName, encode(user.Localpart())); err != nil {
			return err
		}
		return list(ctx, tx, user, nid)
	})
	if err != nil {
		return nil, err
	}
	return accountOf(result), nil
}

// useToken takes one use from a registration token; "" is none.
func (a *Accounts) useToken(ctx context.Context, tx *storage.Tx, token string) error {
	if token == "" || a.configured(token) {
		return nil
	}
	ok, err := storage.UseRegistrationToken(ctx, tx, token, a.now())
	if err != nil {
		return fmt.Errorf("use registration token: %w", err)
	}
	if !ok {
		return matrix.Forbidden("The registration token is not valid any more")
	}
	return nil
}

// UpgradeGuest makes a guest's account that of a user, with the password of a registration. The guest's sessions go on.
// M_WEAK_PASSWORD, M_FORBIDDEN if the account is no guest's or the registration token is used up. spec: client-server-api#guest-access
func (a *Accounts) UpgradeGuest(ctx context.Context, guest matrix.UserID, r Registration) error {
	var hash string
	if r.Password != "" {
		if err := a.checkPassword(r.Password); err != nil {
			return err
		}
		var err error
		if hash, err = a.hasher.hash(ctx, r.Password); err != nil {
			return err
		}
	}
	nid, err := a.number(ctx, guest)
	if err != nil {
		return err
	}
	return a.DB.Write(ctx, func(tx *storage.Tx) error {
		s, err := storage.GetAccount(ctx, tx, guest)
		if err != nil {
			return fmt.Errorf("upgrade guest: %w", err)
		}
		if Kind(s.Kind) != KindGuest || s.Deactivated {
			return matrix.Forbidden("This account is not a guest's any more")
		}
		if err := a.useToken(ctx, tx, r.Token); err != nil {
			return err
		}
		if r.Session != "" {
			if made, err := a.registeredWith(ctx, tx, r.Session); err != nil {
				return err
			} else if made != "" {
				return errSessionUsed
			}
			if err := a.noteRegistered(ctx, tx, r.Session, guest); err != nil {
				return err
			}
		}
		s.Kind, s.PasswordHash = string(r.Kind), hash
		if err := storage.UpdateAccount(ctx, tx, s); err != nil {
			return err
		}
		return list(ctx, tx, guest, nid)
	})
}

// nonceLifetime is how long a client has to answer with a MAC.
const nonceLifetime = time.Minute

// SharedSecretNonce makes a nonce for shared-secret registration, valid for one minute.
// M_UNRECOGNIZED (404) if no secret is configured. It carries its time and a MAC of our own, so
// that any process of this server can check it; using it twice gains nothing, as the user exists then.
func (a *Accounts) SharedSecretNonce() (string, error) {
	if a.RegistrationSecret == "" {
		return "", errNoSharedSecret
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], uint64(a.now()))
	rand.Read(b[8:])
	return hex.EncodeToString(append(b[:], a.nonceMAC(b[:])...)), nil
}

func (a *Accounts) nonceMAC(b []byte) []byte {
	mac := hmac.New(sha256.New, []byte(a.RegistrationSecret))
	mac.Write([]byte("nonce\x00"))
	mac.Write(b)
	return mac.Sum(nil)[:16]
}

func (a *Accounts) validNonce(nonce string) bool {
	b, err := hex.DecodeString(nonce)
	if err != nil || len(b) != 32 || subtle.ConstantTimeCompare(a.nonceMAC(b[:16]), b[16:]) != 1 {
		return false
	}
	age := a.now() - matrix.Timestamp(binary.BigEndian.Uint64(b))
	return age >= 0 && age <= matrix.Span(nonceLifetime)
}

var errNoSharedSecret = matrix.Errorf(http.StatusNotFound, "M_UNRECOGNIZED", "Shared secret registration is not enabled")

// SharedSecretRequest is the body of POST /_synapse/admin/v1/register.
type SharedSecretRequest struct {
	Nonce       string `json:"nonce"`
	Username    string `json:"username"`
	DisplayName string `json:"displayname"`
	Password    string `json:"password"`
	Admin       bool   `json:"admin"`
	UserType    string `json:"user_type"`
	MAC         string `json:"mac"` // hex HMAC-SHA1 over nonce, username, password, "admin"/"notadmin", user_type if any, joined by NUL
}

// RegisterWithSecret checks the MAC and makes the account: M_FORBIDDEN if it is wrong.
func (a *Accounts) RegisterWithSecret(ctx context.Context, r SharedSecretRequest) (*Account, error) {
	switch {
	case a.RegistrationSecret == "":
		return nil, errNoSharedSecret
	case r.Username == "" || r.Password == "":
		return nil, matrix.MissingParam("username and password are required")
	case strings.Contains(r.Username, "\x00") || strings.Contains(r.Password, "\x00"):
		return nil, matrix.InvalidParam("username and password must not hold NUL")
	case !a.validNonce(r.Nonce):
		return nil, matrix.InvalidParam("The nonce is unknown or has expired")
	}
	parts := []string{r.Nonce, r.Username, r.Password, "notadmin"}
	if r.Admin {
		parts[3] = "admin"
	}
	if r.UserType != "" {
		parts = append(parts, r.UserType)
	}
	mac := hmac.New(sha1.New, []byte(a.RegistrationSecret))
	mac.Write([]byte(strings.Join(parts, "\x00")))
	got, err := hex.DecodeString(r.MAC)
	if err != nil || !hmac.Equal(got, mac.Sum(nil)) {
		return nil, matrix.Forbidden("The MAC is wrong: check the shared secret")
	}
	kind := KindUser
	if r.UserType == string(KindBot) {
		kind = KindBot
	}
	return a.Register(ctx, Registration{Localpart: r.Username, Password: r.Password, Admin: r.Admin, Kind: kind})
}
