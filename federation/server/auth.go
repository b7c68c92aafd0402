package server

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"hanok/federation/xmatrix"
	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/matrix/canonicaljson"
)

// maxSignatures bounds how many Authorization headers of one request are looked at.
const maxSignatures = 5

// authorise finds out which server is asking. spec: server-server-api#request-authentication
func (s *Server) authorise(r *endpoint.Request, rt endpoint.Route) error {
	headers, err := s.headers(r)
	if err != nil {
		return err
	}
	origin := headers[0].Origin
	if err := s.opts.Peers.Check(origin); err != nil {
		return err
	}
	if err := s.meet(r, headers); err != nil {
		return err
	}
	body, err := readBody(r)
	if err != nil {
		return err
	}
	if err := s.verify(r, headers, body); err != nil {
		return err
	}
	s.opts.Peers.Answered(origin)
	r.SetIdentity(origin)
	if rt.Auth != inRoom {
		return nil
	}
	room, err := roomID(r)
	if err != nil {
		return err
	}
	return s.checkACL(r, room, origin)
}

// verify checks the signature of a request.
func (s *Server) verify(r *endpoint.Request, headers []xmatrix.Header, body []byte) (err error) {
	req := xmatrix.Request{Method: r.Method, URI: r.RequestURI}
	if req.Content, err = s.canonical(r.Ctx(), body); err != nil {
		return err
	}
	for _, h := range headers {
		// One good signature will do: a server may sign with several keys, some of them unknown to us.
		if err = s.opts.Keys.VerifyRequest(r.Ctx(), req, h); err == nil {
			return nil
		}
	}
	return err
}

// canonical puts a body into the form that is signed; nil if there is none.
func (s *Server) canonical(ctx context.Context, body []byte) ([]byte, error) {
	if len(body) == 0 {
		return nil, nil
	}
	if len(body) > bigBody {
		// Sorting it takes many times as much memory, for a request that anybody may have made.
		select {
		case s.bigBodies <- struct{}{}:
			defer func() { <-s.bigBodies }()
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	// A body that is not JSON cannot have been signed, but the caller should learn which of the two it is.
	canonical, err := canonicaljson.Canonical(body, canonicaljson.Lenient)
	if err != nil {
		return nil, matrix.NotJSON("The body is not valid JSON.").Because(err)
	}
	return canonical, nil
}

// bodyTimeout is how long a server may take to send a request: before it is read nobody knows who sends it.
const bodyTimeout = time.Minute

func readBody(r *endpoint.Request) ([]byte, error) {
	conn := http.NewResponseController(r.W)
	if err := conn.SetReadDeadline(time.Now().Add(bodyTimeout)); err == nil {
		defer conn.SetReadDeadline(time.Time{}) //nolint:errcheck // it could be set a moment ago
	}
	return r.Body()
}

// checkACL lets rooms pass that we do not know: the handler says so.
func (s *Server) checkACL(r *endpoint.Request, room matrix.RoomID, origin matrix.ServerName) error {
	err := s.opts.Rooms.AllowsServer(r.Ctx(), room, origin)
	if matrix.HasCode(err, "M_NOT_FOUND") {
		return nil
	}
	return err
}

// headers reads the X-Matrix headers; all must name the same origin, and us where they name a destination.
func (s *Server) headers(r *endpoint.Request) ([]xmatrix.Header, error) {
	var out []xmatrix.Header
	var malformed error
	for _, value := range r.Header.Values("Authorization") {
		if len(value) < len(xmatrix.Scheme) || !strings.EqualFold(value[:len(xmatrix.Scheme)], xmatrix.Scheme) || len(out) == maxSignatures {
			continue
		}
		h, err := xmatrix.Parse(value)
		if err != nil {
			malformed = errors.Join(malformed, err)
			continue
		}
		if h.Destination != "" && h.Destination != s.opts.ServerName {
			return nil, unauthorized("The request was signed for another server than %s.", s.opts.ServerName)
		}
		if len(out) > 0 && h.Origin != out[0].Origin {
			return nil, unauthorized("The request names several origins.")
		}
		out = append(out, h)
	}
	if len(out) > 0 {
		return out, nil
	}
	if malformed != nil {
		return nil, unauthorized("The Authorization header cannot be read.").Because(malformed)
	}
	return nil, unauthorized("The request needs an X-Matrix Authorization header.")
}

func unauthorized(format string, args ...any) *matrix.Error {
	return matrix.Errorf(http.StatusUnauthorized, "M_UNAUTHORIZED", format, args...)
}

// origin is the server that is asking.
func origin(r *endpoint.Request) matrix.ServerName {
	name, _ := r.Identity().(matrix.ServerName)
	return name
}

func roomID(r *endpoint.Request) (matrix.RoomID, error) { return matrix.ParseRoomID(r.Var("roomId")) }

func eventID(r *endpoint.Request) (matrix.EventID, error) {
	return matrix.ParseEventID(r.Var("eventId"))
}

// roomAndEvent are the path variables of most endpoints.
func roomAndEvent(r *endpoint.Request) (matrix.RoomID, matrix.EventID, error) {
	room, err := roomID(r)
	if err != nil {
		return "", "", err
	}
	id, err := eventID(r)
	return room, id, err
}

// localUser reads a user ID that must be ours. Who is kept to this server is not known to others.
func (s *Server) localUser(ctx context.Context, text string) (matrix.UserID, error) {
	user, err := matrix.ParseUserID(text)
	if err != nil {
		return "", err
	}
	if user.Server() != s.opts.ServerName {
		return "", matrix.InvalidParam("%s is not a user of this server.", user)
	}
	if err := s.opts.Users.Accounts.CheckFederates(ctx, user); matrix.HasCode(err, "M_FORBIDDEN") {
		return "", matrix.NotFound("There is no such user.")
	} else if err != nil {
		return "", err
	}
	return user, nil
}
