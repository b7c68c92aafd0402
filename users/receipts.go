package users

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"hanok/matrix"
	"hanok/storage"
)

// Receipts say how far users have read. spec: client-server-api#receipts
type Receipts struct{ *core }

// The receipt types.
const (
	ReceiptRead        = "m.read"
	ReceiptReadPrivate = "m.read.private"
	ReceiptFullyRead   = "m.fully_read" // shown as room account data, to its user only
)

// Receipt is one receipt.
type Receipt = storage.Receipt

const eduReceipt = "m.receipt"

// manyReceipts is from how many changed receipts on Changed looks into each room by itself.
const manyReceipts = 500

// checkReceipt checks the form of a receipt. spec: cs/postReceipt
func checkReceipt(r Receipt) error {
	if _, err := matrix.ParseRoomID(string(r.Room)); err != nil {
		return err
	}
	if _, err := matrix.ParseEventID(string(r.EventID)); err != nil {
		return err
	}
	switch r.Type {
	case ReceiptRead, ReceiptReadPrivate:
	case ReceiptFullyRead:
		if r.Thread != "" {
			return matrix.InvalidParam("m.fully_read cannot have a thread_id")
		}
	default:
		return matrix.InvalidParam("There is no receipt type %q", r.Type)
	}
	if r.Thread == "" || r.Thread == "main" {
		return nil
	}
	if _, err := matrix.ParseEventID(r.Thread); err != nil {
		return matrix.InvalidParam("thread_id must be \"main\" or an event ID")
	}
	return nil
}

// Set stores receipts of a local user in one transaction, tells the other servers of the room about public ones, and wakes
// those who may see them. Only what moves forward is stored. M_INVALID_PARAM for an unknown type or a bad thread.
// spec: cs/postReceipt, cs/setReadMarker
func (r *Receipts) Set(ctx context.Context, receipts ...Receipt) error {
	servers := map[matrix.RoomID][]matrix.ServerName{}
	for i := range receipts {
		x := &receipts[i]
		if err := checkReceipt(*x); err != nil {
			return err
		}
		if x.At == 0 {
			x.At = r.now()
		}
		if _, ok := servers[x.Room]; x.Type == ReceiptRead && !ok {
			joined, err := r.Rooms.JoinedServers(ctx, x.Room)
			if err != nil {
				return fmt.Errorf("servers in room: %w", err)
			}
			others := []matrix.ServerName{}
			for _, s := range joined {
				if s != r.ServerName {
					others = append(others, s)
				}
			}
			servers[x.Room] = others
		}
	}
	return r.store(ctx, receipts, func(tx *storage.Tx, x Receipt) error {
		if x.Type != ReceiptRead || len(servers[x.Room]) == 0 {
			return nil
		}
		return r.Outbox.QueueEDU(ctx, tx, servers[x.Room], eduReceipt, receiptEDU(x))
	})
}

// receiptEDU is the content of an m.receipt EDU. spec: server-server-api#receipts
func receiptEDU(x Receipt) []byte {
	type data struct {
		At     matrix.Timestamp `json:"ts"`
		Thread string           `json:"thread_id,omitempty"`
	}
	type receipt struct {
		EventIDs []matrix.EventID `json:"event_ids"`
		Data     data             `json:"data"`
	}
	return encode(map[matrix.RoomID]map[string]map[matrix.UserID]receipt{
		x.Room: {x.Type: {x.User: {[]matrix.EventID{x.EventID}, data{x.At, x.Thread}}}},
	})
}

// maxRemoteThreads is of how many threads of a room the receipts of one remote user are kept, the latest ones: a thread is whatever
// their server says it is, and receipts are shown to everybody in the room.
const maxRemoteThreads = 100

// ReceiveRemote stores m.read receipts of remote users; what is malformed is dropped. The caller has checked that
// they are members of the rooms and come from their own server.
func (r *Receipts) ReceiveRemote(ctx context.Context, receipts ...Receipt) error {
	var good []Receipt
	for _, x := range receipts {
		if x.Type == ReceiptRead && checkReceipt(x) == nil && x.At >= 0 && x.At < 1<<53 {
			good = append(good, x)
		}
	}
	return r.store(ctx, good, func(tx *storage.Tx, x Receipt) error {
		if x.Thread == "" || x.Thread == "main" {
			return nil
		}
		return storage.TrimThreadReceipts(ctx, tx, x.Room, x.User, x.Type, maxRemoteThreads)
	})
}

// store stores receipts that move forward; moved is called for each of them.
func (r *Receipts) store(ctx context.Context, receipts []Receipt, moved func(*storage.Tx, Receipt) error) error {
	if len(receipts) == 0 {
		return nil
	}
	err := r.DB.Write(ctx, func(tx *storage.Tx) error {
		public := map[matrix.RoomID]bool{}
		private := map[matrix.UserID]bool{}
		for _, x := range receipts {
			pos, err := tx.NextPosition()
			if err != nil {
				return err
			}
			x.Position = pos
			forward, err := storage.PutReceipt(ctx, tx, x)
			if err != nil {
				return err
			}
			if !forward {
				continue
			}
			switch x.Type {
			case ReceiptRead:
				public[x.Room] = true
			case ReceiptFullyRead:
				content := encode(map[string]matrix.EventID{"event_id": x.EventID})
				if err := r.put(ctx, tx, x.User, x.Room, typeFullyRead, content); err != nil {
					return err
				}
			default:
				private[x.User] = true
			}
			if err := moved(tx, x); err != nil {
				return err
			}
		}
		for room := range public {
			tx.OnVisible(func() { r.Notifier.WakeRoom(room) })
		}
		for user := range private {
			r.wake(tx, user)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("store receipts: %w", err)
	}
	return nil
}

// InRoom returns a room's receipts that observer may see: all public ones and observer's private ones.
func (r *Receipts) InRoom(ctx context.Context, q storage.Querier, room matrix.RoomID, observer matrix.UserID) ([]Receipt, error) {
	found, err := storage.ReceiptsInRoom(ctx, q, room, observer)
	if err != nil {
		return nil, fmt.Errorf("receipts in room: %w", err)
	}
	return found, nil
}

// RoomSet are rooms of which receipts are wanted.
type RoomSet interface {
	Has(room matrix.RoomID) bool
	All() []matrix.RoomID
}

// roomList is a RoomSet of some rooms.
type roomList map[matrix.RoomID]bool

func (l roomList) Has(room matrix.RoomID) bool { return l[room] }
func (l roomList) All() []matrix.RoomID        { return slices.Collect(maps.Keys(l)) }

// Changed is ChangedIn for a list of rooms.
func (r *Receipts) Changed(ctx context.Context, q storage.Querier, rooms []matrix.RoomID, observer matrix.UserID, from, to storage.Position) ([]Receipt, error) {
	set := make(roomList, len(rooms))
	for _, room := range rooms {
		set[room] = true
	}
	return r.ChangedIn(ctx, q, set, observer, from, to)
}

// ChangedIn is InRoom for those of a set of rooms which changed in (from, to], in no order.
func (r *Receipts) ChangedIn(ctx context.Context, q storage.Querier, rooms RoomSet, observer matrix.UserID, from, to storage.Position) ([]Receipt, error) {
	if r.DB.UnchangedIn(storage.Subject{Topic: storage.TopicReceipts}, from, to) {
		return nil, nil
	}
	// What changed in all rooms is mostly less than the rooms of one user.
	changed, err := storage.ReceiptsChanged(ctx, q, observer, from, to, manyReceipts)
	if err == nil && len(changed) == manyReceipts {
		changed, err = storage.ReceiptsChangedInRooms(ctx, q, rooms.All(), observer, from, to)
		if err == nil {
			return changed, nil
		}
	}
	if err != nil {
		return nil, fmt.Errorf("changed receipts: %w", err)
	}
	return slices.DeleteFunc(changed, func(x Receipt) bool { return !rooms.Has(x.Room) }), nil
}

// OfUser returns one user's own m.read and m.read.private receipts in a room.
func (r *Receipts) OfUser(ctx context.Context, q storage.Querier, room matrix.RoomID, user matrix.UserID) ([]Receipt, error) {
	found, err := storage.ReceiptsOfUser(ctx, q, room, user)
	if err != nil {
		return nil, fmt.Errorf("receipts of user: %w", err)
	}
	return found, nil
}

// ReceiptContent is the content of an m.receipt event for clients, made of receipts of one room: event, type, user.
// spec: client-server-api#mreceipt
func ReceiptContent(receipts []Receipt) json.RawMessage {
	type data struct {
		At     matrix.Timestamp `json:"ts"`
		Thread string           `json:"thread_id,omitempty"`
	}
	content := make(map[matrix.EventID]map[string]map[matrix.UserID]data)
	for _, x := range receipts {
		types := content[x.EventID]
		if types == nil {
			types = make(map[string]map[matrix.UserID]data)
			content[x.EventID] = types
		}
		if types[x.Type] == nil {
			types[x.Type] = make(map[matrix.UserID]data)
		}
		// One user may have several receipts on one event; the unthreaded one says the most.
		if old, ok := types[x.Type][x.User]; ok && old.Thread == "" {
			continue
		}
		types[x.Type][x.User] = data{x.At, x.Thread}
	}
	return encode(content)
}
