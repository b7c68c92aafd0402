package appservice

import (
	"context"
	"net/http"
	"strings"
	"time"
	"unicode/utf8"

	"hanok/matrix"
)

const (
	pingTimeout = 10 * time.Second
	// maxPingBody is how much of an answer with another status than 200 is handed on, in bytes.
	maxPingBody = 4096
)

// Ping calls the service and says how long that took. M_URL_NOT_SET, M_BAD_STATUS, M_CONNECTION_FAILED or M_CONNECTION_TIMEOUT.
// spec: as/ping, cs/pingAppservice
func (x *Service) Ping(ctx context.Context, transaction string) (time.Duration, error) {
	if x.URL == "" {
		return 0, matrix.Errorf(http.StatusBadRequest, "M_URL_NOT_SET", "The application service has no URL in its registration.")
	}
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	body := struct {
		Transaction string `json:"transaction_id,omitempty"`
	}{transaction}
	began := x.now()
	a, err := x.ask(ctx, http.MethodPost, "/ping", "", marshal(body))
	took := x.now().Sub(began)
	switch {
	case timedOut(err):
		return took, matrix.Errorf(http.StatusGatewayTimeout, "M_CONNECTION_TIMEOUT", "The application service did not answer in time.").Because(err)
	case err != nil:
		return took, matrix.Errorf(http.StatusBadGateway, "M_CONNECTION_FAILED", "The application service cannot be reached.").Because(err)
	case a.status != http.StatusOK:
		text := strings.ToValidUTF8(string(a.body[:min(len(a.body), maxPingBody)]), string(utf8.RuneError))
		return took, matrix.Errorf(http.StatusBadGateway, "M_BAD_STATUS", "The application service answered with status %d.", a.status).
			With("status", a.status).With("body", text)
	}
	return took, nil
}
