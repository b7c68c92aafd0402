package server

import "hanok/internal/endpoint"

// spec: ss/getSpaceHierarchy
func (s *Server) getHierarchy(r *endpoint.Request) (any, error) {
	room, err := roomID(r)
	if err != nil {
		return nil, err
	}
	suggested, err := r.QueryBool("suggested_only", false)
	if err != nil {
		return nil, err
	}
	return s.opts.Rooms.ServeHierarchy(r.Ctx(), origin(r), room, suggested)
}
