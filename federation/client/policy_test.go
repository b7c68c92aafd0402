package client

import (
	"fmt"
	"io"
	"net/http"
	"testing"

	"hanok/matrix"
)

// spec: ss/askPolicyServerToSign
func TestPolicySign(t *testing.T) {
	f := setUp(t)
	status, answer := http.StatusOK, ""
	handler := func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		if r.Method != http.MethodPost || r.URL.Path != "/_matrix/policy/v1/sign" || string(body) != `{"type":"m.x"}` || r.Header.Get("Authorization") == "" {
			t.Errorf("%s %s %s", r.Method, r.URL, body)
		}
		w.WriteHeader(status)
		fmt.Fprint(w, answer)
	}
	f.serve("policy.example", handler)
	f.serve("us.example", handler) // the policy server of our own name is another program
	ask := func(dest matrix.ServerName) ([]byte, error) {
		return f.client.PolicySign(t.Context(), dest, []byte(`{"type":"m.x"}`), true)
	}
	for _, dest := range []matrix.ServerName{"policy.example", "us.example"} {
		answer = fmt.Sprintf(`{%q:{"ed25519:policy_server":"AAEC"}}`, dest)
		if signature, err := ask(dest); err != nil || string(signature) != "\x00\x01\x02" {
			t.Errorf("%s: %v %v", dest, signature, err)
		}
	}
	for _, bad := range []string{`{}`, `[]`, `{"policy.example":{"ed25519:1":"AAEC"}}`, `{"other.example":{"ed25519:policy_server":"AAEC"}}`, `{"policy.example":{"ed25519:policy_server":"?"}}`} {
		answer = bad
		if signature, err := ask("policy.example"); err == nil {
			t.Errorf("%s: %v", bad, signature)
		}
	}
	// What it says against an event is for the user, word for word.
	for code, want := range map[int]string{400: "M_FORBIDDEN", 404: "M_NOT_FOUND", 429: "M_LIMIT_EXCEEDED"} {
		status, answer = code, fmt.Sprintf(`{"errcode":%q,"error":"No.","retry_after_ms":7000}`, want)
		_, err := ask("policy.example")
		refusal, ok := matrix.AsError(err)
		if !ok || refusal.Status != code || refusal.Code != want || refusal.Message != "No." || refusal.Extra["retry_after_ms"] != int64(7000) {
			t.Errorf("%d: %+v", code, refusal)
		}
	}
}
