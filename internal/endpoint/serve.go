package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/go-json-experiment/json"
	"github.com/rs/zerolog"

	"hanok/matrix"
)

// Raw is an answer that is already JSON.
type Raw []byte

// Status is an answer with a status other than 200.
type Status struct {
	Code int
	Body any
}

// Written says that the handler wrote the response itself.
type Written struct{}

// Serve makes an http.Handler of a route: limits, authorisation, the handler, and one place where
// values and errors become responses.
func Serve(o Options, rt Route) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, hr *http.Request) {
		start := time.Now()
		sw := newStatusWriter(w)
		r := &Request{Request: hr, W: sw, Route: rt, hold: o.Hold}
		defer r.release()
		r.limitReading()
		answer, err := run(o, rt, r)
		r.limitRest()
		whole := true
		switch a := answer.(type) {
		case Stream:
			whole, err = writeStream(sw, a)
		case Written:
		default:
			if err == nil {
				writeAnswer(o.Log, sw, r, rt, answer)
			}
		}
		switch {
		case err != nil && whole:
			writeError(o.Log, sw, r, rt, err)
		case err != nil && r.Ctx().Err() == nil:
			o.Log.Warn().Err(err).Str("op", rt.Operation).Msg("request failed within its answer")
		}
		if o.Observe != nil {
			o.Observe(rt.Operation, hr.Method, sw.status(), time.Since(start))
		}
		if e := o.Log.Debug(); e.Enabled() {
			e.Str("op", rt.Operation).Str("method", hr.Method).Int("status", sw.status()).
				Dur("took", time.Since(start)).Msg("request")
		}
		if !whole {
			panic(http.ErrAbortHandler) // cuts the connection
		}
	})
}

func run(o Options, rt Route, r *Request) (answer any, err error) {
	err = guarded(func() error {
		answer, err = handle(o, rt, r)
		return err
	})
	return answer, err
}

// guarded turns a panic into an error.
func guarded(fn func() error) (err error) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if p == http.ErrAbortHandler { //nolint:errorlint // net/http compares it by identity too
			panic(p)
		}
		err = fmt.Errorf("panic: %v\n%s", p, debug.Stack())
	}()
	return fn()
}

func handle(o Options, rt Route, r *Request) (any, error) {
	if err := r.checkVars(); err != nil {
		return nil, err
	}
	if err := r.checkQuery(); err != nil {
		return nil, err
	}
	if rt.Auth != None {
		if err := o.Authorise(r, rt); err != nil {
			return nil, err
		}
	}
	if rt.Limit != "" && o.RateLimit != nil {
		if err := o.RateLimit(r, rt); err != nil {
			return nil, err
		}
	}
	return rt.Handle(r)
}

func writeAnswer(log zerolog.Logger, w http.ResponseWriter, r *Request, rt Route, answer any) {
	status := http.StatusOK
	if s, ok := answer.(Status); ok {
		status, answer = s.Code, s.Body
	}
	var body []byte
	switch a := answer.(type) {
	case nil:
		body = []byte("{}")
	case Raw:
		body = a
	default:
		var err error
		// Lists are never null on the wire: clients iterate over them unseen.
		if body, err = json.Marshal(a, json.FormatNilSliceAsNull(false), json.FormatNilMapAsNull(false)); err != nil {
			writeError(log, w, r, rt, fmt.Errorf("encode the answer: %w", err))
			return
		}
	}
	writeJSON(w, status, body)
}

func writeJSON(w http.ResponseWriter, status int, body []byte) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) // the peer may be gone; there is nobody left to tell
}

func writeError(log zerolog.Logger, w http.ResponseWriter, r *Request, rt Route, err error) {
	if errors.Is(err, context.Canceled) && r.Ctx().Err() != nil {
		// The client went away; the status only shows in metrics.
		w.WriteHeader(499)
		return
	}
	e, ok := matrix.AsError(err)
	if !ok {
		log.Error().Err(err).Str("op", rt.Operation).Msg("request failed")
		e = matrix.Errorf(http.StatusInternalServerError, "M_UNKNOWN", "Internal server error")
	} else if e.Status >= 500 {
		log.Warn().Err(err).Str("op", rt.Operation).Msg("request failed")
	}
	body := make(map[string]any, 2+len(e.Extra))
	for k, v := range e.Extra {
		body[k] = v
	}
	if e.Code != "" { // the steps of user-interactive authentication have none
		body["errcode"], body["error"] = e.Code, e.Message
	}
	if ms, ok := body["retry_after_ms"].(int64); ok {
		w.Header().Set("Retry-After", strconv.FormatInt((ms+999)/1000, 10))
	}
	b, merr := json.Marshal(body, json.Deterministic(true))
	if merr != nil {
		log.Error().Err(merr).Str("op", rt.Operation).Msg("encode an error")
		b = []byte(`{"errcode":"M_UNKNOWN","error":"Internal server error"}`)
	}
	writeJSON(w, e.Status, b)
}

// Busy answers requests for which there is no place.
func Busy(log zerolog.Logger) http.Handler {
	return Serve(Options{Log: log}, Route{Operation: "busy", Handle: func(*Request) (any, error) {
		return nil, matrix.Errorf(http.StatusTooManyRequests, "M_LIMIT_EXCEEDED", "Too many requests at once.").With("retry_after_ms", int64(2000))
	}})
}

// statusWriter remembers the status for the metrics, and ends answers that are not taken.
type statusWriter struct {
	http.ResponseWriter
	conn *http.ResponseController
	code int
}

func newStatusWriter(w http.ResponseWriter) *statusWriter {
	return &statusWriter{ResponseWriter: w, conn: http.NewResponseController(w)}
}

// Writer is for a handler that is not of a Route: its answer ends, too, if it is not taken.
func Writer(w http.ResponseWriter) http.ResponseWriter { return newStatusWriter(w) }

func (w *statusWriter) WriteHeader(code int) {
	if w.code == 0 {
		w.code = code
	}
	_ = w.limit(0) // for answers without a body; Write says if it fails
	w.ResponseWriter.WriteHeader(code)
}

// writePatience is how long a client may take over a part of an answer, and writeRate how many bytes more than a few it has to take a second.
const (
	writePatience = time.Minute
	writeRate     = 32 << 10
)

func (w *statusWriter) Write(b []byte) (int, error) {
	if w.code == 0 {
		w.code = http.StatusOK
	}
	if err := w.limit(len(b)); err != nil {
		return 0, err
	}
	return w.ResponseWriter.Write(b)
}

// limit says until when a part of so many bytes has to be taken. It holds for what net/http keeps back, too; for the next request there is none.
func (w *statusWriter) limit(n int) error {
	until := time.Now().Add(writePatience + time.Duration(n/writeRate)*time.Second)
	if err := w.conn.SetWriteDeadline(until); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return err
	}
	return nil
}

// Unwrap lets http.ResponseController reach the connection (flush, deadlines).
func (w *statusWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *statusWriter) status() int {
	if w.code == 0 {
		return http.StatusOK
	}
	return w.code
}
