package users

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"unicode/utf8"

	"hanok/internal/recent"
	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/storage"
)

// Accounts are the local users.
type Accounts struct {
	*core
	hasher *hasher
	// ignored are whom users ignore.
	ignored *storage.Memo[matrix.UserID, map[matrix.UserID]bool]
	// ofService says of users whether their account is an application service's, which does not change.
	ofService *recent.Map[matrix.UserID, bool]
}

// maxOfService is of how many users that is remembered.
const maxOfService = 50_000

// OfService reports whether a local user's account was made by an application service: nobody sits in front of it.
func (a *Accounts) OfService(ctx context.Context, user matrix.UserID) (bool, error) {
	if !a.Services {
		return false, nil
	}
	if is, known := a.ofService.Get(user); known {
		return is, nil
	}
	account, err := storage.GetAccount(ctx, a.DB, user)
	if errors.Is(err, storage.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("is an account a service's: %w", err)
	}
	is := Kind(account.Kind) == KindService
	a.ofService.Put(user, is)
	return is, nil
}

// Kind is what sort of user an account is.
type Kind string

const (
	KindUser  Kind = ""      // a person
	KindGuest Kind = "guest" // registered with kind=guest
	KindBot   Kind = "bot"
	// KindService is a user of an application service: no password, no login but by its token.
	KindService Kind = "appservice"
	// KindNotices is the account that speaks for the server: no password, no login. spec: client-server-api#server-notices
	KindNotices Kind = "notices"
)

// Account is one local user.
type Account struct {
	UserID      matrix.UserID
	Kind        Kind
	Admin       bool
	Deactivated bool
	Erased      bool // deactivated with erase: true
	Locked      bool
	Suspended   bool
	LocalOnly   bool // kept to this server
	HasPassword bool
	CreatedAt   matrix.Timestamp
}

func accountOf(a storage.Account) *Account {
	return &Account{
		UserID: a.UserID, Kind: Kind(a.Kind), Admin: a.Admin, Deactivated: a.Deactivated, Erased: a.Erased,
		Locked: a.Locked, Suspended: a.Suspended, LocalOnly: a.LocalOnly, HasPassword: a.PasswordHash != "", CreatedAt: a.CreatedAt,
	}
}

// maxPassword bounds the work of one hash, in bytes.
const maxPassword = 1024

var (
	errUserInUse   = matrix.Errorf(http.StatusBadRequest, "M_USER_IN_USE", "This user name is taken")
	errReserved    = matrix.Errorf(http.StatusBadRequest, "M_EXCLUSIVE", "This user name is reserved for an application service")
	errBadPassword = matrix.Forbidden("The user name or password is wrong")
	errDeactivated = matrix.Errorf(http.StatusForbidden, "M_USER_DEACTIVATED", "This account has been deactivated")
)

// Get returns an account, storage.ErrNotFound if there is none.
func (a *Accounts) Get(ctx context.Context, user matrix.UserID) (*Account, error) {
	stored, err := storage.GetAccount(ctx, a.DB, user)
	if err != nil {
		return nil, fmt.Errorf("get account: %w", err)
	}
	return accountOf(stored), nil
}

// List returns accounts in order of user ID, after the given one, at most limit.
func (a *Accounts) List(ctx context.Context, after matrix.UserID, limit int) ([]Account, error) {
	stored, err := storage.ListAccounts(ctx, a.DB, after, limit)
	if err != nil {
		return nil, fmt.Errorf("list accounts: %w", err)
	}
	accounts := make([]Account, len(stored))
	for i, s := range stored {
		accounts[i] = *accountOf(s)
	}
	return accounts, nil
}

// checkPassword returns M_WEAK_PASSWORD or M_INVALID_PARAM for a password that cannot be set.
func (a *Accounts) checkPassword(password string) error {
	switch n := utf8.RuneCountInString(password); {
	case len(password) > maxPassword:
		return matrix.InvalidParam("The password is longer than %d bytes", maxPassword)
	case n == 0 || n < a.MinPasswordLength:
		return matrix.Errorf(http.StatusBadRequest, "M_WEAK_PASSWORD", "The password must have at least %d characters", max(1, a.MinPasswordLength))
	}
	return nil
}

// CheckPassword returns the account if the password is right, M_FORBIDDEN if it is not or there is no such
// user (taking equally long), M_USER_DEACTIVATED if the account is closed.
func (a *Accounts) CheckPassword(ctx context.Context, user matrix.UserID, password string) (*Account, error) {
	stored, err := storage.GetAccount(ctx, a.DB, user)
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return nil, fmt.Errorf("check password: %w", err)
	}
	if len(password) > maxPassword {
		return nil, errBadPassword
	}
	// A closed account has no password any more, so there is nothing to compare with.
	if stored.Deactivated {
		return nil, errDeactivated
	}
	if stored.PasswordHash == "" {
		if err := a.hasher.waste(ctx, password); err != nil {
			return nil, err
		}
		return nil, errBadPassword
	}
	ok, old, err := a.hasher.verify(ctx, stored.PasswordHash, password)
	if err != nil {
		return nil, fmt.Errorf("check password: %w", err)
	}
	if !ok {
		return nil, errBadPassword
	}
	if old {
		if err := a.rehash(ctx, stored, password); err != nil {
			a.Log.Warn().Err(err).Msg("users: a password could not be hashed anew")
		}
	}
	return accountOf(stored), nil
}

// rehash replaces a hash of another kind or cost, unless the password was changed meanwhile.
func (a *Accounts) rehash(ctx context.Context, was storage.Account, password string) error {
	hash, err := a.hasher.hash(ctx, password)
	if err != nil {
		return err
	}
	return a.update(ctx, was.UserID, func(s *storage.Account) {
		if s.PasswordHash == was.PasswordHash {
			s.PasswordHash = hash
		}
	})
}

// update changes an account, storage.ErrNotFound if there is none.
func (a *Accounts) update(ctx context.Context, user matrix.UserID, change func(*storage.Account)) error {
	return a.DB.Write(ctx, func(tx *storage.Tx) error {
		s, err := storage.GetAccount(ctx, tx, user)
		if err != nil {
			return fmt.Errorf("update account: %w", err)
		}
		change(&s)
		return storage.UpdateAccount(ctx, tx, s)
	})
}

// SetPassword changes the password. If keep is not nil all other sessions of the user are
// logged out: keep is the device that stays, "" for none. spec: cs/changePassword
func (a *Accounts) SetPassword(ctx context.Context, user matrix.UserID, password string, keep *matrix.DeviceID) error {
	if err := a.checkPassword(password); err != nil {
		return err
	}
	hash, err := a.hasher.hash(ctx, password)
	if err != nil {
		return err
	}
	aud, err := a.audienceOf(ctx, user)
	if err != nil {
		return err
	}
	return a.DB.Write(ctx, func(tx *storage.Tx) error {
		s, err := storage.GetAccount(ctx, tx, user)
		if err != nil {
			return fmt.Errorf("set password: %w", err)
		}
		if s.Deactivated {
			return errDeactivated
		}
		s.PasswordHash = hash
		if err := storage.UpdateAccount(ctx, tx, s); err != nil || keep == nil {
			return err
		}
		return a.deleteDevices(ctx, tx, user, aud, func(d matrix.DeviceID) bool { return d != *keep })
	})
}

// Deactivate closes an account for good: sessions, devices, keys, password, pushers,
// account data and profile go. Leaving rooms is the caller's. spec: cs/deactivateAccount
func (a *Accounts) Deactivate(ctx context.Context, user matrix.UserID, erase bool) error {
	aud, err := a.audienceOf(ctx, user)
	if err != nil {
		return err
	}
	nid, err := a.number(ctx, user)
	if err != nil {
		return err
	}
	return a.DB.Write(ctx, func(tx *storage.Tx) error {
		s, err := storage.GetAccount(ctx, tx, user)
		if err != nil {
			return fmt.Errorf("deactivate: %w", err)
		}
		s.Deactivated, s.Erased, s.PasswordHash, s.Admin = true, s.Erased || erase, "", false
		if err := storage.UpdateAccount(ctx, tx, s); err != nil {
			return err
		}
		if err := a.deleteDevices(ctx, tx, user, aud, func(matrix.DeviceID) bool { return true }); err != nil {
			return err
		}
		if err := storage.DropDirectoryUser(ctx, tx, nid); err != nil {
			return err
		}
		return storage.PurgeUserData(ctx, tx, user)
	})
}

// Erased reports whether a user closed the account and asked for what they sent to be erased.
func (a *Accounts) Erased(ctx context.Context, user matrix.UserID) (bool, error) {
	s, err := storage.GetAccount(ctx, a.DB, user)
	if errors.Is(err, storage.ErrNotFound) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("is an account erased: %w", err)
	}
	return s.Erased, nil
}

// SetAdmin makes a user an administrator of this server, or no longer.
func (a *Accounts) SetAdmin(ctx context.Context, user matrix.UserID, on bool) error {
	return a.update(ctx, user, func(s *storage.Account) { s.Admin = on })
}

// SetLocked shuts a user out without ending the sessions. spec: client-server-api#account-locking
func (a *Accounts) SetLocked(ctx context.Context, user matrix.UserID, on bool) error {
	return a.update(ctx, user, func(s *storage.Account) { s.Locked = on })
}

// SetSuspended lets a user read only. spec: client-server-api#account-suspension
func (a *Accounts) SetSuspended(ctx context.Context, user matrix.UserID, on bool) error {
	return a.update(ctx, user, func(s *storage.Account) { s.Suspended = on })
}

// SetLocalOnly keeps a user to this server: no rooms that users of other servers can be in, no invites from there, and unknown there.
// Rooms that the user is in already stay.
func (a *Accounts) SetLocalOnly(ctx context.Context, user matrix.UserID, on bool) error {
	return a.update(ctx, user, func(s *storage.Account) { s.LocalOnly = on })
}

// CheckFederates refuses a user who is kept to this server. M_FORBIDDEN.
func (a *Accounts) CheckFederates(ctx context.Context, user matrix.UserID) error {
	s, err := storage.GetAccount(ctx, a.DB, user)
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return fmt.Errorf("does a user federate: %w", err)
	}
	if s.LocalOnly {
		return matrix.Forbidden("This account is for rooms of its own server only")
	}
	return nil
}

// CheckMaySend refuses what a user has left to be sent in their absence while the account is not in order.
func (a *Accounts) CheckMaySend(ctx context.Context, user matrix.UserID) error {
	s, err := storage.GetAccount(ctx, a.DB, user)
	switch {
	case errors.Is(err, storage.ErrNotFound), err == nil && s.Deactivated:
		return errDeactivated
	case err != nil:
		return fmt.Errorf("may a user send: %w", err)
	case s.Locked:
		return matrix.Errorf(http.StatusForbidden, "M_USER_LOCKED", "This account has been locked")
	case s.Suspended:
		return matrix.Errorf(http.StatusForbidden, "M_USER_SUSPENDED", "This account is suspended")
	}
	return nil
}

// Ignored returns the users that user ignores. spec: client-server-api#ignoring-users
func (a *Accounts) Ignored(ctx context.Context, q storage.Querier, user matrix.UserID) (map[matrix.UserID]bool, error) {
	return a.ignored.Get(user, storage.Subject{Topic: storage.TopicAccountData, User: string(user)}, func() (map[matrix.UserID]bool, error) {
		return readIgnored(ctx, q, user)
	})
}

func readIgnored(ctx context.Context, q storage.Querier, user matrix.UserID) (map[matrix.UserID]bool, error) {
	d, err := storage.GetAccountData(ctx, q, user, "", "m.ignored_user_list")
	if errors.Is(err, storage.ErrNotFound) || err == nil && d.Content == nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("ignored users: %w", err)
	}
	list, _ := canonicaljson.GetObject(d.Content, "ignored_users")
	if list == nil {
		return nil, nil
	}
	ignored := map[matrix.UserID]bool{}
	for id := range canonicaljson.Members(list) {
		// Nobody can ignore themselves: their own messages would vanish.
		if other, err := matrix.ParseUserID(strings.Clone(id)); err == nil && other != user {
			ignored[other] = true
		}
	}
	return ignored, nil
}
