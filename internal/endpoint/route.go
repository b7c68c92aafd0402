package endpoint

import (
	"net/http"
	"strings"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/rs/zerolog"

	"hanok/internal/budget"
	"hanok/matrix"
)

// Handler answers one request: a value to be encoded as JSON (nil is an empty
// object), a Raw, a Stream, or an error. A handler that has written the response itself answers Written.
type Handler func(*Request) (any, error)

// Route is one endpoint, as data. A table of routes is the API on one page.
type Route struct {
	Method string
	// Versions are the path's prefixes: "v3 r0" with Path "/login" serves
	// PREFIX/v3/login and PREFIX/r0/login. Empty serves Path alone.
	Versions string
	// Path is a chi pattern: variables in braces, "*" at the end for the rest.
	Path string
	// Operation names the endpoint in metrics and logs: its operationId in the specification.
	Operation string
	// Auth names the check that Options.Authorise applies before the handler runs.
	Auth Auth
	// Limit is the class of its rate limit, "" for none.
	Limit string
	// MaxBody is the limit of the request body in bytes; 0 means DefaultMaxBody.
	MaxBody int64
	Handle  Handler
}

// Auth says who may call a route. The meaning is the API's own; None is common.
type Auth uint8

// None lets everybody in.
const None Auth = 0

// DefaultMaxBody is the body limit of routes that name none, in bytes. Events are
// limited to 64 kB, key uploads and filters stay far below this.
const DefaultMaxBody = 1 << 20

// Options are what an API adds to the common machinery.
type Options struct {
	// Prefix comes before the versions, as in "/_matrix/client".
	Prefix string
	// Authorise runs before every handler whose route has an Auth. It may attach what it found with SetIdentity.
	Authorise func(*Request, Route) error
	// RateLimit runs for every route with a Limit, after Authorise; nil for none.
	RateLimit func(*Request, Route) error
	// Hold begins to take, for whoever makes a request, what its body needs while it is answered; nil: nothing is counted.
	Hold func(*Request) *budget.Hold
	// Observe is told of every finished request; nil for none.
	Observe func(operation, method string, status int, elapsed time.Duration)
	Log     zerolog.Logger
	// CORS adds the headers browsers need, on errors too. spec: client-server-api#web-browser-clients
	CORS bool
}

// Mount adds routes to a router.
func Mount(mux chi.Router, o Options, routes []Route) {
	for _, rt := range routes {
		h := Serve(o, rt)
		for _, path := range paths(o.Prefix, rt) {
			mux.Method(rt.Method, path, h)
			if rt.Method == http.MethodGet {
				mux.Method(http.MethodHead, path, h)
			}
		}
	}
}

// Expand returns the routes with whole paths, one for each version.
func Expand(prefix string, routes []Route) []Route {
	var all []Route
	for _, rt := range routes {
		for _, path := range paths(prefix, rt) {
			one := rt
			one.Path, one.Versions = path, ""
			all = append(all, one)
		}
	}
	return all
}

func paths(prefix string, rt Route) []string {
	versions := strings.Fields(rt.Versions)
	if len(versions) == 0 {
		return []string{prefix + rt.Path}
	}
	out := make([]string, len(versions))
	for i, v := range versions {
		out[i] = prefix + "/" + v + rt.Path
	}
	return out
}

// NewRouter makes a router that answers unknown paths and methods as the specification says, and
// hands path variables to handlers exactly as they were sent.
// spec: client-server-api#api-standards M_UNRECOGNIZED
func NewRouter(o Options) *chi.Mux {
	mux := chi.NewRouter()
	mux.Use(func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			// chi matches on RawPath only when it is set, so variables would come
			// escaped or not depending on the path; this makes it always escaped.
			r.URL.RawPath = r.URL.EscapedPath()
			if o.CORS {
				allowOrigins(w.Header())
				if r.Method == http.MethodOptions {
					w.WriteHeader(http.StatusNoContent)
					return
				}
			}
			next.ServeHTTP(w, r)
		})
	})
	unknown := func(status int, message string) http.HandlerFunc {
		h := Serve(o, Route{Operation: "unknown", Handle: func(*Request) (any, error) {
			return nil, matrix.Errorf(status, "M_UNRECOGNIZED", "%s", message)
		}})
		return h.ServeHTTP
	}
	mux.NotFound(unknown(http.StatusNotFound, "There is no such endpoint."))
	mux.MethodNotAllowed(unknown(http.StatusMethodNotAllowed, "This endpoint does not take that method."))
	return mux
}

// spec: client-server-api#web-browser-clients
func allowOrigins(h http.Header) {
	h.Set("Access-Control-Allow-Origin", "*")
	h.Set("Access-Control-Allow-Methods", "GET, POST, PUT, DELETE, PATCH, OPTIONS, HEAD")
	h.Set("Access-Control-Allow-Headers", "X-Requested-With, Content-Type, Authorization, Range")
	h.Set("Access-Control-Expose-Headers", "ETag, Retry-After, Content-Disposition")
}
