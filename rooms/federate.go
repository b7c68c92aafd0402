package rooms

import (
	"context"
	"encoding/json"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
)

// Users may be kept to this server. They are let into rooms only that nobody of another server can enter, because their
// m.room.create says so (m.federate), which the authorisation rules of every server enforce, or because the operator keeps the room apart (isolation.go).

// keptLocal adds to the content of m.room.create that the room is for users of this server, if the creator has no choice or made none.
func (e *Engine) keptLocal(ctx context.Context, creator matrix.UserID, raw json.RawMessage) (json.RawMessage, error) {
	content, err := object(raw, "creation_content")
	if err != nil {
		return nil, err
	}
	refused := e.mayFederate(ctx, creator)
	if _, wrong := matrix.AsError(refused); refused != nil && !wrong {
		return nil, refused
	}
	stated, chosen := content["m.federate"]
	switch {
	case refused == nil && (chosen || !e.localByDefault):
		return raw, nil
	case refused != nil && chosen && string(stated) != "false":
		return nil, refused
	}
	content["m.federate"] = json.RawMessage("false")
	return canonicaljson.Marshal(content)
}

// mayEnter refuses a room to a local user who is kept to this server, unless nobody of another server can be in it. M_FORBIDDEN.
func (e *Engine) mayEnter(ctx context.Context, user matrix.UserID, id matrix.RoomID) error {
	refused := e.mayFederate(ctx, user)
	if refused == nil {
		return nil
	}
	own, err := e.ownOnly(ctx, id)
	if own || err != nil {
		return err
	}
	return refused
}

// ownOnly says whether nobody of another server can be in a room, or be heard from there.
func (e *Engine) ownOnly(ctx context.Context, id matrix.RoomID) (bool, error) {
	if e.isolation.has(id) {
		return true, nil
	}
	r, err := e.room(ctx, id)
	if matrix.HasCode(err, "M_NOT_FOUND") {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer r.release()
	c, err := r.current(ctx)
	if err != nil {
		return false, err
	}
	create, err := State{e, c.head.state}.Event(ctx, "m.room.create", "")
	if err != nil || create == nil {
		return false, err
	}
	federates, stated := canonicaljson.GetBool(create.Content(), "m.federate")
	return stated && !federates, nil
}
