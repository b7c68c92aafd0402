package api

import (
	"hanok/appservice"
	"hanok/internal/endpoint"
)

type table struct {
	prefix string
	routes []endpoint.Route
}

// tables is the whole client-server API.
func (a *API) tables() []table {
	return []table{
		{"/.well-known/matrix", []endpoint.Route{
			{Method: "GET", Path: "/client", Operation: "getWellknown", Handle: a.wellKnown},
			{Method: "GET", Path: "/support", Operation: "getWellknownSupport", Handle: a.wellKnownSupport},
		}},
		{"/_matrix/client", concat(a.serverRoutes(), a.accountRoutes(), a.moderationRoutes(), a.userRoutes(), a.keyRoutes(), a.roomRoutes(), a.syncRoutes())},
		{"/_matrix", concat(a.mediaRoutes(), a.openIDRoutes())},
		{"/_synapse/admin", concat(a.noticeRoutes(), []endpoint.Route{
			{Method: "GET", Versions: "v1", Path: "/register", Operation: "sharedSecretNonce", Handle: a.sharedSecretNonce},
			{Method: "POST", Versions: "v1", Path: "/register", Operation: "sharedSecretRegister", Limit: "login", Handle: a.sharedSecretRegister},
		})},
	}
}

func concat(lists ...[]endpoint.Route) []endpoint.Route {
	var all []endpoint.Route
	for _, l := range lists {
		all = append(all, l...)
	}
	return all
}

// The versions of a path: the current one, and the one before the specification was numbered in v1.1.
const v3 = "v3 r0"

func (a *API) serverRoutes() []endpoint.Route {
	return []endpoint.Route{
		{Method: "GET", Path: "/versions", Operation: "getVersions", Auth: maybe, Handle: a.versions},
		{Method: "GET", Versions: v3, Path: "/capabilities", Operation: "getCapabilities", Auth: guest, Handle: a.capabilities},
		{Method: "GET", Versions: v3, Path: "/voip/turnServer", Operation: "getTurnServer", Auth: guest, Handle: a.turnServer},
		{Method: "GET", Versions: "v1 unstable/org.matrix.msc4143", Path: "/rtc/transports", Operation: "getRTCTransports", Auth: guest, Handle: a.rtcTransports},
		{Method: "GET", Versions: v3, Path: "/thirdparty/protocols", Operation: "getProtocols", Auth: user, Handle: a.thirdPartyProtocols},
		{Method: "GET", Versions: v3, Path: "/thirdparty/protocol/{protocol}", Operation: "getProtocolMetadata", Auth: user, Handle: a.thirdPartyProtocol},
		{Method: "GET", Versions: v3, Path: "/thirdparty/user/{protocol}", Operation: "queryUserByProtocol", Auth: user, Limit: "search", Handle: a.lookUp(appservice.LookUpUser, "userid")},
		{Method: "GET", Versions: v3, Path: "/thirdparty/location/{protocol}", Operation: "queryLocationByProtocol", Auth: user, Limit: "search", Handle: a.lookUp(appservice.LookUpLocation, "alias")},
		{Method: "GET", Versions: v3, Path: "/thirdparty/user", Operation: "queryUserByID", Auth: user, Limit: "search", Handle: a.lookUp(appservice.LookUpUser, "userid")},
		{Method: "GET", Versions: v3, Path: "/thirdparty/location", Operation: "queryLocationByAlias", Auth: user, Limit: "search", Handle: a.lookUp(appservice.LookUpLocation, "alias")},
		{Method: "POST", Versions: "v1", Path: "/appservice/{appserviceId}/ping", Operation: "pingAppservice", Auth: service, Handle: a.pingAppservice},
	}
}

func (a *API) accountRoutes() []endpoint.Route {
	return []endpoint.Route{
		{Method: "GET", Versions: v3, Path: "/login", Operation: "getLoginFlows", Handle: a.loginFlows},
		{Method: "POST", Versions: v3, Path: "/login", Operation: "login", Limit: "login", Handle: a.login},
		{Method: "POST", Versions: "v1", Path: "/login/get_token", Operation: "generateLoginToken", Auth: user, Limit: "login", Handle: a.generateLoginToken},
		{Method: "POST", Versions: v3, Path: "/refresh", Operation: "refresh", Limit: "login", Handle: a.refresh},
		{Method: "POST", Versions: v3, Path: "/logout", Operation: "logout", Auth: locked, Handle: a.logout},
		{Method: "POST", Versions: v3, Path: "/logout/all", Operation: "logout_all", Auth: locked, Handle: a.logoutAll},
		{Method: "POST", Versions: v3, Path: "/register", Operation: "register", Limit: "login", Handle: a.register},
		{Method: "GET", Versions: v3, Path: "/register/available", Operation: "checkUsernameAvailability", Limit: "search", Handle: a.registerAvailable},
		{Method: "GET", Versions: "v1", Path: "/register/m.login.registration_token/validity", Operation: "registrationTokenValidity", Limit: "login", Handle: a.registrationTokenValidity},
		{Method: "GET", Versions: v3, Path: "/account/whoami", Operation: "getTokenOwner", Auth: guest, Handle: a.whoami},
		{Method: "POST", Versions: v3, Path: "/account/password", Operation: "changePassword", Auth: paused, Limit: "login", Handle: a.changePassword},
		{Method: "POST", Versions: v3, Path: "/account/deactivate", Operation: "deactivateAccount", Auth: paused, Limit: "login", Handle: a.deactivate},
		{Method: "GET", Versions: v3, Path: "/account/3pid", Operation: "getAccount3PIDs", Auth: user, Handle: a.threePIDs},
		{Method: "GET", Versions: v3, Path: "/devices", Operation: "getDevices", Auth: guest, Handle: a.devices},
		{Method: "GET", Versions: v3, Path: "/devices/{deviceId}", Operation: "getDevice", Auth: guest, Handle: a.device},
		{Method: "PUT", Versions: v3, Path: "/devices/{deviceId}", Operation: "updateDevice", Auth: guest, Handle: a.updateDevice},
		{Method: "DELETE", Versions: v3, Path: "/devices/{deviceId}", Operation: "deleteDevice", Auth: paused, Handle: a.deleteDevice},
		{Method: "POST", Versions: v3, Path: "/delete_devices", Operation: "deleteDevices", Auth: paused, Handle: a.deleteDevices},
	}
}

func (a *API) moderationRoutes() []endpoint.Route {
	return []endpoint.Route{
		{Method: "GET", Versions: v3, Path: "/admin/whois/{userId}", Operation: "getWhoIs", Auth: user, Handle: a.whoIs},
		{Method: "GET", Versions: "v1", Path: "/admin/suspend/{userId}", Operation: "getAdminSuspendUser", Auth: admin, Handle: a.suspended},
		{Method: "PUT", Versions: "v1", Path: "/admin/suspend/{userId}", Operation: "setAdminSuspendUser", Auth: admin, Handle: a.suspend},
		{Method: "GET", Versions: "v1", Path: "/admin/lock/{userId}", Operation: "getAdminLockUser", Auth: admin, Handle: a.locked},
		{Method: "PUT", Versions: "v1", Path: "/admin/lock/{userId}", Operation: "setAdminLockUser", Auth: admin, Handle: a.lock},
	}
}

func (a *API) userRoutes() []endpoint.Route {
	return []endpoint.Route{
		{Method: "GET", Versions: v3, Path: "/profile/{userId}", Operation: "getUserProfile", Auth: maybe, Handle: a.profile},
		{Method: "GET", Versions: v3, Path: "/profile/{userId}/{keyName}", Operation: "getProfileField", Auth: maybe, Handle: a.profileField},
		{Method: "PUT", Versions: v3, Path: "/profile/{userId}/{keyName}", Operation: "setProfileField", Auth: guest, Handle: a.setProfileField},
		{Method: "DELETE", Versions: v3, Path: "/profile/{userId}/{keyName}", Operation: "deleteProfileField", Auth: guest, Handle: a.deleteProfileField},
		{Method: "POST", Versions: v3, Path: "/user_directory/search", Operation: "searchUserDirectory", Auth: user, Limit: "search", Handle: a.userDirectory},
		{Method: "POST", Versions: v3, Path: "/user/{userId}/filter", Operation: "defineFilter", Auth: guest, Handle: a.defineFilter},
		{Method: "GET", Versions: v3, Path: "/user/{userId}/filter/{filterId}", Operation: "getFilter", Auth: guest, Handle: a.getFilter},
		{Method: "PUT", Versions: v3, Path: "/user/{userId}/account_data/{type}", Operation: "setAccountData", Auth: guest, Handle: a.setAccountData},
		{Method: "GET", Versions: v3, Path: "/user/{userId}/account_data/{type}", Operation: "getAccountData", Auth: guest, Handle: a.accountData},
		{Method: "PUT", Versions: v3, Path: "/user/{userId}/rooms/{roomId}/account_data/{type}", Operation: "setAccountDataPerRoom", Auth: guest, Handle: a.setAccountData},
		{Method: "GET", Versions: v3, Path: "/user/{userId}/rooms/{roomId}/account_data/{type}", Operation: "getAccountDataPerRoom", Auth: guest, Handle: a.accountData},
		{Method: "DELETE", Versions: "unstable/org.matrix.msc3391", Path: "/user/{userId}/account_data/{type}", Operation: "deleteAccountData", Auth: guest, Handle: a.deleteAccountData},
		{Method: "DELETE", Versions: "unstable/org.matrix.msc3391", Path: "/user/{userId}/rooms/{roomId}/account_data/{type}", Operation: "deleteAccountDataPerRoom", Auth: guest, Handle: a.deleteAccountData},
		{Method: "GET", Versions: v3, Path: "/user/{userId}/rooms/{roomId}/tags", Operation: "getRoomTags", Auth: guest, Handle: a.tags},
		{Method: "PUT", Versions: v3, Path: "/user/{userId}/rooms/{roomId}/tags/{tag}", Operation: "setRoomTag", Auth: guest, Handle: a.setTag},
		{Method: "DELETE", Versions: v3, Path: "/user/{userId}/rooms/{roomId}/tags/{tag}", Operation: "deleteRoomTag", Auth: guest, Handle: a.deleteTag},
		{Method: "GET", Versions: v3, Path: "/pushrules/", Operation: "getPushRules", Auth: guest, Handle: a.pushRules},
		{Method: "GET", Versions: v3, Path: "/pushrules/global/", Operation: "getPushRulesGlobal", Auth: guest, Handle: a.pushRulesGlobal},
		{Method: "GET", Versions: v3, Path: "/pushrules/global/{kind}/", Operation: "getPushRulesOfKind", Auth: guest, Handle: a.pushRulesOfKind},
		{Method: "GET", Versions: v3, Path: "/pushrules/global/{kind}/{ruleId}", Operation: "getPushRule", Auth: guest, Handle: a.pushRule},
		{Method: "PUT", Versions: v3, Path: "/pushrules/global/{kind}/{ruleId}", Operation: "setPushRule", Auth: guest, Handle: a.setPushRule},
		{Method: "DELETE", Versions: v3, Path: "/pushrules/global/{kind}/{ruleId}", Operation: "deletePushRule", Auth: guest, Handle: a.deletePushRule},
		{Method: "GET", Versions: v3, Path: "/pushrules/global/{kind}/{ruleId}/enabled", Operation: "isPushRuleEnabled", Auth: guest, Handle: a.pushRuleEnabled},
		{Method: "PUT", Versions: v3, Path: "/pushrules/global/{kind}/{ruleId}/enabled", Operation: "setPushRuleEnabled", Auth: guest, Handle: a.setPushRuleEnabled},
		{Method: "GET", Versions: v3, Path: "/pushrules/global/{kind}/{ruleId}/actions", Operation: "getPushRuleActions", Auth: guest, Handle: a.pushRuleActions},
		{Method: "PUT", Versions: v3, Path: "/pushrules/global/{kind}/{ruleId}/actions", Operation: "setPushRuleActions", Auth: guest, Handle: a.setPushRuleActions},
		{Method: "GET", Versions: v3, Path: "/pushrules/*", Operation: "badPushRule", Auth: guest, Handle: a.badPushRule},
		{Method: "PUT", Versions: v3, Path: "/pushrules/*", Operation: "badPushRule", Auth: guest, Handle: a.badPushRule},
		{Method: "DELETE", Versions: v3, Path: "/pushrules/*", Operation: "badPushRule", Auth: guest, Handle: a.badPushRule},
		{Method: "GET", Versions: v3, Path: "/pushers", Operation: "getPushers", Auth: user, Handle: a.pushers},
		{Method: "POST", Versions: v3, Path: "/pushers/set", Operation: "postPusher", Auth: user, Handle: a.setPusher},
		{Method: "POST", Versions: v3, Path: "/user/{userId}/openid/request_token", Operation: "requestOpenIdToken", Auth: user, Limit: "message", Handle: a.openIDToken},
		{Method: "POST", Versions: v3, Path: "/users/{userId}/report", Operation: "reportUser", Auth: user, Limit: "report", Handle: a.reportUser},
		{Method: "GET", Versions: v3, Path: "/presence/{userId}/status", Operation: "getPresence", Auth: user, Handle: a.presence},
		{Method: "PUT", Versions: v3, Path: "/presence/{userId}/status", Operation: "setPresence", Auth: user, Handle: a.setPresence},
	}
}

func (a *API) keyRoutes() []endpoint.Route {
	const backup = 32 << 20 // a whole backup may be uploaded at once
	return []endpoint.Route{
		{Method: "POST", Versions: v3, Path: "/keys/upload", Operation: "uploadKeys", Auth: guest, Handle: a.uploadKeys},
		{Method: "POST", Versions: "r0", Path: "/keys/upload/{deviceId}", Operation: "uploadKeys", Auth: guest, Handle: a.uploadKeys},
		{Method: "POST", Versions: v3, Path: "/keys/query", Operation: "queryKeys", Auth: guest, Handle: a.queryKeys},
		{Method: "POST", Versions: v3, Path: "/keys/claim", Operation: "claimKeys", Auth: guest, Handle: a.claimKeys},
		{Method: "GET", Versions: v3, Path: "/keys/changes", Operation: "getKeysChanges", Auth: guest, Handle: a.keysChanges},
		{Method: "POST", Versions: v3 + " unstable", Path: "/keys/device_signing/upload", Operation: "uploadCrossSigningKeys", Auth: user, Handle: a.uploadCrossSigningKeys},
		{Method: "POST", Versions: v3 + " unstable", Path: "/keys/signatures/upload", Operation: "uploadCrossSigningSignatures", Auth: user, Handle: a.uploadSignatures},
		{Method: "PUT", Versions: v3, Path: "/sendToDevice/{eventType}/{txnId}", Operation: "sendToDevice", Auth: guest, Limit: "message", Handle: a.sendToDevice},
		{Method: "POST", Versions: v3, Path: "/room_keys/version", Operation: "postRoomKeysVersion", Auth: user, Handle: a.createBackup},
		{Method: "GET", Versions: v3, Path: "/room_keys/version", Operation: "getRoomKeysVersionCurrent", Auth: user, Handle: a.backup},
		{Method: "GET", Versions: v3, Path: "/room_keys/version/{version}", Operation: "getRoomKeysVersion", Auth: user, Handle: a.backup},
		{Method: "PUT", Versions: v3, Path: "/room_keys/version/{version}", Operation: "putRoomKeysVersion", Auth: user, Handle: a.updateBackup},
		{Method: "DELETE", Versions: v3, Path: "/room_keys/version/{version}", Operation: "deleteRoomKeysVersion", Auth: user, Handle: a.deleteBackup},
		{Method: "PUT", Versions: v3, Path: "/room_keys/keys", Operation: "putRoomKeys", Auth: user, MaxBody: backup, Handle: a.putBackupKeys},
		{Method: "GET", Versions: v3, Path: "/room_keys/keys", Operation: "getRoomKeys", Auth: user, Handle: a.backupKeys},
		{Method: "DELETE", Versions: v3, Path: "/room_keys/keys", Operation: "deleteRoomKeys", Auth: user, Handle: a.deleteBackupKeys},
		{Method: "PUT", Versions: v3, Path: "/room_keys/keys/{roomId}", Operation: "putRoomKeysByRoomId", Auth: user, MaxBody: backup, Handle: a.putBackupKeys},
		{Method: "GET", Versions: v3, Path: "/room_keys/keys/{roomId}", Operation: "getRoomKeysByRoomId", Auth: user, Handle: a.backupKeys},
		{Method: "DELETE", Versions: v3, Path: "/room_keys/keys/{roomId}", Operation: "deleteRoomKeysByRoomId", Auth: user, Handle: a.deleteBackupKeys},
		{Method: "PUT", Versions: v3, Path: "/room_keys/keys/{roomId}/{sessionId}", Operation: "putRoomKeyBySessionId", Auth: user, Handle: a.putBackupKeys},
		{Method: "GET", Versions: v3, Path: "/room_keys/keys/{roomId}/{sessionId}", Operation: "getRoomKeyBySessionId", Auth: user, Handle: a.backupKeys},
		{Method: "DELETE", Versions: v3, Path: "/room_keys/keys/{roomId}/{sessionId}", Operation: "deleteRoomKeyBySessionId", Auth: user, Handle: a.deleteBackupKeys},
	}
}

func (a *API) roomRoutes() []endpoint.Route {
	const delayedVersions = "v1 unstable/org.matrix.msc4140"
	return []endpoint.Route{
		{Method: "POST", Versions: v3, Path: "/createRoom", Operation: "createRoom", Auth: user, Limit: "create", Handle: a.createRoom},
		{Method: "POST", Versions: v3, Path: "/rooms/{roomId}/upgrade", Operation: "upgradeRoom", Auth: user, Limit: "create", Handle: a.upgrade},
		{Method: "GET", Versions: v3, Path: "/joined_rooms", Operation: "getJoinedRooms", Auth: guest, Handle: a.joinedRooms},
		{Method: "POST", Versions: v3, Path: "/join/{roomIdOrAlias}", Operation: "joinRoom", Auth: guest, Limit: "join", Handle: a.join},
		{Method: "POST", Versions: v3, Path: "/knock/{roomIdOrAlias}", Operation: "knockRoom", Auth: user, Limit: "join", Handle: a.knock},
		{Method: "POST", Versions: v3, Path: "/rooms/{roomId}/join", Operation: "joinRoomById", Auth: guest, Limit: "join", Handle: a.joinByID},
		{Method: "POST", Versions: v3, Path: "/rooms/{roomId}/invite", Operation: "inviteUser", Auth: user, Limit: "invite", Handle: a.invite},
		{Method: "POST", Versions: v3, Path: "/rooms/{roomId}/leave", Operation: "leaveRoom", Auth: guest, Handle: a.leave},
		{Method: "POST", Versions: v3, Path: "/rooms/{roomId}/forget", Operation: "forgetRoom", Auth: guest, Handle: a.forget},
		{Method: "POST", Versions: v3, Path: "/rooms/{roomId}/kick", Operation: "kick", Auth: user, Handle: changeOf(a.Rooms.Kick)},
		{Method: "POST", Versions: v3, Path: "/rooms/{roomId}/ban", Operation: "ban", Auth: user, Handle: changeOf(a.Rooms.Ban)},
		{Method: "POST", Versions: v3, Path: "/rooms/{roomId}/unban", Operation: "unban", Auth: user, Handle: changeOf(a.Rooms.Unban)},
		{Method: "PUT", Versions: v3, Path: "/rooms/{roomId}/send/{eventType}/{txnId}", Operation: "sendMessage", Auth: guest, Limit: "message", Handle: a.sendMessage},
		{Method: "POST", Versions: v3, Path: "/rooms/{roomId}/send/{eventType}", Operation: "sendMessage", Auth: guest, Limit: "message", Handle: a.sendMessage},
		{Method: "PUT", Versions: v3, Path: "/rooms/{roomId}/redact/{eventId}/{txnId}", Operation: "redactEvent", Auth: guest, Limit: "message", Handle: a.redact},
		{Method: "POST", Versions: v3, Path: "/rooms/{roomId}/redact/{eventId}", Operation: "redactEvent", Auth: guest, Limit: "message", Handle: a.redact},
		{Method: "GET", Versions: v3, Path: "/rooms/{roomId}/state", Operation: "getRoomState", Auth: guest, Handle: a.state},
		{Method: "GET", Versions: v3, Path: "/rooms/{roomId}/state/{eventType}", Operation: "getRoomStateWithKey", Auth: guest, Handle: a.stateEvent},
		{Method: "GET", Versions: v3, Path: "/rooms/{roomId}/state/{eventType}/", Operation: "getRoomStateWithKey", Auth: guest, Handle: a.stateEvent},
		{Method: "GET", Versions: v3, Path: "/rooms/{roomId}/state/{eventType}/{stateKey}", Operation: "getRoomStateWithKey", Auth: guest, Handle: a.stateEvent},
		{Method: "PUT", Versions: v3, Path: "/rooms/{roomId}/state/{eventType}", Operation: "setRoomStateWithKey", Auth: guest, Limit: "message", Handle: a.setState},
		{Method: "PUT", Versions: v3, Path: "/rooms/{roomId}/state/{eventType}/", Operation: "setRoomStateWithKey", Auth: guest, Limit: "message", Handle: a.setState},
		{Method: "PUT", Versions: v3, Path: "/rooms/{roomId}/state/{eventType}/{stateKey}", Operation: "setRoomStateWithKey", Auth: guest, Limit: "message", Handle: a.setState},
		{Method: "PUT", Versions: "v3 unstable/org.matrix.msc4140", Path: "/rooms/{roomId}/delayed_event/{eventType}/{txnId}", Operation: "scheduleDelayedEvent", Auth: guest, Limit: "message", Handle: a.scheduleEvent},
		{Method: "GET", Versions: delayedVersions, Path: "/delayed_events", Operation: "getDelayedEvents", Auth: guest, Limit: "delayed", Handle: a.delayedEvents},
		{Method: "GET", Versions: delayedVersions, Path: "/delayed_events/{delayId}", Operation: "getDelayedEvent", Auth: guest, Limit: "delayed", Handle: a.delayedEvent},
		{Method: "POST", Versions: "unstable/org.matrix.msc4140", Path: "/delayed_events/{delayId}", Operation: "manageDelayedEvent", Auth: maybe, Limit: "delayed", Handle: a.manageDelayed},
		{Method: "POST", Versions: delayedVersions, Path: "/delayed_events/{delayId}/cancel", Operation: "cancelDelayedEvent", Auth: maybe, Limit: "delayed", Handle: a.cancelDelayed},
		{Method: "POST", Versions: delayedVersions, Path: "/delayed_events/{delayId}/restart", Operation: "restartDelayedEvent", Auth: maybe, Limit: "delayed", Handle: a.restartDelayed},
		{Method: "POST", Versions: delayedVersions, Path: "/delayed_events/{delayId}/send", Operation: "sendDelayedEvent", Auth: maybe, Limit: "delayed", Handle: a.sendDelayed},
		{Method: "GET", Versions: v3, Path: "/rooms/{roomId}/members", Operation: "getMembersByRoom", Auth: guest, Handle: a.members},
		{Method: "GET", Versions: v3, Path: "/rooms/{roomId}/joined_members", Operation: "getJoinedMembersByRoom", Auth: guest, Handle: a.joinedMembers},
		{Method: "GET", Versions: v3, Path: "/rooms/{roomId}/messages", Operation: "getRoomEvents", Auth: guest, Handle: a.messages},
		{Method: "GET", Versions: v3, Path: "/rooms/{roomId}/event/{eventId}", Operation: "getOneRoomEvent", Auth: guest, Handle: a.event},
		{Method: "GET", Versions: v3, Path: "/rooms/{roomId}/context/{eventId}", Operation: "getEventContext", Auth: guest, Handle: a.context},
		{Method: "GET", Versions: "unstable/io.element.msc4306", Path: "/rooms/{roomId}/thread/{eventId}/subscription", Operation: "getThreadSubscription", Auth: user, Handle: a.threadSubscription},
		{Method: "PUT", Versions: "unstable/io.element.msc4306", Path: "/rooms/{roomId}/thread/{eventId}/subscription", Operation: "setThreadSubscription", Auth: user, Handle: a.subscribeThread},
		{Method: "DELETE", Versions: "unstable/io.element.msc4306", Path: "/rooms/{roomId}/thread/{eventId}/subscription", Operation: "deleteThreadSubscription", Auth: user, Handle: a.unsubscribeThread},
		{Method: "GET", Versions: "v1 unstable", Path: "/rooms/{roomId}/relations/{eventId}", Operation: "getRelatingEvents", Auth: guest, Handle: a.relations},
		{Method: "GET", Versions: "v1 unstable", Path: "/rooms/{roomId}/relations/{eventId}/{relType}", Operation: "getRelatingEventsWithRelType", Auth: guest, Handle: a.relations},
		{Method: "GET", Versions: "v1 unstable", Path: "/rooms/{roomId}/relations/{eventId}/{relType}/{eventType}", Operation: "getRelatingEventsWithRelTypeAndEventType", Auth: guest, Handle: a.relations},
		{Method: "GET", Versions: "v1", Path: "/rooms/{roomId}/threads", Operation: "getThreadRoots", Auth: guest, Handle: a.threads},
		{Method: "GET", Versions: "v1", Path: "/rooms/{roomId}/timestamp_to_event", Operation: "getEventByTimestamp", Auth: guest, Limit: "search", Handle: a.timestampToEvent},
		{Method: "GET", Versions: "v1", Path: "/rooms/{roomId}/hierarchy", Operation: "getSpaceHierarchy", Auth: guest, Limit: "search", Handle: a.hierarchy},
		{Method: "GET", Versions: "v1", Path: "/room_summary/{roomIdOrAlias}", Operation: "getRoomSummary", Auth: maybe, Limit: "search", Handle: a.roomSummary},
		{Method: "GET", Versions: "unstable/im.nheko.summary", Path: "/summary/{roomIdOrAlias}", Operation: "getRoomSummary", Auth: maybe, Limit: "search", Handle: a.roomSummary},
		{Method: "GET", Versions: "unstable/im.nheko.summary", Path: "/rooms/{roomIdOrAlias}/summary", Operation: "getRoomSummary", Auth: maybe, Limit: "search", Handle: a.roomSummary},
		{Method: "POST", Versions: v3, Path: "/search", Operation: "search", Auth: user, Limit: "search", Handle: a.search},
		{Method: "GET", Versions: v3, Path: "/rooms/{roomId}/initialSync", Operation: "roomInitialSync", Auth: guest, Handle: a.roomInitialSync},
		{Method: "POST", Versions: v3, Path: "/rooms/{roomId}/report", Operation: "reportRoom", Auth: user, Limit: "report", Handle: a.reportRoom},
		{Method: "POST", Versions: v3, Path: "/rooms/{roomId}/report/{eventId}", Operation: "reportEvent", Auth: user, Limit: "report", Handle: a.reportEvent},
		{Method: "GET", Versions: v3, Path: "/rooms/{roomId}/aliases", Operation: "getLocalAliases", Auth: user, Handle: a.localAliases},
		{Method: "PUT", Versions: v3, Path: "/directory/room/{roomAlias}", Operation: "setRoomAlias", Auth: user, Limit: "create", Handle: a.setAlias},
		{Method: "GET", Versions: v3, Path: "/directory/room/{roomAlias}", Operation: "getRoomIdByAlias", Auth: maybe, Handle: a.resolveAlias},
		{Method: "DELETE", Versions: v3, Path: "/directory/room/{roomAlias}", Operation: "deleteRoomAlias", Auth: user, Handle: a.deleteAlias},
		{Method: "GET", Versions: v3, Path: "/directory/list/room/{roomId}", Operation: "getRoomVisibilityOnDirectory", Auth: maybe, Handle: a.published},
		{Method: "PUT", Versions: v3, Path: "/directory/list/room/{roomId}", Operation: "setRoomVisibilityOnDirectory", Auth: user, Handle: a.setPublished},
		{Method: "PUT", Versions: v3, Path: "/directory/list/appservice/{networkId}/{roomId}", Operation: "updateAppserviceRoomDirectoryVisibility", Auth: service, Handle: a.setPublishedIn},
		{Method: "DELETE", Versions: v3, Path: "/directory/list/appservice/{networkId}/{roomId}", Operation: "updateAppserviceRoomDirectoryVisibility", Auth: service, Handle: a.setPublishedIn},
		{Method: "GET", Versions: v3, Path: "/publicRooms", Operation: "getPublicRooms", Auth: maybe, Limit: "search", Handle: a.publicRooms},
		{Method: "POST", Versions: v3, Path: "/publicRooms", Operation: "queryPublicRooms", Auth: guest, Limit: "search", Handle: a.publicRooms},
		{Method: "PUT", Versions: v3, Path: "/rooms/{roomId}/typing/{userId}", Operation: "setTyping", Auth: user, Handle: a.typing},
		{Method: "POST", Versions: v3, Path: "/rooms/{roomId}/receipt/{receiptType}/{eventId}", Operation: "postReceipt", Auth: user, Handle: a.receipt},
		{Method: "POST", Versions: v3, Path: "/rooms/{roomId}/read_markers", Operation: "setReadMarker", Auth: user, Handle: a.readMarkers},
		{Method: "GET", Versions: "v1", Path: "/mutual_rooms", Operation: "getMutualRooms", Auth: user, Handle: a.mutualRooms},
		{Method: "GET", Versions: "unstable/uk.half-shot.msc2666", Path: "/user/mutual_rooms", Operation: "getMutualRooms", Auth: user, Handle: a.mutualRooms},
	}
}

func (a *API) syncRoutes() []endpoint.Route {
	return []endpoint.Route{
		{Method: "GET", Versions: v3, Path: "/sync", Operation: "sync", Auth: guest, Handle: a.sync},
		{Method: "POST", Versions: "v4", Path: "/sync", Operation: "slidingSync", Auth: guest, Handle: a.slidingSync},
		{Method: "POST", Versions: "unstable/org.matrix.simplified_msc3575", Path: "/sync", Operation: "slidingSync", Auth: guest, Handle: a.unstableSlidingSync},
		{Method: "GET", Versions: "unstable/io.element.msc4308", Path: "/thread_subscriptions", Operation: "getThreadSubscriptions", Auth: user, Handle: a.threadSubscriptions},
		{Method: "GET", Versions: v3, Path: "/notifications", Operation: "getNotifications", Auth: user, Handle: a.notifications},
		{Method: "GET", Versions: v3, Path: "/events", Operation: "getEvents", Auth: guest, Handle: a.events},
		{Method: "GET", Versions: v3, Path: "/events/{eventId}", Operation: "getOneEvent", Auth: guest, Handle: a.oneEvent},
		{Method: "GET", Versions: v3, Path: "/initialSync", Operation: "initialSync", Auth: guest, Handle: a.initialSync},
	}
}

func (a *API) mediaRoutes() []endpoint.Route {
	return []endpoint.Route{
		{Method: "POST", Versions: "media/v3 media/r0", Path: "/upload", Operation: "uploadContent", Auth: user, Limit: "media", MaxBody: a.Media.MaxUpload() + 1, Handle: a.upload},
		{Method: "POST", Versions: "media/v1", Path: "/create", Operation: "createContent", Auth: user, Limit: "media", Handle: a.createMedia},
		{Method: "PUT", Versions: "media/v3", Path: "/upload/{serverName}/{mediaId}", Operation: "uploadContentToMXC", Auth: user, Limit: "media", MaxBody: a.Media.MaxUpload() + 1, Handle: a.uploadTo},
		{Method: "GET", Versions: "client/v1", Path: "/media/download/{serverName}/{mediaId}", Operation: "getContentAuthed", Auth: guest, Handle: a.download},
		{Method: "GET", Versions: "client/v1", Path: "/media/download/{serverName}/{mediaId}/{fileName}", Operation: "getContentOverrideNameAuthed", Auth: guest, Handle: a.download},
		{Method: "GET", Versions: "client/v1", Path: "/media/thumbnail/{serverName}/{mediaId}", Operation: "getContentThumbnailAuthed", Auth: guest, Handle: a.thumbnail},
		{Method: "GET", Versions: "client/v1", Path: "/media/preview_url", Operation: "getUrlPreviewAuthed", Auth: user, Limit: "search", Handle: a.urlPreview},
		{Method: "GET", Versions: "media/v3 media/r0", Path: "/preview_url", Operation: "getUrlPreview", Auth: user, Limit: "search", Handle: a.urlPreview},
		{Method: "GET", Versions: "client/v1", Path: "/media/config", Operation: "getConfigAuthed", Auth: guest, Handle: a.mediaConfig},
		{Method: "GET", Versions: "media/v3 media/r0", Path: "/config", Operation: "getConfig", Auth: guest, Handle: a.mediaConfig},
		{Method: "GET", Versions: "media/v3 media/r0", Path: "/download/{serverName}/{mediaId}", Operation: "getContent", Handle: a.legacyDownload},
		{Method: "GET", Versions: "media/v3 media/r0", Path: "/download/{serverName}/{mediaId}/{fileName}", Operation: "getContentOverrideName", Handle: a.legacyDownload},
		{Method: "GET", Versions: "media/v3 media/r0", Path: "/thumbnail/{serverName}/{mediaId}", Operation: "getContentThumbnail", Handle: a.legacyThumbnail},
	}
}
