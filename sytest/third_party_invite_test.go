package sytest

import (
	stdjson "encoding/json"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"hanok/matrix/canonicaljson"
	"hanok/matrix/signing"
	"hanok/sytest/homeserver"
)

// identityServer is one that knows a single address, and takes invites for all others.
type identityServer struct {
	*homeserver.Peer
	t         *testing.T
	key       signing.Key
	knows     string // whose the known address is
	withdrawn atomic.Bool
	stored    chan json // what was asked of store-invite
}

const bearer = "Bearer identity-token"

func newIdentityServer(t *testing.T, n *homeserver.Network) *identityServer {
	t.Helper()
	key, err := signing.Generate()
	if err != nil {
		t.Fatal(err)
	}
	s := &identityServer{Peer: n.NewPeer(), t: t, key: key, stored: make(chan json, 10)}
	s.Answer = s.answer
	return s
}

func (s *identityServer) answer(w http.ResponseWriter, r *http.Request) bool {
	var out any
	switch path, ok := strings.CutPrefix(r.URL.Path, "/_matrix/identity/v2/"); {
	case !ok:
		return false
	case path == "pubkey/isvalid":
		out = json{"valid": !s.withdrawn.Load() && r.URL.Query().Get("public_key") == signing.EncodeBase64(s.key.Public())}
	case r.Header.Get("Authorization") != bearer:
		w.WriteHeader(http.StatusForbidden)
		return true
	case path == "hash_details":
		out = json{"lookup_pepper": "matrixrocks", "algorithms": []string{"sha256"}}
	case path == "lookup":
		out = json{"mappings": json{"4kenr7N9drpCJ4AfalmlGQVsOn3o2RHjkADUpXJWZUc": s.knows}} // alice@example.com
	case path == "store-invite":
		var asked json
		if err := stdjson.NewDecoder(r.Body).Decode(&asked); err != nil {
			s.t.Error(err)
		}
		s.stored <- asked
		key := json{"public_key": signing.EncodeBase64(s.key.Public()), "key_validity_url": "https://" + string(s.Name) + "/_matrix/identity/v2/pubkey/isvalid"}
		out = json{"token": "token-of-" + asked["address"].(string), "display_name": "b...@example.com", "public_keys": []any{key}}
	default:
		return false
	}
	if err := stdjson.NewEncoder(w).Encode(out); err != nil {
		s.t.Error(err)
	}
	return true
}

func (s *identityServer) invite(address string) json {
	return json{"id_server": s.Name, "id_access_token": strings.TrimPrefix(bearer, "Bearer "), "medium": "email", "address": address}
}

// signed is the proof that a user owns the address which was invited.
func (s *identityServer) signed(sender, user, token string) stdjson.RawMessage {
	s.t.Helper()
	c, err := canonicaljson.Marshal(json{"mxid": user, "sender": sender, "token": token})
	if err != nil {
		s.t.Fatal(err)
	}
	signed, err := s.key.Sign(string(s.Name), c)
	if err != nil {
		s.t.Fatal(err)
	}
	return signed
}

// TestInviteByAddress: whoever owns an address is invited, at once or when they prove it, to whichever of the two servers
// they belong; in the way of the specification and by joining with the proof in hand.
func TestInviteByAddress(t *testing.T) {
	n := homeserver.NewNetwork(t)
	one, two := n.Start(homeserver.Options{}), n.Start(homeserver.Options{})
	id := newIdentityServer(t, n)
	alice, known := one.Register(t, "alice"), one.Register(t, "known")
	id.knows = known.UserID
	room := alice.Must("POST", "/v3/createRoom", json{
		"preset": "private_chat", "name": "House", "room_version": "10", "invite_3pid": []any{id.invite("Guest@Example.com")},
	})["room_id"].(string)

	asked := <-id.stored
	if asked["address"] != "guest@example.com" || asked["room_name"] != "House" || asked["sender"] != alice.UserID || asked["room_join_rules"] != "invite" {
		t.Errorf("the identity server was told %v", asked)
	}
	promise := alice.Must("GET", "/v3/rooms/"+room+"/state/m.room.third_party_invite/token-of-guest@example.com", nil)
	if promise["display_name"] != "b...@example.com" || promise["public_key"] != signing.EncodeBase64(id.key.Public()) {
		t.Errorf("m.room.third_party_invite: %v", promise)
	}
	membership := func(c *homeserver.Client) any {
		_, content := alice.Do("GET", "/v3/rooms/"+room+"/state/m.room.member/"+c.UserID, nil)
		return content["membership"]
	}
	alice.Must("POST", "/v3/rooms/"+room+"/invite", id.invite("alice@example.com"))
	if m := membership(known); m != "invite" {
		t.Errorf("whose address is known: %v", m)
	}

	// Refusals: nobody is written to.
	alice.Refused("POST", "/v3/rooms/"+room+"/invite", json{"id_server": id.Name, "medium": "email"}, 400, "M_MISSING_PARAM")
	wrong := id.invite("x@example.com")
	wrong["id_access_token"] = "wrong"
	alice.Refused("POST", "/v3/rooms/"+room+"/invite", wrong, 403, "M_FORBIDDEN")
	one.Register(t, "outsider").Refused("POST", "/v3/rooms/"+room+"/invite", id.invite("x@example.com"), 403, "M_FORBIDDEN")
	known.Must("POST", "/v3/rooms/"+room+"/join", json{})
	alice.Must("PUT", "/v3/rooms/"+room+"/state/m.room.power_levels", json{"invite": 50, "users": json{alice.UserID: 100}})
	known.Refused("POST", "/v3/rooms/"+room+"/invite", id.invite("x@example.com"), 403, "M_FORBIDDEN")
	if len(id.stored) != 0 {
		t.Errorf("the identity server was asked to write to %v", <-id.stored)
	}

	// The identity server tells the invited user's server.
	guest := two.Register(t, "guest")
	onBind := func(user, token string) {
		t.Helper()
		body, err := stdjson.Marshal(json{"medium": "email", "address": "guest@example.com", "mxid": user, "invites": []any{json{
			"medium": "email", "address": "guest@example.com", "mxid": user, "room_id": room, "sender": alice.UserID, "signed": id.signed(alice.UserID, user, token),
		}}})
		if err != nil {
			t.Fatal(err)
		}
		if status, answer, err := id.Request(two, "PUT", "/_matrix/federation/v1/3pid/onbind", "", body); err != nil || status != 200 {
			t.Errorf("onbind: %d %s %v", status, answer, err)
		}
	}
	id.withdrawn.Store(true)
	if onBind(guest.UserID, "token-of-guest@example.com"); membership(guest) == "invite" {
		t.Error("a key that was withdrawn is believed")
	}
	id.withdrawn.Store(false)
	if onBind(guest.UserID, "token-of-guest@example.com"); membership(guest) != "invite" {
		t.Errorf("after onbind: %v", membership(guest))
	}
	guest.Must("POST", "/v3/join/"+room+"?via="+one.Name, json{})

	// A client that has the proof joins with it.
	alice.Must("POST", "/v3/rooms/"+room+"/invite", id.invite("late@example.com"))
	<-id.stored
	late := one.Register(t, "late")
	join := "/v3/rooms/" + room + "/join"
	late.Refused("POST", join, json{"third_party_signed": id.signed(alice.UserID, late.UserID, "no such token")}, 403, "M_FORBIDDEN")
	late.Refused("POST", join, json{"third_party_signed": id.signed(alice.UserID, guest.UserID, "token-of-late@example.com")}, 400, "M_INVALID_PARAM")
	late.Must("POST", join, json{"third_party_signed": id.signed(alice.UserID, late.UserID, "token-of-late@example.com")})
}

// TestIdentityServersAreOff: unless the operator trusts an identity server, none is asked.
func TestIdentityServersAreOff(t *testing.T) {
	n := homeserver.NewNetwork(t)
	s := n.Start(homeserver.Options{ExtraConfig: "identity: {trusted_servers: []}\n"})
	id := newIdentityServer(t, n)
	alice := s.Register(t, "alice")
	room := alice.Must("POST", "/v3/createRoom", json{})["room_id"].(string)
	alice.Refused("POST", "/v3/rooms/"+room+"/invite", id.invite("x@example.com"), 403, "M_THREEPID_DENIED")
	if len(id.Asked()) != 0 {
		t.Errorf("the identity server was asked %v", id.Asked())
	}
}
