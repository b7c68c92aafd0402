package api

import (
	"time"

	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/media"
)

func uploadBody(r *endpoint.Request) media.Upload {
	return media.Upload{
		Body: r.Request.Body, Length: r.ContentLength,
		ContentType: r.Header.Get("Content-Type"), Filename: r.Query("filename"),
	}
}

// spec: cs/uploadContent
func (a *API) upload(r *endpoint.Request) (any, error) {
	uri, err := a.Media.Upload(r.Ctx(), requester(r).UserID, uploadBody(r))
	if err != nil {
		return nil, err
	}
	return map[string]string{"content_uri": uri.String()}, nil
}

// spec: cs/createContent
func (a *API) createMedia(r *endpoint.Request) (any, error) {
	uri, expires, err := a.Media.Create(r.Ctx(), requester(r).UserID)
	if err != nil {
		return nil, err
	}
	return map[string]any{"content_uri": uri.String(), "unused_expires_at": expires}, nil
}

// spec: cs/uploadContentToMXC
func (a *API) uploadTo(r *endpoint.Request) (any, error) {
	uri, err := mediaVar(r)
	if err != nil {
		return nil, err
	}
	return nil, a.Media.UploadTo(r.Ctx(), requester(r).UserID, uri, uploadBody(r))
}

func mediaVar(r *endpoint.Request) (media.URI, error) {
	return media.ParseURI("mxc://" + r.Var("serverName") + "/" + r.Var("mediaId"))
}

// getMedia reads what all download endpoints share.
func getMedia(r *endpoint.Request, legacy bool) (media.Get, error) {
	uri, err := mediaVar(r)
	if err != nil {
		return media.Get{}, err
	}
	ms, err := r.QueryInt("timeout_ms", 20_000)
	if err != nil {
		return media.Get{}, err
	}
	g := media.Get{URI: uri, Wait: time.Duration(max(0, min(ms, 1<<32))) * time.Millisecond, Legacy: legacy}
	if legacy {
		remote, err := r.QueryBool("allow_remote", true)
		if err != nil {
			return media.Get{}, err
		}
		g.LocalOnly = !remote
	}
	return g, nil
}

// spec: cs/getContentAuthed, cs/getContentOverrideNameAuthed
func (a *API) download(r *endpoint.Request) (any, error) { return a.serveContent(r, false) }

// spec: cs/getContent, cs/getContentOverrideName
func (a *API) legacyDownload(r *endpoint.Request) (any, error) { return a.serveContent(r, true) }

func (a *API) serveContent(r *endpoint.Request, legacy bool) (any, error) {
	g, err := getMedia(r, legacy)
	if err != nil {
		return nil, err
	}
	f, err := a.Media.Open(r.Ctx(), g)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if name := r.Var("fileName"); name != "" {
		f.Filename = name
	}
	f.Serve(r.W, r.Request)
	return endpoint.Written{}, nil
}

// spec: cs/getContentThumbnailAuthed
func (a *API) thumbnail(r *endpoint.Request) (any, error) { return a.serveThumbnail(r, false) }

// spec: cs/getContentThumbnail
func (a *API) legacyThumbnail(r *endpoint.Request) (any, error) { return a.serveThumbnail(r, true) }

func (a *API) serveThumbnail(r *endpoint.Request, legacy bool) (any, error) {
	g, err := getMedia(r, legacy)
	if err != nil {
		return nil, err
	}
	width, err := r.QueryInt("width", 0)
	if err != nil {
		return nil, err
	}
	height, err := r.QueryInt("height", 0)
	if err != nil {
		return nil, err
	}
	const most = 1 << 16
	f, err := a.Media.Thumbnail(r.Ctx(), media.GetThumbnail{
		Get: g, Width: int(max(0, min(width, most))), Height: int(max(0, min(height, most))), Method: r.Query("method"),
	})
	if err != nil {
		return nil, err
	}
	defer f.Close()
	f.Serve(r.W, r.Request)
	return endpoint.Written{}, nil
}

// spec: cs/getUrlPreviewAuthed, cs/getUrlPreview
func (a *API) urlPreview(r *endpoint.Request) (any, error) {
	if a.Previews == nil {
		return nil, matrix.Forbidden("This server makes no previews of links.") // spec: MSC4452
	}
	if r.Query("url") == "" {
		return nil, matrix.MissingParam("url is missing.")
	}
	if _, err := r.QueryInt("ts", 0); err != nil { // what is kept is never older than an hour, whatever time was asked for
		return nil, err
	}
	answer, err := a.Previews.Get(r.Ctx(), r.Query("url"))
	if err != nil {
		return nil, err
	}
	return endpoint.Raw(answer), nil
}

// spec: cs/getConfigAuthed, cs/getConfig
func (a *API) mediaConfig(*endpoint.Request) (any, error) {
	return map[string]int64{"m.upload.size": a.Media.MaxUpload()}, nil
}
