package server

import (
	"github.com/go-json-experiment/json/jsontext"

	"hanok/federation/client"
	"hanok/internal/endpoint"
	"hanok/matrix"
)

// spec: ss/getServerKey
func (s *Server) getServerKey(*endpoint.Request) (any, error) {
	own, err := s.opts.Keys.Own()
	return endpoint.Raw(own), err
}

// spec: ss/perspectivesKeyQuery
func (s *Server) perspectivesKeyQuery(r *endpoint.Request) (any, error) {
	server, err := matrix.ParseServerName(r.Var("serverName"))
	if err != nil {
		return nil, err
	}
	until, err := r.QueryInt("minimum_valid_until_ts", 0)
	if err != nil {
		return nil, err
	}
	return s.notary(r, client.KeyCriteria{server: {"": matrix.Timestamp(until)}})
}

// spec: ss/bulkPerspectivesKeyQuery
func (s *Server) bulkPerspectivesKeyQuery(r *endpoint.Request) (any, error) {
	var body struct {
		Keys map[string]map[matrix.KeyID]struct {
			ValidUntil matrix.Timestamp `json:"minimum_valid_until_ts"`
		} `json:"server_keys"`
	}
	if err := r.Decode(&body); err != nil {
		return nil, err
	}
	if body.Keys == nil {
		return nil, matrix.MissingParam("server_keys is missing.")
	}
	criteria := client.KeyCriteria{}
	for name, keys := range body.Keys {
		server, err := matrix.ParseServerName(name)
		if err != nil {
			return nil, err
		}
		criteria[server] = map[matrix.KeyID]matrix.Timestamp{}
		for id, k := range keys {
			criteria[server][id] = k.ValidUntil
		}
	}
	return s.notary(r, criteria)
}

func (s *Server) notary(r *endpoint.Request, criteria client.KeyCriteria) (any, error) {
	documents, err := s.opts.Keys.Query(r.Ctx(), criteria)
	if err != nil {
		return nil, err
	}
	answer := struct {
		Keys []jsontext.Value `json:"server_keys"`
	}{}
	for _, d := range documents {
		answer.Keys = append(answer.Keys, d)
	}
	return answer, nil
}
