package canonicaljson

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"strings"
	"testing"
)

// benchEvent is an encrypted message of 1.2 kB, as most events are, canonical as servers send it.
func benchEvent() []byte {
	return fmt.Appendf(nil, `{"auth_events":["$a","$b","$c"],"content":{"algorithm":"m.megolm.v1.aes-sha2","ciphertext":"%s","device_id":"ABCDEFGHIJ",`+
		`"sender_key":"GGg9yyvzWLJGMCEEkmrYYnUVd9DFRZnR1Tv4FgXJTVw","session_id":"J5Vza9Jrc3nLYXGVqVmGmaDJLG7SUdr6bSiRN8uFZXs"},"depth":1234,`+
		`"hashes":{"sha256":"5jM4wQpv6lnBo7CLIghJuHdW+s2CMBJPUOGOC89ncos"},"origin_server_ts":1763900000000,"prev_events":["$Woq2vwLy8mNukf7e8oz61GxT5gpMmr_asNojhb56-wU"],`+
		`"room_id":"!x:domain","sender":"@alice:one.example","signatures":{"one.example":{"ed25519:1":"KxwGjPSDEtvnFgU00fwFz+l6d2pJM6XBIaMEn81SXPTRl16AqLAYqfIReFGZlHi5KLjAWbOoMszkwsQma+lYAg"}},"type":"m.room.encrypted"}`,
		strings.Repeat("AwgAEpAB", 64))
}

// BenchmarkCanonical has beside it one SHA-256 over the same bytes, which every event needs.
func BenchmarkCanonical(b *testing.B) {
	canonical := benchEvent()
	fromClient := []byte(`{"type": "m.room.encrypted",` + string(canonical[1:len(canonical)-len(`,"type":"m.room.encrypted"}`)]) + "}")
	text := []byte(`{"body":"` + strings.Repeat("Schöne Grüße, 日本語. ", 40) + `"}`)
	for _, v := range []struct {
		name string
		in   []byte
	}{{"canonical", canonical}, {"unsorted", fromClient}, {"unicode", text}} {
		b.Run(v.name, func(b *testing.B) {
			b.SetBytes(int64(len(v.in)))
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Canonical(v.in, Strict); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("sha256", func(b *testing.B) {
		b.SetBytes(int64(len(canonical)))
		for b.Loop() {
			sha256.Sum256(canonical)
		}
	})
	b.Run("copy", func(b *testing.B) {
		b.SetBytes(int64(len(canonical)))
		b.ReportAllocs()
		for b.Loop() {
			bytes.Clone(canonical)
		}
	})
}

func BenchmarkAccess(b *testing.B) {
	doc := benchEvent()
	b.Run("Get", func(b *testing.B) { // the last member
		b.ReportAllocs()
		for b.Loop() {
			if _, ok := Get(doc, "type"); !ok {
				b.Fatal("not found")
			}
		}
	})
	b.Run("Members", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			n := 0
			for range Members(doc) {
				n++
			}
			if n != 10 {
				b.Fatal(n)
			}
		}
	})
	b.Run("Index", func(b *testing.B) {
		b.ReportAllocs()
		var room [32]Member
		for b.Loop() {
			if ms, ok := Index(doc, room[:0]); !ok || len(ms) != 10 {
				b.Fatal(len(ms))
			}
		}
	})
	b.Run("Delete", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			Delete(doc, "signatures", "unsigned")
		}
	})
	b.Run("Set", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			Set(doc, "hashes", []byte(`{}`))
		}
	})
}
