package media

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"golang.org/x/sync/semaphore"

	"hanok/matrix"
	"hanok/storage"
)

// fetchTimeout bounds the download of one remote file.
const fetchTimeout = 5 * time.Minute

// How many downloads are under way at a time: from servers that answer, from those of which that is not known, and from one server.
const (
	maxFetches   = 32
	maxDoubtful  = 32
	maxPerServer = 6
)

// stallTimeout is how long a server may pause in the middle of a file.
const stallTimeout = 30 * time.Second

// Remote fetches media from other servers.
type Remote interface {
	// Download starts the download of a file from the server its URI names. The
	// other server may be asked to wait for the upload. A refusal by it is a *matrix.Error.
	// The caller closes the body; the implementation need not bound its size.
	// spec: ss/getContent, with cs/getContent for servers that do not know it
	Download(ctx context.Context, server matrix.ServerName, mediaID string, wait time.Duration) (*RemoteFile, error)
	// Answers says whether a server was heard from and has not failed to answer since.
	Answers(server matrix.ServerName) bool
}

// RemoteFile is a download under way.
type RemoteFile struct {
	Body        io.ReadCloser
	Length      int64 // bytes, -1 if unknown
	ContentType string
	Filename    string // from Content-Disposition, "" if there was none
}

// fetch downloads a remote file once for all who ask for it.
func (r *Repository) fetch(ctx context.Context, g Get) (storage.Media, error) {
	result := r.fetching.DoChan(g.URI.String(), func() (any, error) {
		// Whoever asked first may go away; the others still want it.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), fetchTimeout)
		defer cancel()
		return r.download(ctx, g)
	})
	select {
	case res := <-result:
		m, _ := res.Val.(storage.Media)
		return m, res.Err
	case <-ctx.Done():
		return storage.Media{}, ctx.Err()
	}
}

func (r *Repository) download(ctx context.Context, g Get) (storage.Media, error) {
	release, err := r.slot(ctx, g.URI.Server)
	if err != nil {
		return storage.Media{}, matrix.Errorf(http.StatusGatewayTimeout, "M_UNKNOWN", "Too many downloads are under way. Try again later.").Because(err)
	}
	defer release()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	file, err := r.o.Remote.Download(ctx, g.URI.Server, g.URI.ID, min(g.Wait, time.Minute))
	if err != nil {
		return storage.Media{}, remoteError(err)
	}
	defer file.Body.Close()
	tooLarge := matrix.Errorf(http.StatusBadGateway, "M_TOO_LARGE", "The file is larger than the %d bytes that this server fetches.", r.o.MaxRemote)
	if file.Length > r.o.MaxRemote {
		return storage.Media{}, tooLarge
	}
	body := &steady{file.Body, time.AfterFunc(stallTimeout, cancel)}
	defer body.timer.Stop()
	f, err := r.files.write(body, r.o.MaxRemote)
	if errors.Is(err, errTooLarge) {
		return storage.Media{}, tooLarge
	}
	if err != nil {
		return storage.Media{}, matrix.Errorf(http.StatusBadGateway, "M_UNKNOWN", "The file's server did not deliver it whole. Try again later.").Because(err)
	}
	defer f.release()
	now := r.now()
	m := storage.Media{
		Server: g.URI.Server, ID: g.URI.ID, Created: now, Accessed: now, Hash: f.hash, Size: f.size,
		ContentType: cleanContentType(file.ContentType), Filename: cleanFilename(file.Filename),
	}
	err = r.o.DB.Write(ctx, func(tx *storage.Tx) error {
		_, err := storage.PutMedia(ctx, tx, m)
		return err
	})
	if err != nil {
		return storage.Media{}, fmt.Errorf("store remote media: %w", err)
	}
	return m, nil
}

// slot waits until a server may be asked for a file.
func (r *Repository) slot(ctx context.Context, server matrix.ServerName) (release func(), err error) {
	r.mu.Lock()
	own := r.asked[server]
	if own == nil {
		own = &askedServer{slots: semaphore.NewWeighted(maxPerServer)}
		r.asked[server] = own
	}
	own.users++
	r.mu.Unlock()
	leave := func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if own.users--; own.users == 0 {
			delete(r.asked, server)
		}
	}
	if err := own.slots.Acquire(ctx, 1); err != nil {
		leave()
		return nil, err
	}
	all := r.doubtful
	if r.o.Remote.Answers(server) {
		all = r.fetches
	}
	if err = all.Acquire(ctx, 1); err != nil {
		own.slots.Release(1)
		leave()
		return nil, err
	}
	return func() {
		all.Release(1)
		own.slots.Release(1)
		leave()
	}, nil
}

// askedServer is a server from which files are fetched, or wait to be.
type askedServer struct {
	slots *semaphore.Weighted
	users int
}

// steady puts off a timer with every piece that is read.
type steady struct {
	io.Reader
	timer *time.Timer
}

func (s *steady) Read(p []byte) (int, error) {
	n, err := s.Reader.Read(p)
	if n > 0 {
		s.timer.Reset(stallTimeout)
	}
	return n, err
}

// remoteError is what a client hears of a failed download.
func remoteError(err error) error {
	e, ok := matrix.AsError(err)
	switch {
	case !ok:
		return matrix.Errorf(http.StatusBadGateway, "M_UNKNOWN", "The file's server could not be asked for it. Try again later.").Because(err)
	case e.Code == "M_NOT_YET_UPLOADED":
		return e
	case e.Status == http.StatusNotFound:
		return matrix.NotFound("The file's server does not have it.").Because(err)
	case e.Code == "M_TOO_LARGE":
		return matrix.Errorf(http.StatusBadGateway, "M_TOO_LARGE", "The file's server finds it too large to send.").Because(err)
	}
	return matrix.Errorf(http.StatusBadGateway, "M_UNKNOWN", "The file's server refused to send it.").Because(err)
}
