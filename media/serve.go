package media

import (
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// File is open content.
type File struct {
	Content     io.ReadSeeker
	Size        int64
	ContentType string
	Filename    string // "" if unknown
	tag         string // names the bytes
	close       func() error
}

// Close releases it.
func (f *File) Close() error {
	if f.close == nil {
		return nil
	}
	return f.close()
}

// inlineTypes may be shown in a browser; everything else is to be downloaded.
// spec: client-server-api#serving-inline-content
var inlineTypes = map[string]bool{
	"text/css": true, "text/plain": true, "text/csv": true, "application/json": true, "application/ld+json": true,
	"image/jpeg": true, "image/gif": true, "image/png": true, "image/apng": true, "image/webp": true, "image/avif": true,
	"video/mp4": true, "video/webm": true, "video/ogg": true, "video/quicktime": true,
	"audio/mp4": true, "audio/webm": true, "audio/aac": true, "audio/mpeg": true, "audio/ogg": true, "audio/wave": true,
	"audio/wav": true, "audio/x-wav": true, "audio/x-pn-wav": true, "audio/flac": true, "audio/x-flac": true,
}

// Disposition is the file's Content-Disposition.
func (f *File) Disposition() string {
	kind := "attachment"
	if t, _, err := mime.ParseMediaType(f.ContentType); err == nil && inlineTypes[t] {
		kind = "inline"
	}
	if f.Filename == "" {
		return kind
	}
	return mime.FormatMediaType(kind, map[string]string{"filename": f.Filename})
}

// Serve answers a client's request with the file: whole, a range, or 304.
// It sets all headers that belong to content; CORS is the caller's.
func (f *File) Serve(w http.ResponseWriter, req *http.Request) {
	h := w.Header()
	h.Set("Content-Type", f.ContentType)
	h.Set("Content-Disposition", f.Disposition())
	h.Set("Content-Security-Policy", "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; style-src 'unsafe-inline'; object-src 'self';")
	h.Set("Cross-Origin-Resource-Policy", "cross-origin")
	h.Set("X-Content-Type-Options", "nosniff")
	// The content of a URI never changes, but not everybody may have it.
	h.Set("Cache-Control", "private, max-age=604800, immutable")
	h.Set("ETag", `"`+f.tag+`"`)
	http.ServeContent(w, req, "", time.Time{}, f.Content)
}

// ServeMultipart answers another server's request. spec: ss/getContent, ss/getContentThumbnail
func (f *File) ServeMultipart(w http.ResponseWriter) error {
	parts := multipart.NewWriter(w)
	w.Header().Set("Content-Type", "multipart/mixed; boundary="+parts.Boundary())
	w.WriteHeader(http.StatusOK)
	metadata, err := parts.CreatePart(textproto.MIMEHeader{"Content-Type": {"application/json"}})
	if err == nil {
		_, err = io.WriteString(metadata, "{}")
	}
	if err != nil {
		return fmt.Errorf("send media: %w", err)
	}
	content, err := parts.CreatePart(textproto.MIMEHeader{"Content-Type": {f.ContentType}, "Content-Disposition": {f.Disposition()}})
	if err == nil {
		_, err = io.Copy(content, f.Content)
	}
	if err == nil {
		err = parts.Close()
	}
	if err != nil {
		return fmt.Errorf("send media: %w", err)
	}
	return nil
}

// cleanContentType keeps a declared type if it can stand in a header.
func cleanContentType(s string) string {
	t, params, err := mime.ParseMediaType(s)
	if err != nil || !strings.Contains(t, "/") || len(s) > 255 {
		return "application/octet-stream"
	}
	if formatted := mime.FormatMediaType(t, params); formatted != "" && utf8.ValidString(formatted) {
		return formatted
	}
	return t
}

// cleanFilename drops what cannot stand in a header or a folder.
func cleanFilename(s string) string {
	s = strings.ToValidUTF8(s, "")
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return -1
		}
		return r
	}, s)
	for len(s) > 255 {
		_, size := utf8.DecodeLastRuneInString(s)
		s = s[:len(s)-size]
	}
	return s
}
