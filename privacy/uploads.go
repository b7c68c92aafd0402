package privacy

import (
	"bytes"
	"math"
	"mime"
	"net/http"
	"unicode/utf8"

	"hanok/matrix"
)

// HeadSize is how many first bytes of a file CheckUpload wants to see.
const HeadSize = 4096

// images are the formats that avatars and stickers come in.
var images = map[string]bool{"image/png": true, "image/jpeg": true, "image/gif": true, "image/webp": true}

// CheckUpload decides about a file by its declared type and its first
// HeadSize bytes (fewer if it is shorter). max is the size that it may have, in bytes; 0 means that
// the ordinary limits hold.
//
// A server cannot see whether a file is encrypted, but it can see what is not:
// clients upload encrypted attachments as application/octet-stream, and AES-CTR
// output has no file signature, is not text and has the entropy of noise.
// spec: client-server-api#sending-encrypted-attachments
func (p *Policy) CheckUpload(contentType string, head []byte) (max int64, err error) {
	if p.mode != Required {
		return 0, nil
	}
	kind, _, _ := mime.ParseMediaType(contentType)
	if kind == "" || kind == "application/octet-stream" {
		if looksPlain(head) {
			return 0, matrix.Forbidden("This server takes encrypted attachments only, and this file is not encrypted. Send it in an encrypted room.")
		}
		return 0, nil
	}
	if sniffed, _, _ := mime.ParseMediaType(http.DetectContentType(head)); images[kind] && images[sniffed] && p.upload > 0 {
		return p.upload, nil
	}
	return 0, matrix.Forbidden("This server takes encrypted attachments only (and small PNG, JPEG, GIF or WebP images as avatars and stickers). Send the file in an encrypted room.")
}

// signatures are first bytes of common formats, each long enough that noise has them
// once in four billion files at most.
var signatures = [][]byte{
	[]byte("\x89PNG"), []byte("\xff\xd8\xff\xe0"), []byte("\xff\xd8\xff\xe1"), []byte("\xff\xd8\xff\xdb"),
	[]byte("GIF8"), []byte("RIFF"), []byte("%PDF"), []byte("PK\x03\x04"), []byte("OggS"), []byte("fLaC"),
	[]byte("\x1a\x45\xdf\xa3"), []byte("II*\x00"), []byte("MM\x00*"), []byte("\x7fELF"), []byte("Rar!"),
	[]byte("7z\xbc\xaf"), []byte("\x28\xb5\x2f\xfd"), []byte("ID3\x03"), []byte("ID3\x04"), []byte("\x1f\x8b\x08\x00"), []byte("\x1f\x8b\x08\x08"),
}

func looksPlain(head []byte) bool {
	for _, s := range signatures {
		if bytes.HasPrefix(head, s) {
			return true
		}
	}
	if len(head) >= 8 && bytes.Equal(head[4:8], []byte("ftyp")) { // MP4, HEIC, AVIF
		return true
	}
	// Short files are left alone: noise of a few bytes can look like anything.
	return len(head) >= 64 && isText(head) || len(head) >= HeadSize && entropy(head) < 7.5
}

func isText(b []byte) bool {
	for len(b) > 0 {
		r, size := utf8.DecodeRune(b)
		if r == utf8.RuneError && size == 1 {
			return len(b) < utf8.UTFMax // cut in the middle of a character
		}
		if r < ' ' && r != '\n' && r != '\r' && r != '\t' {
			return false
		}
		b = b[size:]
	}
	return true
}

// entropy is Shannon's, in bits per byte: 4 KiB of noise have 7.95 with a deviation of 0.004.
func entropy(b []byte) float64 {
	var counts [256]int
	for _, c := range b {
		counts[c]++
	}
	var bits float64
	for _, n := range counts {
		if n > 0 {
			share := float64(n) / float64(len(b))
			bits -= share * math.Log2(share)
		}
	}
	return bits
}
