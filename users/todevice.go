package users

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/storage"
)

// ToDevice queues messages to devices. spec: client-server-api#send-to-device-messaging
type ToDevice struct {
	*core
	// oldest are the positions of the first messages, noToDevice where there are none: what a sync acknowledges is mostly nothing.
	oldest   *storage.Memo[deviceKey, storage.Position]
	received atomic.Int64 // messages of other servers
}

// Messages are contents by user and device; the device "*" means all devices of the user.
type Messages map[matrix.UserID]map[matrix.DeviceID]json.RawMessage

// ToDeviceMessage is a queued message.
type ToDeviceMessage struct {
	Position storage.Position
	Event    json.RawMessage // {"content":..., "sender":..., "type":...}
}

const (
	eduDirectToDevice = "m.direct_to_device"
	// toDeviceMemory is how long repeated transactions are recognised.
	toDeviceMemory = 30 * 24 * time.Hour
	// maxToDeviceNotes is of how many messages of one server it is remembered that they came. Those of the last transaction are repeated, not older ones.
	maxToDeviceNotes = 50_000
	trimNotesEvery   = 8192 // messages
	// maxToDeviceQueue and maxToDeviceBytes are how many messages wait for one device, and how big they are; the oldest go.
	maxToDeviceQueue = 20_000
	maxToDeviceBytes = 64 << 20
	trimEvery        = 64       // positions
	maxToDevice      = 64 << 10 // bytes of one content
	maxToDeviceCount = 20_000   // messages in one request
	allDevices       = matrix.DeviceID("*")
)

// directToDevice is the content of an m.direct_to_device EDU.
type directToDevice struct {
	Sender    matrix.UserID `json:"sender"`
	Type      string        `json:"type"`
	MessageID string        `json:"message_id"`
	Messages  Messages      `json:"messages"`
}

// check puts all contents into canonical form and applies the policy.
func (t *ToDevice) check(eventType string, messages Messages) (Messages, error) {
	if err := checkName(eventType, "The event type"); err != nil {
		return nil, err
	}
	n := 0
	out := Messages{}
	for user, devices := range messages {
		if _, err := matrix.ParseUserID(string(user)); err != nil {
			return nil, err
		}
		n += len(devices)
		if n > maxToDeviceCount {
			return nil, matrix.TooLarge("Too many messages at once")
		}
		out[user] = map[matrix.DeviceID]json.RawMessage{}
		for device, content := range devices {
			if _, err := matrix.ParseDeviceID(string(device)); err != nil {
				return nil, err
			}
			canonical, err := object(content, canonicaljson.Lenient, maxToDevice, "The content of a message")
			if err != nil {
				return nil, err
			}
			if err := t.Policy.ToDevice(eventType, canonical); err != nil {
				return nil, err
			}
			out[user][device] = canonical
		}
	}
	return out, nil
}

// Send queues messages of one type for local devices and sends the rest to their servers. A repeated
// txnID of the same device does nothing. spec: cs/sendToDevice
func (t *ToDevice) Send(ctx context.Context, sender matrix.UserID, device matrix.DeviceID, txnID, eventType string, messages Messages) error {
	messages, err := t.check(eventType, messages)
	if err != nil {
		return err
	}
	local := Messages{}
	remote := map[matrix.ServerName]Messages{}
	for user, devices := range messages {
		if t.local(user) {
			local[user] = devices
			continue
		}
		if remote[user.Server()] == nil {
			remote[user.Server()] = Messages{}
		}
		remote[user.Server()][user] = devices
	}
	err = t.DB.Write(ctx, func(tx *storage.Tx) error {
		fresh, err := storage.NoteToDeviceSent(ctx, tx, sender, device, txnID, t.now())
		if err != nil || !fresh {
			return err
		}
		for server, messages := range remote {
			// 26 characters; at most 32 are allowed.
			edu := encode(directToDevice{Sender: sender, Type: eventType, MessageID: rand.Text(), Messages: messages})
			if err := t.Outbox.QueueEDU(ctx, tx, []matrix.ServerName{server}, eduDirectToDevice, edu); err != nil {
				return fmt.Errorf("queue to-device: %w", err)
			}
		}
		return t.enqueue(ctx, tx, sender, eventType, local)
	})
	if err != nil {
		return fmt.Errorf("send to device: %w", err)
	}
	return nil
}

// Receive takes an m.direct_to_device EDU; a message_id seen before is dropped, and so is
// what is malformed or refused by the policy. spec: server-server-api#send-to-device-messaging
func (t *ToDevice) Receive(ctx context.Context, origin matrix.ServerName, content []byte) error {
	var m directToDevice
	if decode(content, &m, "direct to device") != nil || !validRemoteUser(m.Sender, origin) {
		return nil
	}
	if utf8.RuneCountInString(m.MessageID) > 32 || m.MessageID == "" {
		return nil
	}
	for user := range m.Messages {
		if !t.local(user) {
			delete(m.Messages, user)
		}
	}
	messages, err := t.check(m.Type, m.Messages)
	if err != nil {
		return nil
	}
	if err := t.dropUndeliverable(ctx, messages); err != nil || len(messages) == 0 {
		return err
	}
	err = t.DB.Write(ctx, func(tx *storage.Tx) error {
		fresh, err := storage.NoteToDeviceReceived(ctx, tx, origin, m.MessageID, t.now())
		if err != nil || !fresh {
			return err
		}
		if t.received.Add(1)%trimNotesEvery == 0 {
			if err := storage.TrimToDeviceReceived(ctx, tx, origin, maxToDeviceNotes); err != nil {
				return err
			}
		}
		return t.enqueue(ctx, tx, m.Sender, m.Type, messages)
	})
	if err != nil {
		return fmt.Errorf("receive to-device: %w", err)
	}
	return nil
}

// dropUndeliverable removes what is for nobody here, so that it leaves nothing behind and does not hold up those who write.
func (t *ToDevice) dropUndeliverable(ctx context.Context, messages Messages) error {
	for user, contents := range messages {
		ids, err := storage.DeviceIDs(ctx, t.DB, user)
		if err != nil {
			return fmt.Errorf("receive to-device: %w", err)
		}
		_, all := contents[allDevices]
		if !slices.ContainsFunc(ids, func(id matrix.DeviceID) bool { _, one := contents[id]; return one || all }) {
			delete(messages, user)
		}
	}
	return nil
}

// enqueue stores messages for local devices that exist, and wakes them. A message for one
// device counts over one for all devices of the user.
func (t *ToDevice) enqueue(ctx context.Context, tx *storage.Tx, sender matrix.UserID, eventType string, messages Messages) error {
	var rows []storage.ToDeviceMessage
	var users []matrix.UserID
	for user, contents := range messages {
		ids, err := storage.DeviceIDs(ctx, tx, user)
		if err != nil {
			return err
		}
		woken := false
		for _, id := range ids {
			content, ok := contents[id]
			if !ok {
				content, ok = contents[allDevices]
			}
			if !ok {
				continue
			}
			rows = append(rows, storage.ToDeviceMessage{UserID: user, DeviceID: id, Event: toDeviceEvent(sender, eventType, content)})
			woken = true
		}
		if woken {
			users = append(users, user)
		}
	}
	if len(rows) == 0 {
		return nil
	}
	// One position for all: each device gets one message of a transaction at most.
	pos, err := tx.NextPosition()
	if err != nil {
		return err
	}
	for i := range rows {
		rows[i].Position = pos
	}
	if err := storage.InsertToDevice(ctx, tx, rows); err != nil {
		return err
	}
	// Counting a long queue is dear, so it may grow a little beyond its limit in between.
	if pos%trimEvery == 0 {
		for _, row := range rows {
			if err := storage.TrimToDevice(ctx, tx, row.UserID, row.DeviceID, maxToDeviceQueue, maxToDeviceBytes); err != nil {
				return err
			}
		}
	}
	t.wake(tx, users...)
	return nil
}

// toDeviceEvent is a message as clients see it, in canonical form; content is canonical.
func toDeviceEvent(sender matrix.UserID, eventType string, content []byte) []byte {
	b := append([]byte(`{"content":`), content...)
	b = canonicaljson.AppendString(append(b, `,"sender":`...), string(sender))
	b = canonicaljson.AppendString(append(b, `,"type":`...), eventType)
	return append(b, '}')
}

// Pending returns up to limit messages with positions in (from, to] in order, and whether there are more.
func (t *ToDevice) Pending(ctx context.Context, q storage.Querier, user matrix.UserID, device matrix.DeviceID, from, to storage.Position, limit int) (messages []ToDeviceMessage, more bool, err error) {
	if t.DB.UnchangedIn(toDeviceSubject(user), from, to) {
		return nil, false, nil
	}
	rows, err := storage.PendingToDevice(ctx, q, user, device, from, to, limit+1)
	if err != nil {
		return nil, false, fmt.Errorf("pending to-device: %w", err)
	}
	if len(rows) > limit {
		rows, more = rows[:limit], true
	}
	for _, r := range rows {
		messages = append(messages, ToDeviceMessage{Position: r.Position, Event: r.Event})
	}
	return messages, more, nil
}

// noToDevice stands for the first message of a device that has none.
const noToDevice = storage.Position(math.MaxInt64)

func toDeviceSubject(user matrix.UserID) storage.Subject {
	return storage.Subject{Topic: storage.TopicToDevice, User: string(user)}
}

// Acknowledge deletes what was delivered: all messages of the device up to a position. It
// writes nothing if there are none.
func (t *ToDevice) Acknowledge(ctx context.Context, user matrix.UserID, device matrix.DeviceID, upTo storage.Position) error {
	oldest, err := t.oldest.Get(deviceKey{user, device}, toDeviceSubject(user), func() (storage.Position, error) {
		pos, err := storage.OldestToDevice(ctx, t.DB, user, device)
		if errors.Is(err, storage.ErrNotFound) {
			return noToDevice, nil
		}
		return pos, err
	})
	if err == nil && oldest > upTo {
		return nil
	}
	if err == nil {
		err = t.DB.Write(ctx, func(tx *storage.Tx) error { return storage.DeleteToDevice(ctx, tx, user, device, upTo) })
		t.oldest.Forget(deviceKey{user, device})
	}
	if err != nil {
		return fmt.Errorf("acknowledge to-device: %w", err)
	}
	return nil
}
