package feed

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strconv"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
)

// extensionResults are what a response tells besides rooms; nil parts are left out. spec: MSC4186#extensions
type extensionResults struct {
	toDevice    *toDeviceResult
	e2ee        *e2eeResult
	accountData *accountDataResult
	receipts    map[matrix.RoomID]json.RawMessage // nil: off
	typing      map[matrix.RoomID]json.RawMessage // nil: off
	threads     *ThreadChanges
	sticky      *stickyResult
}

type stickyResult struct {
	found bool // there are some, if only in the timeline
	next  storage.Position
	rooms map[matrix.RoomID][]json.RawMessage
}

type toDeviceResult struct {
	next   storage.Position
	events []json.RawMessage
}

type e2eeResult struct {
	changed, left []matrix.UserID
	keys          *users.KeyCounts // nil without a device
}

type accountDataResult struct {
	global []json.RawMessage
	rooms  map[matrix.RoomID][]json.RawMessage
}

// empty reports that the client would learn nothing; key counts alone do not count.
func (r *extensionResults) empty() bool {
	return (r.toDevice == nil || len(r.toDevice.events) == 0) &&
		(r.e2ee == nil || len(r.e2ee.changed)+len(r.e2ee.left) == 0) &&
		(r.accountData == nil || len(r.accountData.global)+len(r.accountData.rooms) == 0) &&
		len(r.receipts) == 0 && len(r.typing) == 0 && r.threads.empty() &&
		(r.sticky == nil || len(r.sticky.rooms) == 0)
}

func (s *slider) extensions(res *extensionResults) error {
	x := &s.q.extensions
	for _, part := range []struct {
		on   bool
		fill func(*extensionResults) error
	}{
		{x.toDevice != nil, s.toDevice},
		{x.e2ee, s.e2ee},
		// What these have told before falls behind while they are off.
		{x.accountData != nil || s.told(func(r sentRoom) progress { return r.accountData }), s.accountDataExtension},
		{x.receipts != nil || s.told(func(r sentRoom) progress { return r.receipts }), s.receiptsExtension},
		{x.typing != nil, s.typingExtension},
		{x.threads != nil, s.threadsExtension},
		{x.sticky != nil, s.stickyExtension},
	} {
		if !part.on {
			continue
		}
		if err := part.fill(res); err != nil {
			return err
		}
	}
	return nil
}

// told reports whether the client is up to date with something in any room.
func (s *slider) told(of func(sentRoom) progress) bool {
	for _, r := range s.base.rooms {
		if of(r) == live {
			return true
		}
	}
	return false
}

// position is where the client stands. One ahead of the stream is from before a backup was restored, and counts as none.
func (f *Feed) position(r *positionRequest) storage.Position {
	if r.since > f.DB.Current() {
		return 0
	}
	return r.since
}

// acknowledge drops the to-device messages that the client has: those up to the since of the extension. spec: MSC3885
func (f *Feed) acknowledge(ctx context.Context, q *SlidingRequest) error {
	if q.extensions.toDevice == nil || q.Device == "" {
		return nil
	}
	since := f.position(q.extensions.toDevice)
	if since == 0 {
		return nil
	}
	if err := f.Users.ToDevice.Acknowledge(ctx, q.User, q.Device, since); err != nil {
		return fmt.Errorf("acknowledge to-device messages: %w", err)
	}
	return nil
}

// toDevice tells of messages to the device. spec: MSC3885
func (s *slider) toDevice(res *extensionResults) error {
	out := &toDeviceResult{next: s.until}
	res.toDevice = out
	if s.r.Device == "" {
		return nil
	}
	messages, more, err := s.Users.ToDevice.Pending(s.ctx, s.DB, s.r.User, s.r.Device, s.position(s.q.extensions.toDevice), s.until, s.q.extensions.toDevice.limit)
	if err != nil {
		return fmt.Errorf("to-device messages: %w", err)
	}
	for _, m := range messages {
		out.events = append(out.events, m.Event)
	}
	if more {
		out.next = messages[len(messages)-1].Position
	}
	return nil
}

// e2ee tells whose devices changed, and how many keys are left. spec: MSC3884
func (s *slider) e2ee(res *extensionResults) error {
	out := &e2eeResult{}
	res.e2ee = out
	var err error
	if s.r.Device != "" {
		if out.keys, err = s.Users.Keys.Counts(s.ctx, s.DB, s.r.User, s.r.Device); err != nil {
			return fmt.Errorf("key counts: %w", err)
		}
	}
	if s.r.initial() {
		return nil // the client asks for the keys of everybody it sees
	}
	if err := s.membersSince(); err != nil {
		return err
	}
	out.changed, out.left, err = s.deviceLists()
	return err
}

// inExtension reports whether an extension is to tell of a room.
func (s *slider) inExtension(sel *roomSelection, r *listedRoom) bool {
	switch {
	case sel == nil, r.config == nil, r.next.events == never: // the client knows no room that it was not told of
		return false
	case sel.lists["*"] && !r.lists.empty():
		return true
	}
	if sel.rooms[string(r.Room)] || r.subscribed && sel.rooms["*"] {
		return true
	}
	for n := range s.q.Lists {
		if r.lists.has(n) && sel.lists[s.q.Lists[n].key] {
			return true
		}
	}
	return false
}

// accountDataExtension tells of account data: global always, of rooms that the request asks for. spec: MSC3959
func (s *slider) accountDataExtension(res *extensionResults) error {
	out := &accountDataResult{rooms: make(map[matrix.RoomID][]json.RawMessage)}
	if s.q.extensions.accountData != nil {
		res.accountData = out
	}
	changed := make(map[matrix.RoomID][]users.AccountDatum)
	for _, d := range s.data {
		if d.Room == "" {
			out.global = append(out.global, accountDataEvent(d))
		} else {
			changed[d.Room] = append(changed[d.Room], d)
		}
	}
	return s.list.each(func(r *listedRoom) error {
		sent := &r.next
		if r.result != nil && r.result.initial {
			sent.accountData = never // the client begins anew with the room
		}
		data := changed[r.Room]
		if !s.inExtension(s.q.extensions.accountData, r) {
			if len(data) > 0 {
				sent.accountData = sent.accountData.behind(s.since)
			}
			return nil
		}
		if sent.accountData != live {
			all, err := s.Users.AccountData.InRoom(s.ctx, s.DB, s.r.User, r.Room)
			if err != nil {
				return fmt.Errorf("room account data: %w", err)
			}
			from := sent.accountData.from(s.since)
			data = slices.DeleteFunc(all, func(d users.AccountDatum) bool { return d.Position <= from || d.Position > s.until })
		}
		sent.accountData = live
		for _, d := range data {
			out.rooms[r.Room] = append(out.rooms[r.Room], accountDataEvent(d))
		}
		return nil
	})
}

// changedReceipts are the receipts in rooms of the user that moved in (since, until].
func (s *slider) changedReceipts() ([]users.Receipt, error) {
	if s.receiptsRead || s.r.initial() || s.DB.UnchangedIn(storage.Subject{Topic: storage.TopicReceipts}, s.since, s.until) {
		return s.receipts, nil
	}
	joined, err := s.joined()
	if err != nil {
		return nil, err
	}
	if s.receipts, err = s.Users.Receipts.ChangedIn(s.ctx, s.DB, &joinedRooms{now: *joined}, s.r.User, s.since, s.until); err != nil {
		return nil, fmt.Errorf("receipts: %w", err)
	}
	s.receiptsRead = true
	return s.receipts, nil
}

// receiptsExtension tells how far people have read. Of a room that is new to the client it tells the user's own receipts, and
// those on events that it shows. spec: MSC3960
func (s *slider) receiptsExtension(res *extensionResults) error {
	if s.q.extensions.receipts != nil {
		res.receipts = make(map[matrix.RoomID]json.RawMessage)
	}
	moved, err := s.changedReceipts()
	if err != nil {
		return err
	}
	changed := make(map[matrix.RoomID][]users.Receipt)
	for _, rc := range moved {
		changed[rc.Room] = append(changed[rc.Room], rc)
	}
	return s.list.each(func(r *listedRoom) error {
		sent := &r.next
		joined := r.Membership.Membership == "join"
		if !joined || r.result != nil && (r.result.initial || r.result.expanded) {
			sent.receipts = never // what the client has of the room changes
		}
		list := changed[r.Room]
		if !joined || !s.inExtension(s.q.extensions.receipts, r) {
			if len(list) > 0 {
				sent.receipts = sent.receipts.behind(s.since)
			}
			return nil
		}
		if sent.receipts != live {
			if list, err = s.olderReceipts(r); err != nil {
				return err
			}
		}
		sent.receipts = live
		if len(list) == 0 {
			return nil
		}
		res.receipts[r.Room] = typedContent("m.receipt", users.ReceiptContent(list))
		return nil
	})
}

// olderReceipts are those in a room that moved since the client was told of them; if it never was, those of the user and those on
// events that it has.
func (s *slider) olderReceipts(r *listedRoom) ([]users.Receipt, error) {
	all, err := s.Users.Receipts.InRoom(s.ctx, s.DB, r.Room, s.r.User)
	if err != nil {
		return nil, fmt.Errorf("receipts: %w", err)
	}
	shown := make(map[matrix.EventID]bool)
	if r.result != nil {
		for _, ev := range r.result.events {
			shown[ev.ID()] = true
		}
	}
	from := r.next.receipts.from(s.since)
	return slices.DeleteFunc(all, func(rc users.Receipt) bool {
		switch {
		case rc.Position > s.until:
			return true
		case from != 0 && rc.Position > from:
			return false
		}
		return r.next.receipts != never || rc.User != s.r.User && !shown[rc.EventID] && storage.Position(rc.Order) < r.next.low
	}), nil
}

// typingExtension tells who types. spec: MSC3961
func (s *slider) typingExtension(res *extensionResults) error {
	res.typing = make(map[matrix.RoomID]json.RawMessage)
	changed := make(map[matrix.RoomID]bool)
	for _, room := range s.Typing.Changed(s.since) {
		changed[room] = true
	}
	return s.list.each(func(r *listedRoom) error {
		fresh := s.r.initial() || r.result != nil && r.result.initial
		if !fresh && !changed[r.Room] || r.Membership.Membership != "join" || !s.inExtension(s.q.extensions.typing, r) {
			return nil
		}
		typing, at := s.Typing.Users(r.Room)
		if at == 0 || at > s.until || fresh && len(typing) == 0 || !fresh && at <= s.since {
			return nil
		}
		event, err := typingEvent(typing)
		res.typing[r.Room] = event
		return err
	})
}

// ThreadChanges are threads that a user began or ceased to follow. spec: MSC4308
type ThreadChanges struct {
	Subscribed   map[matrix.RoomID]map[matrix.EventID]ThreadSubscription   `json:"subscribed,omitempty"`
	Unsubscribed map[matrix.RoomID]map[matrix.EventID]ThreadUnsubscription `json:"unsubscribed,omitempty"`
	// PrevBatch is from where to ask for older changes, "" if these are all.
	PrevBatch string `json:"prev_batch,omitempty"`
}

// ThreadSubscription is one of ThreadChanges.
type ThreadSubscription struct {
	Automatic bool             `json:"automatic"`
	BumpStamp storage.Position `json:"bump_stamp"`
}

// ThreadUnsubscription is one of ThreadChanges.
type ThreadUnsubscription struct {
	BumpStamp storage.Position `json:"bump_stamp"`
}

func (c *ThreadChanges) empty() bool {
	return c == nil || len(c.Subscribed)+len(c.Unsubscribed) == 0
}

// ThreadChanges lists the newest changes of a user's thread subscriptions in (from, to], at most limit. spec: MSC4308
func (f *Feed) ThreadChanges(ctx context.Context, user matrix.UserID, from, to storage.Position, limit int) (*ThreadChanges, error) {
	list, err := f.Users.Threads.Changed(ctx, f.DB, user, from, min(to, f.DB.Current()), limit+1)
	if err != nil {
		return nil, err
	}
	out := &ThreadChanges{}
	if len(list) > limit {
		list = list[:limit]
		out.PrevBatch = At(list[limit-1].Position - 1).String()
	}
	for _, t := range list {
		if t.Subscribed {
			out.Subscribed = putIn(out.Subscribed, t.Room, t.Root, ThreadSubscription{t.Automatic, t.Position})
		} else {
			out.Unsubscribed = putIn(out.Unsubscribed, t.Room, t.Root, ThreadUnsubscription{t.Position})
		}
	}
	return out, nil
}

// putIn sets a value in a map of maps, made if need be.
func putIn[K1, K2 comparable, V any](m map[K1]map[K2]V, a K1, b K2, v V) map[K1]map[K2]V {
	if m == nil {
		m = make(map[K1]map[K2]V)
	}
	if m[a] == nil {
		m[a] = make(map[K2]V)
	}
	m[a][b] = v
	return m
}

// threadsExtension tells of thread subscriptions. spec: MSC4308
func (s *slider) threadsExtension(res *extensionResults) (err error) {
	res.threads, err = s.ThreadChanges(s.ctx, s.r.User, s.since, s.until, s.q.extensions.threads.limit)
	return err
}

// stickyExtension tells of live sticky events in all rooms of the user: those since the last time, and all of rooms that were joined since
// the client's pos. What is shown in a timeline is not told here. spec: MSC4354
func (s *slider) stickyExtension(res *extensionResults) error {
	q := rooms.StickyRequest{Since: s.position(s.q.extensions.sticky), Until: s.until, Limit: s.q.extensions.sticky.limit}
	out := &stickyResult{next: s.until, rooms: make(map[matrix.RoomID][]json.RawMessage)}
	res.sticky = out
	events, more, err := s.Rooms.StickyEventsOf(s.ctx, s.r.User, q)
	if err != nil {
		return fmt.Errorf("sticky events: %w", err)
	}
	if more {
		out.next = events[len(events)-1].Position
	}
	told := make(map[storage.EventNID]bool)
	if err := s.list.each(func(r *listedRoom) error {
		if r.result == nil {
			return nil
		}
		for _, ev := range r.result.events {
			told[ev.NID] = true
		}
		if !r.result.initial || q.Since == 0 || r.Membership.Membership != "join" || r.Position <= s.since {
			return nil
		}
		older, more, err := s.Rooms.StickyEvents(s.ctx, r.RoomNID, rooms.StickyRequest{Until: s.until, Limit: maxSticky})
		if more {
			out.next = min(out.next, older[len(older)-1].Position) // some of other rooms are told again with the rest
		}
		events = append(events, older...)
		return err
	}); err != nil {
		return fmt.Errorf("sticky events: %w", err)
	}
	out.found = len(events) > 0
	for _, ev := range events {
		if told[ev.NID] || s.ignored[ev.Sender()] && !ev.IsState() {
			continue
		}
		told[ev.NID] = true
		raw, err := s.render(ev.Event, nil)
		if err != nil {
			return err
		}
		out.rooms[ev.RoomID()] = append(out.rooms[ev.RoomID()], raw)
	}
	return nil
}

// encode writes the extensions that the request enables.
func (r *extensionResults) encode(e *encoder) error {
	if t := r.toDevice; t != nil {
		e.object("to_device", func() {
			e.key("next_batch")
			e.str(strconv.FormatInt(int64(t.next), 10))
			encodeList(e, "events", t.events)
		})
	}
	if x := r.e2ee; x != nil {
		e.object("e2ee", func() {
			if x.keys != nil {
				e.keyCounts(x.keys)
			}
			if len(x.changed)+len(x.left) > 0 {
				e.object("device_lists", func() {
					e.users("changed", x.changed)
					e.users("left", x.left)
				})
			}
		})
	}
	if a := r.accountData; a != nil {
		e.object("account_data", func() {
			encodeList(e, "global", a.global)
			e.object("rooms", func() {
				for _, room := range slices.Sorted(maps.Keys(a.rooms)) {
					encodeList(e, string(room), a.rooms[room])
				}
			})
		})
	}
	for _, part := range []struct {
		key   string
		rooms map[matrix.RoomID]json.RawMessage
	}{{"receipts", r.receipts}, {"typing", r.typing}} {
		if part.rooms == nil {
			continue
		}
		e.object(part.key, func() {
			e.object("rooms", func() {
				for _, room := range slices.Sorted(maps.Keys(part.rooms)) {
					e.key(string(room))
					e.raw(part.rooms[room])
				}
			})
		})
	}
	if x := r.sticky; x != nil && x.found {
		e.object("org.matrix.msc4354.sticky_events", func() {
			e.key("next_batch")
			e.str(strconv.FormatInt(int64(x.next), 10))
			e.object("rooms", func() {
				for _, room := range slices.Sorted(maps.Keys(x.rooms)) {
					e.object(string(room), func() { encodeList(e, "events", x.rooms[room]) })
				}
			})
		})
	}
	if !r.threads.empty() {
		raw, err := canonicaljson.Marshal(r.threads)
		if err != nil {
			return fmt.Errorf("thread subscriptions: %w", err)
		}
		e.key("io.element.msc4308.thread_subscriptions")
		e.raw(raw)
	}
	return nil
}
