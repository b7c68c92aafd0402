package api

import (
	"encoding/json"
	"net/http"

	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/notices"
)

// noticeRoutes send server notices, at the path that tools for other servers use.
func (a *API) noticeRoutes() []endpoint.Route {
	return []endpoint.Route{
		{Method: "POST", Versions: "v1", Path: "/send_server_notice", Operation: "sendServerNotice", Auth: admin, Handle: a.sendServerNotice},
		{Method: "PUT", Versions: "v1", Path: "/send_server_notice/{txnId}", Operation: "sendServerNotice", Auth: admin, Handle: a.sendServerNotice},
	}
}

// spec: client-server-api#server-notices
func (a *API) sendServerNotice(r *endpoint.Request) (any, error) {
	if a.Notices == nil {
		return nil, matrix.Errorf(http.StatusBadRequest, "M_UNKNOWN", "This server sends no notices. Set server_notices.localpart in its configuration.")
	}
	var req struct {
		UserID   *string         `json:"user_id"`
		Type     string          `json:"type"`
		StateKey *string         `json:"state_key"`
		Content  json.RawMessage `json:"content"`
	}
	if err := r.Decode(&req); err != nil {
		return nil, err
	}
	switch {
	case req.UserID == nil:
		return nil, matrix.MissingParam("user_id is missing.")
	case req.Content == nil:
		return nil, matrix.MissingParam("content is missing.")
	}
	user, err := parseUser(*req.UserID)
	if err != nil {
		return nil, err
	}
	if user.Server() != a.ServerName {
		return nil, matrix.InvalidParam("Notices can be sent to users of this server only.")
	}
	if err := checkObject(req.Content); err != nil {
		return nil, err
	}
	id, err := a.Notices.Send(r.Ctx(), notices.Notice{
		User: user, Type: req.Type, StateKey: req.StateKey, Content: req.Content, By: requester(r).UserID, TxnID: r.Var("txnId"),
	})
	if err != nil {
		return nil, err
	}
	return map[string]matrix.EventID{"event_id": id}, nil
}
