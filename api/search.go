package api

import (
	"encoding/base64"
	"encoding/json"
	"slices"

	"hanok/feed"
	"hanok/internal/endpoint"
	"hanok/internal/strictjson"
	"hanok/matrix"
	"hanok/rooms"
	"hanok/storage"
)

// searchCriteria are what to look for in events. spec: cs/search
type searchCriteria struct {
	Term      string          `json:"search_term"`
	Keys      []string        `json:"keys"`
	Filter    json.RawMessage `json:"filter"`
	OrderBy   string          `json:"order_by"`
	State     bool            `json:"include_state"`
	Groupings struct {
		GroupBy []struct {
			Key string `json:"key"`
		} `json:"group_by"`
	} `json:"groupings"`
	Context *struct {
		Before  *int `json:"before_limit"`
		After   *int `json:"after_limit"`
		Profile bool `json:"include_profile"`
	} `json:"event_context"`
}

// searchToken is a page token. The page is cut from the same list again, made as of the same position.
type searchToken struct {
	Skip  int              `json:"s"`
	Until storage.Position `json:"u"`
	Group string           `json:"g,omitempty"` // room_id or sender: only results of one
	Value string           `json:"v,omitempty"`
}

func (t searchToken) String() string {
	b, err := json.Marshal(t)
	if err != nil {
		return "" // plain values
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func parseSearchToken(s string) (t searchToken, err error) {
	if s == "" {
		return t, nil
	}
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil {
		err = strictjson.Unmarshal(b, &t)
	}
	if err != nil || t.Skip < 0 || t.Until <= 0 {
		return t, matrix.InvalidParam("next_batch is not a token of a search.")
	}
	return t, nil
}

// groupOf is the value by which an event is grouped.
func groupOf(key string, ev *rooms.Event) string {
	if key == "sender" {
		return string(ev.Sender())
	}
	return string(ev.RoomID())
}

// Bounds of a page of results, and of the events around each.
const (
	defaultResults = 10
	maxResults     = 100
	defaultContext = 5
	maxContext     = 20
)

type searchResult struct {
	Rank    float64         `json:"rank"`
	Result  json.RawMessage `json:"result"`
	Context *searchContext  `json:"context,omitempty"`
}

type searchContext struct {
	Start   string                        `json:"start"`
	End     string                        `json:"end"`
	Before  []json.RawMessage             `json:"events_before"`
	After   []json.RawMessage             `json:"events_after"`
	Profile map[matrix.UserID]profileInfo `json:"profile_info,omitempty"`
}

type profileInfo struct {
	DisplayName string `json:"displayname,omitempty"`
	AvatarURL   string `json:"avatar_url,omitempty"`
}

type searchGroup struct {
	Next    string           `json:"next_batch,omitempty"`
	Order   int              `json:"order"`
	Results []matrix.EventID `json:"results"`
}

type searchAnswer struct {
	Count      int                                `json:"count"`
	Highlights []string                           `json:"highlights"`
	Results    []searchResult                     `json:"results"`
	State      map[matrix.RoomID]json.RawMessage  `json:"state,omitempty"`
	Groups     map[string]map[string]*searchGroup `json:"groups,omitempty"`
	Next       string                             `json:"next_batch,omitempty"`
}

// spec: cs/search
func (a *API) search(r *endpoint.Request) (any, error) {
	var body struct {
		Categories *struct {
			RoomEvents *searchCriteria `json:"room_events"`
		} `json:"search_categories"`
	}
	if err := r.Decode(&body); err != nil {
		return nil, err
	}
	if body.Categories == nil {
		return nil, matrix.MissingParam("search_categories is missing.")
	}
	c := body.Categories.RoomEvents
	if c == nil {
		return map[string]any{"search_categories": map[string]any{}}, nil
	}
	answer, err := a.searchEvents(r, c)
	if err != nil {
		return nil, err
	}
	return map[string]any{"search_categories": map[string]any{"room_events": answer}}, nil
}

// query turns criteria into a request to the rooms.
func (c *searchCriteria) query() (q rooms.SearchRequest, limit int, err error) {
	q.Term, q.Keys = c.Term, c.Keys
	if c.Term == "" {
		return q, 0, matrix.MissingParam("search_term is missing.")
	}
	switch c.OrderBy {
	case "", "rank":
	case "recent":
		q.Recent = true
	default:
		return q, 0, matrix.InvalidParam("order_by must be rank or recent.")
	}
	for _, key := range c.Keys {
		if key != "content.body" && key != "content.name" && key != "content.topic" {
			return q, 0, matrix.InvalidParam("%q cannot be searched.", key)
		}
	}
	for _, g := range c.Groupings.GroupBy {
		if g.Key != "room_id" && g.Key != "sender" {
			return q, 0, matrix.InvalidParam("Results cannot be grouped by %q.", g.Key)
		}
	}
	f := &feed.RoomEventFilter{}
	if len(c.Filter) > 0 {
		if f, err = feed.ParseRoomEventFilter(c.Filter); err != nil {
			return q, 0, err
		}
	}
	if !f.All() {
		q.Filter = func(ev *rooms.Event) bool { return f.AcceptsEvent(ev.Event) }
	}
	if f.Rooms != nil {
		q.Rooms = make([]matrix.RoomID, len(f.Rooms))
		for i, id := range f.Rooms {
			q.Rooms[i] = matrix.RoomID(id)
		}
	}
	for _, id := range f.NotRooms {
		q.Skip = append(q.Skip, matrix.RoomID(id))
	}
	return q, max(1, f.Most(defaultResults, maxResults)), nil
}

func (a *API) searchEvents(r *endpoint.Request, c *searchCriteria) (*searchAnswer, error) {
	q, limit, err := c.query()
	if err != nil {
		return nil, err
	}
	token, err := parseSearchToken(r.Query("next_batch"))
	if err != nil {
		return nil, err
	}
	if q.Reader, err = a.reader(r); err != nil {
		return nil, err
	}
	q.Until = token.Until
	all, err := a.Rooms.Search(r.Ctx(), q)
	if err != nil {
		return nil, err
	}
	found := all.Found
	if token.Group != "" {
		found = slices.DeleteFunc(slices.Clone(found), func(f rooms.SearchResult) bool { return groupOf(token.Group, f.Event) != token.Value })
	}
	start := min(token.Skip, len(found))
	end := min(start+limit, len(found))
	out := &searchAnswer{Count: len(found), Highlights: all.Highlights, Results: make([]searchResult, 0, end-start)}
	if end-start == limit {
		// Whether there are more is seen on the next page; clients expect a token with every full one.
		token.Skip, token.Until = end, all.Until
		out.Next = token.String()
	}
	events := make([]*rooms.Event, 0, end-start)
	for _, f := range found[start:end] {
		events = append(events, f.Event)
	}
	rendered, err := a.renderAll(r, events)
	if err != nil {
		return nil, err
	}
	for i, f := range found[start:end] {
		result := searchResult{Rank: f.Rank, Result: rendered[i]}
		if c.Context != nil {
			if result.Context, err = a.searchContext(r, c, f.Event); err != nil {
				return nil, err
			}
		}
		out.Results = append(out.Results, result)
	}
	if len(c.Groupings.GroupBy) > 0 {
		out.Groups = make(map[string]map[string]*searchGroup)
		for _, g := range c.Groupings.GroupBy {
			out.Groups[g.Key] = groupResults(g.Key, found, start, end, all.Until)
		}
	}
	if c.State {
		out.State, err = a.searchState(r, events)
	}
	return out, err
}

// groupResults says which results of a page belong together, and where each group goes on.
func groupResults(key string, found []rooms.SearchResult, start, end int, until storage.Position) map[string]*searchGroup {
	groups := make(map[string]*searchGroup)
	for _, f := range found[start:end] {
		value := groupOf(key, f.Event)
		g := groups[value]
		if g == nil {
			g = &searchGroup{Order: len(groups) + 1}
			groups[value] = g
		}
		g.Results = append(g.Results, f.Event.ID())
	}
	given := make(map[string]int)
	for i, f := range found {
		value := groupOf(key, f.Event)
		g := groups[value]
		switch {
		case g == nil:
		case i < end:
			given[value]++
		case g.Next == "":
			g.Next = searchToken{Skip: given[value], Until: until, Group: key, Value: value}.String()
		}
	}
	return groups
}

func (a *API) searchContext(r *endpoint.Request, c *searchCriteria, ev *rooms.Event) (*searchContext, error) {
	bound := func(n *int) int {
		if n == nil {
			return defaultContext
		}
		return max(0, min(*n, maxContext))
	}
	page, err := a.Rooms.Surroundings(r.Ctx(), requester(r).UserID, ev, bound(c.Context.Before), bound(c.Context.After), nil)
	if err != nil {
		return nil, err
	}
	out := &searchContext{Start: page.Start.String(), End: page.End.String()}
	if out.Before, err = a.renderAll(r, page.Before); err != nil {
		return nil, err
	}
	if out.After, err = a.renderAll(r, page.After); err != nil || !c.Context.Profile {
		return out, err
	}
	var keys []matrix.StateKey
	for _, ev := range slices.Concat(page.Before, []*rooms.Event{ev}, page.After) {
		keys = append(keys, matrix.StateKey{Type: "m.room.member", Key: string(ev.Sender())})
	}
	members, err := page.State.Events(r.Ctx(), keys...)
	if err != nil {
		return nil, err
	}
	out.Profile = make(map[matrix.UserID]profileInfo)
	for i, m := range members {
		if m == nil {
			continue
		}
		var p profileInfo
		p.DisplayName, _ = m.ContentString("displayname")
		p.AvatarURL, _ = m.ContentString("avatar_url")
		out.Profile[matrix.UserID(keys[i].Key)] = p
	}
	return out, nil
}

// searchState is the state of every room in the results, as the user may see it.
func (a *API) searchState(r *endpoint.Request, events []*rooms.Event) (map[matrix.RoomID]json.RawMessage, error) {
	out := make(map[matrix.RoomID]json.RawMessage)
	for _, ev := range events {
		if out[ev.RoomID()] != nil {
			continue
		}
		state, err := a.Rooms.VisibleState(r.Ctx(), requester(r).UserID, ev.RoomID())
		if err != nil {
			return nil, err
		}
		all, err := state.All(r.Ctx())
		if err != nil {
			return nil, err
		}
		rendered, err := a.renderAll(r, all)
		if err != nil {
			return nil, err
		}
		if out[ev.RoomID()], err = json.Marshal(rendered); err != nil {
			return nil, err
		}
	}
	return out, nil
}
