package users

import (
	"context"
	"encoding/json"
	"fmt"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/storage"
)

// Pushers are where a user's notifications are sent. spec: client-server-api#push-notifications
type Pushers struct{ *core }

// Pusher is one of them. spec: cs/getPushers
type Pusher struct {
	UserID            matrix.UserID   `json:"-"`
	DeviceID          matrix.DeviceID `json:"-"` // of the session that set it
	PushKey           string          `json:"pushkey"`
	Kind              string          `json:"kind"`
	AppID             string          `json:"app_id"`
	AppDisplayName    string          `json:"app_display_name"`
	DeviceDisplayName string          `json:"device_display_name"`
	ProfileTag        string          `json:"profile_tag,omitempty"`
	Lang              string          `json:"lang"`
	Data              json.RawMessage `json:"data"`

	// State of delivery, kept for the push worker.
	LastPosition storage.Position `json:"-"`
	FailingSince matrix.Timestamp `json:"-"`
}

// Limits of pushers. spec: cs/postPusher
const (
	maxPushKey    = 512
	maxAppID      = 64
	maxPusherData = 16 << 10
	maxPushers    = 200 // per user
)

// List returns a user's pushers.
func (p *Pushers) List(ctx context.Context, q storage.Querier, user matrix.UserID) ([]Pusher, error) {
	rows, err := storage.ListPushers(ctx, q, user)
	if err != nil {
		return nil, fmt.Errorf("list pushers: %w", err)
	}
	pushers := make([]Pusher, len(rows))
	for i, row := range rows {
		if err := json.Unmarshal(row.JSON, &pushers[i]); err != nil {
			return nil, fmt.Errorf("stored pusher: %w", err)
		}
		pushers[i].UserID, pushers[i].DeviceID = row.UserID, row.DeviceID
		pushers[i].LastPosition, pushers[i].FailingSince = row.LastPosition, row.FailingSince
	}
	return pushers, nil
}

// Set adds or replaces a pusher; unless keepOthers, those of other users with the same app_id and pushkey go. It
// is told of events from now on. spec: cs/postPusher
func (p *Pushers) Set(ctx context.Context, pusher Pusher, keepOthers bool) error {
	switch {
	case pusher.PushKey == "" || pusher.AppID == "" || pusher.Kind == "":
		return matrix.MissingParam("pushkey, app_id and kind are required")
	case len(pusher.PushKey) > maxPushKey:
		return matrix.InvalidParam("pushkey is longer than %d bytes", maxPushKey)
	case len(pusher.AppID) > maxAppID:
		return matrix.InvalidParam("app_id is longer than %d bytes", maxAppID)
	case pusher.Kind != "http" && pusher.Kind != "email":
		return matrix.InvalidParam("kind must be \"http\" or \"email\"")
	}
	if len(pusher.Data) == 0 {
		return matrix.MissingParam("data is required")
	}
	data, err := object(pusher.Data, canonicaljson.Lenient, maxPusherData, "data")
	if err != nil {
		return err
	}
	if _, ok := canonicaljson.GetString(data, "url"); !ok && pusher.Kind == "http" {
		return matrix.MissingParam("data needs a url")
	}
	pusher.Data = data
	body := encode(pusher)
	if len(body) > 2*maxPusherData {
		return matrix.TooLarge("The pusher is too large")
	}
	err = p.DB.Write(ctx, func(tx *storage.Tx) error {
		existing, err := storage.ListPushers(ctx, tx, pusher.UserID)
		if err != nil {
			return err
		}
		if len(existing) >= maxPushers {
			return matrix.TooLarge("There are too many pushers")
		}
		if !keepOthers {
			if err := storage.DeletePushersOfOthers(ctx, tx, pusher.AppID, pusher.PushKey, pusher.UserID); err != nil {
				return err
			}
		}
		return storage.PutPusher(ctx, tx, storage.Pusher{
			UserID: pusher.UserID, AppID: pusher.AppID, PushKey: pusher.PushKey, DeviceID: pusher.DeviceID,
			JSON: body, LastPosition: p.DB.Current(),
		})
	})
	if err != nil {
		return fmt.Errorf("set pusher: %w", err)
	}
	return nil
}

// Delete removes a pusher; none is no error.
func (p *Pushers) Delete(ctx context.Context, user matrix.UserID, appID, pushKey string) error {
	err := p.DB.Write(ctx, func(tx *storage.Tx) error { return storage.DeletePusher(ctx, tx, user, appID, pushKey) })
	if err != nil {
		return fmt.Errorf("delete pusher: %w", err)
	}
	return nil
}

// SetProgress stores the state of delivery.
func (p *Pushers) SetProgress(ctx context.Context, tx *storage.Tx, user matrix.UserID, appID, pushKey string, last storage.Position, failingSince matrix.Timestamp) error {
	return storage.SetPusherProgress(ctx, tx, user, appID, pushKey, last, failingSince)
}
