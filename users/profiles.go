package users

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"unicode/utf8"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/storage"
)

// Profiles are display names, avatars and custom fields. spec: client-server-api#profiles
type Profiles struct{ *core }

// The profile fields that rooms show.
const (
	FieldDisplayName = "displayname"
	FieldAvatarURL   = "avatar_url"
)

// Limits of a profile. spec: cs/setProfileField
const (
	maxProfile     = 64 << 10 // bytes of the whole profile as JSON
	maxProfileKey  = 255      // bytes
	maxDisplayName = 256      // characters
	maxAvatarURL   = 1000     // bytes
)

var errNoProfile = matrix.NotFound("There is no such user or profile field")

// checkField checks a field name. spec: appendices#common-namespaced-identifier-grammar
func checkField(field string) error {
	if len(field) > maxProfileKey {
		return matrix.Errorf(http.StatusBadRequest, "M_KEY_TOO_LARGE", "The name of the field is longer than %d bytes", maxProfileKey)
	}
	for i := range len(field) {
		c := field[i]
		if !(c >= 'a' && c <= 'z' || i > 0 && (c >= '0' && c <= '9' || c == '_' || c == '-' || c == '.')) {
			return matrix.InvalidParam("The name of a field starts with a-z and goes on with a-z, 0-9, '_', '-' and '.'")
		}
	}
	if field == "" {
		return matrix.InvalidParam("The name of the field is empty")
	}
	return nil
}

// checkValue returns a field's value in canonical form.
func checkValue(field string, value json.RawMessage) ([]byte, error) {
	if len(value) > maxProfile {
		return nil, errProfileTooLarge
	}
	canonical, err := canonicaljson.Canonical(value, canonicaljson.Lenient)
	if err != nil {
		return nil, err
	}
	if field != FieldDisplayName && field != FieldAvatarURL {
		return canonical, nil
	}
	text, ok := canonicaljson.String(canonical)
	switch {
	case !ok:
		return nil, matrix.BadJSON("%s must be a string", field)
	case field == FieldDisplayName && utf8.RuneCountInString(text) > maxDisplayName:
		return nil, matrix.InvalidParam("The display name is longer than %d characters", maxDisplayName)
	case field == FieldAvatarURL && len(text) > maxAvatarURL:
		return nil, matrix.InvalidParam("The avatar URL is longer than %d bytes", maxAvatarURL)
	}
	return canonical, nil
}

var errProfileTooLarge = matrix.Errorf(http.StatusBadRequest, "M_PROFILE_TOO_LARGE", "The profile would be larger than %d bytes", maxProfile)

// Get returns a local or remote user's profile: M_NOT_FOUND if there is no such user. spec: cs/getUserProfile
func (p *Profiles) Get(ctx context.Context, user matrix.UserID) (map[string]json.RawMessage, error) {
	if !p.local(user) {
		return p.remote(ctx, user, "")
	}
	account, err := storage.GetAccount(ctx, p.DB, user)
	if errors.Is(err, storage.ErrNotFound) {
		if err := p.MakeUser(ctx, user); err != nil {
			return nil, err
		}
		account, err = storage.GetAccount(ctx, p.DB, user)
	}
	if errors.Is(err, storage.ErrNotFound) || err == nil && account.Deactivated {
		return nil, errNoProfile
	}
	if err != nil {
		return nil, fmt.Errorf("get profile: %w", err)
	}
	fields, err := storage.GetProfile(ctx, p.DB, user)
	if err != nil {
		return nil, fmt.Errorf("get profile: %w", err)
	}
	profile := make(map[string]json.RawMessage, len(fields))
	for field, value := range fields {
		profile[field] = value
	}
	return profile, nil
}

// remote asks another server, and passes on what is well formed.
func (p *Profiles) remote(ctx context.Context, user matrix.UserID, field string) (map[string]json.RawMessage, error) {
	ctx, cancel := context.WithTimeout(ctx, p.RemoteTimeout)
	defer cancel()
	got, err := p.Remote.Profile(ctx, user, field)
	if e, ok := matrix.AsError(err); ok && (e.Status == http.StatusNotFound || e.Status == http.StatusForbidden) {
		return nil, errNoProfile
	}
	if err != nil {
		return nil, matrix.NotFound("The user's server did not answer").Because(err)
	}
	profile := map[string]json.RawMessage{}
	size := 0
	for name, value := range got {
		canonical, err := checkValue(name, value)
		if size += len(canonical); err != nil || checkField(name) != nil || size > maxProfile {
			continue
		}
		profile[name] = canonical
	}
	return profile, nil
}

// Field returns one field: M_NOT_FOUND if it is not set. spec: cs/getProfileField
func (p *Profiles) Field(ctx context.Context, user matrix.UserID, field string) (json.RawMessage, error) {
	if err := checkField(field); err != nil {
		return nil, err
	}
	var profile map[string]json.RawMessage
	var err error
	if p.local(user) {
		profile, err = p.Get(ctx, user)
	} else {
		profile, err = p.remote(ctx, user, field)
	}
	if err != nil {
		return nil, err
	}
	value, ok := profile[field]
	if !ok {
		return nil, errNoProfile
	}
	return value, nil
}

// Local is what a local user's membership events hold; both may be "".
func (p *Profiles) Local(ctx context.Context, user matrix.UserID) (displayName, avatarURL string, err error) {
	fields, err := storage.GetProfile(ctx, p.DB, user)
	if err != nil {
		return "", "", fmt.Errorf("local profile: %w", err)
	}
	displayName, _ = canonicaljson.String(fields[FieldDisplayName])
	avatarURL, _ = canonicaljson.String(fields[FieldAvatarURL])
	return displayName, avatarURL, nil
}

// list has a local user found in the directory as the profile has it; nid is the user's number.
func list(ctx context.Context, tx *storage.Tx, user matrix.UserID, nid storage.NameNID) error {
	fields, err := storage.GetProfile(ctx, tx, user)
	if err != nil {
		return err
	}
	name, _ := canonicaljson.String(fields[FieldDisplayName])
	avatar, _ := canonicaljson.String(fields[FieldAvatarURL])
	return storage.PutDirectoryUser(ctx, tx, storage.DirectoryUser{NID: nid, Name: name, Avatar: avatar}, DirectoryWords(user, name))
}

// Set sets a field of a local user and reports whether it changed. An empty display name or avatar is the same as none.
// Updating the user's membership events is the caller's. Errors: M_BAD_JSON, M_KEY_TOO_LARGE, M_PROFILE_TOO_LARGE. spec: cs/setProfileField
func (p *Profiles) Set(ctx context.Context, user matrix.UserID, field string, value json.RawMessage) (changed bool, err error) {
	if err := checkField(field); err != nil {
		return false, err
	}
	canonical, err := checkValue(field, value)
	if err != nil {
		return false, err
	}
	if field == FieldDisplayName || field == FieldAvatarURL {
		if text, _ := canonicaljson.String(canonical); text == "" {
			return p.Delete(ctx, user, field)
		}
	}
	nid, err := p.number(ctx, user)
	if err != nil {
		return false, err
	}
	err = p.DB.Write(ctx, func(tx *storage.Tx) error {
		fields, err := storage.GetProfile(ctx, tx, user)
		if err != nil {
			return err
		}
		if changed = string(fields[field]) != string(canonical); !changed {
			return nil
		}
		fields[field] = canonical
		size := len("{}")
		for name, value := range fields {
			size += len(name) + len(value) + len(`"":,`)
		}
		if size > maxProfile {
			return errProfileTooLarge
		}
		if err := storage.PutProfileField(ctx, tx, user, field, canonical); err != nil {
			return err
		}
		return list(ctx, tx, user, nid)
	})
	if err != nil {
		return false, fmt.Errorf("set profile field: %w", err)
	}
	return changed, nil
}

// Delete removes a field and reports whether it was there. spec: cs/deleteProfileField
func (p *Profiles) Delete(ctx context.Context, user matrix.UserID, field string) (changed bool, err error) {
	if err := checkField(field); err != nil {
		return false, err
	}
	nid, err := p.number(ctx, user)
	if err != nil {
		return false, err
	}
	err = p.DB.Write(ctx, func(tx *storage.Tx) (err error) {
		if changed, err = storage.DeleteProfileField(ctx, tx, user, field); err != nil || !changed {
			return err
		}
		return list(ctx, tx, user, nid)
	})
	if err != nil {
		return false, fmt.Errorf("delete profile field: %w", err)
	}
	return changed, nil
}
