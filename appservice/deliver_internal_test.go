package appservice

import (
	"context"
	"testing"
	"testing/synctest"
	"time"

	"hanok/internal/wake"
)

// A service is waited for as long as it is silent; one that is heard from is tried again at once, though not more than once a second.
func TestWait(t *testing.T) {
	for _, tt := range []struct {
		pause time.Duration
		heard []time.Duration // after the beginning; before it if negative
		want  time.Duration
	}{
		{time.Second, nil, time.Second},
		{time.Minute, nil, time.Minute},
		{time.Minute, []time.Duration{-1}, time.Minute},
		{time.Minute, []time.Duration{10 * time.Second}, 10 * time.Second},
		{time.Minute, []time.Duration{time.Millisecond, 2 * time.Millisecond}, time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			r := &reader{Service: &Service{heard: make(chan struct{}, 1)}}
			for _, d := range tt.heard {
				if d < 0 {
					wake.Up(r.heard)
				} else {
					time.AfterFunc(d, func() { wake.Up(r.heard) })
				}
			}
			began := time.Now()
			if err := r.wait(context.Background(), tt.pause); err != nil {
				t.Error(err)
			}
			if took := time.Since(began); took != tt.want {
				t.Errorf("a pause of %v, heard from after %v: %v", tt.pause, tt.heard, took)
			}
		})
	}
}

func TestUnknownEndpoint(t *testing.T) {
	for _, tt := range []struct {
		a    answer
		want bool
	}{
		{answer{200, nil}, false},
		{answer{404, nil}, true},
		{answer{404, []byte("<html>not found</html>")}, true},
		{answer{404, []byte(`{"errcode":"M_UNRECOGNIZED"}`)}, true},
		{answer{405, []byte(`{}`)}, true},
		{answer{501, nil}, true},
		{answer{404, []byte(`{"errcode":"COM.EXAMPLE.NOT_FOUND"}`)}, false},
		{answer{500, []byte("down")}, false},
		{answer{403, []byte(`{"errcode":"M_FORBIDDEN"}`)}, false},
	} {
		if got := tt.a.unknownEndpoint(); got != tt.want {
			t.Errorf("%d %s: %v", tt.a.status, tt.a.body, got)
		}
	}
}
