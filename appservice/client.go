package appservice

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"time"
)

const (
	dialTimeout = 10 * time.Second
	// maxAnswer bounds what a service may answer, in bytes.
	maxAnswer = 1 << 20
)

// newClient makes the client for all services. Where they are is the operator's word: they may be on this machine, and a redirect leads nowhere.
func newClient(unverified bool) *http.Client {
	dialer := &net.Dialer{Timeout: dialTimeout}
	return &http.Client{
		Transport: &http.Transport{
			DialContext: dialer.DialContext, MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute, TLSHandshakeTimeout: dialTimeout,
			TLSClientConfig: &tls.Config{InsecureSkipVerify: unverified}, //nolint:gosec // as the operator says
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// answer is what a service said.
type answer struct {
	status int
	body   []byte
}

func (a answer) ok() bool { return a.status >= 200 && a.status < 300 }

// unknownEndpoint reports that the service does not know the path, so that an older one may do: a service that knows it answers 404 with a code of its own.
// spec: application-service-api#legacy-routes
func (a answer) unknownEndpoint() bool {
	if a.status != http.StatusNotFound && a.status != http.StatusMethodNotAllowed && a.status != http.StatusNotImplemented {
		return false
	}
	var e struct {
		Code string `json:"errcode"`
	}
	return json.Unmarshal(a.body, &e) != nil || e.Code == "" || e.Code == "M_UNRECOGNIZED"
}

// errUnreachable is how a request ended without answer.
var errUnreachable = errors.New("the application service cannot be reached")

// prefix is that of all endpoints of services.
const prefix = "/_matrix/app/v1"

// ask makes a request, and once more at an older path if the service does not know the current one; "" if there is none.
func (x *Service) ask(ctx context.Context, method, path, older string, body []byte) (answer, error) {
	a, err := x.request(ctx, method, prefix+path, body)
	if err != nil || older == "" || !a.unknownEndpoint() {
		return a, err
	}
	return x.request(ctx, method, older, body)
}

// request makes a request. Its errors name no path: that may hold somebody's ID. spec: application-service-api#authorisation
func (x *Service) request(ctx context.Context, method, path string, body []byte) (answer, error) {
	var reader io.Reader
	if body != nil {
		reader = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, x.URL+path, reader)
	if err != nil {
		return answer{}, errUnreachable
	}
	req.Header.Set("Authorization", "Bearer "+x.HSToken)
	req.Header.Set("User-Agent", "Hanok")
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := x.client.Do(req)
	if err == nil {
		defer res.Body.Close()
		var got []byte
		if got, err = io.ReadAll(io.LimitReader(res.Body, maxAnswer+1)); err == nil {
			if len(got) > maxAnswer {
				return answer{}, fmt.Errorf("%w: its answer is larger than %d bytes", errUnreachable, maxAnswer)
			}
			return answer{res.StatusCode, got}, nil
		}
	}
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	return answer{}, fmt.Errorf("%w: %w", errUnreachable, err)
}

// timedOut reports that a request took too long.
func timedOut(err error) bool {
	var t net.Error
	return errors.Is(err, context.DeadlineExceeded) || errors.As(err, &t) && t.Timeout()
}
