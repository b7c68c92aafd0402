package media

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rs/zerolog"

	"hanok/matrix"
	"hanok/storage"
	"hanok/storage/storagetest"
)

type fixture struct {
	*Repository
	now    atomic.Int64 // ms
	remote fakeRemote
	policy func(contentType string, head []byte) (int64, error)
}

func (f *fixture) CheckUpload(contentType string, head []byte) (int64, error) {
	if f.policy == nil {
		return 0, nil
	}
	return f.policy(contentType, head)
}

type fakeRemote struct {
	mu       sync.Mutex
	calls    int
	download func(id string) (*RemoteFile, error)
	body     func(ctx context.Context) io.Reader // if set, instead of download
	silent   map[matrix.ServerName]chan struct{} // servers that answer when it is closed
}

func (r *fakeRemote) Answers(server matrix.ServerName) bool { return r.silent[server] == nil }

func (r *fakeRemote) Download(ctx context.Context, server matrix.ServerName, id string, _ time.Duration) (*RemoteFile, error) {
	r.mu.Lock()
	r.calls++
	r.mu.Unlock()
	if wait := r.silent[server]; wait != nil {
		select {
		case <-wait:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	if r.body != nil {
		return &RemoteFile{Body: io.NopCloser(r.body(ctx)), Length: -1}, nil
	}
	return r.download(id)
}

func open(t *testing.T, db *storage.DB, change func(*Options)) *fixture {
	t.Helper()
	f := &fixture{}
	f.now.Store(1_700_000_000_000)
	o := Options{
		DB: db, Dir: t.TempDir(), Server: "test", Policy: f, Remote: &f.remote, MaxUpload: 1 << 20, MaxRemote: 1000, MaxPixels: 1_000_000,
		RemoteMaxAge: 24 * time.Hour, ServeLegacy: true, Now: func() time.Time { return time.UnixMilli(f.now.Load()) }, Log: zerolog.Nop(),
	}
	if change != nil {
		change(&o)
	}
	r, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	f.Repository = r
	return f
}

func file(content, contentType, name string) Upload {
	return Upload{Body: strings.NewReader(content), Length: int64(len(content)), ContentType: contentType, Filename: name}
}

func (f *fixture) read(t *testing.T, u URI) string {
	t.Helper()
	got, err := f.Open(context.Background(), Get{URI: u})
	if err != nil {
		t.Fatalf("open %s: %v", u, err)
	}
	defer got.Close()
	b, err := io.ReadAll(got.Content)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func wantCode(t *testing.T, err error, status int, code string) {
	t.Helper()
	if e, ok := matrix.AsError(err); !ok || e.Code != code || e.Status != status {
		t.Errorf("got %v, want %d %s", err, status, code)
	}
}

func TestUploadAndDownload(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		f, ctx := open(t, db, nil), context.Background()
		u, err := f.Upload(ctx, "@alice:test", file("hello", "text/plain; charset=utf-8", "a\x00 b\n.txt"))
		if err != nil {
			t.Fatal(err)
		}
		if again, err := ParseURI(u.String()); err != nil || again != u {
			t.Errorf("%s does not parse: %v", u, err)
		}
		if got := f.read(t, u); got != "hello" {
			t.Errorf("got %q", got)
		}
		got, err := f.Open(ctx, Get{URI: u})
		if err != nil {
			t.Fatal(err)
		}
		defer got.Close()
		if got.Filename != "a b.txt" || got.ContentType != "text/plain; charset=utf-8" || got.Size != 5 {
			t.Errorf("%+v", got)
		}
		twin, err := f.Upload(ctx, "@bob:test", file("hello", "", ""))
		if err != nil {
			t.Fatal(err)
		}
		if twin == u {
			t.Error("two uploads share a URI")
		}
		if n := countFiles(t, filepath.Join(f.o.Dir, "content")); n != 1 {
			t.Errorf("the same content is stored %d times", n)
		}
		if n := countFiles(t, f.files.temporary()); n != 0 {
			t.Errorf("%d temporary files are left", n)
		}
	})
}

func countFiles(t *testing.T, dir string) (n int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(_ string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			n++
		}
		return err
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return n
}

func TestLimits(t *testing.T) {
	ctx := context.Background()
	f := open(t, storagetest.Open(t), func(o *Options) { o.MaxUpload, o.UserQuota = 100, 150 })
	big := strings.Repeat("x", 101)
	_, err := f.Upload(ctx, "@alice:test", file(big, "", ""))
	wantCode(t, err, 413, "M_TOO_LARGE")
	_, err = f.Upload(ctx, "@alice:test", Upload{Body: strings.NewReader(big), Length: -1})
	wantCode(t, err, 413, "M_TOO_LARGE")
	if _, err := f.Upload(ctx, "@alice:test", file(big[:100], "", "")); err != nil {
		t.Fatal(err)
	}
	_, err = f.Upload(ctx, "@alice:test", file(big[:51], "", ""))
	wantCode(t, err, 403, "M_FORBIDDEN")
	_, err = f.Upload(ctx, "@alice:test", Upload{Body: strings.NewReader(big[:51]), Length: -1})
	wantCode(t, err, 403, "M_FORBIDDEN")
	if _, err := f.Upload(ctx, "@bob:test", file(big[:51], "", "")); err != nil {
		t.Error("one user's quota holds for another:", err)
	}
	f.policy = func(string, []byte) (int64, error) { return 10, nil }
	_, err = f.Upload(ctx, "@carol:test", file(big[:11], "image/png", ""))
	wantCode(t, err, 413, "M_TOO_LARGE")
	f.policy = func(_ string, head []byte) (int64, error) { return 0, matrix.Forbidden("no %s", head) }
	_, err = f.Upload(ctx, "@carol:test", file("plain", "", ""))
	wantCode(t, err, 403, "M_FORBIDDEN")
	if _, _, err := f.Create(ctx, "@dora:test"); err != nil {
		t.Fatal(err)
	}
	for range pendingPerUser - 1 {
		if _, _, err := f.Create(ctx, "@dora:test"); err != nil {
			t.Fatal(err)
		}
	}
	_, _, err = f.Create(ctx, "@dora:test")
	wantCode(t, err, 429, "M_LIMIT_EXCEEDED")
	f.now.Add(pendingLifetime.Milliseconds())
	if _, _, err = f.Create(ctx, "@dora:test"); err != nil {
		t.Error("expired uploads still count:", err)
	}
}

func TestURIs(t *testing.T) {
	for _, good := range []string{"mxc://a.b/abcXYZ_-09", "mxc://[::1]:80/a", "mxc://localhost:8448/x"} {
		if _, err := ParseURI(good); err != nil {
			t.Errorf("%s: %v", good, err)
		}
	}
	for _, bad := range []string{"", "mxc://", "mxc://a", "mxc://a/", "mxc:///a", "http://a/b", "mxc://a/../b", "mxc://../x", "mxc://a/b/c", "mxc://a/b%2fc", "mxc://a/é", "mxc://a_b/x"} {
		if u, err := ParseURI(bad); err == nil && bad != "mxc://../x" {
			t.Errorf("%q was taken as %v", bad, u)
		}
	}
	f := open(t, storagetest.Open(t), nil)
	for _, u := range []URI{{"test", "../../../etc/passwd"}, {"test", "a\x00"}, {"a/b", "x"}} {
		if _, err := f.Open(context.Background(), Get{URI: u}); err == nil {
			t.Errorf("%v was opened", u)
		}
	}
	_, err := f.Open(context.Background(), Get{URI: URI{"test", "unknown"}})
	wantCode(t, err, 404, "M_NOT_FOUND")
}

func TestUploadLater(t *testing.T) {
	ctx := context.Background()
	f := open(t, storagetest.Open(t), nil)
	u, expires, err := f.Create(ctx, "@alice:test")
	if err != nil || expires != matrix.Timestamp(f.now.Load())+matrix.Span(pendingLifetime) {
		t.Fatal(u, expires, err)
	}
	_, err = f.Open(ctx, Get{URI: u})
	wantCode(t, err, 504, "M_NOT_YET_UPLOADED")
	wantCode(t, f.UploadTo(ctx, "@bob:test", u, file("x", "", "")), 403, "M_FORBIDDEN")
	wantCode(t, f.UploadTo(ctx, "@alice:test", URI{"test", "other"}, file("x", "", "")), 404, "M_NOT_FOUND")

	got := make(chan string)
	go func() {
		f, err := f.Open(ctx, Get{URI: u, Wait: time.Minute})
		if err != nil {
			got <- err.Error()
			return
		}
		defer f.Close()
		b, _ := io.ReadAll(f.Content)
		got <- string(b)
	}()
	if err := f.UploadTo(ctx, "@alice:test", u, file("late", "text/plain", "")); err != nil {
		t.Fatal(err)
	}
	if text := <-got; text != "late" {
		t.Errorf("the waiter got %q", text)
	}
	wantCode(t, f.UploadTo(ctx, "@alice:test", u, file("again", "", "")), 409, "M_CANNOT_OVERWRITE_MEDIA")
	if f.read(t, u) != "late" {
		t.Error("the content was overwritten")
	}

	lapsed, _, err := f.Create(ctx, "@alice:test")
	if err != nil {
		t.Fatal(err)
	}
	f.now.Add(pendingLifetime.Milliseconds() + 1)
	wantCode(t, f.UploadTo(ctx, "@alice:test", lapsed, file("x", "", "")), 404, "M_NOT_FOUND")
	if err := f.sweep(ctx); err != nil {
		t.Fatal(err)
	}
	_, err = f.Open(ctx, Get{URI: lapsed, Wait: time.Minute})
	wantCode(t, err, 404, "M_NOT_FOUND")
}

func TestRemote(t *testing.T) {
	storagetest.Each(t, func(t *testing.T, db *storage.DB) {
		ctx := context.Background()
		f := open(t, db, nil)
		release := make(chan struct{})
		f.remote.download = func(id string) (*RemoteFile, error) {
			<-release
			switch id {
			case "gone":
				return nil, matrix.NotFound("no")
			case "down":
				return nil, errors.New("connection refused to 10.0.0.1")
			case "large":
				return &RemoteFile{Body: io.NopCloser(strings.NewReader(strings.Repeat("x", 1001))), Length: -1}, nil
			case "declared":
				return &RemoteFile{Body: io.NopCloser(strings.NewReader("x")), Length: 1001}, nil
			case "torn":
				return &RemoteFile{Body: io.NopCloser(io.MultiReader(strings.NewReader("x"), errReader{})), Length: 10}, nil
			}
			return &RemoteFile{Body: io.NopCloser(strings.NewReader("remote")), Length: 6, ContentType: "image/png", Filename: "p.png"}, nil
		}
		u := URI{"other.example", "picture"}
		_, err := f.Open(ctx, Get{URI: u, LocalOnly: true})
		wantCode(t, err, 404, "M_NOT_FOUND")

		var all sync.WaitGroup
		for range 5 {
			all.Go(func() {
				if got, err := f.Open(ctx, Get{URI: u}); err != nil {
					t.Error(err)
				} else if got.Close(); got.Filename != "p.png" || got.ContentType != "image/png" {
					t.Errorf("%+v", got)
				}
			})
		}
		impatient, cancel := context.WithCancel(ctx)
		cancel()
		if _, err := f.Open(impatient, Get{URI: u}); !errors.Is(err, context.Canceled) {
			t.Error("somebody who went away still waits:", err)
		}
		close(release)
		all.Wait()
		if f.read(t, u) != "remote" || f.remote.calls > 2 {
			t.Errorf("downloaded %d times", f.remote.calls)
		}
		for id, want := range map[string]struct {
			status int
			code   string
		}{
			"gone": {404, "M_NOT_FOUND"}, "down": {502, "M_UNKNOWN"}, "large": {502, "M_TOO_LARGE"}, "declared": {502, "M_TOO_LARGE"}, "torn": {502, "M_UNKNOWN"},
		} {
			_, err := f.Open(ctx, Get{URI: URI{"other.example", id}})
			wantCode(t, err, want.status, want.code)
			if e, _ := matrix.AsError(err); strings.Contains(e.Message, "10.0.0.1") {
				t.Error("the message tells about our network:", e.Message)
			}
		}

		local, err := f.Upload(ctx, "@alice:test", file("remote", "", "")) // the same content as the remote picture
		if err != nil {
			t.Fatal(err)
		}
		f.now.Add((25 * time.Hour).Milliseconds())
		if err := f.sweep(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Open(ctx, Get{URI: u, LocalOnly: true}); !matrix.HasCode(err, "M_NOT_FOUND") {
			t.Errorf("unused remote media stay: %v", err)
		}
		if f.read(t, local) != "remote" {
			t.Error("content in use was removed")
		}
	})
}

type errReader struct{}

func (errReader) Read([]byte) (int, error) { return 0, errors.New("broken pipe") }

func TestSweepKeepsWhatIsUsed(t *testing.T) {
	ctx := context.Background()
	f := open(t, storagetest.Open(t), nil)
	f.remote.download = func(string) (*RemoteFile, error) {
		return &RemoteFile{Body: io.NopCloser(strings.NewReader("r")), Length: 1}, nil
	}
	used, unused := URI{"o", "used"}, URI{"o", "unused"}
	f.read(t, used)
	f.read(t, unused)
	f.now.Add((24 * time.Hour).Milliseconds())
	f.read(t, used)
	f.now.Add(1000)
	if err := f.sweep(ctx); err != nil {
		t.Fatal(err)
	}
	calls := f.remote.calls
	if f.read(t, used); f.remote.calls != calls {
		t.Error("media in use were removed")
	}
	if f.read(t, unused); f.remote.calls != calls+1 {
		t.Error("unused media were kept")
	}
}

func TestLegacyPaths(t *testing.T) {
	f := open(t, storagetest.Open(t), func(o *Options) { o.ServeLegacy = false })
	u, err := f.Upload(context.Background(), "@alice:test", file("x", "", ""))
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.Open(context.Background(), Get{URI: u, Legacy: true})
	wantCode(t, err, 404, "M_NOT_FOUND")
}

func picture(t *testing.T, width, height int, encode func(io.Writer, image.Image) error) string {
	t.Helper()
	img := image.NewRGBA(image.Rect(0, 0, width, height))
	for x := range width {
		for y := range height {
			img.Set(x, y, color.RGBA{uint8(255 * x / width), uint8(255 * y / height), 99, 255})
		}
	}
	var b bytes.Buffer
	if err := encode(&b, img); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func crcOf(b []byte) uint32 { return crc32.ChecksumIEEE(b) }

func encodeJPEG(w io.Writer, m image.Image) error { return jpeg.Encode(w, m, nil) }

func TestThumbnails(t *testing.T) {
	ctx := context.Background()
	f := open(t, storagetest.Open(t), nil)
	wide, err := f.Upload(ctx, "@alice:test", file(picture(t, 1000, 500, png.Encode), "image/png", "w.png"))
	if err != nil {
		t.Fatal(err)
	}
	photo, err := f.Upload(ctx, "@alice:test", file(picture(t, 300, 900, encodeJPEG), "image/jpeg", ""))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		u             URI
		width, height int
		method        string
		kind          string
		want          image.Point
	}{
		{wide, 32, 32, "crop", "png", image.Pt(32, 32)},
		{wide, 20, 10, "", "png", image.Pt(32, 16)},
		{wide, 320, 240, "scale", "png", image.Pt(320, 160)},
		{wide, 320, 240, "crop", "png", image.Pt(320, 240)},
		{wide, 33, 11, "crop", "png", image.Pt(33, 11)},
		{wide, 600, 600, "scale", "png", image.Pt(800, 400)},
		{wide, 5000, 5000, "crop", "png", image.Pt(500, 500)},
		{wide, 5000, 5000, "scale", "png", image.Pt(800, 400)},
		{photo, 96, 96, "scale", "jpeg", image.Pt(32, 96)},
		{photo, 640, 480, "scale", "jpeg", image.Pt(160, 480)},
		{photo, 1, 1, "crop", "jpeg", image.Pt(32, 32)},
	} {
		for _, round := range []string{"made", "kept"} {
			got, err := f.Thumbnail(ctx, GetThumbnail{Get: Get{URI: tt.u}, Width: tt.width, Height: tt.height, Method: tt.method})
			if err != nil {
				t.Errorf("%dx%d %s: %v", tt.width, tt.height, tt.method, err)
				continue
			}
			img, format, err := image.Decode(got.Content)
			got.Close()
			if err != nil || format != tt.kind || img.Bounds().Size() != tt.want || got.ContentType != "image/"+tt.kind || !strings.HasPrefix(got.Disposition(), "inline") {
				t.Errorf("%dx%d %s, %s: %s %v, want %v, %v", tt.width, tt.height, tt.method, round, format, img.Bounds(), tt.want, err)
			}
		}
	}
	small, err := f.Upload(ctx, "@alice:test", file(picture(t, 20, 20, png.Encode), "image/png", "s.png"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := f.Thumbnail(ctx, GetThumbnail{Get: Get{URI: small}, Width: 96, Height: 96})
	if err != nil {
		t.Fatal(err)
	}
	defer got.Close()
	if b, _ := io.ReadAll(got.Content); string(b) != f.read(t, small) {
		t.Error("a picture smaller than the thumbnail is not answered as it is")
	}
}

func TestThumbnailRefusals(t *testing.T) {
	ctx := context.Background()
	f := open(t, storagetest.Open(t), nil)
	// A PNG header that announces 100,000 x 100,000 pixels: nothing of that size may be allocated.
	bomb := []byte(picture(t, 10, 10, png.Encode))
	binary.BigEndian.PutUint32(bomb[16:], 100_000)
	binary.BigEndian.PutUint32(bomb[20:], 100_000)
	crc := bytes.Index(bomb, []byte("IHDR")) + 4 + 13
	binary.BigEndian.PutUint32(bomb[crc:], crcOf(bomb[crc-17:crc]))
	for name, tt := range map[string]struct {
		content, kind string
		status        int
		code          string
	}{
		"bomb":      {string(bomb), "image/png", 413, "M_TOO_LARGE"},
		"text":      {"hello", "text/plain", 400, "M_UNKNOWN"},
		"no image":  {"hello", "image/png", 400, "M_UNKNOWN"},
		"torn":      {picture(t, 900, 900, png.Encode)[:200], "image/png", 400, "M_UNKNOWN"},
		"encrypted": {strings.Repeat("\x13\x37", 500), "application/octet-stream", 400, "M_UNKNOWN"},
		"svg":       {"<svg/>", "image/svg+xml", 400, "M_UNKNOWN"},
	} {
		u, err := f.Upload(ctx, "@alice:test", file(tt.content, tt.kind, ""))
		if err != nil {
			t.Fatal(err)
		}
		_, err = f.Thumbnail(ctx, GetThumbnail{Get: Get{URI: u}, Width: 32, Height: 32})
		if e, ok := matrix.AsError(err); !ok || e.Status != tt.status || e.Code != tt.code {
			t.Errorf("%s: %v", name, err)
		}
	}
	u := URI{"test", "x"}
	for _, bad := range []GetThumbnail{{Get: Get{URI: u}, Width: 0, Height: 1}, {Get: Get{URI: u}, Width: 1, Height: -1}, {Get: Get{URI: u}, Width: 1, Height: 1, Method: "stretch"}} {
		_, err := f.Thumbnail(ctx, bad)
		wantCode(t, err, 400, "M_INVALID_PARAM")
	}
}

func TestThumbnailsKeptAreBounded(t *testing.T) {
	ctx := context.Background()
	f := open(t, storagetest.Open(t), nil)
	u, err := f.Upload(ctx, "@alice:test", file(picture(t, 100, 100, png.Encode), "image/png", ""))
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 * keptThumbnails {
		got, err := f.Thumbnail(ctx, GetThumbnail{Get: Get{URI: u}, Width: 10 + i, Height: 7, Method: MethodCrop})
		if err != nil {
			t.Fatal(err)
		}
		got.Close()
	}
	if n := countFiles(t, filepath.Join(f.o.Dir, "thumbnails")); n != keptThumbnails {
		t.Errorf("%d thumbnails are kept", n)
	}
}

func TestServe(t *testing.T) {
	for _, tt := range []struct{ kind, name, want string }{
		{"image/png", "a.png", `inline; filename=a.png`},
		{"image/png", "", `inline`},
		{"text/html", "x.html", `attachment; filename=x.html`},
		{"image/svg+xml", "", `attachment`},
		{"text/plain; charset=utf-8", `a"b;c d.txt`, `inline; filename="a\"b;c d.txt"`},
		{"application/octet-stream", "한옥.bin", `attachment; filename*=utf-8''%ED%95%9C%EC%98%A5.bin`},
	} {
		f := &File{Content: strings.NewReader("0123456789"), Size: 10, ContentType: tt.kind, Filename: tt.name, tag: "t"}
		w := httptest.NewRecorder()
		req := httptest.NewRequest("GET", "/", nil)
		req.Header.Set("Range", "bytes=2-4")
		f.Serve(w, req)
		if w.Code != http.StatusPartialContent || w.Body.String() != "234" {
			t.Errorf("range: %d %q", w.Code, w.Body)
		}
		h := w.Header()
		if h.Get("Content-Disposition") != tt.want || h.Get("Content-Type") != tt.kind {
			t.Errorf("%s %q: %q", tt.kind, tt.name, h.Get("Content-Disposition"))
		}
		if !strings.HasPrefix(h.Get("Content-Security-Policy"), "sandbox;") || h.Get("Cross-Origin-Resource-Policy") != "cross-origin" || h.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("headers: %v", h)
		}
		req.Header = http.Header{"If-None-Match": {`"t"`}}
		w = httptest.NewRecorder()
		if f.Serve(w, req); w.Code != http.StatusNotModified {
			t.Errorf("If-None-Match: %d", w.Code)
		}
	}
}

func TestServeMultipart(t *testing.T) {
	w := httptest.NewRecorder()
	f := &File{Content: strings.NewReader("bytes"), Size: 5, ContentType: "image/png", Filename: "p.png"}
	if err := f.ServeMultipart(w); err != nil {
		t.Fatal(err)
	}
	kind, params, err := mime.ParseMediaType(w.Header().Get("Content-Type"))
	if err != nil || kind != "multipart/mixed" {
		t.Fatal(kind, err)
	}
	var got []string
	for parts := multipart.NewReader(w.Body, params["boundary"]); ; {
		p, err := parts.NextPart()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(p)
		got = append(got, p.Header.Get("Content-Type")+" "+p.Header.Get("Content-Disposition")+" "+string(b))
	}
	if diff := cmp.Diff([]string{"application/json  {}", "image/png inline; filename=p.png bytes"}, got); diff != "" {
		t.Error(diff)
	}
}

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"image/png": "image/png", "": "application/octet-stream", "nonsense": "application/octet-stream", "text/plain;charset=UTF-8": "text/plain; charset=UTF-8",
		"a/b\r\nX: y": "application/octet-stream", strings.Repeat("a/", 200): "application/octet-stream",
	} {
		if got := cleanContentType(in); got != want {
			t.Errorf("%q became %q", in, got)
		}
	}
	if got := cleanFilename(strings.Repeat("한", 200) + "\xff\x00"); len(got) > 255 || strings.ContainsAny(got, "\x00\xff") {
		t.Errorf("%d %q", len(got), got)
	}
}

func TestRestartRemovesHalfWrittenFiles(t *testing.T) {
	f := open(t, storagetest.Open(t), nil)
	if err := os.WriteFile(filepath.Join(f.files.temporary(), "half"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(f.o); err != nil {
		t.Fatal(err)
	}
	if n := countFiles(t, f.files.temporary()); n != 0 {
		t.Errorf("%d half-written files stay", n)
	}
}

// Pictures of hundreds of servers that are gone do not keep anybody from those of the others, nor does one server that is slow.
func TestDownloadsFromSilentServers(t *testing.T) {
	f := open(t, storagetest.Open(t), nil)
	f.remote.download = func(string) (*RemoteFile, error) {
		return &RemoteFile{Body: io.NopCloser(strings.NewReader("remote")), Length: 6}, nil
	}
	answer := make(chan struct{})
	f.remote.silent = map[matrix.ServerName]chan struct{}{"slow.example": answer}
	for i := range maxDoubtful + 20 {
		f.remote.silent[matrix.ServerName(fmt.Sprintf("gone%d.example", i))] = answer
	}
	var wg sync.WaitGroup
	get := func(server matrix.ServerName, id string) {
		wg.Go(func() {
			got, err := f.Open(context.Background(), Get{URI: URI{server, id}})
			if err != nil {
				t.Error(err)
				return
			}
			got.Close()
		})
	}
	for i := range 3 * maxPerServer {
		get("slow.example", fmt.Sprint(i))
	}
	calls := func(want int) {
		t.Helper()
		for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
			f.remote.mu.Lock()
			got := f.remote.calls
			f.remote.mu.Unlock()
			if got == want {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d requests, want %d", got, want)
			}
		}
	}
	calls(maxPerServer)
	for server := range f.remote.silent {
		if server != "slow.example" {
			get(server, "a")
		}
	}
	calls(maxDoubtful)
	if got := f.read(t, URI{"good.example", "b"}); got != "remote" {
		t.Errorf("%q", got)
	}
	close(answer)
	wg.Wait()
	if len(f.asked) > 0 {
		t.Errorf("%d servers are remembered", len(f.asked))
	}
}

// A server that stops in the middle of a file is not waited for, one that is slow is.
func TestStalledDownload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := open(t, storagetest.Open(t), nil)
		f.remote.body = func(ctx context.Context) io.Reader {
			r, w := io.Pipe()
			context.AfterFunc(ctx, func() { w.CloseWithError(ctx.Err()) })
			go func() {
				for range 5 {
					if _, err := w.Write([]byte("slow")); err != nil {
						return
					}
					time.Sleep(stallTimeout - time.Second)
				}
			}()
			return r
		}
		start := time.Now()
		_, err := f.Open(t.Context(), Get{URI: URI{"slow.example", "a"}})
		wantCode(t, err, http.StatusBadGateway, "M_UNKNOWN")
		if took := time.Since(start); took < 4*(stallTimeout-time.Second) || took > 6*stallTimeout {
			t.Errorf("given up after %s", took)
		}
	})
}
