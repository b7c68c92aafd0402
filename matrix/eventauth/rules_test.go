package eventauth

import (
	"crypto/ed25519"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
	"hanok/matrix/signing"
)

// row is one line of the tables: in the room as changed by given, the event is
// allowed or rejected by the rule, in every version that has the rule.
type row struct {
	rule  rule
	ok    bool
	name  string
	given func(*room)
	event func(*room) spec
	in    func(*roomversion.Version) bool
}

func good(r rule, name string, given func(*room), s spec) row {
	return row{r, true, name, given, func(*room) spec { return s }, nil}
}

func bad(r rule, name string, given func(*room), s spec) row {
	return row{r, false, name, given, func(*room) spec { return s }, nil}
}

// only restricts a row to some of the versions that have its rule.
func (r row) only(in func(*roomversion.Version) bool) row {
	r.in = in
	return r
}

// with changes the event in the room.
func (r row) with(change func(*room, *spec)) row {
	event := r.event
	r.event = func(room *room) spec {
		s := event(room)
		change(room, &s)
		return s
	}
	return r
}

func not(in func(*roomversion.Version) bool) func(*roomversion.Version) bool {
	return func(v *roomversion.Version) bool { return !in(v) }
}

func and(a, b func(*roomversion.Version) bool) func(*roomversion.Version) bool {
	return func(v *roomversion.Version) bool { return a(v) && b(v) }
}

func knockRestricted(v *roomversion.Version) bool    { return v.KnockRestricted }
func notificationLevels(v *roomversion.Version) bool { return v.NotificationLevels }

func is(s spec) func(*room)             { return func(r *room) { r.put(s) } }
func joinRule(rule string) func(*room)  { return is(joinRules(rule)) }
func levelsAre(json string) func(*room) { return is(powerLevels(alice, json)) }
func created(json string) func(*room)   { return func(r *room) { r.putCreate(json) } }
func without(kind string, keys ...string) func(*room) {
	return func(r *room) {
		for _, key := range append(keys, "") {
			r.drop(kind, key)
		}
	}
}

func all(changes ...func(*room)) func(*room) {
	return func(r *room) {
		for _, change := range changes {
			change(r)
		}
	}
}

func content(s spec, json string) spec {
	s.content = json
	return s
}

func creation(json string) spec {
	return spec{sender: alice, kind: typeCreate, content: json, prev: []matrix.EventID{}}
}

// inOwnRoom gives a create event the room ID that its version asks for.
func inOwnRoom(r *room, s *spec) {
	if r.create = nil; !r.v.RoomIDIsCreateHash && s.roomID == "" {
		s.roomID = "!new:a"
	}
}

// afterCreate makes the create event the only event before.
func afterCreate(r *room, s *spec) { s.prev = []matrix.EventID{r.create.ID()} }

func createRows() []row {
	rows := []row{
		good(createAllow, "plain", nil, creation(`{"creator":"@alice:a"}`)),
		good(createAllow, "known version", nil, creation(`{"creator":"@alice:a","room_version":"1"}`)),
		good(createAllow, "implicit creator", nil, creation(`{}`)).only(not(explicitCreator)),
		good(createAllow, "no additional creators", nil, creation(`{"additional_creators":[]}`)).only(privilegedCreators),
		good(createAllow, "additional creators", nil, creation(`{"additional_creators":["@bob:b","@:c"]}`)).only(privilegedCreators),
		good(createAllow, "not a rule yet", nil, creation(`{"additional_creators":7,"creator":""}`)).only(not(privilegedCreators)),
		bad(createPrevEvents, "prev_events", nil, creation(`{"creator":"@alice:a"}`)).with(func(r *room, s *spec) {
			s.prev = []matrix.EventID{r.some()}
		}),
		bad(createRoomDomain, "room of another server", nil, creation(`{"creator":"@alice:a"}`)).with(func(r *room, s *spec) {
			s.roomID = "!room:b"
		}),
		bad(createVersion, "unknown version", nil, creation(`{"creator":"@alice:a","room_version":"unknown"}`)),
		bad(createVersion, "version of a wrong type", nil, creation(`{"creator":"@alice:a","room_version":1}`)),
		bad(createVersion, "no version", nil, creation(`{"creator":"@alice:a","room_version":null}`)),
		bad(createCreator, "no creator", nil, creation(`{}`)),
		bad(createAdditionalCreators, "string", nil, creation(`{"additional_creators":"@bob:b"}`)),
		bad(createAdditionalCreators, "object", nil, creation(`{"additional_creators":{}}`)),
		bad(createAdditionalCreators, "null", nil, creation(`{"additional_creators":null}`)),
		bad(createAdditionalCreators, "number inside", nil, creation(`{"additional_creators":["@bob:b",1]}`)),
		bad(createAdditionalCreators, "not a user ID", nil, creation(`{"additional_creators":["@bob:b","bob"]}`)),
		bad(createAdditionalCreators, "no domain", nil, creation(`{"additional_creators":["@bob"]}`)),
		bad(createAdditionalCreators, "domain that is none", nil, creation(`{"additional_creators":["@bob:b c"]}`)),
		bad(createAdditionalCreators, "too long", nil, creation(`{"additional_creators":["@`+strings.Repeat("b", 255)+`:b"]}`)),
	}
	for i := range rows {
		rows[i] = rows[i].with(inOwnRoom)
	}
	return rows
}

func roomRows() []row {
	closed := created(`{"creator":"@alice:a","m.federate":false}`)
	return []row{
		bad(ruleRoomID, "no create event", without(typeCreate), message(carol, "m.room.message")),
		bad(ruleRoomID, "another create event", func(r *room) {
			was := r.create
			r.putCreate(`{"x":1}`)
			r.create = was
		}, message(carol, "m.room.message")),
		bad(authNoCreate, "no create event", without(typeCreate), message(carol, "m.room.message")),

		bad(ruleFederate, "other server", closed, message(bob, "m.room.message")),
		bad(ruleFederate, "join from other server", closed, member(dave, dave, "join")),
		good(ruleAllow, "own server", closed, message(alice, "m.room.message")),
		good(ruleAllow, "federates", created(`{"creator":"@alice:a","m.federate":true}`), message(bob, "m.room.message")),
		good(ruleAllow, "not false", created(`{"creator":"@alice:a","m.federate":"false"}`), message(bob, "m.room.message")),

		bad(aliasesStateKey, "no state key", nil, message(dave, typeAliases)),
		bad(aliasesDomain, "other server", nil, spec{sender: bob, kind: typeAliases, stateKey: "a"}),
		bad(aliasesDomain, "user ID", nil, spec{sender: bob, kind: typeAliases, stateKey: bob}),
		good(aliasesAllow, "own server, not in the room", nil, spec{sender: dave, kind: typeAliases, stateKey: "d"}),
		bad(ruleRequiredLevel, "aliases are like others", nil, spec{sender: carol, kind: typeAliases, stateKey: "c"}).only(not(aliasesAuth)),
		bad(ruleJoined, "aliases are like others", nil, spec{sender: dave, kind: typeAliases, stateKey: "d"}).only(not(aliasesAuth)),
		good(ruleAllow, "aliases are like others", nil, spec{sender: bob, kind: typeAliases, stateKey: "a"}).only(not(aliasesAuth)),

		bad(ruleJoined, "stranger", nil, message(dave, "m.room.message")),
		bad(ruleJoined, "invited", nil, message(erin, "m.room.message")),
		bad(ruleJoined, "banned", nil, message(frank, "m.room.message")),
		bad(ruleJoined, "left", nil, message(hugo, "m.room.message")),
		good(ruleAllow, "member", nil, message(carol, "m.room.message")),

		good(thirdPartyInviteLevel, "invite level, not state_default", nil, spec{sender: carol, kind: typeThirdPartyInvite, stateKey: "token"}),
		good(thirdPartyInviteLevel, "just enough", levelsAre(`{"users":{"@alice:a":100,"@bob:b":50},"invite":50}`),
			spec{sender: bob, kind: typeThirdPartyInvite, stateKey: "token"}),
		bad(thirdPartyInviteLevel, "not enough", levelsAre(`{"users":{"@alice:a":100,"@bob:b":50},"invite":51}`),
			spec{sender: bob, kind: typeThirdPartyInvite, stateKey: "token"}),

		good(ruleRequiredLevel, "state_default is 50", nil, spec{sender: bob, kind: "m.room.topic"}),
		bad(ruleRequiredLevel, "state_default is 50", nil, spec{sender: carol, kind: "m.room.topic"}),
		bad(ruleRequiredLevel, "state_default is 50 without power levels", without(typePowerLevels), spec{sender: bob, kind: "m.room.topic"}),
		good(ruleRequiredLevel, "the creator has power without power levels", without(typePowerLevels), spec{sender: alice, kind: "m.room.topic"}),
		good(ruleRequiredLevel, "events_default is 0 without power levels", without(typePowerLevels), message(carol, "m.room.message")),
		good(ruleRequiredLevel, "events has the type", levelsAre(`{"users":{"@alice:a":100,"@bob:b":50},"events":{"m.room.topic":0}}`),
			spec{sender: carol, kind: "m.room.topic"}),
		bad(ruleRequiredLevel, "events has the type", levelsAre(`{"users":{"@alice:a":100,"@bob:b":50},"events":{"m.room.message":1}}`),
			message(carol, "m.room.message")),
		bad(ruleRequiredLevel, "events_default", levelsAre(`{"users":{"@alice:a":100,"@bob:b":50},"events_default":51}`), message(bob, "m.room.message")),
		good(ruleRequiredLevel, "users_default", levelsAre(`{"users":{"@alice:a":100,"@bob:b":50},"users_default":50}`), spec{sender: carol, kind: "m.room.topic"}),
		bad(ruleRequiredLevel, "users before users_default", levelsAre(`{"users":{"@alice:a":100,"@bob:b":49},"users_default":50}`), spec{sender: bob, kind: "m.room.topic"}),
		bad(ruleRequiredLevel, "the redact level gives nothing", levelsAre(`{"users":{"@alice:a":100,"@bob:b":50},"events":{"m.room.redaction":60},"redact":0}`),
			message(bob, typeRedaction)),

		bad(ruleUserStateKey, "another user", nil, spec{sender: bob, kind: "org.example", stateKey: carol}),
		bad(ruleUserStateKey, "looks like a user", nil, spec{sender: bob, kind: "org.example", stateKey: "@"}),
		good(ruleUserStateKey, "oneself", nil, spec{sender: bob, kind: "org.example", stateKey: bob}),
		good(ruleUserStateKey, "no user", nil, spec{sender: bob, kind: "org.example", stateKey: "bob@"}),

		good(redactionLevel, "level", nil, message(bob, typeRedaction)).with(redacts("$x:a")),
		good(redactionDomain, "own server", nil, message(carol, typeRedaction)).with(redacts("$x:c")),
		bad(redactionOtherwise, "other server", nil, message(carol, typeRedaction)).with(redacts("$x:a")),
		bad(redactionOtherwise, "nothing", nil, message(carol, typeRedaction)),
		bad(redactionOtherwise, "level is not enough", levelsAre(`{"users":{"@alice:a":100,"@bob:b":50},"redact":51}`),
			message(bob, typeRedaction)).with(redacts("$x:a")),
		good(ruleAllow, "redactions are like others", nil, message(carol, typeRedaction)).only(not(redactionAuth)),
	}
}

func redacts(id matrix.EventID) func(*room, *spec) {
	return func(_ *room, s *spec) { s.redacts = id }
}

func memberRows() []row {
	invite50 := levelsAre(`{"users":{"@alice:a":100,"@bob:b":50},"invite":50}`)
	ban60 := levelsAre(`{"users":{"@alice:a":100,"@bob:b":50},"ban":60}`)
	equal := levelsAre(`{"users":{"@alice:a":100,"@bob:b":50,"@carol:c":50}}`)
	empty := all(without(typeMember, alice, bob, carol), without(typeJoinRules), without(typePowerLevels))
	authorised := func(by string) spec {
		return content(member(dave, dave, "join"), `{"membership":"join","join_authorised_via_users_server":`+by+`}`)
	}
	rows := []row{
		bad(memberFormat, "no state key", nil, spec{sender: bob, kind: typeMember, stateKey: "-", content: `{"membership":"join"}`}),
		bad(memberFormat, "no membership", nil, spec{sender: bob, kind: typeMember, stateKey: bob}),
		bad(memberUnknown, "not a string", nil, spec{sender: bob, kind: typeMember, stateKey: bob, content: `{"membership":1}`}),
		bad(memberUnknown, "not known", nil, member(bob, bob, "party")),
		bad(memberUnknown, "no knocking yet", joinRule("knock"), member(dave, dave, "knock")).only(not(knock)),

		bad(memberAuthorisedSignature, "not a user ID", nil, authorised(`"bob"`)),
		bad(memberAuthorisedSignature, "not a string", nil, authorised(`{}`)),
		bad(memberAuthorisedSignature, "in any membership", nil,
			content(member(bob, bob, "leave"), `{"membership":"leave","join_authorised_via_users_server":7}`)),
		good(memberAuthorisedSignature, "a user ID", nil, authorised(`"@bob:b"`)),
		good(joinPublic, "not a rule yet", nil, authorised(`"bob"`)).only(not(restricted)),

		good(joinCreator, "first", empty, member(alice, alice, "join")).with(afterCreate),
		good(joinCreator, "whoever says so", empty, member(bob, alice, "join")).with(afterCreate),
		good(joinCreator, "named by the event", all(created(`{"creator":"@carol:c"}`), empty), member(carol, carol, "join")).
			with(afterCreate).only(explicitCreator),
		bad(joinOtherwise, "the sender is not the creator", all(created(`{"creator":"@carol:c"}`), empty), member(alice, alice, "join")).
			with(afterCreate).only(explicitCreator),
		bad(joinOtherwise, "the event has no say", all(created(`{"creator":"@carol:c"}`), empty), member(carol, carol, "join")).
			with(afterCreate).only(not(explicitCreator)),
		bad(joinOtherwise, "additional creators do not join first", all(created(`{"additional_creators":["@carol:c"]}`), empty),
			member(carol, carol, "join")).with(afterCreate).only(privilegedCreators),
		bad(joinOtherwise, "not the creator", empty, member(dave, dave, "join")).with(afterCreate),
		bad(joinOtherwise, "not first", empty, member(alice, alice, "join")),
		bad(joinOtherwise, "not the only event before", empty, member(alice, alice, "join")).with(func(r *room, s *spec) {
			s.prev = []matrix.EventID{r.create.ID(), r.some()}
		}),
		bad(joinSender, "somebody else", nil, member(bob, dave, "join")),
		bad(joinBanned, "banned", nil, member(frank, frank, "join")),

		good(joinInvited, "invited", joinRule("invite"), member(erin, erin, "join")),
		good(joinInvited, "there already", joinRule("invite"), member(carol, carol, "join")),
		good(joinInvited, "no join rules", without(typeJoinRules), member(erin, erin, "join")),
		good(joinInvited, "no join rule", is(spec{sender: alice, kind: typeJoinRules}), member(erin, erin, "join")),
		bad(joinOtherwise, "no join rules", without(typeJoinRules), member(dave, dave, "join")),
		bad(joinOtherwise, "no join rule", is(spec{sender: alice, kind: typeJoinRules}), member(dave, dave, "join")),
		bad(joinOtherwise, "stranger", joinRule("invite"), member(dave, dave, "join")),
		bad(joinOtherwise, "left", joinRule("invite"), member(hugo, hugo, "join")),
		good(joinInvited, "invited after a knock", joinRule("knock"), member(erin, erin, "join")).only(knock),
		bad(joinOtherwise, "knocked", joinRule("knock"), member(gina, gina, "join")).only(knock),
		bad(joinOtherwise, "no knocking yet", joinRule("knock"), member(erin, erin, "join")).only(not(knock)),

		good(joinPublic, "stranger", nil, member(dave, dave, "join")),
		good(joinPublic, "left", nil, member(hugo, hugo, "join")),
		bad(joinOtherwise, "private", joinRule("private"), member(erin, erin, "join")),
		bad(joinOtherwise, "not a string", is(spec{sender: alice, kind: typeJoinRules, content: `{"join_rule":["public"]}`}), member(erin, erin, "join")),
		bad(joinOtherwise, "no restricted rooms yet", joinRule("restricted"), member(erin, erin, "join")).only(not(restricted)),
		bad(joinOtherwise, "no such rooms yet", joinRule("knock_restricted"), member(erin, erin, "join")).only(not(knockRestricted)),

		bad(inviteSender, "stranger", nil, member(dave, hugo, "invite")),
		bad(inviteSender, "invited", nil, member(erin, hugo, "invite")),
		bad(inviteTarget, "in the room", nil, member(bob, carol, "invite")),
		bad(inviteTarget, "banned", nil, member(bob, frank, "invite")),
		good(inviteLevel, "anybody", nil, member(carol, dave, "invite")),
		good(inviteLevel, "again", nil, member(carol, erin, "invite")),
		good(inviteLevel, "just enough", invite50, member(bob, dave, "invite")),
		bad(inviteOtherwise, "not enough", invite50, member(carol, dave, "invite")),

		good(leaveSelf, "leaves", nil, member(bob, bob, "leave")),
		good(leaveSelf, "declines", nil, member(erin, erin, "leave")),
		good(leaveSelf, "takes back the knock", nil, member(gina, gina, "leave")).only(knock),
		bad(leaveSelf, "knocks do not count yet", is(member(gina, gina, "knock")), member(gina, gina, "leave")).only(not(knock)),
		bad(leaveSelf, "stranger", nil, member(dave, dave, "leave")),
		bad(leaveSelf, "left", nil, member(hugo, hugo, "leave")),
		bad(leaveSelf, "banned", nil, member(frank, frank, "leave")),
		bad(leaveSender, "stranger", nil, member(dave, carol, "leave")),
		bad(leaveSender, "invited", nil, member(erin, carol, "leave")),
		bad(leaveUnban, "not enough to unban", ban60, member(bob, frank, "leave")),
		good(leaveKick, "unban", nil, member(bob, frank, "leave")),
		bad(leaveOtherwise, "unban takes the kick level too", levelsAre(`{"users":{"@alice:a":100,"@bob:b":50},"kick":60}`), member(bob, frank, "leave")),
		good(leaveKick, "kick", nil, member(bob, carol, "leave")),
		good(leaveKick, "invite taken back", nil, member(bob, erin, "leave")),
		bad(leaveOtherwise, "no level", nil, member(carol, erin, "leave")),
		bad(leaveOtherwise, "equal", equal, member(bob, carol, "leave")),
		bad(leaveOtherwise, "above", nil, member(bob, alice, "leave")),

		bad(banSender, "stranger", nil, member(dave, carol, "ban")),
		bad(banSender, "left", nil, member(hugo, carol, "ban")),
		good(banLevel, "member", nil, member(bob, carol, "ban")),
		good(banLevel, "stranger", nil, member(bob, dave, "ban")),
		bad(banOtherwise, "no level", nil, member(carol, dave, "ban")),
		bad(banOtherwise, "not enough", ban60, member(bob, carol, "ban")),
		bad(banOtherwise, "equal", equal, member(bob, carol, "ban")),
		bad(banOtherwise, "above", nil, member(bob, alice, "ban")),

		bad(knockJoinRule, "public", nil, member(dave, dave, "knock")),
		bad(knockJoinRule, "restricted", joinRule("restricted"), member(dave, dave, "knock")),
		bad(knockJoinRule, "no join rules", without(typeJoinRules), member(dave, dave, "knock")),
		bad(knockJoinRule, "no such rooms yet", joinRule("knock_restricted"), member(dave, dave, "knock")).only(not(knockRestricted)),
		good(knockMembership, "knock_restricted", joinRule("knock_restricted"), member(dave, dave, "knock")).only(knockRestricted),
		bad(knockSender, "somebody else", joinRule("knock"), member(bob, dave, "knock")),
		good(knockMembership, "stranger", joinRule("knock"), member(dave, dave, "knock")),
		good(knockMembership, "left", joinRule("knock"), member(hugo, hugo, "knock")),
		good(knockMembership, "again", joinRule("knock"), member(gina, gina, "knock")),
		bad(knockOtherwise, "invited", joinRule("knock"), member(erin, erin, "knock")),
		bad(knockOtherwise, "in the room", joinRule("knock"), member(carol, carol, "knock")),
		bad(knockOtherwise, "banned", joinRule("knock"), member(frank, frank, "knock")),

		// spec: rooms/v12#authorisation-rules, the note on room creators
		bad(leaveOtherwise, "a creator is above all", highest(dave), member(dave, alice, "leave")).only(privilegedCreators),
		bad(banOtherwise, "an additional creator is above all", all(created(`{"additional_creators":["@carol:c"]}`), highest(dave)),
			member(dave, carol, "ban")).only(privilegedCreators),
		bad(banOtherwise, "creators are equal", created(`{"additional_creators":["@carol:c"]}`), member(carol, alice, "ban")).only(privilegedCreators),
		good(banLevel, "a creator bans all others", highest(dave), member(alice, dave, "ban")).only(privilegedCreators),
		good(banLevel, "an additional creator bans all others", all(created(`{"additional_creators":["@carol:c"]}`), highest(dave)),
			member(carol, dave, "ban")).only(privilegedCreators),
	}
	for _, rule := range []string{"restricted", "knock_restricted"} {
		in := restricted
		if rule == "knock_restricted" {
			in = knockRestricted
		}
		for _, r := range []row{
			good(restrictedMember, "invited", joinRule(rule), member(erin, erin, "join")),
			good(restrictedMember, "there already", joinRule(rule), member(carol, carol, "join")),
			bad(restrictedAuthoriser, "nobody", joinRule(rule), member(dave, dave, "join")),
			bad(restrictedAuthoriser, "not in the room", joinRule(rule), authorised(`"@erin:e"`)),
			bad(restrictedAuthoriser, "stranger", joinRule(rule), authorised(`"@dave:d"`)),
			bad(restrictedAuthoriser, "may not invite", all(joinRule(rule), invite50), authorised(`"@carol:c"`)),
			good(restrictedAllow, "may invite", all(joinRule(rule), invite50), authorised(`"@bob:b"`)),
			good(restrictedAllow, "anybody may", joinRule(rule), authorised(`"@carol:c"`)),
			bad(joinBanned, "banned", joinRule(rule), content(member(frank, frank, "join"), `{"membership":"join","join_authorised_via_users_server":"@bob:b"}`)),
		} {
			rows = append(rows, r.only(in))
		}
	}
	return append(rows, thirdPartyRows()...)
}

// highest puts a user into the room, with the highest level that can be stated.
func highest(user string) func(*room) {
	return all(is(member(user, user, "join")),
		levelsAre(fmt.Sprintf(`{"users":{"@alice:a":100,%q:9007199254740991}}`, user)))
}

func thirdPartyRows() []row {
	key := func(n byte) signing.Key {
		seed := make([]byte, ed25519.SeedSize)
		seed[0] = n
		k, err := signing.NewKey("ed25519:0", seed)
		if err != nil {
			panic(err)
		}
		return k
	}
	public := func(k signing.Key) string { return signing.EncodeBase64(k.Public()) }
	promise := func(json string) func(*room) {
		return is(spec{sender: bob, kind: typeThirdPartyInvite, stateKey: "token", content: json})
	}
	manyKeys := func(others int) string {
		list := strings.Repeat(`{"public_key":"`+public(key(2))+`"},`, others)
		return `{"public_keys":[` + list + `{"public_key":"` + public(key(1)) + `"}]}`
	}
	one := promise(`{"public_key":"` + public(key(1)) + `"}`)
	signed := func(k signing.Key, json string) string {
		b, err := k.Sign("id.example", []byte(json))
		if err != nil {
			panic(err)
		}
		return string(b)
	}
	answer := func(target, signed string) spec {
		return content(member(bob, target, "invite"), `{"membership":"invite","third_party_invite":{"display_name":"d","signed":`+signed+`}}`)
	}
	right := signed(key(1), `{"mxid":"@dave:d","token":"token"}`)
	other := answer(dave, right)
	other.sender = alice
	return []row{
		good(thirdPartySignature, "signed", one, answer(dave, right)),
		good(thirdPartySignature, "second key", promise(`{"public_key":"`+public(key(2))+`","public_keys":[7,{},{"public_key":"!"},{"public_key":"`+public(key(1))+`"}]}`),
			answer(dave, right)),
		good(thirdPartySignature, "the sender has left", all(one, without(typeMember, bob)), answer(dave, right)),
		good(thirdPartySignature, "the sender may not invite", all(one, levelsAre(`{"users":{"@alice:a":100,"@bob:b":50},"invite":60}`)), answer(dave, right)),
		bad(thirdPartyBanned, "banned", one, answer(frank, signed(key(1), `{"mxid":"@frank:f","token":"token"}`))),
		bad(thirdPartySigned, "nothing", one, content(member(bob, dave, "invite"), `{"membership":"invite","third_party_invite":{}}`)),
		bad(thirdPartySigned, "not an object", one, content(member(bob, dave, "invite"), `{"membership":"invite","third_party_invite":"signed"}`)),
		bad(thirdPartySigned, "signed is not an object", one, answer(dave, `["mxid","token"]`)),
		bad(thirdPartyProperties, "no mxid", one, answer(dave, signed(key(1), `{"token":"token"}`))),
		bad(thirdPartyProperties, "no token", one, answer(dave, signed(key(1), `{"mxid":"@dave:d"}`))),
		bad(thirdPartyProperties, "token of a wrong type", one, answer(dave, signed(key(1), `{"mxid":"@dave:d","token":1}`))),
		bad(thirdPartyTarget, "another user", one, answer(hugo, right)),
		bad(thirdPartyToken, "another token", one, answer(dave, signed(key(1), `{"mxid":"@dave:d","token":"other"}`))),
		bad(thirdPartySender, "another sender", one, other),
		bad(thirdPartyOtherwise, "another key", one, answer(dave, signed(key(3), `{"mxid":"@dave:d","token":"token"}`))),
		bad(thirdPartyOtherwise, "changed", one, answer(dave, strings.Replace(right, `"mxid"`, `"x":1,"mxid"`, 1))),
		bad(thirdPartyOtherwise, "not signed", one, answer(dave, `{"mxid":"@dave:d","token":"token"}`)),
		good(thirdPartySignature, "the last key that is looked at", promise(manyKeys(63)), answer(dave, right)),
		bad(thirdPartyOtherwise, "too many keys", promise(manyKeys(64)), answer(dave, right)),
		bad(thirdPartyOtherwise, "no key", promise(`{"public_keys":{}}`), answer(dave, right)),
		bad(thirdPartyOtherwise, "signatures of wrong types", one, answer(dave, `{"mxid":"@dave:d","signatures":{"a":1,"b":{"ed25519:0":2},"c":{"rsa:0":"x"}},"token":"token"}`)),
	}
}

func levelRows() []row {
	moderators := `{"users":{"@alice:a":100,"@bob:b":50,"@carol:c":50,"@dave:d":60}%s}`
	given := func(more string) func(*room) { return levelsAre(fmt.Sprintf(moderators, more)) }
	// bobs is what bob would make of it.
	bobs := func(more string) spec { return powerLevels(bob, fmt.Sprintf(moderators, more)) }
	alices := func(json string) spec { return powerLevels(alice, json) }
	strict := integerLevels

	rows := []row{
		bad(levelsMaps, "events is no object", nil, alices(`{"events":[]}`)),
		bad(levelsMaps, "events has a string", nil, alices(`{"events":{"m.x":"50"}}`)),
		bad(levelsMaps, "notifications is no object", nil, alices(`{"notifications":50}`)),
		bad(levelsMaps, "notifications has a string", nil, alices(`{"notifications":{"room":"50"}}`)),
		bad(levelsUsers, "events is no object", nil, alices(`{"events":[]}`)).only(not(strict)),
		bad(levelsUsers, "notifications is no object", nil, alices(`{"notifications":50}`)).only(and(not(strict), notificationLevels)),
		good(levelsAllow, "notifications do not matter yet", nil, alices(`{"notifications":50,"users":{"@alice:a":100,"@bob:b":50}}`)).only(not(notificationLevels)),
		good(levelsAllow, "unknown properties do not matter", nil, alices(`{"historical":"x","users":{"@alice:a":100,"@bob:b":50}}`)),
		bad(levelsUsers, "not an object", nil, alices(`{"users":[]}`)),
		bad(levelsUsers, "not a user ID", nil, alices(`{"users":{"bob":50}}`)),
		bad(levelsUsers, "no domain", nil, alices(`{"users":{"@bob":50}}`)),
		bad(levelsUsers, "not a level", nil, alices(`{"users":{"@bob:b":{}}}`)),
		bad(levelsUsers, "null", nil, alices(`{"users":{"@bob:b":null}}`)),
		bad(levelsUsers, "true", nil, alices(`{"users":{"@bob:b":true}}`)),
		bad(levelsUsers, "a string", nil, alices(`{"users":{"@bob:b":"50"}}`)).only(strict),
		good(levelsAllow, "a string", nil, alices(`{"users":{"@alice:a":100,"@bob:b":"50"}}`)).only(not(strict)),
		good(levelsAllow, "odd user IDs", nil, alices(`{"users":{"@alice:a":100,"@:":5,"@bob:b":50,"@x y:_":5}}`)),

		bad(levelsCreators, "the creator", nil, alices(`{"users":{"@alice:a":100}}`)),
		bad(levelsCreators, "an additional creator", created(`{"additional_creators":["@bob:b"]}`), alices(`{"users":{"@bob:b":0}}`)),
		bad(levelsCreators, "also at first", without(typePowerLevels), alices(`{"users":{"@alice:a":100}}`)),

		good(levelsFirst, "anything", without(typePowerLevels), alices(`{"ban":1000,"events":{"m.x":1000},"users":{"@alice:a":100,"@bob:b":1000}}`)),

		bad(eventCurrent, "lowered", given(`,"events":{"m.x":60}`), bobs(`,"events":{"m.x":50}`)),
		bad(eventCurrent, "removed", given(`,"events":{"m.x":60}`), bobs(``)),
		good(levelsAllow, "removed", given(`,"events":{"m.x":50}`), bobs(``)),
		good(levelsAllow, "left alone", given(`,"events":{"m.x":60}`), bobs(`,"ban":50,"events":{"m.x":60}`)),
		bad(eventNew, "added", given(``), bobs(`,"events":{"m.x":51}`)),
		bad(eventNew, "raised", given(`,"events":{"m.x":50}`), bobs(`,"events":{"m.x":51}`)),
		good(levelsAllow, "added", given(``), bobs(`,"events":{"m.x":50}`)),
		bad(eventCurrent, "notification lowered", given(`,"notifications":{"room":60}`), bobs(`,"notifications":{"room":50}`)).only(notificationLevels),
		bad(eventCurrent, "notification removed", given(`,"notifications":{"room":60}`), bobs(``)).only(notificationLevels),
		bad(eventNew, "notification added", given(``), bobs(`,"notifications":{"room":51}`)).only(notificationLevels),
		good(levelsAllow, "notifications do not matter yet", given(`,"notifications":{"room":60}`), bobs(`,"notifications":{"room":70}`)).only(not(notificationLevels)),

		bad(userCurrent, "an equal lowered", given(``), powerLevels(bob, `{"users":{"@alice:a":100,"@bob:b":50,"@carol:c":49,"@dave:d":60}}`)),
		bad(userCurrent, "an equal removed", given(``), powerLevels(bob, `{"users":{"@alice:a":100,"@bob:b":50,"@dave:d":60}}`)),
		bad(userCurrent, "one above lowered", given(``), powerLevels(bob, `{"users":{"@alice:a":100,"@bob:b":50,"@carol:c":50,"@dave:d":5}}`)),
		bad(userNew, "raised", levelsAre(`{"users":{"@alice:a":100,"@bob:b":50,"@carol:c":5}}`), powerLevels(bob, `{"users":{"@alice:a":100,"@bob:b":50,"@carol:c":51}}`)),
		bad(userNew, "added", given(``), powerLevels(bob, `{"users":{"@alice:a":100,"@bob:b":50,"@carol:c":50,"@dave:d":60,"@erin:e":51}}`)),
		bad(userNew, "oneself", given(``), powerLevels(bob, `{"users":{"@alice:a":100,"@bob:b":51,"@carol:c":50,"@dave:d":60}}`)),
		good(levelsAllow, "oneself lowered", given(``), powerLevels(bob, `{"users":{"@alice:a":100,"@bob:b":1,"@carol:c":50,"@dave:d":60}}`)),
		good(levelsAllow, "oneself removed", given(``), powerLevels(bob, `{"users":{"@alice:a":100,"@carol:c":50,"@dave:d":60}}`)),
		good(levelsAllow, "as high as oneself", levelsAre(`{"users":{"@alice:a":100,"@bob:b":50,"@carol:c":5}}`), powerLevels(bob, `{"users":{"@alice:a":100,"@bob:b":50,"@carol:c":50}}`)),
		good(levelsAllow, "a creator may do anything", given(`,"ban":9007199254740991`),
			powerLevels(alice, `{"ban":9007199254740990,"users":{"@bob:b":9007199254740991}}`)).only(privilegedCreators),
	}
	for _, name := range scalarNames {
		state := func(level int) string { return fmt.Sprintf(`,%q:%d`, name, level) }
		// Bob may send power levels whatever state_default is.
		events := `,"events":{"m.room.power_levels":0}`
		rows = append(rows,
			bad(levelsScalars, name+" is a string", nil, alices(fmt.Sprintf(`{%q:"50"}`, name))),
			bad(levelsScalars, name+" is null", nil, alices(fmt.Sprintf(`{%q:null}`, name))),
			bad(levelsUsers, name+" is an object", nil, alices(fmt.Sprintf(`{%q:{}}`, name))).only(not(strict)),
			good(levelsAllow, name+" is a string", nil, alices(fmt.Sprintf(`{%q:" +050 ","users":{"@alice:a":100,"@bob:b":50}}`, name))).only(not(strict)),
			bad(scalarCurrent, name+" lowered", given(events+state(60)), bobs(events+state(50))),
			bad(scalarCurrent, name+" removed", given(events+state(60)), bobs(events)),
			bad(scalarNew, name+" raised", given(events+state(50)), bobs(events+state(51))),
			bad(scalarNew, name+" added", given(events), bobs(events+state(51))),
			good(levelsAllow, name+" raised", given(events+state(40)), bobs(events+state(50))),
			good(levelsAllow, name+" left alone", given(events+state(60)), bobs(`,"events":{"m.room.power_levels":0,"m.x":1}`+state(60))),
		)
		if defaultLevels.scalars[indexOf(name)].value == 50 {
			low := `{"users":{"@alice:a":100,"@bob:b":40},"events":{"m.room.power_levels":0}%s}`
			rows = append(rows,
				bad(scalarCurrent, name+" stated as it is anyway", levelsAre(fmt.Sprintf(low, "")), powerLevels(bob, fmt.Sprintf(low, state(50)))),
				bad(scalarCurrent, name+" is 50 if not stated", levelsAre(fmt.Sprintf(low, "")), powerLevels(bob, fmt.Sprintf(low, state(40)))),
				bad(scalarNew, name+" would be 50 if not stated", levelsAre(fmt.Sprintf(low, state(40))), powerLevels(bob, fmt.Sprintf(low, ""))))
		}
	}
	return rows
}

func indexOf(name string) int {
	for i := range scalarNames {
		if scalarNames[i] == name {
			return i
		}
	}
	return -1
}

// An outcome of a rule that has to have a row.
type outcome struct {
	rule rule
	ok   bool
}

// covered notes which outcomes of which rules of which versions had a row.
type covered map[roomversion.ID]map[outcome]bool

func (c covered) add(v *roomversion.Version, r rule, ok bool) {
	if c[v.ID] == nil {
		c[v.ID] = make(map[outcome]bool)
	}
	c[v.ID][outcome{r, ok}] = true
}

// The numbered rules that allow an event, and those that do either. All others reject.
var (
	allowing = []rule{
		createAllow, aliasesAllow, joinCreator, joinInvited, restrictedMember, restrictedAllow, joinPublic, thirdPartySignature,
		inviteLevel, leaveKick, banLevel, knockMembership, levelsFirst, levelsAllow, redactionLevel, redactionDomain, ruleAllow,
	}
	deciding = []rule{leaveSelf, thirdPartyInviteLevel}
)

// wanted are the outcomes that a rule can have.
func wanted(r rule) []outcome {
	switch {
	case slices.Contains(deciding, r):
		return []outcome{{r, true}, {r, false}}
	case slices.Contains(allowing, r):
		return []outcome{{r, true}}
	}
	return []outcome{{r, false}}
}

func TestRules(t *testing.T) {
	rows := createRows()
	rows = append(rows, roomRows()...)
	rows = append(rows, memberRows()...)
	rows = append(rows, levelRows()...)
	done := make(covered)
	for _, id := range roomversion.Supported() {
		v, _ := roomversion.Get(id)
		for _, row := range rows {
			if !row.rule.exists(v) || row.in != nil && !row.in(v) {
				continue
			}
			done.add(v, row.rule, row.ok)
			t.Run(fmt.Sprintf("v%s/%s/%s", id, row.rule.number(v), row.name), func(t *testing.T) {
				r := newRoom(t, id)
				if row.given != nil {
					row.given(r)
				}
				expect(t, Check(r.make(row.event(r)), r.state), v, row.rule, row.ok)
			})
		}
	}
	for _, r := range []rule{createRoomID, authDuplicate, authNotSelected, authRejected, authOtherRoom} {
		for _, id := range roomversion.Supported() {
			v, _ := roomversion.Get(id)
			done.add(v, r, false) // by the tests below
		}
	}
	isParent := make(map[rule]bool)
	for r := range ruleCount {
		isParent[places[r].parent] = true
	}
	for _, id := range roomversion.Supported() {
		v, _ := roomversion.Get(id)
		for r := range ruleCount {
			if !r.exists(v) || isParent[r] {
				continue
			}
			for _, o := range wanted(r) {
				if !done[id][o] {
					t.Errorf("no row for rule %s of version %s with outcome %v", r.number(v), id, o.ok)
				}
			}
		}
	}
}

// expect fails the test unless the outcome is as wanted.
func expect(t *testing.T, err error, v *roomversion.Version, r rule, ok bool) {
	t.Helper()
	rejection := (*Rejection)(nil)
	switch {
	case ok && err != nil:
		t.Errorf("got %v, want it allowed", err)
	case !ok && !errors.As(err, &rejection):
		t.Errorf("got %v, want a rejection", err)
	case !ok:
		if want := "rooms/v" + string(v.ID) + " " + r.number(v); rejection.Rule != want {
			t.Errorf("got %v, want rule %s", rejection, want)
		}
	}
}

// A v12 create event with a room_id does not get through event.Parse.
func TestCreateRoomID(t *testing.T) {
	v, _ := roomversion.Get("12")
	e, err := event.FromStored(v, matrix.EventID("$"+strings.Repeat("A", 43)),
		[]byte(`{"auth_events":[],"content":{},"depth":1,"prev_events":[],"room_id":"!x","sender":"@alice:a","state_key":"","type":"m.room.create"}`))
	if err != nil {
		t.Fatal(err)
	}
	expect(t, Check(e, Events{}), v, createRoomID, false)
}

func TestCheckAuthEvents(t *testing.T) {
	for _, id := range roomversion.Supported() {
		v, _ := roomversion.Get(id)
		r := newRoom(t, id)
		create := r.create
		at := func(kind, key string) *event.Event { return r.state[matrix.StateKey{Type: kind, Key: key}] }
		var base []*event.Event
		if !v.RoomIDIsCreateHash {
			base = append(base, r.create)
		}
		base = append(base, at(typePowerLevels, ""), at(typeMember, bob))
		never := func(matrix.EventID) bool { return false }
		run := func(name string, want rule, ok bool, s spec, rejected func(matrix.EventID) bool, auth ...*event.Event) {
			t.Helper()
			t.Run(fmt.Sprintf("v%s/%s/%s", id, want.number(v), name), func(t *testing.T) {
				t.Helper()
				expect(t, CheckAuthEvents(r.make(s), auth, rejected, create), v, want, ok)
			})
		}
		plus := func(more ...*event.Event) []*event.Event { return append(base[:len(base):len(base)], more...) }
		hello := message(bob, "m.room.message")
		again := r.make(content(member(bob, bob, "join"), `{"displayname":"b","membership":"join"}`))

		run("message", ruleAuthEvents, true, hello, never, base...)
		run("without power levels", ruleAuthEvents, true, hello, never, append(base[:len(base)-2:len(base)-2], base[len(base)-1])...)
		run("same event", authDuplicate, false, hello, never, plus(at(typeMember, bob))...)
		run("same key", authDuplicate, false, hello, never, plus(again)...)
		run("another member", authNotSelected, false, hello, never, plus(at(typeMember, carol))...)
		run("join rules of a message", authNotSelected, false, hello, never, plus(at(typeJoinRules, ""))...)
		run("no state event", authNotSelected, false, hello, never, plus(r.make(hello))...)
		run("other type", authNotSelected, false, hello, never, plus(r.make(spec{sender: bob, kind: "m.room.topic"}))...)
		run("rejected", authRejected, false, hello, func(id matrix.EventID) bool { return id == at(typeMember, bob).ID() }, base...)
		if v.RoomIDIsCreateHash {
			run("create event", authNotSelected, false, hello, never, plus(r.create)...)
			run("rejected create event", ruleRoomID, false, hello, func(id matrix.EventID) bool { return id == r.create.ID() }, base...)
			expect(t, CheckAuthEvents(r.make(hello), base, never, nil), v, ruleRoomID, false)
			elsewhere := newRoom(t, id)
			elsewhere.putCreate(`{"other":1}`)
			expect(t, CheckAuthEvents(r.make(hello), base, never, elsewhere.create), v, ruleRoomID, false)
			run("other room", authOtherRoom, false, member(bob, bob, "join"), never, plus(elsewhere.make(joinRules("public")))...)
		} else {
			run("no create event", authNoCreate, false, hello, never, base[1:]...)
			other := joinRules("public")
			other.roomID = "!other:a"
			run("other room", authOtherRoom, false, member(bob, bob, "join"), never, plus(r.make(other))...)
		}
		r.create = nil
		run("create event itself", ruleAuthEvents, true, spec{sender: alice, kind: typeCreate, prev: []matrix.EventID{},
			content: `{"creator":"@alice:a"}`}.inOwnRoom(v), never)
	}
}

func (s spec) inOwnRoom(v *roomversion.Version) spec {
	if !v.RoomIDIsCreateHash {
		s.roomID = "!new:a"
	}
	return s
}
