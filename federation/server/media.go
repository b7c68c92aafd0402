package server

import (
	"net/http"
	"time"

	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/media"
)

// mediaRequest reads what both endpoints share: only files of our own users are served.
func (s *Server) mediaRequest(r *endpoint.Request) (media.Get, error) {
	if s.opts.Media == nil {
		return media.Get{}, matrix.Errorf(http.StatusNotFound, "M_UNRECOGNIZED", "There is no such endpoint.")
	}
	wait, err := r.QueryInt("timeout_ms", 20_000)
	if err != nil {
		return media.Get{}, err
	}
	return media.Get{
		URI:  media.URI{Server: s.opts.ServerName, ID: r.Var("mediaId")},
		Wait: time.Duration(min(max(wait, 0), 60_000)) * time.Millisecond, LocalOnly: true,
	}, nil
}

// spec: ss/getContent
func (s *Server) getMedia(r *endpoint.Request) (any, error) {
	get, err := s.mediaRequest(r)
	if err != nil {
		return nil, err
	}
	file, err := s.opts.Media.Open(r.Ctx(), get)
	return s.sendFile(r, file, err)
}

// spec: ss/getContentThumbnail
func (s *Server) getThumbnail(r *endpoint.Request) (any, error) {
	get, err := s.mediaRequest(r)
	if err != nil {
		return nil, err
	}
	width, err := requiredInt(r, "width")
	if err != nil {
		return nil, err
	}
	height, err := requiredInt(r, "height")
	if err != nil {
		return nil, err
	}
	if _, err := r.QueryBool("animated", false); err != nil { // thumbnails are still, whatever is preferred
		return nil, err
	}
	const most = 1 << 20 // keeps the numbers far from overflow; the repository rounds to what it makes
	file, err := s.opts.Media.Thumbnail(r.Ctx(), media.GetThumbnail{
		Get: get, Width: int(min(width, most)), Height: int(min(height, most)), Method: r.Query("method"),
	})
	return s.sendFile(r, file, err)
}

func (s *Server) sendFile(r *endpoint.Request, file *media.File, err error) (any, error) {
	if err != nil {
		return nil, err
	}
	defer file.Close()
	if err := file.ServeMultipart(r.W); err != nil {
		// The header is out already: all that is left is to break off.
		s.opts.Log.Debug().Err(err).Msg("federation: media not sent")
	}
	return endpoint.Written{}, nil
}
