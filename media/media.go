// Package media is the media repository: attachments, avatars and thumbnails.
//
// What an mxc:// URI stands for is a row in the database; the content is a file
// named by its SHA-256 (files.go), so the same picture is stored once. Media of
// other servers are fetched once and kept while somebody asks for them
// (remote.go). Thumbnails (thumbnail.go) are made on demand and kept beside the content. Start
// reading at Repository. The HTTP side that cannot be separated from the
// content, headers and ranges, is in serve.go.
// spec: client-server-api#content-repository
package media

import (
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"

	"hanok/matrix"
	"hanok/storage"
)

// pendingLifetime is how long a URI made ahead waits for its content, and
// pendingPerUser how many a user may have. spec: cs/createContent
const (
	pendingLifetime = 24 * time.Hour
	pendingPerUser  = 100
)

// Options are what a Repository needs.
type Options struct {
	DB     *storage.DB
	Dir    string // folder for the files, made if need be
	Server matrix.ServerName
	Policy Policy
	Remote Remote // nil: no media of other servers

	MaxUpload    int64         // bytes of one upload
	MaxRemote    int64         // bytes of one file of another server
	UserQuota    int64         // bytes one user may keep; 0 means no limit
	MaxPixels    int64         // of an image to make a thumbnail of
	RemoteMaxAge time.Duration // how long an unused copy is kept; 0 means for ever
	ServeLegacy  bool          // whether the paths without access token know anything
	Now          func() time.Time
	Log          zerolog.Logger
}

// Policy decides what may be stored.
type Policy interface {
	// CheckUpload decides by the declared type and the first 4096 bytes of a file; max is
	// the size in bytes that it may have, 0 if the ordinary limits hold.
	CheckUpload(contentType string, head []byte) (max int64, err error)
}

// Repository is the media repository of one server.
type Repository struct {
	o        Options
	files    fileStore
	fetching singleflight.Group
	fetches  *semaphore.Weighted // remote downloads under way from servers that answer
	doubtful *semaphore.Weighted // and from others, each of which may be silent for half a minute: nobody else is to wait for that
	pixels   *semaphore.Weighted // pixels being decoded

	mu      sync.Mutex
	waiting map[URI]chan struct{} // closed when the content arrives
	asked   map[matrix.ServerName]*askedServer
}

// New opens the repository.
func New(o Options) (*Repository, error) {
	files, err := newFileStore(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("open the media folder: %w", err)
	}
	return &Repository{
		o: o, files: files,
		fetches: semaphore.NewWeighted(maxFetches), doubtful: semaphore.NewWeighted(maxDoubtful),
		pixels:  semaphore.NewWeighted(max(o.MaxPixels, 1)),
		waiting: map[URI]chan struct{}{}, asked: map[matrix.ServerName]*askedServer{},
	}, nil
}

// URI is an mxc:// URI. spec: client-server-api#matrix-content-mxc-uris
type URI struct {
	Server matrix.ServerName
	ID     string
}

func (u URI) String() string { return "mxc://" + string(u.Server) + "/" + u.ID }

// ParseURI reads "mxc://server/id". The server's name is checked by whoever makes a
// connection to it; here it only has to be safe.
func ParseURI(s string) (URI, error) {
	rest, ok := strings.CutPrefix(s, "mxc://")
	server, id, ok2 := strings.Cut(rest, "/")
	if !ok || !ok2 {
		return URI{}, matrix.InvalidParam("%q is not an mxc:// URI.", s)
	}
	u := URI{Server: matrix.ServerName(server), ID: id}
	return u, u.check()
}

// check keeps directory traversal and the like out.
// spec: client-server-api#content-repo-security-considerations
func (u URI) check() error {
	if u.ID == "" || len(u.ID) > 255 || u.Server == "" || len(u.Server) > 255 {
		return matrix.NotFound("There is no such media.")
	}
	for _, c := range []byte(u.ID) {
		if !isAlphanumeric(c) && c != '_' && c != '-' {
			return matrix.InvalidParam("A media ID has only letters, digits, _ and -.")
		}
	}
	for _, c := range []byte(u.Server) {
		if !isAlphanumeric(c) && !strings.ContainsRune("-.:[]", rune(c)) {
			return matrix.InvalidParam("%q is not a server name.", u.Server)
		}
	}
	return nil
}

func isAlphanumeric(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// Upload is a file on its way in.
type Upload struct {
	Body        io.Reader
	Length      int64  // bytes, -1 if unknown
	ContentType string // as declared; "" means application/octet-stream
	Filename    string // "" if unknown
}

// MaxUpload is the size limit of an upload in bytes. spec: cs/getConfigAuthed
func (r *Repository) MaxUpload() int64 { return r.o.MaxUpload }

// Upload stores a file under a new URI. Errors: M_TOO_LARGE, M_FORBIDDEN (quota, privacy).
// spec: cs/uploadContent
func (r *Repository) Upload(ctx context.Context, user matrix.UserID, up Upload) (URI, error) {
	u := URI{Server: r.o.Server, ID: newID()}
	now := r.now()
	return u, r.store(ctx, up, storage.Media{Server: u.Server, ID: u.ID, User: user, Created: now, Accessed: now})
}

// Create makes a URI whose content comes later. expires is when the URI lapses.
// Errors: M_LIMIT_EXCEEDED. spec: cs/createContent
func (r *Repository) Create(ctx context.Context, user matrix.UserID) (u URI, expires matrix.Timestamp, err error) {
	u = URI{Server: r.o.Server, ID: newID()}
	now := r.now()
	expires = now.Add(pendingLifetime)
	err = r.o.DB.Write(ctx, func(tx *storage.Tx) error {
		_, pending, err := storage.MediaUsage(ctx, tx, user, now)
		if err != nil {
			return err
		}
		if pending >= pendingPerUser {
			return matrix.Errorf(http.StatusTooManyRequests, "M_LIMIT_EXCEEDED",
				"You have %d uploads that are not finished. Finish them, or wait until they expire.", pending).With("retry_after_ms", time.Hour.Milliseconds())
		}
		_, err = storage.PutMedia(ctx, tx, storage.Media{Server: u.Server, ID: u.ID, User: user, Created: now, Accessed: now, Expires: expires})
		return err
	})
	return u, expires, err
}

// UploadTo stores the content of a URI made by Create. Errors: M_NOT_FOUND, M_FORBIDDEN,
// M_CANNOT_OVERWRITE_MEDIA, M_TOO_LARGE. spec: cs/uploadContentToMXC
func (r *Repository) UploadTo(ctx context.Context, user matrix.UserID, u URI, up Upload) error {
	if err := u.check(); err != nil {
		return err
	}
	m, err := storage.GetMedia(ctx, r.o.DB, u.Server, u.ID)
	switch {
	case errors.Is(err, storage.ErrNotFound):
		return matrix.NotFound("This media ID was not created, or has expired.")
	case err != nil:
		return err
	case m.User != user:
		return matrix.Forbidden("This media ID belongs to somebody else.")
	case m.Hash != "":
		return cannotOverwrite()
	case m.Expires <= r.now():
		return matrix.NotFound("This media ID has expired. Create another.")
	}
	m.Expires, m.Accessed = 0, r.now()
	if err := r.store(ctx, up, m); err != nil {
		return err
	}
	r.arrived(u)
	return nil
}

func cannotOverwrite() error {
	return matrix.Errorf(http.StatusConflict, "M_CANNOT_OVERWRITE_MEDIA", "This media ID has content already.")
}

// store takes in a local user's file: checks, disk, then the row.
func (r *Repository) store(ctx context.Context, up Upload, m storage.Media) error {
	if up.Length > r.o.MaxUpload {
		return r.tooLarge()
	}
	m.ContentType, m.Filename = cleanContentType(up.ContentType), cleanFilename(up.Filename)
	limit := r.o.MaxUpload
	body, head, err := peek(up.Body)
	if err != nil {
		return fmt.Errorf("read upload: %w", err)
	}
	if size, err := r.o.Policy.CheckUpload(m.ContentType, head); err != nil {
		return err
	} else if size > 0 {
		limit = min(limit, size)
	}
	if err := r.checkQuota(ctx, r.o.DB, m.User, max(up.Length, 0)); err != nil {
		return err
	}
	f, err := r.files.write(body, limit)
	if errors.Is(err, errTooLarge) {
		if limit < r.o.MaxUpload {
			return matrix.TooLarge("An unencrypted image may have at most %d bytes on this server.", limit)
		}
		return r.tooLarge()
	}
	if err != nil {
		return fmt.Errorf("store upload: %w", err)
	}
	defer f.release()
	m.Hash, m.Size = f.hash, f.size
	return r.o.DB.Write(ctx, func(tx *storage.Tx) error {
		if err := r.checkQuota(ctx, tx, m.User, m.Size); err != nil {
			return err
		}
		stored, err := storage.PutMedia(ctx, tx, m)
		if err == nil && !stored {
			return cannotOverwrite()
		}
		return err
	})
}

func (r *Repository) tooLarge() error {
	return matrix.TooLarge("A file may have at most %d bytes on this server.", r.o.MaxUpload)
}

func (r *Repository) checkQuota(ctx context.Context, q storage.Querier, user matrix.UserID, size int64) error {
	if r.o.UserQuota == 0 {
		return nil
	}
	used, _, err := storage.MediaUsage(ctx, q, user, r.now())
	if err != nil {
		return err
	}
	if used+size > r.o.UserQuota {
		return matrix.Forbidden("You keep %d bytes of media here, and may keep %d. Ask an administrator.", used, r.o.UserQuota)
	}
	return nil
}

// Get says which content to open.
type Get struct {
	URI  URI
	Wait time.Duration // for content not yet uploaded; bounded to 20 s or a minute
	// LocalOnly: do not ask another server. Set for requests by other servers and for allow_remote=false.
	LocalOnly bool
	// Legacy marks a request at a path without access token.
	Legacy bool
}

// Open returns the content of a URI; the caller closes it. Errors: M_NOT_FOUND,
// M_NOT_YET_UPLOADED (504), M_TOO_LARGE (502), or what the other server said.
// spec: cs/getContentAuthed, ss/getContent
func (r *Repository) Open(ctx context.Context, g Get) (*File, error) {
	m, err := r.find(ctx, g)
	if err != nil {
		return nil, err
	}
	f, err := r.files.open(m.Hash)
	if err != nil {
		return nil, fmt.Errorf("open media: %w", err)
	}
	return &File{Content: f, close: f.Close, Size: m.Size, ContentType: m.ContentType, Filename: m.Filename, tag: m.Hash}, nil
}

// find returns the row of a URI, with content, waiting for it or fetching it as need be.
func (r *Repository) find(ctx context.Context, g Get) (storage.Media, error) {
	if err := g.URI.check(); err != nil {
		return storage.Media{}, err
	}
	if g.Legacy && !r.o.ServeLegacy {
		return storage.Media{}, matrix.NotFound("Media needs an access token here: use /_matrix/client/v1/media.")
	}
	m, err := storage.GetMedia(ctx, r.o.DB, g.URI.Server, g.URI.ID)
	if errors.Is(err, storage.ErrNotFound) {
		if g.URI.Server == r.o.Server || g.LocalOnly || r.o.Remote == nil {
			return m, matrix.NotFound("There is no such media.")
		}
		return r.fetch(ctx, g)
	}
	if err != nil {
		return m, err
	}
	if m.Hash == "" {
		return r.await(ctx, g)
	}
	r.touch(ctx, m)
	return m, nil
}

// await waits for the upload of a URI made ahead.
func (r *Repository) await(ctx context.Context, g Get) (storage.Media, error) {
	r.mu.Lock()
	arrival, ok := r.waiting[g.URI]
	if !ok {
		arrival = make(chan struct{})
		r.waiting[g.URI] = arrival
	}
	r.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, min(g.Wait, time.Minute))
	defer cancel()
	for {
		// Another process on the same database may take the upload in, hence the look every second.
		m, err := storage.GetMedia(context.WithoutCancel(ctx), r.o.DB, g.URI.Server, g.URI.ID)
		if errors.Is(err, storage.ErrNotFound) || err == nil && m.Hash == "" && m.Expires <= r.now() {
			return m, matrix.NotFound("There is no such media.")
		}
		if err != nil || m.Hash != "" {
			return m, err
		}
		select {
		case <-arrival:
		case <-time.After(time.Second):
		case <-ctx.Done():
			return m, matrix.Errorf(http.StatusGatewayTimeout, "M_NOT_YET_UPLOADED", "This media has not been uploaded yet. Try again later.")
		}
	}
}

func (r *Repository) arrived(u URI) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c, ok := r.waiting[u]; ok {
		close(c)
		delete(r.waiting, u)
	}
}

// touch notes the day of the last use, once a day.
func (r *Repository) touch(ctx context.Context, m storage.Media) {
	now := r.now()
	if m.User != "" || now-m.Accessed < matrix.Timestamp(24*time.Hour/time.Millisecond) {
		return
	}
	err := r.o.DB.Write(ctx, func(tx *storage.Tx) error { return storage.TouchMedia(ctx, tx, m.Server, m.ID, now) })
	if err != nil && ctx.Err() == nil {
		r.o.Log.Warn().Err(err).Msg("note the use of remote media")
	}
}

// Run removes what is no longer needed, until ctx ends.
func (r *Repository) Run(ctx context.Context) error {
	for {
		if err := r.sweep(ctx); err != nil && ctx.Err() == nil {
			r.o.Log.Error().Err(err).Msg("remove old media")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(time.Hour):
		}
	}
}

func (r *Repository) sweep(ctx context.Context) error {
	now := r.now()
	if err := r.o.DB.Write(ctx, func(tx *storage.Tx) error { return storage.DeleteExpiredMedia(ctx, tx, now) }); err != nil {
		return err
	}
	r.mu.Lock()
	for u, c := range r.waiting { // whoever still waits looks again, and registers again
		close(c)
		delete(r.waiting, u)
	}
	r.mu.Unlock()
	if r.o.RemoteMaxAge == 0 {
		return nil
	}
	for {
		stale, err := storage.FindStaleMedia(ctx, r.o.DB, now.Add(-r.o.RemoteMaxAge), 100)
		if err != nil || len(stale) == 0 {
			return err
		}
		for _, m := range stale {
			if err := r.remove(ctx, m); err != nil {
				return err
			}
		}
	}
}

// remove deletes a row, and the file if no other row has the same content.
func (r *Repository) remove(ctx context.Context, m storage.Media) error {
	return r.files.exclusive(func() error {
		var orphan bool
		err := r.o.DB.Write(ctx, func(tx *storage.Tx) (err error) {
			orphan, err = storage.DeleteMedia(ctx, tx, m)
			return err
		})
		if err == nil && orphan && m.Hash != "" {
			err = r.files.remove(m.Hash)
		}
		return err
	})
}

func (r *Repository) now() matrix.Timestamp { return matrix.Timestamp(r.o.Now().UnixMilli()) }

func newID() string {
	b := make([]byte, 18)
	rand.Read(b) // never fails
	return base64.RawURLEncoding.EncodeToString(b)
}
