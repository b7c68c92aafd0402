package simulation

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"hanok/matrix"
	"hanok/matrix/roomversion"
	"hanok/rooms"
)

var versions = []roomversion.ID{"1", "2", "3", "4", "5", "6", "7", "8", "9", "10", "10", "11", "11", "11", "12", "12", "12", "12"}

// prepare makes a room or two before anything breaks, with some of the users in it.
func (w *world) prepare() {
	for range 1 + w.random.IntN(2) {
		u := w.someone()
		w.create(u, "public_chat")
		w.acting.Wait()
		r := w.someRoom()
		if r == nil {
			continue
		}
		for _, other := range w.users {
			if other != u && w.random.IntN(3) > 0 {
				w.member(other, r, "join", nil)
				w.acting.Wait()
			}
		}
		if trusted := w.someone(); trusted != u {
			w.powerLevels(u, r, trusted, 50)
			w.acting.Wait()
		}
	}
}

// operation has somebody do something. It may well be refused.
func (w *world) operation() {
	u, other, r := w.someone(), w.someone(), w.someRoom()
	if u.s.current() == nil || r == nil {
		return
	}
	if w.random.IntN(3) == 0 { // those who may do most do most
		if r.creator.s.current() != nil {
			u = r.creator
		}
	}
	switch n := w.random.IntN(116); {
	case n >= 114:
		w.rejectInvite(u, r)
	case n >= 112:
		w.alias(u, r)
	case n >= 109:
		w.joinByAlias(u, r)
	case n >= 106:
		w.claimKey(u, other)
	case n >= 103:
		w.schedule(u, r)
	case n >= 100:
		w.readUp(u, r)
	case n < 18:
		w.say(u, r)
	case n < 28:
		w.member(u, r, "join", nil)
	case n < 31:
		w.member(u, r, "leave", nil)
	case n < 34:
		w.member(u, r, "knock", nil)
	case n < 42:
		w.member(u, r, "invite", other)
	case n < 46:
		w.member(u, r, "kick", other)
	case n < 49:
		w.member(u, r, "ban", other)
	case n < 52:
		w.member(u, r, "unban", other)
	case n < 57:
		w.powerLevels(u, r, other, []int{0, 50, 50, 100}[w.random.IntN(4)])
	case n < 63:
		w.set(u, r, []string{"m.room.topic", "m.room.name"}[w.random.IntN(2)], "")
	case n < 67:
		w.joinRules(u, r)
	case n < 69:
		w.serverACL(u, r)
	case n < 72:
		w.redact(u, r)
	case n < 73:
		w.upgrade(u, r)
	case n < 74:
		w.create(u, []string{"public_chat", "private_chat", "trusted_private_chat"}[w.random.IntN(3)])
	case n < 84:
		w.toDevice(u, other)
	case n < 89:
		w.device(u)
	default:
		w.sync(u)
	}
}

// perform runs an operation of a user and notes what came of it. acked is called if the user was told that
// it succeeded.
func (w *world) perform(u *user, what string, do func(ctx context.Context, p *process) (matrix.EventID, error), acked func(matrix.EventID)) {
	p := u.s.current()
	if p == nil {
		return
	}
	w.trace.add("%s %s", u, what)
	w.act(func(ctx context.Context) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		defer context.AfterFunc(p.life, cancel)()
		id, err := do(ctx, p)
		if p.dead.Load() {
			w.trace.add("%s %s: the server died", u, what)
			return
		}
		if err != nil {
			w.trace.add("%s %s: %v", u, what, err)
			if _, refused := matrix.AsError(err); !refused && ctx.Err() == nil {
				w.fail("%s %s: %v", u, what, err)
			}
			return
		}
		w.trace.add("%s %s: done %s", u, what, id)
		if acked != nil {
			acked(id)
		}
	})
}

// note remembers an event that was acknowledged.
func (w *world) note(u *user, r *room, what string) func(matrix.EventID) {
	return func(id matrix.EventID) {
		if id == "" {
			return
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		r.acked = append(r.acked, ackedEvent{u, id, what})
		r.spoken[u.s] = true
	}
}

func (w *world) create(u *user, preset string) {
	q := rooms.CreateRequest{Creator: u.id, Preset: preset, Version: versions[w.random.IntN(len(versions))]}
	if preset != "public_chat" {
		for range w.random.IntN(3) {
			q.Invite = append(q.Invite, w.someone().id)
		}
	}
	var id matrix.RoomID
	w.perform(u, fmt.Sprintf("creates %s of version %s, inviting %s", preset, q.Version, q.Invite), func(ctx context.Context, p *process) (_ matrix.EventID, err error) {
		id, err = p.rooms.CreateRoom(ctx, q)
		return "", err
	}, func(matrix.EventID) {
		r := &room{id: id, version: q.Version, creator: u}
		w.addRoom(r)
		for _, invited := range w.users { // the room is made also if it is not known whether an invite arrived
			if slices.Contains(q.Invite, invited.id) {
				r.doubtful[invited] = true
			}
		}
	})
}

func (w *world) say(u *user, r *room) {
	text := fmt.Sprint("m", w.random.IntN(1_000_000))
	for w.said[text] { // what is shown twice is a failure
		text = fmt.Sprint("m", w.random.IntN(1_000_000))
	}
	w.said[text] = true
	what := fmt.Sprintf("says %q in %s", text, r.name)
	var sticky *int64
	if w.random.IntN(4) == 0 {
		ms := w.between(time.Second, time.Hour).Milliseconds()
		sticky = &ms
	}
	w.perform(u, what, func(ctx context.Context, p *process) (matrix.EventID, error) {
		return p.rooms.Send(ctx, textEvent(u, r, text, sticky))
	}, w.note(u, r, what))
}

func textEvent(u *user, r *room, text string, sticky *int64) rooms.SendRequest {
	return rooms.SendRequest{Room: r.id, Sender: u.id, Type: "m.room.message", Sticky: sticky, Content: fmt.Appendf(nil, `{"msgtype":"m.text","body":%q}`, text)}
}

func (w *world) set(u *user, r *room, eventType, content string) {
	if content == "" {
		content = fmt.Sprintf(`{%q:"%d"}`, strings.TrimPrefix(eventType, "m.room."), w.random.IntN(1_000_000))
	}
	what := fmt.Sprintf("sets %s of %s to %s", eventType, r.name, content)
	key := ""
	w.perform(u, what, func(ctx context.Context, p *process) (matrix.EventID, error) {
		return p.rooms.Send(ctx, rooms.SendRequest{Room: r.id, Sender: u.id, Type: eventType, StateKey: &key, Content: []byte(content)})
	}, w.note(u, r, what))
}

func (w *world) powerLevels(u *user, r *room, other *user, level int) {
	var levels []string
	if r.version != "12" {
		levels = append(levels, fmt.Sprintf(`%q:100`, r.creator.id))
	}
	if other != r.creator {
		levels = append(levels, fmt.Sprintf(`%q:%d`, other.id, level))
	}
	invite := []int{0, 0, 50}[w.random.IntN(3)]
	w.set(u, r, "m.room.power_levels", fmt.Sprintf(`{"users":{%s},"state_default":50,"ban":50,"kick":50,"redact":50,"invite":%d,"events":{"m.room.topic":%d}}`,
		strings.Join(levels, ","), invite, []int{0, 50}[w.random.IntN(2)]))
}

func (w *world) joinRules(u *user, r *room) {
	allow := w.someRoom()
	w.set(u, r, "m.room.join_rules", []string{
		`{"join_rule":"public"}`, `{"join_rule":"invite"}`, `{"join_rule":"knock"}`,
		fmt.Sprintf(`{"join_rule":"restricted","allow":[{"type":"m.room_membership","room_id":%q}]}`, allow.id),
		fmt.Sprintf(`{"join_rule":"knock_restricted","allow":[{"type":"m.room_membership","room_id":%q}]}`, allow.id),
	}[w.random.IntN(5)])
}

func (w *world) serverACL(u *user, r *room) {
	deny := ""
	if s := w.someServer(); s != r.creator.s && s != u.s && w.random.IntN(3) > 0 {
		deny = fmt.Sprintf("%q", s.name.Host())
		w.mu.Lock()
		r.excluded[s] = true
		w.mu.Unlock()
	}
	w.set(u, r, "m.room.server_acl", fmt.Sprintf(`{"allow":["*"],"deny":[%s],"allow_ip_literals":false}`, deny))
}

// member changes the membership of target, or of u itself.
func (w *world) member(u *user, r *room, verb string, target *user) {
	q := rooms.MemberRequest{Room: r.id, Sender: u.id}
	what := verb + "s " + r.name
	if target != nil {
		q.Target = target.id
		what = fmt.Sprintf("%ss %s in %s", verb, target, r.name)
	}
	q.Via = []matrix.ServerName{r.creator.s.name, w.someServer().name, w.someServer().name}
	w.perform(u, what, func(ctx context.Context, p *process) (matrix.EventID, error) {
		switch verb {
		case "join":
			id, err := p.rooms.Join(ctx, q)
			w.doubt(r, u, p, err)
			return id, err
		case "leave":
			w.leaves(r, u)
			id, err := p.rooms.Leave(ctx, q)
			w.doubt(r, u, p, err)
			return id, err
		case "knock":
			id, err := p.rooms.Knock(ctx, q)
			w.doubt(r, u, p, err)
			return id, err
		case "invite":
			id, err := p.rooms.Invite(ctx, q)
			w.doubt(r, target, p, err)
			return id, err
		case "kick":
			w.leaves(r, target)
			return p.rooms.Kick(ctx, q)
		case "ban":
			w.leaves(r, target)
			return p.rooms.Ban(ctx, q)
		case "unban":
			return p.rooms.Unban(ctx, q)
		}
		return "", errors.New("no such verb")
	}, w.note(u, r, what))
}

// leaves notes that a user's server may be out of the room for a while.
func (w *world) leaves(r *room, u *user) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r.left[u.s] = true
}

// rejectInvite has a user leave a room that it was invited to, or another one.
func (w *world) rejectInvite(u *user, r *room) {
	w.mu.Lock()
	all := slices.Clone(w.rooms)
	w.mu.Unlock()
	p := u.s.current()
	for _, other := range all {
		if m, err := p.rooms.MembershipOf(p.life, other.id, u.id); err == nil && m.Membership == "invite" {
			r = other
		}
	}
	w.member(u, r, "leave", nil)
}

// alias gives a room an alias on the server of who does it.
func (w *world) alias(u *user, r *room) {
	alias := matrix.RoomAlias(fmt.Sprintf("#a%d:%s", w.random.IntN(1_000_000), u.s.name))
	w.perform(u, fmt.Sprintf("gives %s the alias %s", r.name, alias), func(ctx context.Context, p *process) (matrix.EventID, error) {
		return "", p.rooms.CreateAlias(ctx, u.id, alias, r.id, false)
	}, func(matrix.EventID) {
		w.mu.Lock()
		defer w.mu.Unlock()
		r.aliases = append(r.aliases, alias)
	})
}

// joinByAlias joins a room of which nothing is known but an alias.
func (w *world) joinByAlias(u *user, r *room) {
	w.mu.Lock()
	var alias matrix.RoomAlias
	if n := len(r.aliases); n > 0 {
		alias = r.aliases[w.random.IntN(n)]
	}
	w.mu.Unlock()
	if alias == "" {
		w.alias(u, r)
		return
	}
	what := fmt.Sprintf("joins %s by its alias %s", r.name, alias)
	w.perform(u, what, func(ctx context.Context, p *process) (matrix.EventID, error) {
		id, via, err := p.rooms.ResolveAlias(ctx, alias)
		if err != nil {
			return "", err
		}
		if id != r.id {
			w.mu.Lock()
			upgraded := r.upgraded
			w.mu.Unlock()
			if !upgraded {
				w.fail("%s leads to %s, not to %s", alias, id, r.name)
			}
			return "", matrix.NotFound("the alias leads to what has replaced the room")
		}
		event, err := p.rooms.Join(ctx, rooms.MemberRequest{Room: id, Sender: u.id, Via: via})
		w.doubt(r, u, p, err)
		return event, err
	}, w.note(u, r, what))
}

// doubt notes that a user's membership may have changed at another server, though nobody was told here.
func (w *world) doubt(r *room, u *user, p *process, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err != nil || p.dead.Load() {
		r.doubtful[u] = true
	}
}

// redact takes an event that was acknowledged back.
func (w *world) redact(u *user, r *room) {
	w.mu.Lock()
	var target matrix.EventID
	if len(r.acked) > 0 {
		// A server ACL without content would shut everybody out.
		if a := r.acked[w.random.IntN(len(r.acked))]; !strings.Contains(a.what, "server_acl") {
			target = a.id
		}
	}
	w.mu.Unlock()
	if target == "" {
		return
	}
	what := fmt.Sprintf("redacts %s in %s", target, r.name)
	w.perform(u, what, func(ctx context.Context, p *process) (matrix.EventID, error) {
		return p.rooms.Redact(ctx, rooms.SendRequest{Room: r.id, Sender: u.id, Redacts: target}, "")
	}, w.note(u, r, what))
}

func (w *world) upgrade(u *user, r *room) {
	q := rooms.UpgradeRequest{Room: r.id, Sender: u.id, Version: versions[w.random.IntN(len(versions))]}
	var id matrix.RoomID
	w.mu.Lock()
	r.upgraded = true
	w.mu.Unlock()
	w.perform(u, fmt.Sprintf("upgrades %s to version %s", r.name, q.Version), func(ctx context.Context, p *process) (_ matrix.EventID, err error) {
		id, err = p.rooms.Upgrade(ctx, q)
		return "", err
	}, func(matrix.EventID) { w.addRoom(&room{id: id, version: q.Version, creator: u}) })
}

func (w *world) sync(u *user) {
	w.perform(u, "syncs", func(ctx context.Context, p *process) (matrix.EventID, error) { return "", u.client.sync(ctx, p) }, nil)
}
