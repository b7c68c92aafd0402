package storage

import (
	"context"
	"encoding/json"
	"fmt"

	"hanok/matrix"
)

// AppserviceTransaction is the one transaction under way to an application service: what it holds does not change until it is answered for.
type AppserviceTransaction struct {
	Service   string
	ID        int64
	CreatedAt matrix.Timestamp
	Events    []matrix.EventID
	Ephemeral []byte // a JSON array; nil: none
}

const getAppserviceTransaction = `SELECT txn_id, created_ts, events, ephemeral FROM appservice_transactions WHERE service = $1`

// GetAppserviceTransaction returns the transaction under way: ErrNotFound.
func GetAppserviceTransaction(ctx context.Context, q Querier, service string) (*AppserviceTransaction, error) {
	t := AppserviceTransaction{Service: service}
	var events []byte
	if err := q.QueryRow(ctx, getAppserviceTransaction, service).Scan(&t.ID, &t.CreatedAt, &events, &t.Ephemeral); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(events, &t.Events); err != nil {
		return nil, fmt.Errorf("events of a transaction: %w", err)
	}
	return &t, nil
}

const putAppserviceTransaction = `INSERT INTO appservice_transactions (service, txn_id, created_ts, events, ephemeral) VALUES ($1, $2, $3, $4, $5)
	ON CONFLICT (service) DO UPDATE SET txn_id = excluded.txn_id, created_ts = excluded.created_ts, events = excluded.events, ephemeral = excluded.ephemeral`

// PutAppserviceTransaction stores what is sent next, in the place of what was sent before.
func PutAppserviceTransaction(ctx context.Context, tx *Tx, t *AppserviceTransaction) error {
	events, err := json.Marshal(t.Events)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, putAppserviceTransaction, t.Service, t.ID, t.CreatedAt, events, t.Ephemeral)
	return err
}

// DeleteAppserviceTransaction ends the transaction under way.
func DeleteAppserviceTransaction(ctx context.Context, tx *Tx, service string) error {
	_, err := tx.Exec(ctx, `DELETE FROM appservice_transactions WHERE service = $1`, service)
	return err
}

// SetPublishedIn puts a room into the directory of a network of an application service, or takes it out.
func SetPublishedIn(ctx context.Context, tx *Tx, network string, room RoomNID, published bool) error {
	query := `DELETE FROM network_rooms WHERE network = $1 AND room_nid = $2`
	if published {
		query = `INSERT INTO network_rooms (network, room_nid) VALUES ($1, $2) ON CONFLICT (network, room_nid) DO NOTHING`
	}
	_, err := tx.Exec(ctx, query, []byte(network), int64(room))
	return err
}

// NetworksOfRoom lists the networks of application services in whose directories a room is.
func NetworksOfRoom(ctx context.Context, q Querier, room RoomNID) ([]string, error) {
	return collect(ctx, q, func(r *Rows) (string, error) {
		var network []byte
		err := r.Scan(&network)
		return string(network), err
	}, `SELECT network FROM network_rooms WHERE room_nid = $1 ORDER BY network`, int64(room))
}

const publishedAnywhere = `SELECT nid FROM rooms WHERE published = 1 UNION SELECT room_nid FROM network_rooms ORDER BY 1`

// PublishedRoomsAnywhere lists the directory together with those of all networks.
func PublishedRoomsAnywhere(ctx context.Context, q Querier) ([]RoomNID, error) {
	return collectNumbers[RoomNID](q.Query(ctx, publishedAnywhere))
}

// ApartMembership is the newest membership that a local user got from outside a room in which this server did not take part.
type ApartMembership struct {
	Event    matrix.EventID
	Position Position
}

// PutApartMembership notes such a membership at the next position.
func PutApartMembership(ctx context.Context, tx *Tx, room RoomNID, user NameNID, event matrix.EventID) error {
	pos, err := tx.NextPosition()
	if err != nil {
		return err
	}
	tx.note(pos, Subject{Topic: TopicApart})
	_, err = tx.Exec(ctx, `INSERT INTO apart_memberships (room_nid, user_nid, event_id, pos) VALUES ($1, $2, $3, $4)
		ON CONFLICT (room_nid, user_nid) DO UPDATE SET event_id = excluded.event_id, pos = excluded.pos`, int64(room), int64(user), string(event), int64(pos))
	return err
}

// ApartMemberships returns the first of them in (since, until].
func ApartMemberships(ctx context.Context, q Querier, since, until Position, limit int) ([]ApartMembership, error) {
	return collect(ctx, q, func(r *Rows) (m ApartMembership, err error) { return m, r.Scan(&m.Event, &m.Position) },
		`SELECT event_id, pos FROM apart_memberships WHERE pos > $1 AND pos <= $2 ORDER BY pos LIMIT $3`, int64(since), int64(until), int64(limit))
}
