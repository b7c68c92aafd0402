package users

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/storage"
)

// maxTags is how many tags a room may have.
const maxTags = 500

// Tags returns a room's tags: tag name to its content. They are stored as m.tag. spec: cs/getRoomTags
func (a *AccountData) Tags(ctx context.Context, user matrix.UserID, room matrix.RoomID) (map[string]json.RawMessage, error) {
	if err := checkRoom(room); err != nil {
		return nil, err
	}
	_, tags, err := readTags(ctx, a.DB, user, room)
	if err != nil {
		return nil, fmt.Errorf("tags: %w", err)
	}
	out := map[string]json.RawMessage{}
	for name, content := range canonicaljson.Members(tags) {
		out[strings.Clone(name)] = content
	}
	return out, nil
}

// readTags returns the m.tag content and the `tags` object in it, both {} if there are none.
func readTags(ctx context.Context, q storage.Querier, user matrix.UserID, room matrix.RoomID) (content, tags []byte, err error) {
	d, err := storage.GetAccountData(ctx, q, user, room, typeTag)
	if err != nil && !errors.Is(err, storage.ErrNotFound) {
		return nil, nil, err
	}
	content, tags = []byte("{}"), []byte("{}")
	if d.Content != nil {
		content = d.Content
		if t, ok := canonicaljson.GetObject(d.Content, "tags"); ok {
			tags = t
		}
	}
	return content, tags, nil
}

// SetTag adds or replaces a tag. spec: cs/setRoomTag
func (a *AccountData) SetTag(ctx context.Context, user matrix.UserID, room matrix.RoomID, tag string, content json.RawMessage) error {
	if err := checkName(tag, "The tag"); err != nil {
		return err
	}
	canonical, err := object(content, canonicaljson.Lenient, maxOneTimeKey, "The tag")
	if err != nil {
		return err
	}
	return a.changeTags(ctx, user, room, func(tags []byte) ([]byte, error) {
		changed := canonicaljson.Set(tags, tag, canonical)
		n := 0
		for range canonicaljson.Members(changed) {
			n++
		}
		if n > maxTags {
			return nil, matrix.TooLarge("This room has too many tags")
		}
		return changed, nil
	})
}

// DeleteTag removes a tag; none is no error. spec: cs/deleteRoomTag
func (a *AccountData) DeleteTag(ctx context.Context, user matrix.UserID, room matrix.RoomID, tag string) error {
	return a.changeTags(ctx, user, room, func(tags []byte) ([]byte, error) {
		return canonicaljson.Delete(tags, tag), nil
	})
}

func (a *AccountData) changeTags(ctx context.Context, user matrix.UserID, room matrix.RoomID, change func([]byte) ([]byte, error)) error {
	if err := checkSettable(room, typeTag); err != nil {
		return err
	}
	err := a.DB.Write(ctx, func(tx *storage.Tx) error {
		content, was, err := readTags(ctx, tx, user, room)
		if err != nil {
			return err
		}
		tags, err := change(was)
		if err != nil || string(tags) == string(was) {
			return err
		}
		if content = canonicaljson.Set(content, "tags", tags); len(content) > maxAccountData {
			return matrix.TooLarge("The tags of this room are larger than %d bytes", maxAccountData)
		}
		return a.put(ctx, tx, user, room, typeTag, content)
	})
	if err != nil {
		return fmt.Errorf("change tags: %w", err)
	}
	return nil
}
