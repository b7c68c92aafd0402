package users

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/storage"
)

// AccountData is what clients keep for a user, globally or per room. Push rules and the fully-read
// marker are read here too (m.push_rules, m.fully_read), but set through PushRules and Receipts.
// spec: client-server-api#client-config
type AccountData struct{ *core }

// AccountDatum is one account data event.
type AccountDatum struct {
	Room     matrix.RoomID // "" if global
	Type     string
	Content  json.RawMessage // {} if deleted
	Position storage.Position
}

// The types that have a meaning here.
const (
	typePushRules = "m.push_rules"
	typeFullyRead = "m.fully_read"
	typeTag       = "m.tag"
)

const (
	maxAccountData      = 512 << 10 // bytes of one content
	maxAccountDataTypes = 5000      // of one user, in one room or globally
)

var errNoAccountData = matrix.NotFound("There is no such account data")

func accountData(rows []storage.AccountDatum) []AccountDatum {
	all := make([]AccountDatum, len(rows))
	for i, d := range rows {
		all[i] = datum(d)
	}
	return all
}

func datum(d storage.AccountDatum) AccountDatum {
	if d.Content == nil {
		d.Content = []byte("{}")
	}
	return AccountDatum{d.Room, d.Type, d.Content, d.Position}
}

// checkRoom refuses what is neither a room ID nor "", which stands for all rooms.
func checkRoom(room matrix.RoomID) error {
	if room == "" {
		return nil
	}
	_, err := matrix.ParseRoomID(string(room))
	return err
}

// checkSettable refuses the types that the server manages. spec: cs/setAccountData
func checkSettable(room matrix.RoomID, dataType string) error {
	if err := checkName(dataType, "The type of account data"); err != nil {
		return err
	}
	if err := checkRoom(room); err != nil {
		return err
	}
	if dataType == typeFullyRead || dataType == typePushRules {
		return matrix.Errorf(http.StatusMethodNotAllowed, "M_BAD_JSON", "%s cannot be set as account data", dataType)
	}
	return nil
}

// put stores account data at a new position and wakes the user's devices; nil deletes it.
func (c *core) put(ctx context.Context, tx *storage.Tx, user matrix.UserID, room matrix.RoomID, dataType string, content []byte) error {
	pos, err := tx.NextPosition()
	if err != nil {
		return err
	}
	c.wake(tx, user)
	return storage.PutAccountData(ctx, tx, user, storage.AccountDatum{Room: room, Type: dataType, Content: content, Position: pos})
}

// Set stores account data; room is "" for global. Types that the server manages are refused (405 M_BAD_JSON). An empty
// object deletes, as clients have always done it. spec: cs/setAccountData, MSC3391
func (a *AccountData) Set(ctx context.Context, user matrix.UserID, room matrix.RoomID, dataType string, content json.RawMessage) error {
	if err := checkSettable(room, dataType); err != nil {
		return err
	}
	canonical, err := object(content, canonicaljson.Lenient, maxAccountData, "Account data")
	if err != nil {
		return err
	}
	err = a.DB.Write(ctx, func(tx *storage.Tx) error {
		if _, err := storage.GetAccountData(ctx, tx, user, room, dataType); errors.Is(err, storage.ErrNotFound) {
			if err := placeForType(ctx, tx, user, room); err != nil {
				return err
			}
		} else if err != nil {
			return err
		}
		if string(canonical) == "{}" {
			// Also if there was nothing: the client waits until it sees what it set.
			canonical = nil
		}
		return a.put(ctx, tx, user, room, dataType, canonical)
	})
	if err != nil {
		return fmt.Errorf("set account data: %w", err)
	}
	return nil
}

// placeForType sees to it that one more type fits. The place of the type that was deleted longest ago may be taken.
func placeForType(ctx context.Context, tx *storage.Tx, user matrix.UserID, room matrix.RoomID) error {
	n, err := storage.CountAccountData(ctx, tx, user, room)
	if err != nil || n < maxAccountDataTypes {
		return err
	}
	freed, err := storage.DropDeletedAccountData(ctx, tx, user, room)
	if err == nil && !freed {
		return matrix.TooLarge("There are too many types of account data")
	}
	return err
}

// Get returns the content: M_NOT_FOUND if there is none. spec: cs/getAccountData
func (a *AccountData) Get(ctx context.Context, user matrix.UserID, room matrix.RoomID, dataType string) (json.RawMessage, error) {
	if checkName(dataType, "type") != nil || checkRoom(room) != nil {
		return nil, errNoAccountData
	}
	if room == "" && dataType == typePushRules {
		rules, err := readRules(ctx, a.DB, user)
		if err != nil {
			return nil, err
		}
		return pushRulesContent(user, rules), nil
	}
	d, err := storage.GetAccountData(ctx, a.DB, user, room, dataType)
	if errors.Is(err, storage.ErrNotFound) || err == nil && d.Content == nil {
		return nil, errNoAccountData
	}
	if err != nil {
		return nil, fmt.Errorf("get account data: %w", err)
	}
	return d.Content, nil
}

// Delete removes account data; followers see it with content {}. None is no error. spec: MSC3391
func (a *AccountData) Delete(ctx context.Context, user matrix.UserID, room matrix.RoomID, dataType string) error {
	if err := checkSettable(room, dataType); err != nil {
		return err
	}
	err := a.DB.Write(ctx, func(tx *storage.Tx) error {
		d, err := storage.GetAccountData(ctx, tx, user, room, dataType)
		if errors.Is(err, storage.ErrNotFound) || err == nil && d.Content == nil {
			return nil
		}
		if err != nil {
			return err
		}
		return a.put(ctx, tx, user, room, dataType, nil)
	})
	if err != nil {
		return fmt.Errorf("delete account data: %w", err)
	}
	return nil
}

// Global returns what is set for no room in particular, m.push_rules always included.
func (a *AccountData) Global(ctx context.Context, q storage.Querier, user matrix.UserID) ([]AccountDatum, error) {
	data, err := a.InRoom(ctx, q, user, "")
	if err != nil {
		return nil, err
	}
	rules, err := readRules(ctx, q, user)
	if err != nil {
		return nil, err
	}
	return append([]AccountDatum{{Type: typePushRules, Content: pushRulesContent(user, rules), Position: rules.position}}, data...), nil
}

// InRoom returns what is set for one room, or for none if it is "".
func (a *AccountData) InRoom(ctx context.Context, q storage.Querier, user matrix.UserID, room matrix.RoomID) ([]AccountDatum, error) {
	rows, err := storage.RoomAccountData(ctx, q, user, room)
	if err != nil {
		return nil, fmt.Errorf("room account data: %w", err)
	}
	return accountData(rows), nil
}

// OfType returns what is set of one type, of all rooms and globally.
func (a *AccountData) OfType(ctx context.Context, q storage.Querier, user matrix.UserID, dataType string) ([]AccountDatum, error) {
	rows, err := storage.TypedAccountData(ctx, q, user, dataType)
	if err != nil {
		return nil, fmt.Errorf("account data of a type: %w", err)
	}
	return accountData(rows), nil
}

// Changed returns what was set or deleted in (from, to].
func (a *AccountData) Changed(ctx context.Context, q storage.Querier, user matrix.UserID, from, to storage.Position) ([]AccountDatum, error) {
	if a.DB.UnchangedIn(storage.Subject{Topic: storage.TopicAccountData, User: string(user)}, from, to) {
		return nil, nil
	}
	rows, err := storage.ChangedAccountData(ctx, q, user, from, to)
	if err != nil {
		return nil, fmt.Errorf("changed account data: %w", err)
	}
	var all []AccountDatum
	for _, d := range rows {
		all = append(all, datum(d))
	}
	rules, err := readRules(ctx, q, user)
	if err != nil {
		return nil, err
	}
	if rules.position > from && rules.position <= to {
		all = append(all, AccountDatum{Type: typePushRules, Content: pushRulesContent(user, rules), Position: rules.position})
	}
	return all, nil
}
