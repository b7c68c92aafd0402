package push

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"hanok/matrix/canonicaljson"
	"hanok/users"
)

// Limits of a request to a gateway.
const (
	requestTimeout = 10 * time.Second
	maxAnswer      = 64 << 10
)

// reply is what a gateway answered.
type reply struct {
	status     int
	rejected   []string      // push keys that are not valid
	retryAfter time.Duration // how long to wait, if it says so
}

// malformed says whether a gateway refuses this very notification, by its status.
func (r reply) malformed() bool {
	switch r.status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge, http.StatusUnprocessableEntity:
		return true
	}
	return false
}

// post sends a notification. An error means that the gateway did not answer. spec: push/notify
func (s *Sender) post(ctx context.Context, p *users.Pusher, body []byte) (reply, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	address, _ := canonicaljson.GetString(p.Data, "url")
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address, bytes.NewReader(body))
	if err != nil {
		return reply{}, fmt.Errorf("the URL of a pusher: %w", withoutURL(err))
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "Hanok/"+s.opts.Version)
	res, err := s.opts.HTTP.Do(req)
	if err != nil {
		return reply{}, withoutURL(err)
	}
	defer res.Body.Close()
	r := reply{status: res.StatusCode}
	if seconds, err := strconv.ParseUint(res.Header.Get("Retry-After"), 10, 31); err == nil {
		r.retryAfter = time.Duration(seconds) * time.Second
	}
	raw, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil || r.status/100 != 2 {
		return r, nil // the status says enough
	}
	var answer struct {
		Rejected []string `json:"rejected"`
	}
	if err := json.Unmarshal(raw, &answer); err == nil { // it has accepted it, whatever it says
		r.rejected = answer.Rejected
	}
	return r, nil
}

// withoutURL leaves out of an error what belongs in no log: who the user is at the gateway may be part of a URL.
func withoutURL(err error) error {
	var e *url.Error
	if errors.As(err, &e) {
		return e.Err
	}
	return err
}
