package api

import (
	"hanok/internal/endpoint"
	"hanok/matrix"
)

// spec: cs/requestOpenIdToken
func (a *API) openIDToken(r *endpoint.Request) (any, error) {
	me, err := selfVar(r)
	if err != nil {
		return nil, err
	}
	var body map[string]any // an empty object, for all that the specification says
	if err := r.DecodeOptional(&body); err != nil {
		return nil, err
	}
	token, life, err := a.Users.Sessions.OpenIDToken(r.Ctx(), me)
	if err != nil {
		return nil, err
	}
	return struct {
		AccessToken string            `json:"access_token"`
		TokenType   string            `json:"token_type"`
		Server      matrix.ServerName `json:"matrix_server_name"`
		ExpiresIn   int64             `json:"expires_in"` // seconds
	}{token, "Bearer", a.ServerName, int64(life.Seconds())}, nil
}
