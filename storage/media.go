package storage

import (
	"context"
	"fmt"

	"hanok/matrix"
)

// Media is what an mxc:// URI stands for.
type Media struct {
	Server      matrix.ServerName
	ID          string
	User        matrix.UserID // who uploaded it; "" for media of other servers
	Created     matrix.Timestamp
	Expires     matrix.Timestamp // of a URI made ahead of its content; 0 once there is content
	Hash        string           // hex SHA-256; "" while there is no content
	Size        int64
	ContentType string
	Filename    string
	Accessed    matrix.Timestamp
}

const mediaColumns = `server, media_id, user_id, created_ts, expires_ts, hash, size, content_type, filename, accessed_ts`

func scanMedia(scan func(...any) error) (m Media, err error) {
	err = scan(&m.Server, &m.ID, &m.User, &m.Created, &m.Expires, &m.Hash, &m.Size, &m.ContentType, &m.Filename, &m.Accessed)
	return m, err
}

const selectMedia = `SELECT ` + mediaColumns + ` FROM media WHERE server = $1 AND media_id = $2`

// GetMedia returns one entry of the repository.
func GetMedia(ctx context.Context, q Querier, server matrix.ServerName, id string) (Media, error) {
	m, err := scanMedia(q.QueryRow(ctx, selectMedia, string(server), id).Scan)
	if err != nil {
		return Media{}, fmt.Errorf("get media: %w", err)
	}
	return m, nil
}

const insertMedia = `INSERT INTO media (` + mediaColumns + `) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)
	ON CONFLICT (server, media_id) DO UPDATE SET expires_ts = excluded.expires_ts, hash = excluded.hash, size = excluded.size,
	content_type = excluded.content_type, filename = excluded.filename, accessed_ts = excluded.accessed_ts
	WHERE media.hash = ''`

// PutMedia stores an entry, or the content of one that had none yet. stored is
// false when the entry has content already: that is never overwritten.
func PutMedia(ctx context.Context, tx *Tx, m Media) (stored bool, err error) {
	n, err := tx.Exec(ctx, insertMedia, string(m.Server), m.ID, string(m.User), int64(m.Created), int64(m.Expires), m.Hash, m.Size,
		m.ContentType, m.Filename, int64(m.Accessed))
	if err != nil {
		return false, fmt.Errorf("put media: %w", err)
	}
	return n > 0, nil
}

const touchMedia = `UPDATE media SET accessed_ts = $3 WHERE server = $1 AND media_id = $2`

// TouchMedia notes that somebody asked for it.
func TouchMedia(ctx context.Context, tx *Tx, server matrix.ServerName, id string, now matrix.Timestamp) error {
	if _, err := tx.Exec(ctx, touchMedia, string(server), id, int64(now)); err != nil {
		return fmt.Errorf("touch media: %w", err)
	}
	return nil
}

const selectMediaUsage = `SELECT COALESCE(SUM(size), 0), COALESCE(SUM(CASE WHEN hash = '' AND expires_ts > $2 THEN 1 ELSE 0 END), 0) FROM media WHERE user_id = $1 AND user_id <> ''`

// MediaUsage returns how many bytes a user keeps, and how many URIs made ahead wait for their content.
func MediaUsage(ctx context.Context, q Querier, user matrix.UserID, now matrix.Timestamp) (bytes, pending int64, err error) {
	if err := q.QueryRow(ctx, selectMediaUsage, string(user), int64(now)).Scan(&bytes, &pending); err != nil {
		return 0, 0, fmt.Errorf("media usage: %w", err)
	}
	return bytes, pending, nil
}

const deletePendingMedia = `DELETE FROM media WHERE expires_ts <> 0 AND expires_ts <= $1`

// DeleteExpiredMedia removes URIs made ahead whose content never came.
func DeleteExpiredMedia(ctx context.Context, tx *Tx, now matrix.Timestamp) error {
	if _, err := tx.Exec(ctx, deletePendingMedia, int64(now)); err != nil {
		return fmt.Errorf("delete expired media: %w", err)
	}
	return nil
}

const selectStaleMedia = `SELECT ` + mediaColumns + ` FROM media WHERE user_id = '' AND accessed_ts < $1 ORDER BY accessed_ts LIMIT $2`

// FindStaleMedia lists media of other servers that nobody asked for since a time, oldest first.
func FindStaleMedia(ctx context.Context, q Querier, before matrix.Timestamp, limit int) ([]Media, error) {
	rows, err := q.Query(ctx, selectStaleMedia, int64(before), limit)
	if err != nil {
		return nil, fmt.Errorf("find stale media: %w", err)
	}
	defer rows.Close()
	var found []Media
	for rows.Next() {
		m, err := scanMedia(rows.Scan)
		if err != nil {
			return nil, fmt.Errorf("find stale media: %w", err)
		}
		found = append(found, m)
	}
	if err := rows.Err(); err != nil {
		return nil, fmt.Errorf("find stale media: %w", err)
	}
	return found, nil
}

const deleteMedia = `DELETE FROM media WHERE server = $1 AND media_id = $2`
const countMediaByHash = `SELECT COUNT(*) FROM media WHERE hash = $1 AND hash <> ''`

// DeleteMedia removes an entry. orphan reports whether no other entry has the same content.
func DeleteMedia(ctx context.Context, tx *Tx, m Media) (orphan bool, err error) {
	if _, err := tx.Exec(ctx, deleteMedia, string(m.Server), m.ID); err != nil {
		return false, fmt.Errorf("delete media: %w", err)
	}
	var n int64
	if err := tx.QueryRow(ctx, countMediaByHash, m.Hash).Scan(&n); err != nil {
		return false, fmt.Errorf("delete media: %w", err)
	}
	return n == 0, nil
}
