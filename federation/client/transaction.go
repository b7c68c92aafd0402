package client

import (
	"context"
	"net/http"
	"time"

	"hanok/matrix"
)

// transactionTimeout leaves the peer time to fetch what it misses before it answers.
const transactionTimeout = time.Minute

// PDUResult is what became of one event of a transaction; Error is empty if it was processed.
type PDUResult struct {
	Error string `json:"error"`
}

// SendTransaction delivers a transaction, the JSON of which is made already. spec: ss/sendTransaction
func (c *Client) SendTransaction(ctx context.Context, dest matrix.ServerName, txnID string, body []byte) (map[matrix.EventID]PDUResult, error) {
	var answer struct {
		PDUs map[matrix.EventID]PDUResult `json:"pdus"`
	}
	err := c.Do(ctx, Request{
		Operation: "sendTransaction", Method: http.MethodPut, Destination: dest, Body: body,
		Path: v1("send", txnID), Timeout: transactionTimeout,
	}, &answer)
	return answer.PDUs, err
}
