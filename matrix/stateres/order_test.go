package stateres

import (
	"slices"
	"testing"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/roomversion"
)

// Events of one age: the clock decides, and after it the event ID.
// spec: rooms/v12#definitions "Reverse topological power ordering", "Mainline ordering"
func TestCompareAge(t *testing.T) {
	v, _ := roomversion.Get("2")
	at := func(id matrix.EventID, ts string) *event.Event {
		e, err := event.FromStored(v, id, []byte(`{"content":{},"origin_server_ts":`+ts+`,"type":"x"}`))
		if err != nil {
			t.Fatal(err)
		}
		return e
	}
	want := []*event.Event{at("$z:a", "-1"), at("$z:a", "1"), at("$A:a", "2"), at("$a:a", "2"), at("$b:a", "2"), at("$0:a", "10")}
	got := slices.Clone(want)
	slices.Reverse(got)
	slices.SortFunc(got, compareAge)
	if !slices.Equal(got, want) {
		t.Errorf("%v", got)
	}
}
