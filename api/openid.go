package api

import (
	"net/http"

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

// openIDRoutes serve the one endpoint for third parties that is the federation API's, where there is no federation:
// the service that lets users of this server into calls asks it who they are.
func (a *API) openIDRoutes() []endpoint.Route {
	if !a.ServeOpenID {
		return nil
	}
	return []endpoint.Route{
		{Method: "GET", Path: "/federation/v1/openid/userinfo", Operation: "exchangeOpenIdToken", Handle: a.openIDUser},
	}
}

// spec: ss/exchangeOpenIdToken
func (a *API) openIDUser(r *endpoint.Request) (any, error) {
	token := r.Query("access_token")
	if token == "" {
		return nil, matrix.Errorf(http.StatusUnauthorized, "M_MISSING_TOKEN", "access_token is missing.")
	}
	user, err := a.Users.Sessions.OpenIDUser(r.Ctx(), token)
	if err != nil {
		return nil, err
	}
	return map[string]matrix.UserID{"sub": user}, nil
}
