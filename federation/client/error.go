package client

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"time"

	"hanok/internal/budget"
	"hanok/matrix"
)

// Error is a request to another server that did not succeed. It unwraps to a
// *matrix.Error that may be shown to a client, and to the cause.
type Error struct {
	Destination matrix.ServerName
	Status      int // of the peer's response; 0 if there was none
	// Retry says whether the same request may succeed later.
	Retry bool
	// RetryAfter is how long the peer wants to be left alone, 0 if it did not say.
	RetryAfter time.Duration
	// Peer is what the peer answered, nil if it answered nothing of the kind.
	Peer  *matrix.Error
	Cause error

	made bool // the request's Made
}

func (e *Error) Error() string {
	if e.Status != 0 {
		return string(e.Destination) + " " + e.answer()
	}
	return fmt.Sprintf("%s: %v", e.Destination, e.Cause)
}

// answer is what the peer answered.
func (e *Error) answer() string {
	if e.Peer != nil {
		return fmt.Sprintf("answered %d %s: %s", e.Status, e.Peer.Code, e.Peer.Message)
	}
	return fmt.Sprintf("answered %d: %v", e.Status, e.Cause)
}

// Unwrap gives what a client may be told, and the cause.
func (e *Error) Unwrap() []error {
	errs := []error{e.public()}
	if e.Cause != nil {
		errs = append(errs, e.Cause)
	}
	return errs
}

// public turns the failure into an error for our own client. A peer's refusal is
// passed on; codes that would make the client log out, or blame it for what the two
// servers have to settle, are not.
func (e *Error) public() *matrix.Error {
	if e.Peer != nil {
		switch {
		case e.Peer.Code == "M_UNKNOWN_TOKEN", e.Peer.Code == "M_MISSING_TOKEN", e.Peer.Code == "M_UNAUTHORIZED":
		case Unrecognised(e): // our client would take it for what we know ourselves
			return matrix.Errorf(http.StatusBadGateway, "M_UNKNOWN", "The server %s does not know this request.", e.Destination).Because(e.Peer)
		case e.made && slices.Contains(malformed[:], e.Peer.Code): // spec: ss/sendJoinV2 400, ss/sendInviteV2 400
			return matrix.Errorf(http.StatusBadGateway, "M_UNKNOWN", "The server %s does not understand what this server made: %s", e.Destination, e.Peer.Message).Because(e.Peer)
		case e.Status == http.StatusBadRequest, e.Status == http.StatusForbidden, e.Status == http.StatusNotFound, e.Status == http.StatusRequestEntityTooLarge, e.aboutFile():
			return e.Peer
		case e.Status == http.StatusTooManyRequests:
			return matrix.Errorf(http.StatusServiceUnavailable, "M_UNKNOWN", "The server %s is busy. Try again later.", e.Destination).Because(e.Peer)
		}
	}
	if errors.Is(e.Cause, budget.ErrSpent) {
		return matrix.Errorf(http.StatusServiceUnavailable, "M_UNKNOWN", "This server is busy with what other servers have sent. Try again later.")
	}
	if errors.Is(e.Cause, context.DeadlineExceeded) {
		return matrix.Errorf(http.StatusGatewayTimeout, "M_UNKNOWN", "The server %s did not answer in time.", e.Destination)
	}
	if e.Status != 0 {
		return matrix.Errorf(http.StatusBadGateway, "M_UNKNOWN", "The server %s gave an answer that makes no sense here.", e.Destination)
	}
	return matrix.Errorf(http.StatusBadGateway, "M_UNKNOWN", "The server %s cannot be reached.", e.Destination)
}

// aboutFile says that the peer is well in spite of a status that is for failures: the file that it was asked for is too large for it, or has not come yet.
// spec: ss/getContent 502, 504
func (e *Error) aboutFile() bool {
	return e.Peer != nil && (e.Status == http.StatusBadGateway && e.Peer.Code == "M_TOO_LARGE" || e.Status == http.StatusGatewayTimeout && e.Peer.Code == "M_NOT_YET_UPLOADED")
}

// ErrBackingOff is the cause of a request that was not made because the server did not answer lately.
var ErrBackingOff = errors.New("the server did not answer lately")

// ErrTooLarge is the cause when a response is over its limit.
var ErrTooLarge = errors.New("the response is too large")

// malformed are the codes for what is wrong with the form of a request.
var malformed = [...]string{"M_MISSING_PARAM", "M_INVALID_PARAM", "M_BAD_JSON", "M_NOT_JSON"}

// Unrecognised reports whether the peer has no such endpoint, rather than no such room, event or file. Some older servers say so with a 400, with or without a code.
// spec: server-server-api#unsupported-endpoints
func Unrecognised(err error) bool {
	var e *Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Status {
	case http.StatusNotFound, http.StatusMethodNotAllowed:
		return e.Peer == nil || e.Peer.Code == "M_UNRECOGNIZED"
	case http.StatusBadRequest:
		return e.Peer == nil || e.Peer.Code == "M_UNRECOGNIZED"
	}
	return false
}
