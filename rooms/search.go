package rooms

import (
	"cmp"
	"context"
	"math"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/storage"
	"hanok/storage/statetree"
)

// SearchRequest asks for events by their words. spec: cs/search
type SearchRequest struct {
	Reader Reader
	Term   string
	Keys   []string        // "content.body", "content.name", "content.topic"; nil: all of them
	Rooms  []matrix.RoomID // nil: all; those that they replace are searched too
	Skip   []matrix.RoomID // rooms that are left out
	Filter Filter
	Recent bool             // the newest first, else the best match first
	Until  storage.Position // 0: now; for a further page, what the first one was made at
}

// SearchResults are all events found, in the order asked for.
type SearchResults struct {
	Found      []SearchResult
	Highlights []string // words that matched, as they are written
	Until      storage.Position
}

// SearchResult is an event that matches.
type SearchResult struct {
	Event *Event
	Rank  float64 // higher is better
}

// Limits on one search. There is no index of words: it would be one more place where messages are kept, and rooms that could be
// searched at all are those without encryption. So the newest events are read.
const (
	maxSearched     = 20_000 // events looked at, over all rooms
	minSearched     = 500    // of one room, at least
	maxSearchFound  = 5000
	maxSearchTerms  = 20
	maxSearchRooms  = 1000
	maxPredecessors = 10
	searchChunk     = 200
)

// Search finds events in the rooms that a user is or was in, but for encrypted ones. spec: cs/search
func (e *Engine) Search(ctx context.Context, q SearchRequest) (*SearchResults, error) {
	out := &SearchResults{Until: q.Until}
	if out.Until == 0 {
		out.Until = e.db.Current()
	}
	s := &search{e: e, q: q, terms: searchTerms(q.Term), words: make(map[string]bool), until: out.Until}
	if len(s.terms) == 0 {
		return out, nil
	}
	rows, err := s.rooms(ctx)
	if err != nil {
		return nil, err
	}
	for i, row := range rows {
		share := max(minSearched, (maxSearched-s.looked)/(len(rows)-i))
		if err := s.room(ctx, row, share); err != nil {
			return nil, err
		}
		if s.looked >= maxSearched || len(s.found) >= maxSearchFound {
			break
		}
	}
	slices.SortFunc(s.found, func(a, b SearchResult) int {
		newest := cmp.Or(cmp.Compare(b.Event.OriginServerTS(), a.Event.OriginServerTS()), cmp.Compare(b.Event.Pos, a.Event.Pos))
		if q.Recent {
			return newest
		}
		return cmp.Or(cmp.Compare(b.Rank, a.Rank), newest)
	})
	out.Found = s.found
	for w := range s.words {
		out.Highlights = append(out.Highlights, w)
	}
	slices.Sort(out.Highlights)
	return out, nil
}

type search struct {
	e      *Engine
	q      SearchRequest
	terms  []searchTerm
	until  storage.Position
	looked int
	found  []SearchResult
	words  map[string]bool
}

// searchTerm is a word to be found.
type searchTerm struct {
	text string
	// within: anywhere in a word, for scripts that do not put spaces between words. Else words that are
	// or, for a term of some length, begin with it.
	within bool
}

func searchTerms(text string) []searchTerm {
	var out []searchTerm
	for w := range words(text) {
		t := searchTerm{text: strings.ToLower(w), within: strings.ContainsFunc(w, func(r rune) bool { return r >= 0x0E00 })}
		if !slices.Contains(out, t) && len(out) < maxSearchTerms {
			out = append(out, t)
		}
	}
	return out
}

// minPrefix is how many letters a term needs to match words that go on after it.
const minPrefix = 3

func (t searchTerm) matches(word string) bool {
	switch {
	case t.within:
		return strings.Contains(word, t.text)
	case word == t.text:
		return true
	}
	return utf8.RuneCountInString(t.text) >= minPrefix && strings.HasPrefix(word, t.text)
}

// words yields the words of a text.
func words(text string) func(func(string) bool) {
	return strings.FieldsFuncSeq(text, func(r rune) bool { return !unicode.IsLetter(r) && !unicode.IsNumber(r) && !unicode.IsMark(r) })
}

// rooms lists the rooms to search, those with the newest events first.
func (s *search) rooms(ctx context.Context) ([]storage.MembershipRow, error) {
	wanted, err := s.wanted(ctx)
	if err != nil {
		return nil, err
	}
	rows, err := s.e.membershipRows(ctx, s.q.Reader.User, func(row storage.MembershipRow) bool {
		return !row.Forgotten && (row.Membership == storage.MembershipJoin || row.LeftPos != 0) && (wanted == nil || wanted[row.Room])
	})
	if err != nil {
		return nil, err
	}
	newest := make(map[storage.RoomNID]storage.Position, len(rows))
	kept := rows[:0]
	for _, row := range rows {
		r, err := s.e.roomByNID(ctx, row.Room)
		if err != nil {
			return nil, err
		}
		c, err := r.current(ctx)
		r.release()
		if err != nil {
			return nil, err
		}
		encrypted, err := s.e.lookup(ctx, c.head.state, "m.room.encryption", "")
		if err != nil {
			return nil, err
		}
		if encrypted != 0 || slices.Contains(s.q.Skip, r.id) {
			continue
		}
		newest[row.Room] = c.pos
		kept = append(kept, row)
	}
	slices.SortFunc(kept, func(a, b storage.MembershipRow) int { return cmp.Compare(newest[b.Room], newest[a.Room]) })
	return kept[:min(len(kept), maxSearchRooms)], nil
}

// wanted are the rooms asked for and those that they replace; nil means all.
func (s *search) wanted(ctx context.Context) (map[storage.RoomNID]bool, error) {
	if s.q.Rooms == nil {
		return nil, nil
	}
	out := make(map[storage.RoomNID]bool)
	for _, id := range s.q.Rooms[:min(len(s.q.Rooms), maxSearchRooms)] {
		for range maxPredecessors {
			r, err := s.e.room(ctx, id)
			if matrix.HasCode(err, "M_NOT_FOUND") {
				break
			}
			if err != nil {
				return nil, err
			}
			nid := r.nid
			before, err := r.predecessor(ctx)
			r.release()
			if err != nil {
				return nil, err
			}
			if out[nid] {
				break
			}
			out[nid] = true
			if before == "" {
				break
			}
			id = before
		}
	}
	return out, nil
}

// predecessor is the room that this one replaces, "" if there is none. spec: client-server-api#mroomcreate
func (r *room) predecessor(ctx context.Context) (matrix.RoomID, error) {
	c, err := r.current(ctx)
	if err != nil {
		return "", err
	}
	create, err := State{r.e, c.head.state}.Event(ctx, "m.room.create", "")
	if err != nil || create == nil {
		return "", err
	}
	p, _ := canonicaljson.GetObject(create.Content(), "predecessor")
	if p == nil {
		return "", nil
	}
	text, _ := canonicaljson.GetString(p, "room_id")
	id, err := matrix.ParseRoomID(text)
	if err != nil {
		return "", nil //nolint:nilerr // it names no room
	}
	return id, nil
}

// room looks at the newest events of one room, no more than share.
func (s *search) room(ctx context.Context, m storage.MembershipRow, share int) error {
	v := &viewer{e: s.e, user: s.q.Reader.User, member: m, memo: make(map[statetree.Ref]atState)}
	until := s.until
	if m.Membership != storage.MembershipJoin {
		until = min(until, m.LeftPos)
	}
	for looked := 0; looked < share; {
		nids, err := storage.TimelineBackward(ctx, s.e.db, m.Room, math.MinInt64, until, searchChunk)
		if err != nil {
			return err
		}
		events, err := s.e.eventsByNID(ctx, nids)
		if err != nil {
			return err
		}
		for _, ev := range events {
			until = ev.Pos - 1
			if err := s.look(ctx, v, ev); err != nil {
				return err
			}
		}
		looked += len(events)
		s.looked += len(events)
		if len(events) < searchChunk || len(s.found) >= maxSearchFound {
			break
		}
	}
	return nil
}

func (s *search) look(ctx context.Context, v *viewer, ev *Event) error {
	text := searchText(ev, s.q.Keys)
	if text == "" || !s.q.Filter.keeps(ev) || s.q.Reader.ignores(ev) {
		return nil
	}
	rank, matched := s.rank(text)
	if rank == 0 {
		return nil
	}
	if ok, err := v.showsWhole(ctx, ev); err != nil || !ok {
		return err
	}
	for _, w := range matched {
		if len(s.words) < maxSearchTerms*5 {
			s.words[w] = true
		}
	}
	s.found = append(s.found, SearchResult{ev, rank})
	return nil
}

// rank says how well a text matches: 0 unless every term is in it; more for each match, less for longer texts.
func (s *search) rank(text string) (rank float64, matched []string) {
	hits := make([]int, len(s.terms))
	n := 0
	for w := range words(text) {
		n++
		lower := strings.ToLower(w)
		hit := false
		for i, t := range s.terms {
			if t.matches(lower) {
				hits[i]++
				hit = true
			}
		}
		if hit {
			matched = append(matched, w)
		}
	}
	for _, h := range hits {
		if h == 0 {
			return 0, nil
		}
		rank += 1 + math.Log(float64(h))
	}
	return rank / (1 + math.Log(float64(n))), matched
}

// searchText is what of an event is searched. spec: client-server-api#room_events
func searchText(ev *Event, keys []string) string {
	want := func(key string) bool { return keys == nil || slices.Contains(keys, key) }
	var text string
	switch {
	case ev.Type() == "m.room.message" && !ev.IsState() && want("content.body"):
		text, _ = ev.ContentString("body")
	case ev.Is("m.room.name", "") && want("content.name"):
		text, _ = ev.ContentString("name")
	case ev.Is("m.room.topic", "") && want("content.topic"):
		text, _ = ev.ContentString("topic")
		if plain := plainTopic(ev.Content()); plain != text {
			text += " " + plain
		}
	}
	return text
}

// plainTopic is the text/plain form of a rich topic. spec: client-server-api#mroomtopic
func plainTopic(content []byte) string {
	topic, _ := canonicaljson.GetObject(content, "m.topic")
	if topic == nil {
		return ""
	}
	list, _ := canonicaljson.Get(topic, "m.text")
	if !canonicaljson.IsArray(list) {
		return ""
	}
	for el := range canonicaljson.Elements(list) {
		if !canonicaljson.IsObject(el) {
			continue
		}
		if kind, ok := canonicaljson.GetString(el, "mimetype"); !ok || kind == "text/plain" {
			body, _ := canonicaljson.GetString(el, "body")
			return body
		}
	}
	return ""
}
