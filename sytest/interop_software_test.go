package sytest

import (
	stdjson "encoding/json"
	"net/http"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

// software is the name that a server gives its software.
// spec: ss/getVersion
func software(t *testing.T, s *homeserver.Server) string {
	t.Helper()
	status, body, err := s.Network().NewPeer().Request(s, "GET", "/_matrix/federation/v1/version", "", nil)
	var answer struct {
		Server struct{ Name string }
	}
	if err == nil {
		err = stdjson.Unmarshal(body, &answer)
	}
	if err != nil || status != http.StatusOK || answer.Server.Name == "" {
		t.Fatalf("what software %s is: %d %s %v", s.Name, status, body, err)
	}
	return answer.Server.Name
}

// shortcomings are the parts of scenarios, by their path, and the single questions that a server's software is
// known not to be up to, with the reason. Whatever passes in spite of standing here should be taken out.
func shortcomings(t *testing.T, s *homeserver.Server) map[string]string {
	switch name := software(t, s); name {
	case "Synapse":
		return map[string]string{
			"aggregations":                "what others make of relations is theirs",
			"withdrawn knocks":            "keeps to itself that a knock was taken back or turned down",
			"rooms of a restriction":      "the hierarchy has no allowed_room_ids",
			"left users":                  "forgets who was in a room with the last of its own users there",
			"signed master keys":          "gives what a device signed of a master key to its own users only",
			"late refusals":               "tells nobody later of an invite that was refused while the other server was down",
			"banned invitees":             "neither tells a server outside of the room that who is invited was banned, nor heeds it if told",
			"knocks that are turned down": "does not heed it outside of the room",
			"odd values":                  "answers 500 for numbers and surrogates that it cannot write",
			"odd event unknown.age_ts":    "takes away members of this name before it checks the hash, so the event is redacted",
			"odd event unknown.outlier":   "the same",
			"odd event depth.past53":      "takes no depth above 2^53-1 in old room versions either, nor what comes after such an event",
			"odd event size.65535":        "counts an empty unsigned in, and takes nothing that comes after such an event either",
			"odd event size.65536":        "the same",
		}
	case "Dendrite":
		return map[string]string{
			"forks of version 12":         "rejects what it has to resolve states for (\"create event has different roomID\")",
			"forks":                       "ends up with another state than Synapse and Hanok, who agree with each other",
			"refused joins":               "answers 500 for joins that another server, or a restriction, does not allow",
			"deep spaces":                 "shows rooms of inner spaces twice",
			"branches after a gap":        "rejects what follows on several events if it has to fetch their states (\"create event has different roomID\")",
			"thumbnails":                  "may give another size than the one asked for",
			"second joins":                "answers the join of somebody who it thinks is joined already, and drops the event",
			"knocks":                      "has no such endpoints",
			"conversation/there":          "has no sliding sync, with which the conversation ends",
			"summaries":                   "has no such endpoint",
			"events by time":              "has no such endpoints",
			"fallback keys":               "has none",
			"aggregations":                "what others make of relations is theirs",
			"rooms of a restriction":      "the hierarchy has no allowed_room_ids",
			"redactions of version 11":    "looks for redacts outside of the content (gomatrixserverlib, Event.Redacts), where it is not any more from that version on",
			"redactions of version 12":    "the same",
			"withdrawn invites":           "tells nobody outside of the room, and, told of it, wants the state before it, which no server gives to one that is not in the room",
			"invites/here/version_12":     "sends stripped state, the create event too, with invites to rooms of version 12, by which nobody can tell what the room is (ss/sendInviteV2)",
			"invites/there/version_12":    "the same",
			"elsewhere/there/version_12":  "the same",
			"late refusals":               "tells nobody later of an invite that was refused while the other server was down (roomserver, performFederatedRejectInvite)",
			"joins that others authorise": "says of its own users in a restricted room that they are in none of the other rooms, and does not ask the other server",
			"unknown aliases":             "answers 500 for what another server does not find",
			"threaded receipts":           "knows of no threads in receipts",
			"signatures of master keys":   "takes no signature for a master key that it has already",
			"directory filters":           "does not pass room_types on to other servers, and does not heed what it is asked by them to search for",
			"directory backwards":         "begins the page before one room earlier, whatever the limit is, with the rooms of a page in any order (federationapi, publicRooms)",
			"code of large events":        "refuses them with 413, as it should, but M_BAD_JSON (clientapi, sendevent.go)",
			"files elsewhere":             "says that it does not support a Location yet",
			"banned invitees":             "the same as with withdrawn invites",
			"odd_content":                 "makes something else of keys with quotes or backslashes, and of some fractions, and refuses the requests that they are in (gomatrixserverlib, CanonicalJSON)",
			"odd_events":                  "answers 500 for some, takes auth events that are named twice, and after a depth of 2^53-1 can send nothing any more",
			"profile fields":              "has displayname and avatar_url only",
			"hidden history":              "shows somebody who has come back less than what was said before",
			"files that come later":       "has no such endpoint",
			"restarts right after a join": "may end with a nil pointer as it starts (federationapi, sendPresence)",
			"changes right after a join":  "finds out whom to tell of devices, typing and receipts from joins that it hears of on another way, maybe later (federationapi, KeyChangeConsumer and OutputRoomEventConsumer)",
			"changes after an outage":     "looks for ten minutes at no update of devices from a server of which it could not fetch the devices of one user (userapi, DeviceListUpdater.worker and processServerUser)",
			"what waits after a restart":  "wakes its queue for another server 5 s after its start, with nothing to send if it has sent in vain meanwhile; the queue does not heed the end of its pause then, and waits for something new (federationapi, NewOutgoingQueues and handleBackoffNotifier)",
			"pages of branches":           "goes on below the depth of a page's last event, so that others of that depth are in no page (syncapi, TopologyToken.Decrement)",
			"repeated sends":              "forgets with its process which requests of clients it has answered, so what is sent again comes twice",
			"pages without repetitions":   "shows the create event of a room's history again",
		}
	default:
		t.Logf("nothing is known about %s", name)
		return nil
	}
}

// heard has a user say something and waits until another reads it whose server was down meanwhile.
func (p pair) heard(t *testing.T, from, to *homeserver.Client, room, text string) (eventID string) {
	t.Helper()
	eventID = from.Say(room, text)
	said := time.Now()
	eventually(t, to.UserID+" reads "+eventID, func() string {
		_, problem := readable(to, room, eventID)
		if problem != "" && !p.can(from, "what waits after a restart") && time.Since(said) > 3*time.Second {
			from.Say(room, "something new")
			said = time.Now()
		}
		return problem
	})
	return eventID
}

// history is all that a user is shown of a room with branches, in pages of a size.
func (p pair) history(c *homeserver.Client, room string, page int) []json {
	events := backwards(c, room, page)
	if p.can(c, "pages of branches") {
		return events
	}
	shown := map[any]bool{}
	for _, e := range events {
		shown[e["event_id"]] = true
	}
	for _, e := range backwards(c, room, 2*page/3) { // pages that end elsewhere
		if id := e["event_id"]; !shown[id] {
			shown[id] = true
			events = append(events, e)
		}
	}
	return events
}

// forgetOutages makes the other software fetch devices again.
func (p pair) forgetOutages(t *testing.T) {
	t.Helper()
	if p.lacks["changes after an outage"] == "" {
		return
	}
	for _, s := range []*homeserver.Server{p.home, p.away} {
		if s == p.ours {
			continue
		}
		if err := s.Stop(); err != nil {
			t.Log(err) // not all software ends in peace
		}
		s.Start()
	}
}

// knowEachOther waits until the servers of two users who share a room tell each other of everything.
func (p pair) knowEachOther(t *testing.T, room string, a, b *homeserver.Client) {
	t.Helper()
	for _, who := range [][2]*homeserver.Client{{a, b}, {b, a}} {
		if from, to := who[0], who[1]; !p.can(from, "changes right after a join") {
			p.heard(t, from, to, room, "whoever gets this gets the rest")
		}
	}
}
