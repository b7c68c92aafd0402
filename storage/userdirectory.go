package storage

import (
	"context"
	"errors"
	"fmt"

	"hanok/matrix"
)

// DirectoryUser is somebody who can be found.
type DirectoryUser struct {
	NID          NameNID
	Name, Avatar string // as shown
}

const getDirectoryUser = `SELECT name, avatar FROM directory_users WHERE user_nid = $1`

// PutDirectoryUser has a user found by some words, in place of those before. Nothing is written if they are known by that name already.
func PutDirectoryUser(ctx context.Context, tx *Tx, u DirectoryUser, words []string) error {
	var name, avatar []byte
	err := tx.QueryRow(ctx, getDirectoryUser, int64(u.NID)).Scan(&name, &avatar)
	known := err == nil
	if err != nil && !errors.Is(err, ErrNotFound) {
		return fmt.Errorf("user directory: %w", err)
	}
	if known && string(name) == u.Name && string(avatar) == u.Avatar {
		return nil
	}
	if known {
		if err := DropDirectoryUser(ctx, tx, u.NID); err != nil {
			return err
		}
	}
	if _, err := tx.Exec(ctx, `INSERT INTO directory_users (user_nid, name, avatar) VALUES ($1, $2, $3)`, int64(u.NID), []byte(u.Name), []byte(u.Avatar)); err != nil {
		return fmt.Errorf("user directory: %w", err)
	}
	args := make([][]any, len(words))
	for i, w := range words {
		args[i] = []any{[]byte(w), int64(u.NID)}
	}
	if err := tx.ExecBatch(ctx, `INSERT INTO directory_words (word, user_nid) VALUES ($1, $2)`, args); err != nil {
		return fmt.Errorf("words of the user directory: %w", err)
	}
	return nil
}

// DropDirectoryUser has a user found no more.
func DropDirectoryUser(ctx context.Context, tx *Tx, user NameNID) error {
	for _, stmt := range []string{`DELETE FROM directory_words WHERE user_nid = $1`, `DELETE FROM directory_users WHERE user_nid = $1`} {
		if _, err := tx.Exec(ctx, stmt, int64(user)); err != nil {
			return fmt.Errorf("user directory: %w", err)
		}
	}
	return nil
}

const joinedAnywhere = `SELECT 1 FROM memberships WHERE user_nid = $1 AND membership = 2 LIMIT 1`

// JoinedAnywhere says whether a user is in any room.
func JoinedAnywhere(ctx context.Context, q Querier, user NameNID) (bool, error) {
	return exists(ctx, q, joinedAnywhere, int64(user))
}

// SetOpenRoom notes whether everybody may join or read a room.
func SetOpenRoom(ctx context.Context, tx *Tx, room RoomNID, open bool) error {
	query := `DELETE FROM open_rooms WHERE room_nid = $1`
	if open {
		query = `INSERT INTO open_rooms (room_nid) VALUES ($1) ON CONFLICT (room_nid) DO NOTHING`
	}
	_, err := tx.Exec(ctx, query, int64(room))
	return err
}

// DirectoryPlace is a place among the words of the directory.
type DirectoryPlace struct {
	Word string
	User NameNID
}

// FoundUser is a user with a word that begins as asked.
type FoundUser struct {
	Place        DirectoryPlace
	UserID       matrix.UserID
	Name, Avatar string
	Shown        EventNID // the membership by which who asked may see the user; 0: none
}

// A user is visible to those who share a room, and to everybody while in an open one.
const searchDirectory = `SELECT w.word, w.user_nid, n.name, u.name, u.avatar, COALESCE(
	(SELECT m.event_nid FROM memberships m WHERE m.user_nid = w.user_nid AND m.membership = 2 AND (
		EXISTS (SELECT 1 FROM open_rooms o WHERE o.room_nid = m.room_nid) OR
		w.user_nid <> $5 AND EXISTS (SELECT 1 FROM memberships me WHERE me.room_nid = m.room_nid AND me.user_nid = $5 AND me.membership = 2)) LIMIT 1), 0)
	FROM (SELECT word, user_nid FROM directory_words WHERE (word, user_nid) > ($1, $2) AND word < $3 ORDER BY word, user_nid LIMIT $4) w
	JOIN directory_users u ON u.user_nid = w.user_nid JOIN names n ON n.name_nid = w.user_nid
	ORDER BY w.word, w.user_nid`

// SearchDirectory looks through users with a word that begins with the given one, after a place, the zero one at first: up to limit of them,
// in order of word.
func SearchDirectory(ctx context.Context, q Querier, asker NameNID, prefix string, after DirectoryPlace, limit int) ([]FoundUser, error) {
	if after.Word == "" {
		after.Word = prefix
	}
	return collect(ctx, q, func(r *Rows) (f FoundUser, err error) {
		var word, id, name, avatar []byte
		if err := r.Scan(&word, &f.Place.User, &id, &name, &avatar, &f.Shown); err != nil {
			return f, err
		}
		f.Place.Word, f.UserID, f.Name, f.Avatar = string(word), matrix.UserID(id), string(name), string(avatar)
		return f, nil
	}, searchDirectory, []byte(after.Word), int64(after.User), append([]byte(prefix), 0xff), int64(limit), int64(asker))
}
