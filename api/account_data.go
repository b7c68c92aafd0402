package api

import (
	"encoding/json"

	"hanok/internal/endpoint"
	"hanok/internal/strictjson"
	"hanok/matrix"
)

// dataRoom is the room in the path of the account-data endpoints, "" for the global ones.
func dataRoom(r *endpoint.Request) (matrix.RoomID, error) {
	if r.Var("roomId") == "" {
		return "", nil
	}
	return roomVar(r)
}

// spec: cs/setAccountData, cs/setAccountDataPerRoom
func (a *API) setAccountData(r *endpoint.Request) (any, error) {
	me, room, err := selfAndRoom(r)
	if err != nil {
		return nil, err
	}
	var content map[string]json.RawMessage // must be an object
	if err := r.Decode(&content); err != nil {
		return nil, err
	}
	if content == nil {
		return nil, matrix.BadJSON("Account data must be an object.")
	}
	body, err := r.Body()
	if err != nil {
		return nil, err
	}
	return nil, a.Users.AccountData.Set(r.Ctx(), me, room, r.Var("type"), body)
}

// spec: cs/getAccountData, cs/getAccountDataPerRoom
func (a *API) accountData(r *endpoint.Request) (any, error) {
	me, room, err := selfAndRoom(r)
	if err != nil {
		return nil, err
	}
	content, err := a.Users.AccountData.Get(r.Ctx(), me, room, r.Var("type"))
	return endpoint.Raw(content), err
}

// spec: MSC3391
func (a *API) deleteAccountData(r *endpoint.Request) (any, error) {
	me, room, err := selfAndRoom(r)
	if err != nil {
		return nil, err
	}
	return nil, a.Users.AccountData.Delete(r.Ctx(), me, room, r.Var("type"))
}

func selfAndRoom(r *endpoint.Request) (matrix.UserID, matrix.RoomID, error) {
	me, err := selfVar(r)
	if err != nil {
		return "", "", err
	}
	room, err := dataRoom(r)
	return me, room, err
}

// spec: cs/getRoomTags
func (a *API) tags(r *endpoint.Request) (any, error) {
	me, room, err := selfAndRoom(r)
	if err != nil {
		return nil, err
	}
	tags, err := a.Users.AccountData.Tags(r.Ctx(), me, room)
	if err != nil {
		return nil, err
	}
	return map[string]any{"tags": tags}, nil
}

// spec: cs/setRoomTag
func (a *API) setTag(r *endpoint.Request) (any, error) {
	me, room, err := selfAndRoom(r)
	if err != nil {
		return nil, err
	}
	body, err := r.Body()
	if err != nil {
		return nil, err
	}
	if len(body) == 0 {
		body = []byte("{}")
	}
	var content map[string]json.RawMessage
	if err := strictjson.Unmarshal(body, &content); err != nil {
		return nil, err
	}
	return nil, a.Users.AccountData.SetTag(r.Ctx(), me, room, r.Var("tag"), body)
}

// spec: cs/deleteRoomTag
func (a *API) deleteTag(r *endpoint.Request) (any, error) {
	me, room, err := selfAndRoom(r)
	if err != nil {
		return nil, err
	}
	return nil, a.Users.AccountData.DeleteTag(r.Ctx(), me, room, r.Var("tag"))
}
