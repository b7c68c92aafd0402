package rooms

import (
	"context"
	"encoding/json"
	"net/http"
	"strings"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/eventauth"
)

// IdentityServers is what the engine needs of identity servers. Implementations decide which ones are trusted, and
// bound the size and time of every answer. spec: identity-service-api
type IdentityServers interface {
	// Lookup finds whose address it is; "" if the identity server does not know.
	Lookup(ctx context.Context, q AddressInvite) (matrix.UserID, error)
	// StoreInvite leaves an invite with the identity server, which tells the owner of the address.
	StoreInvite(ctx context.Context, q AddressInvite, about RoomDescription) (StoredInvite, error)
	// KeyValid asks at the key_validity_url of a key, in unpadded base64, whether it may still be believed.
	KeyValid(ctx context.Context, url, key string) (bool, error)
}

// AddressInvite invites whoever an e-mail address or phone number belongs to. The JSON names are those of the
// request bodies. spec: cs/inviteBy3PID
type AddressInvite struct {
	Room   matrix.RoomID `json:"-"`
	Sender matrix.UserID `json:"-"`

	IdentityServer matrix.ServerName `json:"id_server"`
	AccessToken    string            `json:"id_access_token"` // of the sender, at the identity server
	Medium         string            `json:"medium"`          // email or msisdn
	Address        string            `json:"address"`
}

// RoomDescription is what an identity server may tell the owner of an address about the room and who invites; what is
// not known is "". spec: identity/storeInviteV2
type RoomDescription struct {
	RoomAlias   string `json:"room_alias,omitempty"`
	RoomAvatar  string `json:"room_avatar_url,omitempty"`
	JoinRule    string `json:"room_join_rules,omitempty"`
	RoomName    string `json:"room_name,omitempty"`
	RoomType    string `json:"room_type,omitempty"`
	SenderName  string `json:"sender_display_name,omitempty"`
	SenderImage string `json:"sender_avatar_url,omitempty"`
}

// StoredInvite is what an identity server answers. spec: identity/storeInviteV2
type StoredInvite struct {
	Token       string          `json:"token"`
	DisplayName string          `json:"display_name"` // of the address, which it does not give away
	PublicKeys  []ThirdPartyKey `json:"public_keys"`
}

// ThirdPartyKey is one of the keys by which the invite may be signed. spec: client-server-api#mroomthird_party_invite
type ThirdPartyKey struct {
	PublicKey   string `json:"public_key"`
	ValidityURL string `json:"key_validity_url,omitempty"`
}

const typeThirdPartyInvite = "m.room.third_party_invite"

// InviteByAddress invites the user that an address belongs to, or whoever will prove to own it.
// Errors: M_THREEPID_DENIED, M_SERVER_NOT_TRUSTED, M_FORBIDDEN, M_INVALID_PARAM, M_UNKNOWN (502) if the identity server fails.
// spec: cs/inviteBy3PID
func (e *Engine) InviteByAddress(ctx context.Context, q AddressInvite) error {
	r, err := e.joinedRoom(ctx, q.Room, q.Sender)
	if err != nil {
		return err
	}
	defer r.release()
	switch q.Medium {
	case "email":
		q.Address = strings.ToLower(q.Address) // spec: appendices#3pid-types
	case "msisdn":
	default:
		return matrix.InvalidParam("medium must be email or msisdn.")
	}
	target, err := e.identity.Lookup(ctx, q)
	if err != nil {
		return err
	}
	if target != "" {
		_, err := e.Invite(ctx, MemberRequest{Room: q.Room, Sender: q.Sender, Target: target})
		return err
	}
	// The identity server writes to the owner of the address: not unless the room lets the sender invite.
	if err := r.rehearse(ctx, &draft{sender: q.Sender, typ: typeThirdPartyInvite, skey: new("token"), content: []byte("{}")}); err != nil {
		return err
	}
	about, err := r.describe(ctx, q.Sender)
	if err != nil {
		return err
	}
	stored, err := e.identity.StoreInvite(ctx, q, about)
	if err != nil {
		return err
	}
	content, err := stored.content()
	if err != nil {
		return err
	}
	// The owner of the address has been written to: finish even if the client has gone away.
	ctx = context.WithoutCancel(ctx)
	en, err := r.append(ctx, []*draft{{sender: q.Sender, typ: typeThirdPartyInvite, skey: &stored.Token, content: content}}, appendOptions{})
	if err != nil {
		return err
	}
	return en.wait(ctx)
}

// content is that of the m.room.third_party_invite event.
func (s StoredInvite) content() ([]byte, error) {
	if s.Token == "" || len(s.Token) > 255 || len(s.PublicKeys) == 0 {
		return nil, nonsense("the identity server gave no token or no key")
	}
	first := s.PublicKeys[0]
	return canonicaljson.Marshal(map[string]any{
		"display_name": s.DisplayName, "public_keys": s.PublicKeys, "public_key": first.PublicKey, "key_validity_url": first.ValidityURL,
	})
}

// rehearse checks that an event could be sent now; nothing changes.
func (r *room) rehearse(ctx context.Context, d *draft) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.load(ctx); err != nil {
		return err
	}
	_, err := r.compose(ctx, r.head, d, appendOptions{})
	return err
}

// describe says what outsiders may be told of a room and one of its members.
func (r *room) describe(ctx context.Context, sender matrix.UserID) (RoomDescription, error) {
	var d RoomDescription
	events, err := r.shownState(ctx, sender)
	if err != nil {
		return d, err
	}
	for _, ev := range events {
		read := func(into *string, member string) { *into, _ = ev.ContentString(member) }
		switch ev.Type() {
		case "m.room.canonical_alias":
			read(&d.RoomAlias, "alias")
		case "m.room.avatar":
			read(&d.RoomAvatar, "url")
		case "m.room.join_rules":
			read(&d.JoinRule, "join_rule")
		case "m.room.name":
			read(&d.RoomName, "name")
		case "m.room.create":
			read(&d.RoomType, "type")
		case "m.room.member":
			read(&d.SenderName, "displayname")
			read(&d.SenderImage, "avatar_url")
		}
	}
	return d, nil
}

// AcceptThirdPartyInvite turns an invite that sender made by address into one of target, who has proved to an identity
// server to own it: signed is what that server signed, {mxid, token, signatures}. If sender is of another server,
// that server is asked to. M_FORBIDDEN, M_INVALID_PARAM. spec: client-server-api#third-party-invites
func (e *Engine) AcceptThirdPartyInvite(ctx context.Context, room matrix.RoomID, sender, target matrix.UserID, signed []byte) error {
	signed, err := canonicaljson.Canonical(signed, canonicaljson.Strict)
	if err != nil {
		return err
	}
	mxid, _ := canonicaljson.GetString(signed, "mxid")
	token, _ := canonicaljson.GetString(signed, "token")
	if mxid != string(target) || token == "" {
		return matrix.InvalidParam("The invite is not signed for %s.", target)
	}
	if e.isolation.has(room) && !(e.isLocal(sender) && e.isLocal(target)) {
		return errIsolatedRoom
	}
	if !e.isLocal(sender) {
		invite, err := canonicaljson.Marshal(map[string]any{
			"type": "m.room.member", "room_id": room, "sender": sender, "state_key": target,
			"content": thirdPartyInvite("", signed),
		})
		if err != nil {
			return err
		}
		return e.remote.ExchangeThirdPartyInvite(ctx, domain(sender), room, invite)
	}
	r, err := e.joinedRoom(ctx, room, sender)
	if err != nil {
		return err
	}
	defer r.release()
	c, err := r.current(ctx)
	if err != nil {
		return err
	}
	promise, err := (State{e, c.head.state}).Event(ctx, typeThirdPartyInvite, token)
	if err != nil {
		return err
	}
	if promise == nil || promise.Sender() != sender {
		return matrix.Forbidden("%s has made no such invite in the room.", sender)
	}
	key, url, ok := eventauth.ThirdPartyKey(signed, promise.Event)
	if !ok {
		return matrix.Forbidden("The invite is not signed by a key that it names.")
	}
	if url != "" {
		valid, err := e.identity.KeyValid(ctx, url, key)
		if err != nil {
			return err
		}
		if !valid {
			return matrix.Forbidden("The identity server has withdrawn the key that signed the invite.")
		}
	}
	// The name is the one that the sender's invite bears: the address itself stays with the identity server.
	name, _ := promise.ContentString("display_name")
	content, err := canonicaljson.Marshal(thirdPartyInvite(name, signed))
	if err != nil {
		return err
	}
	_, err = e.Invite(ctx, MemberRequest{Room: room, Sender: sender, Target: target, Content: content})
	return err
}

// thirdPartyInvite is the content of an invite that answers an m.room.third_party_invite.
func thirdPartyInvite(name string, signed []byte) map[string]any {
	return map[string]any{
		"membership":         "invite",
		"third_party_invite": map[string]any{"display_name": name, "signed": json.RawMessage(signed)},
	}
}

// noIdentityServers is what an engine has that was given none.
type noIdentityServers struct{}

var errNoIdentityServers = matrix.Errorf(http.StatusForbidden, "M_THREEPID_DENIED", "This server does not invite by e-mail address or phone number: it trusts no identity server.")

func (noIdentityServers) Lookup(context.Context, AddressInvite) (matrix.UserID, error) {
	return "", errNoIdentityServers
}
func (noIdentityServers) StoreInvite(context.Context, AddressInvite, RoomDescription) (StoredInvite, error) {
	return StoredInvite{}, errNoIdentityServers
}
func (noIdentityServers) KeyValid(context.Context, string, string) (bool, error) {
	return false, errNoIdentityServers
}
