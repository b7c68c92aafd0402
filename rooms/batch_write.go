package rooms

import (
	"cmp"
	"context"

	"hanok/storage"
	"hanok/storage/statetree"
)

// batchWrite is one attempt to store a batch.
type batchWrite struct {
	entries []*entry
	updates []*roomUpdate // by room, in order of their first entry
	blobs   []statetree.Blob
}

type roomUpdate struct {
	Update
	room  *room
	head  *head
	whole *restatement
	first storage.Position // of the update's positions
	pos   storage.Position

	created bool // the room begins with this update
	gaps    bool // where events are missing changed
	stored  []storedItem
}

type storedItem struct {
	it  *item
	pos storage.Position
}

func newBatchWrite(entries []*entry) *batchWrite { return &batchWrite{entries: entries} }

func (w *batchWrite) run(ctx context.Context, tx *storage.Tx) error {
	var (
		inserts     []*storage.EventRow
		updates     []*storage.EventRow
		states      []storage.RoomState
		heads       []storage.RoomHead
		members     []storage.MembershipRow
		settled     []storage.MemberKey       // whose signed invites have come
		unannounced []storage.UnannouncedJoin // of local users
		related     []storage.RelationRow
		sticky      []storage.StickyRow
		seen        = make(map[int64]bool)
		byRoom      = make(map[*room]*roomUpdate)
	)
	var kept statetree.Ref
	keep := func(t statetree.Tree) {
		if t.Ref() == 0 || t.Ref() == kept {
			return
		}
		kept = t.Ref()
		for _, b := range t.Unsaved() {
			if !seen[b.ID] {
				seen[b.ID] = true
				w.blobs = append(w.blobs, b)
			}
		}
	}
	for _, en := range w.entries {
		if en.create {
			if err := storage.InsertRoom(ctx, tx, en.room.nid, en.room.id, string(en.room.version.ID)); err != nil {
				return err
			}
		}
		u := byRoom[en.room]
		if u == nil {
			u = &roomUpdate{room: en.room, Update: Update{Room: en.room.id, RoomNID: en.room.nid}}
			byRoom[en.room] = u
			w.updates = append(w.updates, u)
		}
		u.created = u.created || en.create
		var last storage.Position
		for _, it := range en.items {
			row := it.ev.row()
			if it.timeline != nowhere {
				pos, err := tx.NextPosition()
				if err != nil {
					return err
				}
				row.Pos = pos
				if it.timeline == backward {
					row.Pos = -pos
				} else {
					last = pos
					u.first = cmp.Or(u.first, pos)
					u.Events = append(u.Events, it.ev)
					if it.moved {
						u.NewState = true
						states = append(states, storage.RoomState{Room: row.Room, Pos: pos, State: int64(it.current)})
					}
				}
			}
			u.stored = append(u.stored, storedItem{it, row.Pos})
			if r, ok := relationRow(it.ev, row.Pos); ok {
				related = append(related, r)
			}
			if r, ok := en.room.e.stickyRow(it, max(row.Pos, -row.Pos)); ok {
				sticky = append(sticky, r)
				if it.timeline == backward {
					// News, though history: clients are told of it at this place in the stream.
					last = r.Pos
					u.first = cmp.Or(u.first, last)
				}
			}
			keep(it.before)
			for _, t := range it.beside {
				keep(t)
			}
			if it.promote {
				if it.ev.was != 0 {
					if err := storage.RenumberEvent(ctx, tx, row.Room, it.ev.skey, it.ev.was, it.ev.NID); err != nil {
						return err
					}
				}
				updates = append(updates, row)
			} else {
				inserts = append(inserts, row)
			}
		}
		if en.whole != nil {
			rows, err := en.whole.place(tx, u, keep)
			if err != nil {
				return err
			}
			related = append(related, rows...)
			u.whole = en.whole
		}
		if last == 0 && (len(en.members) > 0 || en.moved || en.whole != nil) {
			// An invite from afar, or a state that changed with history: no event of its own in the timeline.
			pos, err := tx.NextPosition()
			if err != nil {
				return err
			}
			last = pos
			u.first = cmp.Or(u.first, pos)
		}
		if (en.moved || en.whole != nil) && en.head != nil {
			u.NewState = true
			states = append(states, storage.RoomState{Room: en.room.nid, Pos: last, State: int64(en.head.state.Ref())})
		}
		for _, m := range en.members {
			row := storage.MembershipRow{Room: en.room.nid, User: m.user, Server: m.server, Membership: storage.ParseMembership(m.current), Pos: last}
			ch := MembershipChange{User: m.name, Local: m.server == en.room.e.own, Previous: m.previous, Current: m.current, Position: last}
			if m.event != nil {
				row.Event, row.Sender = m.event.NID, m.event.sender
				ch.Event = m.event.ID()
			}
			row.Forgotten = en.room.e.forgetOnLeave && ch.Local && (m.current == "leave" || m.current == "ban")
			members = append(members, row)
			if ch.Local && (m.current == "invite" || m.current == "join") {
				settled = append(settled, storage.MemberKey{Room: en.room.nid, User: m.user})
			}
			if ch.Local && m.current == "join" && ch.Previous != "join" {
				unannounced = append(unannounced, storage.UnannouncedJoin{UserID: ch.User, Pos: row.Pos})
			}
			u.Memberships = append(u.Memberships, ch)
		}
		if last != 0 {
			u.Position, u.pos = last, last
		}
		u.gaps = u.gaps || len(en.missing)+len(en.found) > 0 || en.whole != nil
		if en.pos = last; en.whole != nil {
			en.room.e.partials.completing(en.room.nid, last)
		}
		if en.head != nil {
			u.head = en.head
			keep(en.head.state)
		}
	}
	for _, u := range w.updates {
		if u.head != nil {
			heads = append(heads, storage.RoomHead{NID: u.room.nid, Head: u.head.nids(), State: int64(u.head.state.Ref()), Pos: u.pos})
		}
	}
	w.noteChanges()
	nodes := make([]storage.StateNodes, len(w.blobs))
	for i, b := range w.blobs {
		nodes[i] = storage.StateNodes{ID: b.ID, Data: b.Data}
	}
	if err := w.step(len(nodes), func() error { return storage.InsertStateNodes(ctx, tx, nodes) }); err != nil {
		return err
	}
	if err := w.step(len(inserts), func() error { return storage.InsertEvents(ctx, tx, inserts) }); err != nil {
		return err
	}
	for _, row := range updates {
		// After the inserts: what is promoted may have been stored by an entry before.
		if err := storage.UpdateEvent(ctx, tx, row); err != nil {
			return err
		}
	}
	if err := w.step(len(related), func() error { return storage.InsertRelations(ctx, tx, related) }); err != nil {
		return err
	}
	if err := w.step(len(sticky), func() error { return storage.PutStickyEvents(ctx, tx, w.entries[0].room.e.now(), sticky) }); err != nil {
		return err
	}
	if err := w.step(len(states), func() error { return storage.InsertRoomStates(ctx, tx, states) }); err != nil {
		return err
	}
	if err := w.step(len(members), func() error { return storage.UpsertMemberships(ctx, tx, members) }); err != nil {
		return err
	}
	if err := w.step(len(unannounced), func() error { return storage.PutUnannouncedJoins(ctx, tx, unannounced) }); err != nil {
		return err
	}
	if err := w.step(len(settled), func() error { return storage.DropSignedInvites(ctx, tx, settled) }); err != nil {
		return err
	}
	if err := w.step(len(heads), func() error { return storage.SetRoomHeads(ctx, tx, heads) }); err != nil {
		return err
	}
	return w.runRest(ctx, tx)
}

// noteChanges tells what is about to be committed to those who look for what changed.
func (w *batchWrite) noteChanges() {
	changes := make([]recentChange, 0, len(w.updates))
	for _, u := range w.updates {
		if u.pos != 0 {
			u.room.note(u.first, u.pos)
			changes = append(changes, recentChange{room: u.room.nid, first: u.first, last: u.pos})
		}
	}
	if len(changes) > 0 {
		w.entries[0].room.e.recent.note(changes)
	}
}

// runRest stores what few entries have.
func (w *batchWrite) runRest(ctx context.Context, tx *storage.Tx) error {
	for _, en := range w.entries {
		if len(en.found) > 0 {
			if err := storage.DeleteMissingPrevs(ctx, tx, en.room.nid, en.found); err != nil {
				return err
			}
		}
		if len(en.missing) > 0 {
			if err := storage.InsertMissingPrevs(ctx, tx, en.room.nid, en.missing); err != nil {
				return err
			}
		}
		for _, it := range en.items {
			for _, er := range it.erased {
				if err := storage.EraseEvent(ctx, tx, er.target.NID, er.redaction, er.target.JSON()); err != nil {
					return err
				}
			}
		}
		if en.partial != nil {
			if err := en.partial.store(ctx, tx, en.items[0].ev.NID); err != nil {
				return err
			}
		}
		if en.whole != nil {
			if err := en.whole.store(ctx, tx, en); err != nil {
				return err
			}
		}
		if en.extra != nil {
			if err := en.extra(ctx, tx); err != nil {
				return err
			}
		}
	}
	return nil
}

func (w *batchWrite) step(n int, f func() error) error {
	if n == 0 {
		return nil
	}
	return f()
}
