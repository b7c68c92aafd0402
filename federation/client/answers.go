package client

import (
	stdjson "encoding/json"
	"slices"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"

	"hanok/internal/strictjson"
	"hanok/matrix"
	"hanok/rooms"
	"hanok/users"
)

// Answers have a limit in bytes. What is read of them here has one in memory, too, which is not many times as much, however small
// the values are that they consist of.

const (
	minEvent      = 64        // bytes; with its signature alone an event has more
	maxEvent      = 256 << 10 // bytes; an event has a quarter of it, whatever it was escaped to
	maxEvents     = 1 << 20   // in one list
	maxIDs        = 1 << 20
	maxNames      = 1 << 17 // servers
	maxRooms      = 1000    // of a page of a directory, of a space
	minKeys       = 32      // bytes of the keys of a device
	maxDevices    = 5000    // of one user
	maxKeysClaims = 10      // keys of one device, of which one is wanted
)

// eventList is a list of events. What is too small or too big to be one is left out.
type eventList [][]byte

func (l *eventList) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	return strictjson.EachElement(dec, maxEvents*64, func(v jsontext.Value) error {
		if len(v) < minEvent || len(v) > maxEvent {
			return nil
		}
		if len(*l) == maxEvents {
			return strictjson.ErrTooMany
		}
		*l = append(*l, slices.Clone(v))
		return nil
	})
}

// pair is what an answer stands in by the first version of an endpoint: [200, {}].
type pair [][]byte

func (p *pair) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	return strictjson.EachElement(dec, 2, func(v jsontext.Value) error {
		*p = append(*p, slices.Clone(v))
		return nil
	})
}

// idList is a list of event IDs. What cannot be one is left out.
type idList []matrix.EventID

func (l *idList) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	return parseEach(dec, maxIDs, (*[]matrix.EventID)(l), matrix.ParseEventID)
}

// nameList is a list of servers. What cannot be one is left out.
type nameList []matrix.ServerName

func (l *nameList) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	return parseEach(dec, maxNames, (*[]matrix.ServerName)(l), matrix.ParseServerName)
}

// parseEach reads a list of strings, of which those count that can be parsed.
func parseEach[T any](dec *jsontext.Decoder, most int, into *[]T, parse func(string) (T, error)) error {
	return strictjson.EachElement(dec, most, func(v jsontext.Value) error {
		var s string
		if err := json.Unmarshal(v, &s); err != nil {
			return err
		}
		if x, err := parse(s); err == nil {
			*into = append(*into, x)
		}
		return nil
	})
}

// roomList is a list of rooms of a directory or space; those beyond the limit are left out.
type roomList[T rooms.RoomSummary | rooms.HierarchyRoom] []T

func (l *roomList[T]) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	return strictjson.EachElement(dec, maxEvents*64, func(v jsontext.Value) error {
		if len(*l) == maxRooms {
			return nil
		}
		var room T
		if err := json.Unmarshal(v, &room); err != nil {
			return err
		}
		*l = append(*l, room)
		return nil
	})
}

// deviceList is a list of one user's devices.
type deviceList []users.ListedDevice

func (l *deviceList) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	return strictjson.EachElement(dec, maxDevices, func(v jsontext.Value) error {
		var device users.ListedDevice
		if err := json.Unmarshal(v, &device); err != nil {
			return err
		}
		*l = append(*l, device)
		return nil
	})
}

// wantedKeys are device keys by user, of those users only who were asked for.
type wantedKeys[W any] struct {
	wanted map[matrix.UserID]W
	keys   map[matrix.UserID]map[matrix.DeviceID]stdjson.RawMessage
}

func (w *wantedKeys[W]) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	w.keys = map[matrix.UserID]map[matrix.DeviceID]stdjson.RawMessage{}
	return strictjson.EachMember(dec, func(name string) error {
		user := matrix.UserID(name)
		if _, ok := w.wanted[user]; !ok {
			return nil
		}
		devices := map[matrix.DeviceID]stdjson.RawMessage{}
		w.keys[user] = devices
		return strictjson.EachMember(dec, func(name string) error {
			v, err := dec.ReadValue()
			if err == nil && len(v) >= minKeys && len(devices) < maxDevices {
				devices[matrix.DeviceID(name)] = stdjson.RawMessage(v.Clone())
			}
			return err
		})
	})
}

// wantedKey is a key of each user who was asked for.
type wantedKey[W any] struct {
	wanted map[matrix.UserID]W
	keys   map[matrix.UserID]stdjson.RawMessage
}

func (w *wantedKey[W]) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	w.keys = map[matrix.UserID]stdjson.RawMessage{}
	return strictjson.EachMember(dec, func(name string) error {
		user := matrix.UserID(name)
		if _, ok := w.wanted[user]; !ok {
			return nil
		}
		v, err := dec.ReadValue()
		if err == nil {
			w.keys[user] = stdjson.RawMessage(v.Clone())
		}
		return err
	})
}

// claimed are one-time keys of those devices only for which one was asked.
type claimed struct {
	wanted users.Claims
	keys   users.ClaimedKeys
}

func (c *claimed) UnmarshalJSONFrom(dec *jsontext.Decoder) error {
	c.keys = users.ClaimedKeys{}
	return strictjson.EachMember(dec, func(name string) error {
		user := matrix.UserID(name)
		if _, ok := c.wanted[user]; !ok {
			return nil
		}
		c.keys[user] = map[matrix.DeviceID]map[matrix.KeyID]stdjson.RawMessage{}
		return strictjson.EachMember(dec, func(name string) error {
			device := matrix.DeviceID(name)
			if _, ok := c.wanted[user][device]; !ok {
				return nil
			}
			keys := map[matrix.KeyID]stdjson.RawMessage{}
			c.keys[user][device] = keys
			return strictjson.EachMember(dec, func(name string) error {
				v, err := dec.ReadValue()
				if err == nil && len(keys) < maxKeysClaims {
					keys[matrix.KeyID(name)] = stdjson.RawMessage(v.Clone())
				}
				return err
			})
		})
	})
}
