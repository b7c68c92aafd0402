package client

import (
	"context"
	"errors"
	"net/http"

	"hanok/matrix"
	"hanok/matrix/policyserver"
	"hanok/matrix/signing"
)

// PolicySign asks a room's policy server to sign an event. A refusal is returned as the server said it, for the user whose event it is.
// spec: ss/askPolicyServerToSign
func (c *Client) PolicySign(ctx context.Context, dest matrix.ServerName, pdu []byte, urgent bool) ([]byte, error) {
	var answer map[string]map[matrix.KeyID]string
	err := c.Do(ctx, Request{
		Operation: "askPolicyServerToSign", Method: http.MethodPost, Destination: dest, Body: pdu, Urgent: urgent, Own: true,
		Path: []string{"_matrix", "policy", "v1", "sign"}, MaxBytes: oneEventMaxBytes, Timeout: policyTimeout,
	}, &answer)
	var refusal *Error
	if errors.As(err, &refusal) && refusal.Peer != nil && refusal.Status < http.StatusInternalServerError && refusal.Status != http.StatusUnauthorized {
		if refusal.RetryAfter > 0 {
			return nil, refusal.Peer.With("retry_after_ms", refusal.RetryAfter.Milliseconds())
		}
		return nil, refusal.Peer
	}
	if err != nil {
		return nil, err
	}
	signature, err := signing.DecodeBase64(answer[string(dest)][policyserver.KeyID])
	if err != nil || len(signature) == 0 {
		return nil, c.nonsense(dest, "askPolicyServerToSign", "it holds no signature")
	}
	return signature, nil
}
