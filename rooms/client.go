package rooms

import (
	"context"

	"hanok/internal/recent"
	"hanok/matrix"
	"hanok/matrix/event"
)

// ClientOptions fills in what a reader is told about an event: previous content, the
// redaction, the transaction id if device sent it, the reader's membership.
func (e *Engine) ClientOptions(ctx context.Context, ev *Event, user matrix.UserID, device matrix.DeviceID) (event.ClientOptions, error) {
	o, _, err := e.sharedOptions(ctx, ev, e.now())
	if err != nil {
		return o, err
	}
	return o, e.readerOptions(ctx, &o, ev, user, device)
}

// sharedOptions are those that are the same for all readers; prev is the event whose content is shown as previous.
func (e *Engine) sharedOptions(ctx context.Context, ev *Event, now matrix.Timestamp) (o event.ClientOptions, prev *Event, err error) {
	o.Now = now
	if key, ok := ev.StateKey(); ok && ev.placed() {
		if prev, err = (State{e, e.treeBefore(ev)}).Event(ctx, ev.Type(), key); err != nil {
			return o, nil, err
		}
		if prev != nil {
			o.PrevContent, o.ReplacesState, o.PrevSender = prev.Content(), prev.ID(), prev.Sender()
		}
	}
	if ev.RedactedBy != "" {
		redaction, err := e.Event(ctx, ev.RedactedBy)
		if err != nil {
			return o, nil, err
		}
		o.RedactedBecause, o.RedactedBy = redaction.AppendClient(nil, event.ClientOptions{Now: o.Now}), ev.RedactedBy
	}
	return o, prev, nil
}

// readerOptions adds what differs from reader to reader.
func (e *Engine) readerOptions(ctx context.Context, o *event.ClientOptions, ev *Event, user matrix.UserID, device matrix.DeviceID) (err error) {
	switch {
	case ev.TxnID == "" || ev.Sender() != user:
	case ev.Delayed:
		o.DelayID = ev.TxnID
	case ev.TxnDevice == device:
		o.TransactionID = ev.TxnID
	}
	if now := e.now(); ev.sticks(now) {
		o.StickyFor = int64(ev.StickyUntil() - now)
	}
	if ev.placed() {
		o.Membership, err = e.membershipAtEvent(ctx, ev, user)
	}
	return err
}

// placed reports that the event is part of the timeline.
func (ev *Event) placed() bool { return !ev.Outlier && ev.Pos != 0 }

func (e *Engine) membershipAtEvent(ctx context.Context, ev *Event, user matrix.UserID) (string, error) {
	if ev.Is("m.room.member", string(user)) {
		return ev.Membership(), nil
	}
	// Mostly the state has not changed since the event, and the reader has been joined for longer.
	if _, c := e.settled(ev.RoomNID, ev.Pos); c != nil && c.pos >= ev.Pos && c.head.state.Ref() == ev.stateBefore {
		all, err := e.UserRooms(ctx, user)
		if err != nil {
			return "", err
		}
		if m, ok := all.In(ev.RoomID()); ok && m.Membership == "join" && m.Position < ev.Pos {
			return m.Membership, nil
		}
	}
	return State{e, e.treeBefore(ev)}.Membership(ctx, user)
}

// clientForms keep the newest events as they are told to clients, so that one that goes to a thousand people is serialised once.
type clientForms struct {
	// An event that is redacted is another *Event, so what is found for one never is what it was before.
	byEvent *recent.Map[*Event, *sharedForm]
}

type sharedForm struct {
	*event.ClientForm
	prev *Event // whose content is in it
}

const (
	maxForms    = 512
	maxFormSize = 16 << 10 // bytes; above, copying is what costs
	newEvents   = 4096     // positions
)

func newClientForms() *clientForms {
	return &clientForms{recent.NewMap[*Event, *sharedForm](maxForms)}
}

// AppendForSync appends an event of a room as a device is told it by a sync: without room_id. Relations may be nil.
func (e *Engine) AppendForSync(ctx context.Context, dst []byte, ev *Event, user matrix.UserID, device matrix.DeviceID, now matrix.Timestamp, relations []byte) ([]byte, error) {
	form, err := e.clientForm(ctx, ev)
	if err != nil {
		return dst, err
	}
	o := event.ClientOptions{Now: now, Relations: relations}
	if err := e.readerOptions(ctx, &o, ev, user, device); err != nil {
		return dst, err
	}
	return form.Append(dst, o), nil
}

func (e *Engine) clientForm(ctx context.Context, ev *Event) (*sharedForm, error) {
	if f, ok := e.forms.byEvent.Get(ev); ok && (f.prev == nil || e.events.byNumber(f.prev.NID) == f.prev) {
		return f, nil
	}
	o, prev, err := e.sharedOptions(ctx, ev, e.now())
	if err != nil {
		return nil, err
	}
	o.OmitRoomID = true
	f := &sharedForm{ev.ClientForm(o), prev}
	// Old events are hardly told to many at a time, and the age of a redaction goes on.
	if ev.Pos > e.db.Current()-newEvents && ev.RedactedBy == "" && f.Size() <= maxFormSize {
		e.forms.byEvent.Put(ev, f)
	}
	return f, nil
}
