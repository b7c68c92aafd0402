package storage

import (
	"context"
	"fmt"

	"hanok/matrix"
)

// PusherKey names a pusher.
type PusherKey struct {
	UserID  matrix.UserID
	AppID   string
	PushKey string
}

// Pusher is a user's pusher.
type Pusher struct {
	PusherKey
	User     NameNID // the number of its user
	DeviceID matrix.DeviceID
	JSON     []byte           // as clients see it
	Gateway  string           // scheme and host of its URL, "" if it has none
	SetAt    matrix.Timestamp // when it was set last
	PusherProgress
}

// PusherProgress is how far a pusher has come.
type PusherProgress struct {
	LastPosition Position         // of the last event that it was told of, or that was not worth telling
	Badge        int64            // the count of unread messages that it was told last, -1 if none
	FailingSince matrix.Timestamp // 0: not failing
	RetryAt      matrix.Timestamp // when to try again, 0: as soon as there is something
	Refused      bool             // the gateway answers, but with an error
}

// notePushers remembers that a user's pushers change.
func notePushers(tx *Tx, users ...matrix.UserID) error {
	for _, u := range users {
		if err := tx.noteNext(UserPushers(u)); err != nil {
			return err
		}
	}
	return nil
}

// UserPushers is the subject of changes of a user's pushers, or of whether they may be used. How far they have come is no change,
// but that one has to wait, or has not to any more, is.
func UserPushers(user matrix.UserID) Subject { return Subject{Topic: TopicPushers, User: string(user)} }

const putPusher = `INSERT INTO pushers (` + pusherColumns + `) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)
	ON CONFLICT (user_id, app_id, pushkey) DO UPDATE SET device_id = excluded.device_id, pusher = excluded.pusher,
		gateway = excluded.gateway, set_ts = excluded.set_ts, failing_since = 0, retry_ts = 0, refused = 0`

// PutPusher stores a pusher; one that exists keeps its place in the stream, and need not wait any more.
func PutPusher(ctx context.Context, tx *Tx, p Pusher) error {
	if err := notePushers(tx, p.UserID); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, putPusher, p.UserID, []byte(p.AppID), []byte(p.PushKey), p.User, p.DeviceID, p.JSON, p.Gateway, p.SetAt,
		p.LastPosition, p.Badge, p.FailingSince, p.RetryAt, p.Refused)
	return err
}

const (
	pusherColumns = `user_id, app_id, pushkey, user_nid, device_id, pusher, gateway, set_ts, last_position, badge, failing_since, retry_ts, refused`
	listPushers   = `SELECT ` + pusherColumns + ` FROM pushers WHERE user_id = $1 ORDER BY app_id, pushkey`
)

// ListPushers returns a user's pushers.
func ListPushers(ctx context.Context, q Querier, user matrix.UserID) ([]Pusher, error) {
	return collect(ctx, q, func(r *Rows) (p Pusher, err error) {
		var app, key []byte
		err = r.Scan(&p.UserID, &app, &key, &p.User, &p.DeviceID, &p.JSON, &p.Gateway, &p.SetAt,
			&p.LastPosition, &p.Badge, &p.FailingSince, &p.RetryAt, &p.Refused)
		p.AppID, p.PushKey = string(app), string(key)
		return p, err
	}, listPushers, user)
}

const getPusherProgress = `SELECT last_position, badge, failing_since, retry_ts, refused FROM pushers WHERE user_id = $1 AND app_id = $2 AND pushkey = $3`

// GetPusherProgress returns how far a pusher has come, ErrNotFound if there is no such pusher.
func GetPusherProgress(ctx context.Context, q Querier, key PusherKey) (p PusherProgress, err error) {
	err = q.QueryRow(ctx, getPusherProgress, key.UserID, []byte(key.AppID), []byte(key.PushKey)).
		Scan(&p.LastPosition, &p.Badge, &p.FailingSince, &p.RetryAt, &p.Refused)
	return p, err
}

const (
	deletePusher   = `DELETE FROM pushers WHERE user_id = $1 AND app_id = $2 AND pushkey = $3`
	ownersOfPusher = `SELECT user_id FROM pushers WHERE app_id = $1 AND pushkey = $2 AND user_id <> $3`
)

// DeletePusher removes a pusher.
func DeletePusher(ctx context.Context, tx *Tx, key PusherKey) error {
	if err := notePushers(tx, key.UserID); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, deletePusher, key.UserID, []byte(key.AppID), []byte(key.PushKey))
	return err
}

// DeletePushersOfOthers removes other users' pushers with the same key.
func DeletePushersOfOthers(ctx context.Context, tx *Tx, key PusherKey) error {
	others, err := collect(ctx, tx, scanUserID, ownersOfPusher, []byte(key.AppID), []byte(key.PushKey), key.UserID)
	if err != nil {
		return err
	}
	for _, other := range others {
		if err := DeletePusher(ctx, tx, PusherKey{other, key.AppID, key.PushKey}); err != nil {
			return err
		}
	}
	return nil
}

// A pusher that was deleted and set again meanwhile is further than what is stored of the old one.
const setPusherProgress = `UPDATE pushers SET last_position = CASE WHEN last_position > $4 THEN last_position ELSE $4 END,
	badge = $5, failing_since = $6, retry_ts = $7, refused = $8 WHERE user_id = $1 AND app_id = $2 AND pushkey = $3`

// PusherStep is how far one pusher has come.
type PusherStep struct {
	Key PusherKey
	PusherProgress
	Waits bool // whether it has to wait has changed
}

// SetPusherProgress stores how far pushers have come.
func SetPusherProgress(ctx context.Context, tx *Tx, steps []PusherStep) error {
	args := make([][]any, len(steps))
	for i, s := range steps {
		if s.Waits {
			if err := notePushers(tx, s.Key.UserID); err != nil {
				return err
			}
		}
		args[i] = []any{s.Key.UserID, []byte(s.Key.AppID), []byte(s.Key.PushKey), s.LastPosition, s.Badge, s.FailingSince, s.RetryAt, s.Refused}
	}
	if err := tx.ExecBatch(ctx, setPusherProgress, args); err != nil {
		return fmt.Errorf("progress of pushers: %w", err)
	}
	return nil
}

const pusherOwnersBehind = `SELECT DISTINCT p.user_id FROM pushers p
	WHERE p.user_id > $1 AND p.retry_ts = 0 AND EXISTS (SELECT 1 FROM notifications n
		WHERE n.user_nid = p.user_nid AND n.pos > p.last_position AND n.event_pos > p.last_position) ORDER BY p.user_id LIMIT $2`

// PusherOwnersBehind lists users after a user ID, in order, who have a pusher that has not been told of all their notifications and need not wait.
func PusherOwnersBehind(ctx context.Context, q Querier, after matrix.UserID, limit int) ([]matrix.UserID, error) {
	return collect(ctx, q, scanUserID, pusherOwnersBehind, after, limit)
}

const (
	duePushers   = `SELECT user_id, app_id, pushkey FROM pushers WHERE retry_ts > 0 AND retry_ts <= $1 ORDER BY retry_ts LIMIT $2`
	nextPusher   = `SELECT min(retry_ts) FROM pushers WHERE retry_ts > 0 AND retry_ts > $1`
	hurryPushers = `UPDATE pushers SET retry_ts = $2 WHERE gateway = $1 AND retry_ts > 0 AND retry_ts > $2 AND refused = 0`
	countWaiting = `SELECT count(*) FROM pushers WHERE retry_ts > 0`
)

// DuePushers lists pushers that have waited until now, up to a limit.
func DuePushers(ctx context.Context, q Querier, now matrix.Timestamp, limit int) ([]PusherKey, error) {
	return collect(ctx, q, func(r *Rows) (k PusherKey, err error) {
		var app, key []byte
		err = r.Scan(&k.UserID, &app, &key)
		k.AppID, k.PushKey = string(app), string(key)
		return k, err
	}, duePushers, now, limit)
}

// NextPusherDue is when the first pusher that waits beyond a moment is due; 0 if none is.
func NextPusherDue(ctx context.Context, q Querier, after matrix.Timestamp) (matrix.Timestamp, error) {
	var at *matrix.Timestamp
	if err := q.QueryRow(ctx, nextPusher, after).Scan(&at); err != nil || at == nil {
		return 0, err
	}
	return *at, nil
}

// HurryPushers makes those due which wait because a gateway did not answer.
func HurryPushers(ctx context.Context, tx *Tx, gateway string, now matrix.Timestamp) error {
	_, err := tx.Exec(ctx, hurryPushers, gateway, now)
	return err
}

const holdPusher = `UPDATE pushers SET retry_ts = $4, failing_since = CASE WHEN failing_since = 0 THEN $5 ELSE failing_since END, refused = 0
	WHERE user_id = $1 AND app_id = $2 AND pushkey = $3`

// HoldPushers makes pushers wait until a time because their gateway does not answer, which was found first at since. Until 0 ends the waiting.
func HoldPushers(ctx context.Context, tx *Tx, keys []PusherKey, since, until matrix.Timestamp) error {
	args := make([][]any, len(keys))
	for i, k := range keys {
		if err := notePushers(tx, k.UserID); err != nil {
			return err
		}
		args[i] = []any{k.UserID, []byte(k.AppID), []byte(k.PushKey), until, since}
	}
	if err := tx.ExecBatch(ctx, holdPusher, args); err != nil {
		return fmt.Errorf("let pushers wait: %w", err)
	}
	return nil
}

// CountWaitingPushers counts pushers that have to wait because they failed.
func CountWaitingPushers(ctx context.Context, q Querier) (n int, err error) {
	err = q.QueryRow(ctx, countWaiting).Scan(&n)
	return n, err
}

// GatewayUse is what is sent to one push gateway.
type GatewayUse struct {
	Gateway      string           // scheme and host
	Pushers      int              // that send there
	Waiting      int              // of those, which wait because they failed
	FailingSince matrix.Timestamp // of the one that has been failing for longest, 0 if none
	RetryAt      matrix.Timestamp // of the one that is tried next, 0 if none waits
}

const gatewayUses = `SELECT gateway, count(*), count(CASE WHEN retry_ts > 0 THEN 1 END),
	coalesce(min(CASE WHEN retry_ts > 0 THEN failing_since END), 0), coalesce(min(CASE WHEN retry_ts > 0 THEN retry_ts END), 0)
	FROM pushers GROUP BY gateway ORDER BY gateway`

// FindGatewayUses lists the gateways that pushers send to.
func FindGatewayUses(ctx context.Context, q Querier) ([]GatewayUse, error) {
	return collect(ctx, q, func(r *Rows) (u GatewayUse, err error) {
		return u, r.Scan(&u.Gateway, &u.Pushers, &u.Waiting, &u.FailingSince, &u.RetryAt)
	}, gatewayUses)
}
