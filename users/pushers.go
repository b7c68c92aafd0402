package users

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"unicode/utf8"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/glob"
	"hanok/storage"
)

// Pushers are where a user's notifications are sent. spec: client-server-api#push-notifications
type Pushers struct {
	*core
	known *storage.Memo[matrix.UserID, []Pusher]
}

// PushGateways say where pushers may send to.
type PushGateways struct {
	Disabled bool     // nowhere
	Insecure bool     // also over plain HTTP
	Hosts    []string // globs of host names, or host:port; empty: any
}

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

	User                   storage.NameNID  `json:"-"` // the number of its user
	Gateway                string           `json:"-"` // scheme and host of its URL
	SetAt                  matrix.Timestamp `json:"-"`
	storage.PusherProgress `json:"-"`
}

// Key names the pusher.
func (p *Pusher) Key() storage.PusherKey {
	return storage.PusherKey{UserID: p.UserID, AppID: p.AppID, PushKey: p.PushKey}
}

// KindHTTP is the kind of pushers that send to a push gateway.
const KindHTTP = "http"

// Limits of pushers. spec: cs/postPusher
const (
	maxPushKey    = 512
	maxAppID      = 64
	maxPusherData = 4 << 10 // more than fits into a notification on its way to a phone
	maxPushers    = 100     // per user
)

// maxKnownPushers is of how many users it is remembered which pushers they have.
const maxKnownPushers = 20_000

func newPushers(c *core) *Pushers {
	return &Pushers{core: c, known: storage.NewMemo[matrix.UserID, []Pusher](c.DB, maxKnownPushers)}
}

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
		x := &pushers[i]
		x.UserID, x.DeviceID, x.User, x.Gateway, x.SetAt, x.PusherProgress = row.UserID, row.DeviceID, row.User, row.Gateway, row.SetAt, row.PusherProgress
	}
	return pushers, nil
}

// Usable returns the pushers that a user's notifications are to be sent to: those of a locked account are not. How far they
// have come may be out of date, but for whether they have to wait. The list is shared: do not change it.
func (p *Pushers) Usable(ctx context.Context, user matrix.UserID) ([]Pusher, error) {
	return p.known.Get(user, storage.UserPushers(user), func() ([]Pusher, error) {
		list, err := p.List(ctx, p.DB, user)
		if err != nil || len(list) == 0 {
			return nil, err
		}
		account, err := storage.GetAccount(ctx, p.DB, user)
		if err != nil || account.Locked || account.Deactivated {
			return nil, err
		}
		return slices.DeleteFunc(list, func(x Pusher) bool {
			address, _ := canonicaljson.GetString(x.Data, "url")
			_, err := p.PushGateways.check(address) // what was allowed once may not be any more
			return x.Kind != KindHTTP || err != nil || p.PushGateways.Disabled
		}), nil
	})
}

// gatewayPath is where the URL of every gateway ends. spec: cs/postPusher
const gatewayPath = "/_matrix/push/v1/notify"

// check returns scheme and host of a gateway's URL, or what is wrong with it.
func (g *PushGateways) check(raw string) (gateway string, err error) {
	u, err := url.Parse(raw)
	switch {
	case err != nil || u.Hostname() == "" || u.Opaque != "" || !utf8.ValidString(u.Host):
		return "", matrix.InvalidParam("data.url is not a URL")
	case u.Scheme != "https" && (u.Scheme != "http" || !g.Insecure):
		return "", matrix.InvalidParam("data.url must be an https URL")
	case u.EscapedPath() != gatewayPath:
		return "", matrix.InvalidParam("the path of data.url must be %s", gatewayPath)
	case len(g.Hosts) > 0 && !slices.ContainsFunc(g.Hosts, func(pattern string) bool {
		host := glob.Compile(pattern, true)
		return host.Match(u.Hostname()) || host.Match(u.Host)
	}):
		return "", matrix.InvalidParam("this server sends push notifications to its own choice of gateways, and %s is not one of them", u.Host)
	}
	return u.Scheme + "://" + u.Host, nil
}

// Set adds or replaces a pusher; unless keepOthers, those of other users with the same app_id and pushkey go. It
// is told of events from now on. spec: cs/postPusher
func (p *Pushers) Set(ctx context.Context, pusher Pusher, keepOthers bool) error {
	switch {
	case pusher.PushKey == "" || pusher.AppID == "" || pusher.Kind == "":
		return matrix.MissingParam("pushkey, app_id and kind are required")
	case len(pusher.PushKey) > maxPushKey:
		return matrix.InvalidParam("pushkey is longer than %d bytes", maxPushKey)
	case utf8.RuneCountInString(pusher.AppID) > maxAppID:
		return matrix.InvalidParam("app_id is longer than %d characters", maxAppID)
	case pusher.Kind == "email":
		return matrix.InvalidParam("this server sends no e-mail")
	case pusher.Kind != KindHTTP:
		return matrix.InvalidParam("kind must be \"http\" or \"email\"")
	case p.PushGateways.Disabled:
		return matrix.Forbidden("push notifications are turned off on this server")
	}
	if len(pusher.Data) == 0 {
		return matrix.MissingParam("data is required")
	}
	data, err := object(pusher.Data, canonicaljson.Lenient, maxPusherData, "data")
	if err != nil {
		return err
	}
	address, ok := canonicaljson.GetString(data, "url")
	if !ok {
		return matrix.MissingParam("data needs a url")
	}
	if pusher.Gateway, err = p.PushGateways.check(address); err != nil {
		return err
	}
	pusher.Data = data
	body := encode(pusher)
	if len(body) > 2*maxPusherData {
		return matrix.TooLarge("The pusher is too large")
	}
	user, err := p.DB.Intern(ctx, string(pusher.UserID))
	if err != nil {
		return fmt.Errorf("set pusher: %w", err)
	}
	err = p.DB.Write(ctx, func(tx *storage.Tx) error {
		existing, err := storage.ListPushers(ctx, tx, pusher.UserID)
		if err != nil {
			return err
		}
		known := slices.ContainsFunc(existing, func(x storage.Pusher) bool { return x.PusherKey == pusher.Key() })
		if len(existing) >= maxPushers && !known {
			return matrix.TooLarge("There are too many pushers")
		}
		if !keepOthers {
			if err := storage.DeletePushersOfOthers(ctx, tx, pusher.Key()); err != nil {
				return err
			}
		}
		return storage.PutPusher(ctx, tx, storage.Pusher{
			PusherKey: pusher.Key(), User: user[0], DeviceID: pusher.DeviceID, JSON: body, Gateway: pusher.Gateway, SetAt: p.now(),
			PusherProgress: storage.PusherProgress{LastPosition: p.DB.Current(), Badge: -1},
		})
	})
	if err != nil {
		return fmt.Errorf("set pusher: %w", err)
	}
	return nil
}

// Delete removes a pusher; none is no error.
func (p *Pushers) Delete(ctx context.Context, key storage.PusherKey) error {
	err := p.DB.Write(ctx, func(tx *storage.Tx) error { return storage.DeletePusher(ctx, tx, key) })
	if err != nil {
		return fmt.Errorf("delete pusher: %w", err)
	}
	return nil
}
