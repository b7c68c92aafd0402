package api

import (
	"encoding/json"

	"hanok/feed"
	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/users"
)

// spec: cs/uploadKeys
func (a *API) uploadKeys(r *endpoint.Request) (any, error) {
	var up users.KeysUpload
	if err := r.Decode(&up); err != nil {
		return nil, err
	}
	who := requester(r)
	if who.DeviceID == "" {
		return nil, matrix.Forbidden("This session has no device; log in with one to use encryption.")
	}
	counts, err := a.Users.Keys.Upload(r.Ctx(), who.UserID, who.DeviceID, up)
	if err != nil {
		return nil, err
	}
	return map[string]any{"one_time_key_counts": counts}, nil
}

// spec: cs/queryKeys
func (a *API) queryKeys(r *endpoint.Request) (any, error) {
	var req struct {
		DeviceKeys map[matrix.UserID][]matrix.DeviceID `json:"device_keys"`
	}
	if err := r.Decode(&req); err != nil {
		return nil, err
	}
	if req.DeviceKeys == nil {
		return nil, matrix.BadJSON("device_keys is missing.")
	}
	if err := checkUsers(req.DeviceKeys); err != nil {
		return nil, err
	}
	return a.Users.Keys.Query(r.Ctx(), requester(r).UserID, req.DeviceKeys)
}

// spec: cs/claimKeys
func (a *API) claimKeys(r *endpoint.Request) (any, error) {
	var req struct {
		OneTimeKeys users.Claims `json:"one_time_keys"`
	}
	if err := r.Decode(&req); err != nil {
		return nil, err
	}
	if err := checkUsers(req.OneTimeKeys); err != nil {
		return nil, err
	}
	return a.Users.Keys.Claim(r.Ctx(), req.OneTimeKeys)
}

// checkUsers parses the keys of a map that come as user IDs from a client.
func checkUsers[V any](m map[matrix.UserID]V) error {
	for id := range m {
		if _, err := parseUser(string(id)); err != nil {
			return err
		}
	}
	return nil
}

// spec: cs/getKeysChanges
func (a *API) keysChanges(r *endpoint.Request) (any, error) {
	from, err := feed.ParseToken(r.Query("from"))
	if err != nil {
		return nil, err
	}
	to, err := feed.ParseToken(r.Query("to"))
	if err != nil {
		return nil, err
	}
	return a.Feed.DeviceChanges(r.Ctx(), requester(r).UserID, from, to)
}

// spec: cs/uploadCrossSigningKeys
func (a *API) uploadCrossSigningKeys(r *endpoint.Request) (any, error) {
	me := requester(r).UserID
	var up users.CrossSigningUpload
	if err := r.Decode(&up); err != nil {
		return nil, err
	}
	needs, err := a.Users.CrossSigning.NeedsAuth(r.Ctx(), me, up)
	if err != nil {
		return nil, err
	}
	if needs && serviceOf(r) == nil { // spec: application-service-api#cross-signing
		if _, err := a.interactive(r, users.Operation{Name: "device_signing", User: me, Flows: [][]string{{users.StagePassword}}}); err != nil {
			return nil, err
		}
	}
	return nil, a.Users.CrossSigning.Upload(r.Ctx(), me, up)
}

// spec: cs/uploadCrossSigningSignatures
func (a *API) uploadSignatures(r *endpoint.Request) (any, error) {
	var up users.SignatureUpload
	if err := r.Decode(&up); err != nil {
		return nil, err
	}
	if err := checkUsers(up); err != nil {
		return nil, err
	}
	failures, err := a.Users.CrossSigning.UploadSignatures(r.Ctx(), requester(r).UserID, up)
	if err != nil {
		return nil, err
	}
	return map[string]any{"failures": failures}, nil
}

// spec: cs/sendToDevice
func (a *API) sendToDevice(r *endpoint.Request) (any, error) {
	var req struct {
		Messages users.Messages `json:"messages"`
	}
	if err := r.Decode(&req); err != nil {
		return nil, err
	}
	if req.Messages == nil {
		return nil, matrix.MissingParam("messages is missing.")
	}
	if err := checkUsers(req.Messages); err != nil {
		return nil, err
	}
	who := requester(r)
	return nil, a.Users.ToDevice.Send(r.Ctx(), who.UserID, who.DeviceID, r.Var("txnId"), r.Var("eventType"), req.Messages)
}

type backupVersionRequest struct {
	Algorithm string          `json:"algorithm"`
	AuthData  json.RawMessage `json:"auth_data"`
	Version   string          `json:"version"`
}

// spec: cs/postRoomKeysVersion
func (a *API) createBackup(r *endpoint.Request) (any, error) {
	var req backupVersionRequest
	if err := r.Decode(&req); err != nil {
		return nil, err
	}
	version, err := a.Users.Backups.Create(r.Ctx(), requester(r).UserID, req.Algorithm, req.AuthData)
	if err != nil {
		return nil, err
	}
	return map[string]string{"version": version}, nil
}

// spec: cs/getRoomKeysVersionCurrent, cs/getRoomKeysVersion
func (a *API) backup(r *endpoint.Request) (any, error) {
	return a.Users.Backups.Get(r.Ctx(), requester(r).UserID, r.Var("version"))
}

// spec: cs/putRoomKeysVersion
func (a *API) updateBackup(r *endpoint.Request) (any, error) {
	var req backupVersionRequest
	if err := r.Decode(&req); err != nil {
		return nil, err
	}
	return nil, a.Users.Backups.Update(r.Ctx(), requester(r).UserID, r.Var("version"), req.Version, req.Algorithm, req.AuthData)
}

// spec: cs/deleteRoomKeysVersion
func (a *API) deleteBackup(r *endpoint.Request) (any, error) {
	return nil, a.Users.Backups.Delete(r.Ctx(), requester(r).UserID, r.Var("version"))
}

// selection reads which keys of a backup a request is about: the version in the query, the room and session in the path.
func selection(r *endpoint.Request) (users.BackupSelection, error) {
	s := users.BackupSelection{Version: r.Query("version"), Session: r.Var("sessionId")}
	if s.Version == "" {
		return s, matrix.MissingParam("version is missing.")
	}
	room, err := dataRoom(r)
	s.Room = room
	return s, err
}

// spec: cs/putRoomKeys, cs/putRoomKeysByRoomId, cs/putRoomKeyBySessionId
func (a *API) putBackupKeys(r *endpoint.Request) (any, error) {
	s, err := selection(r)
	if err != nil {
		return nil, err
	}
	type sessions struct {
		Sessions map[string]users.BackedUpKey `json:"sessions"`
	}
	keys := make(users.RoomKeys)
	switch {
	case s.Session != "":
		var key users.BackedUpKey
		if err := r.Decode(&key); err != nil {
			return nil, err
		}
		keys[s.Room] = map[string]users.BackedUpKey{s.Session: key}
	case s.Room != "":
		var one sessions
		if err := r.Decode(&one); err != nil {
			return nil, err
		}
		keys[s.Room] = one.Sessions
	default:
		var all struct {
			Rooms map[matrix.RoomID]sessions `json:"rooms"`
		}
		if err := r.Decode(&all); err != nil {
			return nil, err
		}
		for id, one := range all.Rooms {
			if _, err := matrix.ParseRoomID(string(id)); err != nil {
				return nil, matrix.InvalidParam("%q is not a room ID.", id)
			}
			keys[id] = one.Sessions
		}
	}
	return a.Users.Backups.PutKeys(r.Ctx(), requester(r).UserID, s.Version, keys)
}

// spec: cs/getRoomKeys, cs/getRoomKeysByRoomId, cs/getRoomKeyBySessionId
func (a *API) backupKeys(r *endpoint.Request) (any, error) {
	s, err := selection(r)
	if err != nil {
		return nil, err
	}
	keys, err := a.Users.Backups.GetKeys(r.Ctx(), requester(r).UserID, s)
	if err != nil {
		return nil, err
	}
	type sessions struct {
		Sessions map[string]users.BackedUpKey `json:"sessions"`
	}
	switch {
	case s.Session != "":
		return keys[s.Room][s.Session], nil
	case s.Room != "":
		return sessions{keys[s.Room]}, nil
	}
	all := make(map[matrix.RoomID]sessions, len(keys))
	for id, one := range keys {
		all[id] = sessions{one}
	}
	return map[string]any{"rooms": all}, nil
}

// spec: cs/deleteRoomKeys, cs/deleteRoomKeysByRoomId, cs/deleteRoomKeyBySessionId
func (a *API) deleteBackupKeys(r *endpoint.Request) (any, error) {
	s, err := selection(r)
	if err != nil {
		return nil, err
	}
	return a.Users.Backups.DeleteKeys(r.Ctx(), requester(r).UserID, s)
}
