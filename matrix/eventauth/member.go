package eventauth

import (
	"hanok/matrix"
	"hanok/matrix/canonicaljson"
)

// member checks an m.room.member event.
// spec: rooms/v12#authorisation-rules 5
// spec: rooms/v6#authorisation-rules 4
func (c *check) member() error {
	target, ok := c.e.StateKey()
	if !ok {
		return c.reject(memberFormat, "the membership event has no state key")
	}
	if _, ok := canonicaljson.Get(c.e.Content(), "membership"); !ok {
		return c.reject(memberFormat, "the membership event has no membership")
	}
	if c.v.Restricted {
		if err := c.authorisedJoin(); err != nil {
			return err
		}
	}
	membership := c.e.Membership()
	switch {
	case membership == "join":
		return c.join(target)
	case membership == "invite":
		return c.invite(target)
	case membership == "leave":
		return c.leave(target)
	case membership == "ban":
		return c.ban(target)
	case membership == "knock" && c.v.Knock:
		return c.knock(target)
	}
	return c.reject(memberUnknown, "the membership is not known")
}

// authorisedJoin requires that the authorising user is one. That their server
// signed the event is for event.Event's RequiredSigners.
// spec: rooms/v12#authorisation-rules 5.2.1
func (c *check) authorisedJoin() error {
	if _, ok := canonicaljson.Get(c.e.Content(), "join_authorised_via_users_server"); !ok {
		return nil
	}
	user, _ := c.e.ContentString("join_authorised_via_users_server")
	if _, err := matrix.ParseUserID(user); err != nil {
		return c.reject(memberAuthorisedSignature, "join_authorised_via_users_server is no user ID, so no server can have signed for it")
	}
	return nil
}

// join: spec: rooms/v12#authorisation-rules 5.3
func (c *check) join(target string) error {
	prev := c.e.PrevEvents()
	if len(prev) == 1 && prev[0] == c.create.ID() && isCreator(c.create, target) {
		return nil
	}
	if string(c.e.Sender()) != target {
		return c.reject(joinSender, "only a user can join themselves")
	}
	current, err := c.membership(target)
	if err != nil {
		return err
	}
	if current == "ban" {
		return c.reject(joinBanned, "the user is banned")
	}
	rule, err := c.joinRule()
	if err != nil {
		return err
	}
	invited := current == "join" || current == "invite"
	switch {
	case rule == "invite", rule == "knock" && c.v.Knock:
		if invited {
			return nil
		}
	case rule == "restricted" && c.v.Restricted, rule == "knock_restricted" && c.v.KnockRestricted:
		if invited {
			return nil
		}
		return c.restrictedJoin()
	case rule == "public":
		return nil
	}
	return c.reject(joinOtherwise, "the room's join rule does not let the user in without an invite")
}

// restrictedJoin: spec: rooms/v12#authorisation-rules 5.3.5.2
func (c *check) restrictedJoin() error {
	user, ok := c.e.ContentString("join_authorised_via_users_server")
	if !ok {
		return c.reject(restrictedAuthoriser, "no user of the room authorised the join")
	}
	membership, err := c.membership(user)
	if err != nil {
		return err
	}
	if membership != "join" || c.levels.User(matrix.UserID(user)) < c.levels.Invite() {
		return c.reject(restrictedAuthoriser, "the user who authorised the join is not in the room or may not invite")
	}
	return nil
}

// joinRule is the room's join rule. A room without one is invite-only, also if it
// has an event that states none.
// spec: client-server-api#mroomjoin_rules
func (c *check) joinRule() (string, error) {
	e, err := c.state.StateEvent(typeJoinRules, "")
	if err != nil {
		return "", err
	}
	if e == nil {
		return "invite", nil
	}
	raw, ok := canonicaljson.Get(e.Content(), "join_rule")
	if !ok {
		return "invite", nil
	}
	rule, _ := canonicaljson.String(raw)
	return rule, nil
}

// invite: spec: rooms/v12#authorisation-rules 5.4
func (c *check) invite(target string) error {
	if invite, ok := canonicaljson.Get(c.e.Content(), "third_party_invite"); ok {
		return c.thirdPartyInvite(target, invite)
	}
	if err := c.senderJoined(inviteSender); err != nil {
		return err
	}
	current, err := c.membership(target)
	if err != nil {
		return err
	}
	if current == "join" || current == "ban" {
		return c.reject(inviteTarget, "the invited user is in the room or banned")
	}
	if c.levels.User(c.e.Sender()) >= c.levels.Invite() {
		return nil
	}
	return c.reject(inviteOtherwise, "the sender's level does not suffice to invite")
}

// leave: spec: rooms/v12#authorisation-rules 5.5
func (c *check) leave(target string) error {
	current, err := c.membership(target)
	if err != nil {
		return err
	}
	if string(c.e.Sender()) == target {
		switch {
		case current == "invite", current == "join", current == "knock" && c.v.Knock:
			return nil
		}
		return c.reject(leaveSelf, "the user is neither in the room nor invited")
	}
	if err := c.senderJoined(leaveSender); err != nil {
		return err
	}
	own := c.levels.User(c.e.Sender())
	if current == "ban" && own < c.levels.Ban() {
		return c.reject(leaveUnban, "the sender's level does not suffice to lift a ban")
	}
	if own >= c.levels.Kick() && c.levels.User(matrix.UserID(target)) < own {
		return nil
	}
	return c.reject(leaveOtherwise, "the sender's level does not suffice to remove this user")
}

// ban: spec: rooms/v12#authorisation-rules 5.6
func (c *check) ban(target string) error {
	if err := c.senderJoined(banSender); err != nil {
		return err
	}
	own := c.levels.User(c.e.Sender())
	if own >= c.levels.Ban() && c.levels.User(matrix.UserID(target)) < own {
		return nil
	}
	return c.reject(banOtherwise, "the sender's level does not suffice to ban this user")
}

// knock: spec: rooms/v12#authorisation-rules 5.7
func (c *check) knock(target string) error {
	rule, err := c.joinRule()
	if err != nil {
		return err
	}
	if rule != "knock" && !(rule == "knock_restricted" && c.v.KnockRestricted) {
		return c.reject(knockJoinRule, "the room's join rule does not allow to knock")
	}
	if string(c.e.Sender()) != target {
		return c.reject(knockSender, "only a user can knock for themselves")
	}
	current, err := c.membership(target)
	if err != nil {
		return err
	}
	switch current {
	case "ban", "invite", "join":
		return c.reject(knockOtherwise, "the user is in the room, invited or banned")
	}
	return nil
}

// senderJoined rejects, by the given rule, unless the sender is in the room.
func (c *check) senderJoined(r rule) error {
	membership, err := c.membership(string(c.e.Sender()))
	if err != nil {
		return err
	}
	if membership != "join" {
		return c.reject(r, "the sender is not in the room")
	}
	return nil
}
