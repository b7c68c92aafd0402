// Package web holds the pages that a browser is shown, embedded in the binary.
package web

import (
	"embed"
	"net/http"
)

//go:embed index.html
var pages embed.FS

// Index serves the page that says what answers here, to people who open the server's address in a browser.
func Index(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	http.ServeFileFS(w, r, pages, "index.html")
}
