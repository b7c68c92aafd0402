package server

import (
	"hanok/internal/endpoint"
	"hanok/matrix"
)

// Bounds of what one request may ask for.
const (
	maxBackfill      = 100
	maxBackfillFrom  = 100
	maxMissing       = 50
	defaultMissing   = 10
	maxMissingEdges  = 100
	errTooManyEvents = "At most %d event IDs can be given."
)

// transactionOf wraps events as the endpoints do that answer with a transaction.
func (s *Server) transactionOf(events [][]byte) endpoint.Raw {
	var o objectBuilder
	o.text("origin", string(s.opts.ServerName))
	o.integer("origin_server_ts", s.opts.Now().UnixMilli())
	o.events("pdus", events)
	return o.done()
}

// spec: ss/getEvent
func (s *Server) getEvent(r *endpoint.Request) (any, error) {
	id, err := eventID(r)
	if err != nil {
		return nil, err
	}
	event, err := s.opts.Rooms.ServeEvent(r.Ctx(), origin(r), id)
	if err != nil {
		return nil, err
	}
	return s.transactionOf([][]byte{event}), nil
}

// at is the event_id parameter of the state endpoints.
func at(r *endpoint.Request) (matrix.RoomID, matrix.EventID, error) {
	room, err := roomID(r)
	if err != nil {
		return "", "", err
	}
	text := r.Query("event_id")
	if text == "" {
		return "", "", matrix.MissingParam("event_id is missing.")
	}
	id, err := matrix.ParseEventID(text)
	return room, id, err
}

// spec: ss/getRoomState
func (s *Server) getState(r *endpoint.Request) (any, error) {
	room, id, err := at(r)
	if err != nil {
		return nil, err
	}
	state, auth, err := s.opts.Rooms.ServeState(r.Ctx(), origin(r), room, id)
	if err != nil {
		return nil, err
	}
	var o objectBuilder
	o.events("auth_chain", auth)
	o.events("pdus", state)
	return o.done(), nil
}

// spec: ss/getRoomStateIds
func (s *Server) getStateIDs(r *endpoint.Request) (any, error) {
	room, id, err := at(r)
	if err != nil {
		return nil, err
	}
	state, auth, err := s.opts.Rooms.ServeStateIDs(r.Ctx(), origin(r), room, id)
	return struct {
		AuthChain []matrix.EventID `json:"auth_chain_ids"`
		PDUs      []matrix.EventID `json:"pdu_ids"`
	}{auth, state}, err
}

// spec: ss/getEventAuth
func (s *Server) getEventAuth(r *endpoint.Request) (any, error) {
	room, id, err := roomAndEvent(r)
	if err != nil {
		return nil, err
	}
	auth, err := s.opts.Rooms.ServeEventAuth(r.Ctx(), origin(r), room, id)
	if err != nil {
		return nil, err
	}
	var o objectBuilder
	o.events("auth_chain", auth)
	return o.done(), nil
}

// spec: ss/backfillRoom
func (s *Server) backfill(r *endpoint.Request) (any, error) {
	room, err := roomID(r)
	if err != nil {
		return nil, err
	}
	limit, err := requiredInt(r, "limit")
	if err != nil {
		return nil, err
	}
	if limit <= 0 {
		return nil, matrix.InvalidParam("limit must be above 0.")
	}
	from, err := parseEventIDs(r.QueryAll("v"), maxBackfillFrom)
	if err != nil {
		return nil, err
	}
	if len(from) == 0 {
		return nil, matrix.MissingParam("v is missing: the events to go back from.")
	}
	events, err := s.opts.Rooms.ServeBackfill(r.Ctx(), origin(r), room, from, int(min(limit, maxBackfill)))
	if err != nil {
		return nil, err
	}
	return s.transactionOf(events), nil
}

// spec: ss/getMissingPreviousEvents
func (s *Server) getMissingEvents(r *endpoint.Request) (any, error) {
	room, err := roomID(r)
	if err != nil {
		return nil, err
	}
	var body struct {
		Limit    *int64   `json:"limit"`
		MinDepth int64    `json:"min_depth"`
		Earliest []string `json:"earliest_events"`
		Latest   []string `json:"latest_events"`
	}
	if err := r.Decode(&body); err != nil {
		return nil, err
	}
	earliest, err := parseEventIDs(body.Earliest, maxMissingEdges)
	if err != nil {
		return nil, err
	}
	latest, err := parseEventIDs(body.Latest, maxMissingEdges)
	if err != nil {
		return nil, err
	}
	limit := int64(defaultMissing)
	if body.Limit != nil {
		limit = min(max(*body.Limit, 0), maxMissing)
	}
	events, err := s.opts.Rooms.ServeMissingEvents(r.Ctx(), origin(r), room, earliest, latest, int(limit), body.MinDepth)
	if err != nil {
		return nil, err
	}
	var o objectBuilder
	o.events("events", events)
	return o.done(), nil
}

// spec: ss/getEventByTimestamp
func (s *Server) getEventByTimestamp(r *endpoint.Request) (any, error) {
	room, err := roomID(r)
	if err != nil {
		return nil, err
	}
	ts, err := requiredInt(r, "ts")
	if err != nil {
		return nil, err
	}
	dir := r.Query("dir")
	switch dir {
	case "b", "f":
	case "":
		return nil, matrix.MissingParam("dir is missing.")
	default:
		return nil, matrix.InvalidParam("dir must be b or f.")
	}
	ev, err := s.opts.Rooms.ServeEventByTime(r.Ctx(), origin(r), room, matrix.Timestamp(ts), dir == "b")
	if err != nil {
		return nil, err
	}
	return struct {
		ID matrix.EventID   `json:"event_id"`
		TS matrix.Timestamp `json:"origin_server_ts"`
	}{ev.ID(), ev.OriginServerTS()}, nil
}

// requiredInt is a query parameter that is an integer and has to be there.
func requiredInt(r *endpoint.Request, name string) (int64, error) {
	if r.Query(name) == "" {
		return 0, matrix.MissingParam("%s is missing.", name)
	}
	return r.QueryInt(name, 0)
}

func parseEventIDs(texts []string, limit int) ([]matrix.EventID, error) {
	if len(texts) > limit {
		return nil, matrix.InvalidParam(errTooManyEvents, limit)
	}
	out := make([]matrix.EventID, len(texts))
	for i, t := range texts {
		id, err := matrix.ParseEventID(t)
		if err != nil {
			return nil, err
		}
		out[i] = id
	}
	return out, nil
}
