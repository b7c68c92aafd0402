package feed

// encode writes the response in the dialect of its request.
func (r *slidingResponse) encode(pos slidingPos) ([]byte, error) {
	e := &encoder{b: make([]byte, 0, 2048)}
	e.open('{')
	e.key("pos")
	e.str(pos.String())
	if len(r.counts) > 0 {
		e.object("lists", func() {
			for i, n := range r.counts {
				e.object(r.q.Lists[i].key, func() {
					e.key("count")
					e.int(int64(n))
				})
			}
		})
	}
	e.object("rooms", func() {
		for _, room := range r.rooms {
			e.object(string(room.room), func() { room.encode(e, r.q) })
		}
	})
	var err error
	e.object("extensions", func() { err = r.extensions.encode(e) })
	e.close('}')
	return e.b, err
}

// encode writes a room. What the dialects do not share is here, all of it.
func (r *roomResult) encode(e *encoder, q *SlidingRequest) {
	stripped, expanded := "stripped_state", "expanded_timeline"
	if q.Dialect == Unstable {
		stripped, expanded = "invite_state", "unstable_expanded_timeline"
	}
	if q.Dialect == Stable {
		e.key("membership")
		e.str(r.membership)
		if !r.lists.empty() {
			e.key("lists")
			e.open('[')
			for n := range q.Lists {
				if r.lists.has(n) {
					e.str(q.Lists[n].key)
				}
			}
			e.close(']')
		}
	}
	if r.initial {
		e.flag("initial", true)
	}
	if r.bumpStamp != 0 {
		e.key("bump_stamp")
		e.int(int64(r.bumpStamp))
	}
	if r.dm != nil {
		e.flag("is_dm", *r.dm)
	}
	if r.stripped != nil {
		encodeList(e, stripped, r.stripped)
		return
	}
	r.name.encode(e, "name")
	r.avatar.encode(e, "avatar")
	r.encodeHeroes(e)
	if r.summary != nil {
		e.key("joined_count")
		e.int(int64(r.summary.Joined))
		e.key("invited_count")
		e.int(int64(r.summary.Invited))
	}
	r.encodeState(e, q.Dialect)
	if r.prevBatch != "" {
		encodeList(e, "timeline", r.timeline)
		e.flag("limited", r.limited)
		if r.expanded {
			e.flag(expanded, true)
		}
		e.key("num_live")
		e.int(int64(r.numLive))
		e.key("prev_batch")
		e.str(r.prevBatch)
	}
	if r.unread != nil {
		r.unread.total().encode(e)
	}
}

func (t changedText) encode(e *encoder, key string) {
	if !t.changed {
		return
	}
	e.key(key)
	if t.text == "" {
		e.raw([]byte("null"))
		return
	}
	e.str(t.text)
}

func (r *roomResult) encodeHeroes(e *encoder) {
	if len(r.heroes) == 0 {
		return
	}
	e.key("heroes")
	e.open('[')
	for _, h := range r.heroes {
		e.sep()
		e.open('{')
		e.key("user_id")
		e.str(string(h.user))
		for _, m := range [][2]string{{"displayname", h.displayname}, {"avatar_url", h.avatar}} {
			if m[1] != "" {
				e.key(m[0])
				e.str(m[1])
			}
		}
		e.close('}')
	}
	e.close(']')
}

// encodeState writes state events, and stubs for state that is gone: the unstable dialect has no way to say that.
func (r *roomResult) encodeState(e *encoder, d Dialect) {
	deleted := r.deleted
	if d == Unstable {
		deleted = nil
	}
	if len(r.state)+len(deleted) == 0 {
		return
	}
	e.key("required_state")
	e.open('[')
	for _, ev := range r.state {
		e.raw(ev)
	}
	for _, k := range deleted {
		e.sep()
		e.open('{')
		e.key("type")
		e.str(k.Type)
		e.key("state_key")
		e.str(k.Key)
		e.close('}')
	}
	e.close(']')
}
