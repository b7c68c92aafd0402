package users

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	"fmt"

	"hanok/matrix"
	"hanok/storage"
)

// RegistrationTokens allow registration to those who hold one.
// spec: client-server-api#token-authenticated-registration
type RegistrationTokens struct{ *core }

// RegistrationToken is one token and its use.
type RegistrationToken = storage.RegistrationToken

// Create stores a token; an empty Token is filled with a random one. M_INVALID_PARAM if it is malformed or exists.
func (t *RegistrationTokens) Create(ctx context.Context, token RegistrationToken) (*RegistrationToken, error) {
	if token.Token == "" {
		token.Token = rand.Text()[:16]
	}
	if !opaqueIdentifier(token.Token, 64) {
		return nil, matrix.InvalidParam("A registration token has 1 to 64 characters of A-Z, a-z, 0-9, '.', '_', '~' and '-'")
	}
	if token.UsesAllowed != nil && *token.UsesAllowed < 0 {
		return nil, matrix.InvalidParam("uses_allowed must not be negative")
	}
	token.Completed = 0
	err := t.DB.Write(ctx, func(tx *storage.Tx) error {
		fresh, err := storage.InsertRegistrationToken(ctx, tx, token)
		if err == nil && !fresh {
			return matrix.InvalidParam("This registration token exists already")
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("create registration token: %w", err)
	}
	return &token, nil
}

// opaqueIdentifier checks the grammar of tokens and the like. spec: appendices#opaque-identifiers
func opaqueIdentifier(s string, limit int) bool {
	if s == "" || len(s) > limit {
		return false
	}
	for i := range len(s) {
		c := s[i]
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '.' || c == '_' || c == '~' || c == '-') {
			return false
		}
	}
	return true
}

// List returns all tokens.
func (t *RegistrationTokens) List(ctx context.Context) ([]RegistrationToken, error) {
	tokens, err := storage.ListRegistrationTokens(ctx, t.DB)
	if err != nil {
		return nil, fmt.Errorf("list registration tokens: %w", err)
	}
	return tokens, nil
}

// Delete removes a token; storage.ErrNotFound if there is none.
func (t *RegistrationTokens) Delete(ctx context.Context, token string) error {
	if !opaqueIdentifier(token, 64) {
		return storage.ErrNotFound
	}
	return t.DB.Write(ctx, func(tx *storage.Tx) error {
		found, err := storage.DeleteRegistrationToken(ctx, tx, token)
		if err == nil && !found {
			return storage.ErrNotFound
		}
		return err
	})
}

// Valid reports whether a token could be used now. spec: cs/registrationTokenValidity
func (t *RegistrationTokens) Valid(ctx context.Context, token string) (bool, error) {
	if t.configured(token) {
		return true, nil
	}
	if !opaqueIdentifier(token, 64) {
		return false, nil
	}
	ok, err := storage.RegistrationTokenValid(ctx, t.DB, token, t.now())
	if err != nil {
		return false, fmt.Errorf("registration token validity: %w", err)
	}
	return ok, nil
}

// configured reports whether the operator wrote the token into the configuration. It takes equally long for every wrong one.
func (c core) configured(token string) bool {
	found := 0
	for _, t := range c.RegistrationTokens {
		found |= subtle.ConstantTimeCompare([]byte(t), []byte(token))
	}
	return found == 1
}
