package sytest

import (
	"bytes"
	stdjson "encoding/json"
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

// Nothing acknowledged is lost: several clients send as fast as they can while the
// server is killed and started again and again; every event it answered for is there afterwards.
func TestKillLosesNothingAcknowledged(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(o homeserver.Options) *homeserver.Server) {
		const rounds, senders = 4, 4
		hs := start(homeserver.Options{})
		alice := hs.Register(t, "alice")
		rooms := make([]string, senders)
		for i := range rooms {
			rooms[i] = alice.CreateRoom(json{})
		}
		acknowledged := make([]map[string]bool, senders)
		for i := range acknowledged {
			acknowledged[i] = map[string]bool{}
		}
		for round := range rounds {
			stop := make(chan struct{})
			var wg sync.WaitGroup
			var first sync.WaitGroup
			first.Add(senders)
			for i := range senders {
				wg.Go(func() {
					var once sync.Once
					defer once.Do(first.Done)
					for n := 0; ; n++ {
						select {
						case <-stop:
							return
						default:
						}
						id, ok := trySend(hs, alice, rooms[i], fmt.Sprintf("%d-%d-%d", round, i, n))
						if !ok {
							return // killed
						}
						acknowledged[i][id] = true
						if n == 5 {
							once.Do(first.Done)
						}
					}
				})
			}
			first.Wait() // everybody is sending
			time.Sleep(time.Duration(20*round) * time.Millisecond)
			hs.Kill()
			close(stop)
			wg.Wait()
			hs.Start()
		}
		for i, room := range rooms {
			have := map[string]bool{}
			for from := ""; ; {
				page := alice.Must("GET", "/v3/rooms"+homeserver.Path(room, "messages")+"?dir=b&limit=1000&from="+from, nil)
				for _, e := range homeserver.Events(page, "chunk") {
					have[e["event_id"].(string)] = true
				}
				from, _ = page["end"].(string)
				if from == "" {
					break
				}
			}
			lost := 0
			for id := range acknowledged[i] {
				if !have[id] {
					lost++
				}
			}
			if lost > 0 || len(acknowledged[i]) < rounds*5 {
				t.Errorf("room %d: %d of %d acknowledged events are lost", i, lost, len(acknowledged[i]))
			}
			if got := alice.Say(room, "still works"); got == "" {
				t.Error("the room takes no more events")
			}
		}
	})
}

// trySend sends a text; ok is false when the server did not acknowledge it.
func trySend(hs *homeserver.Server, c *homeserver.Client, room, txn string) (id string, ok bool) {
	body, _ := stdjson.Marshal(json{"msgtype": "m.text", "body": txn})
	req, err := http.NewRequest("PUT", hs.ClientURL+"/_matrix/client/v3/rooms"+homeserver.Path(room, "send", "m.room.message", txn), bytes.NewReader(body))
	if err != nil {
		return "", false
	}
	req.Header.Set("Authorization", "Bearer "+c.AccessToken)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", false
	}
	defer res.Body.Close()
	var out struct {
		EventID string `json:"event_id"`
	}
	if res.StatusCode != http.StatusOK || stdjson.NewDecoder(res.Body).Decode(&out) != nil {
		return "", false
	}
	return out.EventID, true
}
