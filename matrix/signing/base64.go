package signing

import (
	"encoding/base64"
	"errors"
	"strings"
)

// EncodeBase64 is unpadded base64. spec: appendices#unpadded-base64
func EncodeBase64(b []byte) string { return base64.RawStdEncoding.EncodeToString(b) }

// EncodeBase64URL is unpadded base64 of the URL-safe alphabet.
// spec: appendices#url-safe-unpadded-base64
func EncodeBase64URL(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

var errBase64 = errors.New("not base64")

// DecodeBase64 reads unpadded or padded base64 of either alphabet, not of both
// mixed. Bits left over in the last character need not be zero (a key of the
// specification's own test vectors has some); line breaks are refused.
func DecodeBase64(s string) ([]byte, error) {
	encoding := base64.RawStdEncoding
	if i := strings.IndexAny(s, "+/-_\r\n"); i >= 0 {
		if strings.ContainsAny(s[i:], "\r\n") { // which the decoder would skip
			return nil, errBase64
		}
		if s[i] == '-' || s[i] == '_' {
			encoding = base64.RawURLEncoding
		}
	}
	if unpadded := strings.TrimRight(s, "="); len(unpadded) < len(s) {
		if len(s)%4 != 0 || len(s)-len(unpadded) > 2 {
			return nil, errBase64
		}
		s = unpadded
	}
	b, err := encoding.DecodeString(s)
	if err != nil {
		return nil, errBase64
	}
	return b, nil
}
