package server

import (
	"net/http"

	"hanok/internal/endpoint"
)

// Who may call a route.
const (
	// signed: any server, by a signed request.
	signed endpoint.Auth = iota + 1
	// inRoom: signed, by a server that the access list of {roomId} admits.
	// spec: server-server-api#server-access-control-lists-acls
	inRoom
)

// Body limits, in bytes.
const (
	transactionBody = 16 << 20 // 50 events of 64 KiB, and 100 EDUs that may carry keys of many devices; no more than others take
	eventBody       = 256 << 10
	inviteBody      = 2 << 20 // an event and stripped state
	keysBody        = 4 << 20
)

// routes is the inbound API.
func (s *Server) routes() []endpoint.Route {
	const get, put, post = http.MethodGet, http.MethodPut, http.MethodPost
	return []endpoint.Route{
		// Keys: public.
		{Method: get, Path: "/key/v2/server", Operation: "getServerKey", Handle: s.getServerKey},
		{Method: get, Path: "/key/v2/server/{keyId}", Operation: "getServerKey", Handle: s.getServerKey},
		{Method: get, Path: "/key/v2/query/{serverName}", Operation: "perspectivesKeyQuery", Handle: s.stranger(s.perspectivesKeyQuery)},
		// Older servers name a key in the path; what is answered is the same.
		{Method: get, Path: "/key/v2/query/{serverName}/{keyId}", Operation: "perspectivesKeyQuery", Handle: s.stranger(s.perspectivesKeyQuery)},
		{Method: post, Path: "/key/v2/query", Operation: "bulkPerspectivesKeyQuery", Handle: s.stranger(s.bulkPerspectivesKeyQuery)},

		{Method: get, Path: "/federation/v1/version", Operation: "getVersion", Handle: s.getVersion},
		{Method: get, Path: "/federation/v1/openid/userinfo", Operation: "exchangeOpenIdToken", Handle: s.exchangeOpenIDToken},

		{Method: put, Path: "/federation/v1/send/{txnId}", Operation: "sendTransaction", Auth: signed, MaxBody: transactionBody, Handle: s.sendTransaction},

		// Memberships.
		{Method: get, Path: "/federation/v1/make_join/{roomId}/{userId}", Operation: "makeJoin", Auth: inRoom, Handle: s.heavy(s.makeJoin)},
		{Method: put, Path: "/federation/v2/send_join/{roomId}/{eventId}", Operation: "sendJoinV2", Auth: inRoom, MaxBody: eventBody, Handle: s.heavy(s.sendJoin)},
		{Method: put, Path: "/federation/v1/send_join/{roomId}/{eventId}", Operation: "sendJoinV1", Auth: inRoom, MaxBody: eventBody, Handle: s.heavy(s.sendJoinV1)},
		{Method: get, Path: "/federation/v1/make_leave/{roomId}/{userId}", Operation: "makeLeave", Auth: inRoom, Handle: s.makeLeave},
		{Method: put, Path: "/federation/v2/send_leave/{roomId}/{eventId}", Operation: "sendLeaveV2", Auth: inRoom, MaxBody: eventBody, Handle: s.sendLeave},
		{Method: put, Path: "/federation/v1/send_leave/{roomId}/{eventId}", Operation: "sendLeaveV1", Auth: inRoom, MaxBody: eventBody, Handle: s.sendLeaveV1},
		{Method: get, Path: "/federation/v1/make_knock/{roomId}/{userId}", Operation: "makeKnock", Auth: inRoom, Handle: s.makeKnock},
		{Method: put, Path: "/federation/v1/send_knock/{roomId}/{eventId}", Operation: "sendKnock", Auth: inRoom, MaxBody: eventBody, Handle: s.sendKnock},
		{Method: put, Path: "/federation/v1/invite/{roomId}/{eventId}", Operation: "sendInviteV1", Auth: inRoom, MaxBody: inviteBody, Handle: s.inviteV1},
		{Method: put, Path: "/federation/v2/invite/{roomId}/{eventId}", Operation: "sendInviteV2", Auth: inRoom, MaxBody: inviteBody, Handle: s.inviteV2},

		{Method: put, Path: "/federation/v1/exchange_third_party_invite/{roomId}", Operation: "exchangeThirdPartyInvite", Auth: inRoom, MaxBody: eventBody, Handle: s.exchangeThirdPartyInvite},
		{Method: put, Path: "/federation/v1/3pid/onbind", Operation: "onBindThirdPartyIdentifier", MaxBody: inviteBody, Handle: s.stranger(s.onBind)},
		// Sydent posts it.
		{Method: post, Path: "/federation/v1/3pid/onbind", Operation: "onBindThirdPartyIdentifier", MaxBody: inviteBody, Handle: s.stranger(s.onBind)},

		// Events and state.
		{Method: get, Path: "/federation/v1/event/{eventId}", Operation: "getEvent", Auth: signed, Handle: s.getEvent},
		{Method: get, Path: "/federation/v1/state/{roomId}", Operation: "getRoomState", Auth: inRoom, Handle: s.heavy(s.getState)},
		{Method: get, Path: "/federation/v1/state_ids/{roomId}", Operation: "getRoomStateIds", Auth: inRoom, Handle: s.heavy(s.getStateIDs)},
		{Method: get, Path: "/federation/v1/event_auth/{roomId}/{eventId}", Operation: "getEventAuth", Auth: inRoom, Handle: s.heavy(s.getEventAuth)},
		{Method: get, Path: "/federation/v1/backfill/{roomId}", Operation: "backfillRoom", Auth: inRoom, Handle: s.heavy(s.backfill)},
		{Method: post, Path: "/federation/v1/get_missing_events/{roomId}", Operation: "getMissingPreviousEvents", Auth: inRoom, Handle: s.heavy(s.getMissingEvents)},
		{Method: get, Path: "/federation/v1/timestamp_to_event/{roomId}", Operation: "getEventByTimestamp", Auth: inRoom, Handle: s.heavy(s.getEventByTimestamp)},

		// Queries.
		{Method: get, Path: "/federation/v1/query/directory", Operation: "queryRoomDirectory", Auth: signed, Handle: s.queryDirectory},
		{Method: get, Path: "/federation/v1/query/profile", Operation: "queryProfile", Auth: signed, Handle: s.queryProfile},
		{Method: get, Path: "/federation/v1/publicRooms", Operation: "getPublicRooms", Auth: signed, Handle: s.heavy(s.getPublicRooms)},
		{Method: post, Path: "/federation/v1/publicRooms", Operation: "queryPublicRooms", Auth: signed, Handle: s.heavy(s.queryPublicRooms)},
		{Method: get, Path: "/federation/v1/hierarchy/{roomId}", Operation: "getSpaceHierarchy", Auth: signed, Handle: s.heavy(s.getHierarchy)},

		// Users.
		{Method: get, Path: "/federation/v1/user/devices/{userId}", Operation: "getUserDevices", Auth: signed, Handle: s.getUserDevices},
		{Method: post, Path: "/federation/v1/user/keys/query", Operation: "queryUserEncryptionKeys", Auth: signed, MaxBody: keysBody, Handle: s.heavy(s.queryKeys)},
		{Method: post, Path: "/federation/v1/user/keys/claim", Operation: "claimUserEncryptionKeys", Auth: signed, MaxBody: keysBody, Handle: s.heavy(s.claimKeys)},

		{Method: get, Path: "/federation/v1/media/download/{mediaId}", Operation: "getContent", Auth: signed, Handle: s.getMedia},
		{Method: get, Path: "/federation/v1/media/thumbnail/{mediaId}", Operation: "getContentThumbnail", Auth: signed, Handle: s.getThumbnail},
	}
}
