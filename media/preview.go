package media

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"image"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"golang.org/x/net/html"
	"golang.org/x/net/html/charset"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"

	"hanok/internal/recent"
	"hanok/matrix"
	"hanok/storage"
)

// Limits on previews.
const (
	previewTime      = 20 * time.Second // for a page with its picture
	previewRedirects = 5
	maxPage          = 1 << 20  // bytes of a page that are read
	maxPicture       = 10 << 20 // bytes of a picture
	maxProperties    = 50
	maxProperty      = 1000 // bytes of one
	keptPreviews     = 1000
	previewLifetime  = time.Hour
	failureLifetime  = time.Minute // of the knowledge that there is none
)

// Previews tell what web pages say of themselves. Whoever asks lets the server know which links they were sent.
type Previews struct {
	r     *Repository
	http  *http.Client
	known *recent.Map[string, preview]
	under singleflight.Group
	slots *semaphore.Weighted
}

// preview is what became of a page.
type preview struct {
	answer []byte // JSON
	err    error
	until  time.Time
}

// NewPreviews makes previews with a client that must keep out of private networks by itself: addresses come from users and from pages.
// Pictures are kept in the repository like those of other servers.
func NewPreviews(r *Repository, client *http.Client) *Previews {
	c := *client
	c.Timeout = previewTime
	c.CheckRedirect = func(req *http.Request, via []*http.Request) error {
		if len(via) > previewRedirects {
			return errors.New("too many redirects")
		}
		return checkWeb(req.URL)
	}
	return &Previews{r: r, http: &c, known: recent.NewMap[string, preview](keptPreviews), slots: semaphore.NewWeighted(8)}
}

func checkWeb(u *url.URL) error {
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.User != nil {
		return matrix.InvalidParam("Only addresses of web pages have previews.")
	}
	return nil
}

// errNoPreview is the same whatever the reason: it is nobody's business what answers at which address.
var errNoPreview = matrix.Errorf(http.StatusBadGateway, "M_UNKNOWN", "There is no preview of this page.")

// Get returns the OpenGraph properties of a page as JSON; none if it is no page and no picture. M_INVALID_PARAM for what is no address of one,
// 502 M_UNKNOWN if it cannot be had. spec: cs/getUrlPreviewAuthed
func (p *Previews) Get(ctx context.Context, address string) ([]byte, error) {
	u, err := url.Parse(address)
	if err != nil || len(address) > 4096 {
		return nil, matrix.InvalidParam("The address is not valid.")
	}
	if err := checkWeb(u); err != nil {
		return nil, err
	}
	u.Fragment = ""
	key := u.String()
	if known, ok := p.kept(key); ok {
		return known.answer, known.err
	}
	result := p.under.DoChan(key, func() (any, error) {
		if known, ok := p.kept(key); ok { // since this one looked
			return known.answer, known.err
		}
		// Whoever asked first may go away; the others still want it.
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), previewTime)
		defer cancel()
		answer, err := p.make(ctx, u)
		lifetime := previewLifetime
		if err != nil {
			p.r.o.Log.Debug().Err(err).Msg("no preview")
			err, lifetime = errNoPreview, failureLifetime
		}
		p.known.Put(key, preview{answer, err, p.r.o.Now().Add(lifetime)})
		return answer, err
	})
	select {
	case res := <-result:
		answer, _ := res.Val.([]byte)
		return answer, res.Err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (p *Previews) kept(key string) (preview, bool) {
	known, ok := p.known.Get(key)
	return known, ok && p.r.o.Now().Before(known.until)
}

func (p *Previews) make(ctx context.Context, u *url.URL) ([]byte, error) {
	if err := p.slots.Acquire(ctx, 1); err != nil {
		return nil, err
	}
	defer p.slots.Release(1)
	res, kind, err := p.fetch(ctx, u)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	properties := map[string]any{}
	switch {
	case strings.HasPrefix(kind, "image/"):
		if err := p.picture(ctx, res, kind, properties); err != nil {
			return nil, err
		}
	case kind == "text/html" || kind == "application/xhtml+xml":
		text, err := charset.NewReader(io.LimitReader(res.Body, maxPage), res.Header.Get("Content-Type"))
		if err != nil {
			return nil, fmt.Errorf("read a page: %w", err)
		}
		found := openGraph(text)
		for name, value := range found {
			if !strings.HasPrefix(name, "og:image") {
				properties[name] = value
			}
		}
		p.pagePicture(ctx, res.Request.URL, found, properties)
	}
	return json.Marshal(properties, json.Deterministic(true))
}

// pagePicture adds the picture that a page names. A page whose picture cannot be had has a preview all the same.
func (p *Previews) pagePicture(ctx context.Context, page *url.URL, found map[string]string, properties map[string]any) {
	for _, name := range []string{"og:image:secure_url", "og:image:url", "og:image"} {
		u, err := page.Parse(found[name])
		if found[name] == "" || err != nil || checkWeb(u) != nil {
			continue
		}
		res, kind, err := p.fetch(ctx, u)
		if err == nil {
			err = errors.New("it is no picture")
			if strings.HasPrefix(kind, "image/") {
				err = p.picture(ctx, res, kind, properties)
			}
			res.Body.Close()
		}
		if err == nil {
			if alt := found["og:image:alt"]; alt != "" {
				properties["og:image:alt"] = alt
			}
			return
		}
		p.r.o.Log.Debug().Err(err).Msg("no picture of a preview")
	}
}

// fetch asks for something. The caller closes the body.
func (p *Previews) fetch(ctx context.Context, u *url.URL) (res *http.Response, kind string, err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, "", err
	}
	req.Header.Set("User-Agent", "Hanok (link preview)")
	req.Header.Set("Accept", "text/html, image/*;q=0.9")
	if res, err = p.http.Do(req); err != nil {
		return nil, "", err
	}
	if res.StatusCode != http.StatusOK {
		res.Body.Close()
		return nil, "", fmt.Errorf("status %d", res.StatusCode)
	}
	kind, _, err = mime.ParseMediaType(res.Header.Get("Content-Type"))
	if err != nil {
		kind = "application/octet-stream"
	}
	return res, kind, nil
}

// picture stores a picture and describes it.
func (p *Previews) picture(ctx context.Context, res *http.Response, kind string, properties map[string]any) error {
	body, err := io.ReadAll(io.LimitReader(res.Body, maxPicture+1))
	if err != nil {
		return err
	}
	if len(body) > maxPicture {
		return errTooLarge
	}
	f, err := p.r.files.write(bytes.NewReader(body), maxPicture)
	if err != nil {
		return err
	}
	defer f.release()
	now := p.r.now()
	// Nobody's upload: it goes when nobody asks for it any more.
	m := storage.Media{Server: p.r.o.Server, ID: newID(), Created: now, Accessed: now, Hash: f.hash, Size: f.size, ContentType: cleanContentType(kind)}
	err = p.r.o.DB.Write(ctx, func(tx *storage.Tx) error {
		_, err := storage.PutMedia(ctx, tx, m)
		return err
	})
	if err != nil {
		return err
	}
	properties["og:image"] = URI{m.Server, m.ID}.String()
	properties["og:image:type"] = m.ContentType
	properties["matrix:image:size"] = m.Size
	if c, _, err := image.DecodeConfig(bytes.NewReader(body)); err == nil {
		properties["og:image:width"], properties["og:image:height"] = c.Width, c.Height
	}
	return nil
}

// openGraph reads the properties in a page's head, and its title and description where these are missing.
func openGraph(page io.Reader) map[string]string {
	found, plain := map[string]string{}, map[string]string{}
	z := html.NewTokenizer(page)
	z.SetMaxBuf(maxPage)
	inTitle := false
	for len(found) < maxProperties {
		switch z.Next() {
		case html.ErrorToken:
			return withPlain(found, plain)
		case html.TextToken:
			if inTitle {
				plain["og:title"] += string(z.Text())
			}
		case html.StartTagToken, html.SelfClosingTagToken:
			tag, more := z.TagName()
			switch string(tag) {
			case "title":
				inTitle = plain["og:title"] == ""
			case "body":
				return withPlain(found, plain)
			case "meta":
				readMeta(z, more, found, plain)
			}
		case html.EndTagToken:
			tag, _ := z.TagName()
			if inTitle = inTitle && string(tag) != "title"; string(tag) == "head" {
				return withPlain(found, plain)
			}
		}
	}
	return withPlain(found, plain)
}

func readMeta(z *html.Tokenizer, more bool, found, plain map[string]string) {
	var name, content string
	for more {
		var key, value []byte
		key, value, more = z.TagAttr()
		switch string(key) {
		case "property", "name":
			if name == "" {
				name = strings.ToLower(strings.TrimSpace(string(value)))
			}
		case "content":
			content = string(value)
		}
	}
	switch {
	case strings.HasPrefix(name, "og:") && len(name) <= 64 && found[name] == "":
		found[name] = tidy(content)
	case name == "description":
		plain["og:description"] = content
	}
}

func withPlain(found, plain map[string]string) map[string]string {
	for name, value := range plain {
		if found[name] == "" {
			found[name] = tidy(value)
		}
	}
	for name, value := range found {
		if value == "" || !utf8.ValidString(name) {
			delete(found, name)
		}
	}
	return found
}

// tidy makes one line of a text, of bounded length.
func tidy(s string) string {
	s = strings.Join(strings.Fields(strings.ToValidUTF8(s, "\uFFFD")), " ")
	if len(s) > maxProperty {
		s = strings.ToValidUTF8(s[:maxProperty], "") + "…"
	}
	return s
}
