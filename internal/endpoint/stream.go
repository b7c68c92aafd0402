package endpoint

import (
	"fmt"
	"io"
	"net/http"
)

// Stream is an answer of JSON that is written while it is made, so that it is never in memory as a whole.
// An error before much was written becomes an error response like any other; after that the connection is cut
// without an end of the body, which no client takes for an answer.
type Stream func(w io.Writer) error

// streamBuffer is how many bytes of a Stream are held back: answers that fit are sent with their length.
const streamBuffer = 64 << 10

// writeStream sends a Stream. It is whole unless it ends before its end: then the client must not take it for an answer.
func writeStream(w http.ResponseWriter, answer Stream) (whole bool, err error) {
	sw := &streamWriter{w: w}
	if err = guarded(func() error { return answer(sw) }); err == nil {
		err = sw.finish()
	}
	return err == nil || !sw.started, err
}

// streamWriter sends a body in pieces, or at once if it is small.
type streamWriter struct {
	w       http.ResponseWriter
	buf     []byte
	started bool  // the status and a part of the body are out
	broken  error // the client is gone
}

// Write never keeps b.
func (s *streamWriter) Write(b []byte) (int, error) {
	if s.broken != nil {
		return 0, s.broken
	}
	s.buf = append(s.buf, b...)
	if len(s.buf) >= streamBuffer {
		return len(b), s.send()
	}
	return len(b), nil
}

func (s *streamWriter) send() error {
	if !s.started {
		s.started = true
		s.w.Header().Set("Content-Type", "application/json")
		s.w.WriteHeader(http.StatusOK)
	}
	_, err := s.w.Write(s.buf)
	s.buf = s.buf[:0]
	if err != nil {
		s.broken = fmt.Errorf("send a part of the answer: %w", err)
	}
	return s.broken
}

// finish sends what is left.
func (s *streamWriter) finish() error {
	if !s.started {
		writeJSON(s.w, http.StatusOK, s.buf)
		return nil
	}
	return s.send()
}
