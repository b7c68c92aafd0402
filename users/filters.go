package users

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"hanok/internal/recent"
	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/storage"
)

// Filters are the filters users have stored. spec: client-server-api#filtering
type Filters struct {
	*core
	cache *recent.Map[filterKey, json.RawMessage]
}

type filterKey struct {
	user matrix.UserID
	id   string
}

const (
	maxFilter       = 64 << 10 // bytes
	maxCachedFilter = 8 << 10
	filtersPerUser  = 500 // the oldest go
)

func newFilters(c *core) *Filters {
	return &Filters{core: c, cache: recent.NewMap[filterKey, json.RawMessage](2000)}
}

// Create stores a filter and returns its ID; the same filter has the same ID. M_BAD_JSON if it is malformed. spec: cs/defineFilter
func (f *Filters) Create(ctx context.Context, user matrix.UserID, filter json.RawMessage) (id string, err error) {
	canonical, err := object(filter, canonicaljson.Lenient, maxFilter, "The filter")
	if err != nil {
		return "", err
	}
	if err := checkFilter(canonical); err != nil {
		return "", err
	}
	sum := sha256.Sum256(canonical)
	id = base64.RawURLEncoding.EncodeToString(sum[:12])
	err = f.DB.Write(ctx, func(tx *storage.Tx) error {
		return storage.PutFilter(ctx, tx, user, id, canonical, f.now(), filtersPerUser)
	})
	if err != nil {
		return "", fmt.Errorf("create filter: %w", err)
	}
	return id, nil
}

// Get returns a filter: M_NOT_FOUND if there is none. Cached. spec: cs/getFilter
func (f *Filters) Get(ctx context.Context, user matrix.UserID, id string) (json.RawMessage, error) {
	key := filterKey{user, id}
	if filter, ok := f.cache.Get(key); ok {
		return filter, nil
	}
	var filter []byte
	err := checkName(id, "The filter ID")
	if err == nil {
		filter, err = storage.GetFilter(ctx, f.DB, user, id)
	}
	if _, bad := matrix.AsError(err); bad || errors.Is(err, storage.ErrNotFound) {
		return nil, matrix.NotFound("There is no such filter")
	}
	if err != nil {
		return nil, fmt.Errorf("get filter: %w", err)
	}
	if len(filter) <= maxCachedFilter {
		f.cache.Put(key, filter)
	}
	return filter, nil
}

// The shapes of a filter's parts, for checking only. spec: cs/defineFilter
type (
	filterShape struct {
		EventFields []string         `json:"event_fields"`
		EventFormat string           `json:"event_format"`
		Presence    eventFilterShape `json:"presence"`
		AccountData eventFilterShape `json:"account_data"`
		Room        struct {
			Rooms        []matrix.RoomID  `json:"rooms"`
			NotRooms     []matrix.RoomID  `json:"not_rooms"`
			IncludeLeave bool             `json:"include_leave"`
			Ephemeral    eventFilterShape `json:"ephemeral"`
			State        eventFilterShape `json:"state"`
			Timeline     eventFilterShape `json:"timeline"`
			AccountData  eventFilterShape `json:"account_data"`
		} `json:"room"`
	}
	eventFilterShape struct {
		Limit       *int64          `json:"limit"`
		Senders     []matrix.UserID `json:"senders"`
		NotSenders  []matrix.UserID `json:"not_senders"`
		Types       []string        `json:"types"`
		NotTypes    []string        `json:"not_types"`
		Rooms       []matrix.RoomID `json:"rooms"`
		NotRooms    []matrix.RoomID `json:"not_rooms"`
		ContainsURL *bool           `json:"contains_url"`
		LazyLoad    bool            `json:"lazy_load_members"`
		Redundant   bool            `json:"include_redundant_members"`
		Threads     bool            `json:"unread_thread_notifications"`
	}
)

// checkFilter refuses wrong types and IDs that are none; members it does not know pass.
func checkFilter(canonical []byte) error {
	var s filterShape
	if err := decode(canonical, &s, "The filter"); err != nil {
		return err
	}
	if s.EventFormat != "" && s.EventFormat != "client" && s.EventFormat != "federation" {
		return matrix.BadJSON("event_format must be \"client\" or \"federation\"")
	}
	events := []eventFilterShape{s.Presence, s.AccountData, s.Room.Ephemeral, s.Room.State, s.Room.Timeline, s.Room.AccountData}
	rooms := [][]matrix.RoomID{s.Room.Rooms, s.Room.NotRooms}
	for _, e := range events {
		rooms = append(rooms, e.Rooms, e.NotRooms)
		for _, list := range [][]matrix.UserID{e.Senders, e.NotSenders} {
			for _, id := range list {
				if !strings.HasPrefix(string(id), "@") {
					return matrix.BadJSON("A sender in the filter is not a user ID")
				}
			}
		}
		if e.Limit != nil && *e.Limit < 0 {
			return matrix.BadJSON("A limit in the filter is negative")
		}
	}
	for _, list := range rooms {
		for _, id := range list {
			if !strings.HasPrefix(string(id), "!") {
				return matrix.BadJSON("A room in the filter is not a room ID")
			}
		}
	}
	return nil
}
