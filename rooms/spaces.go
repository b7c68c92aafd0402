package rooms

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"slices"
	"time"

	"hanok/internal/recent"
	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/roomversion"
)

// SpaceRequest asks for a part of a space's tree. spec: cs/getSpaceHierarchy
type SpaceRequest struct {
	Room          matrix.RoomID
	User          matrix.UserID
	SuggestedOnly *bool // nil: as on the page before, false on the first
	MaxDepth      *int  // nil: as on the page before, no limit but ours on the first
	Limit         int   // 0: as many as we give
	From          string
}

// SpacePage is a part of a space's tree.
type SpacePage struct {
	Rooms []HierarchyRoom `json:"rooms"`
	Next  string          `json:"next_batch,omitempty"`
}

// Limits on walking through a space.
const (
	maxSpacePage    = 50
	maxSpaceDepth   = 20
	maxSpaceRooms   = 2000 // rooms visited for a page, those of the pages before included
	maxSpaceFetches = 50   // requests to other servers for a page
	maxSpaceServers = 2    // servers asked about one room

	spacePatience = 20 * time.Second // for all answers of other servers
	roomPatience  = 6 * time.Second  // for those about one room
)

// spaceToken is a page token: how many rooms of the tree were given, and what cannot change between pages. A page
// walks from the root again: nothing has to be kept, and what changed meanwhile moves rooms by as much.
type spaceToken struct {
	Skip      int  `json:"s"`
	Depth     int  `json:"d"`
	Suggested bool `json:"g"`
}

func (t spaceToken) String() string {
	b, err := json.Marshal(t)
	if err != nil {
		return "" // three plain values
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

func parseSpaceToken(s string) (t spaceToken, err error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err == nil {
		err = json.Unmarshal(b, &t)
	}
	if err != nil || t.Skip <= 0 || t.Skip > maxSpaceRooms || t.Depth < 0 || t.Depth > maxSpaceDepth {
		return t, matrix.InvalidParam("from is not a token of this list")
	}
	return t, nil
}

// Space walks through a space depth first and returns a page of the rooms that the user may join or look into. Rooms that this
// server is not in are asked for at those that are. M_FORBIDDEN for a space that the user may not see, M_INVALID_PARAM.
// spec: cs/getSpaceHierarchy
func (e *Engine) Space(ctx context.Context, q SpaceRequest) (*SpacePage, error) {
	t := spaceToken{Depth: maxSpaceDepth}
	if q.From != "" {
		var err error
		if t, err = parseSpaceToken(q.From); err != nil {
			return nil, err
		}
		if q.MaxDepth != nil && min(*q.MaxDepth, maxSpaceDepth) != t.Depth || q.SuggestedOnly != nil && *q.SuggestedOnly != t.Suggested {
			return nil, matrix.InvalidParam("suggested_only and max_depth cannot change between pages")
		}
	} else {
		if q.MaxDepth != nil {
			t.Depth = min(*q.MaxDepth, maxSpaceDepth)
		}
		t.Suggested = q.SuggestedOnly != nil && *q.SuggestedOnly
	}
	if q.Limit <= 0 || q.Limit > maxSpacePage {
		q.Limit = maxSpacePage
	}
	w := &spaceWalk{e: e, q: q, t: t, seen: map[matrix.RoomID]bool{}, known: map[matrix.RoomID]*HierarchyRoom{}, closed: map[matrix.RoomID]bool{}}
	return w.run(ctx)
}

type spaceWalk struct {
	e       *Engine
	q       SpaceRequest
	t       spaceToken
	seen    map[matrix.RoomID]bool
	known   map[matrix.RoomID]*HierarchyRoom // told by other servers along with their parents
	closed  map[matrix.RoomID]bool           // that nobody can get into, as other servers say
	fetches int
	waited  time.Duration // for other servers
}

// spaceStep is a room still to be visited.
type spaceStep struct {
	room  matrix.RoomID
	via   []matrix.ServerName
	depth int
}

func (w *spaceWalk) run(ctx context.Context) (*SpacePage, error) {
	named, known, err := w.e.serversToTry(ctx, MemberRequest{Room: w.q.Room, Sender: w.q.User})
	if err != nil {
		return nil, err
	}
	page := &SpacePage{}
	stack := []spaceStep{{room: w.q.Room, via: slices.Concat(named, known)}} // the next one last
	for given := 0; len(stack) > 0 && len(w.seen) < maxSpaceRooms; {
		step := stack[len(stack)-1]
		stack = stack[:len(stack)-1]
		if w.seen[step.room] {
			continue
		}
		w.seen[step.room] = true
		h, err := w.visit(ctx, step)
		if err != nil {
			return nil, err
		}
		if h == nil {
			if step.depth == 0 {
				return nil, matrix.Forbidden("the space is not known, or you may not see it")
			}
			continue
		}
		if len(page.Rooms) == w.q.Limit {
			w.t.Skip = given
			page.Next = w.t.String()
			return page, nil
		}
		if given++; given > w.t.Skip {
			page.Rooms = append(page.Rooms, *h)
		}
		if step.depth == w.t.Depth {
			continue
		}
		for _, c := range slices.Backward(h.children) {
			stack = append(stack, spaceStep{c.room, c.via, step.depth + 1})
		}
	}
	return page, nil
}

// visit describes a room; nil if nothing is known of it, or the user may not see it.
func (w *spaceWalk) visit(ctx context.Context, step spaceStep) (*HierarchyRoom, error) {
	h, err := w.e.describe(ctx, step.room, w.t.Suggested)
	if matrix.HasCode(err, "M_NOT_FOUND") {
		h = w.ask(ctx, step)
	} else if err != nil {
		return nil, err
	}
	if h == nil {
		return nil, nil
	}
	ok, err := w.e.openTo(ctx, &h.RoomDetails, w.q.User)
	if err != nil || !ok {
		return nil, err
	}
	return h, nil
}

// ask finds out about a room that this server is not in; nil if nobody tells.
func (w *spaceWalk) ask(ctx context.Context, step spaceStep) *HierarchyRoom {
	if w.closed[step.room] {
		return nil
	}
	// What came with the parent is all there is to know, unless the room has children that did not come with it.
	if h := w.known[step.room]; h != nil && (h.RoomType != "m.space" || len(h.children) > 0) {
		return h
	}
	if w.waited >= spacePatience {
		return w.known[step.room]
	}
	servers := slices.DeleteFunc(w.e.answeringFirst(step.via), func(s matrix.ServerName) bool { return s == w.e.server })
	servers = servers[:min(len(servers), maxSpaceServers, maxSpaceFetches-w.fetches)]
	next := listed(servers)
	began := time.Now()
	ctx, cancel := context.WithTimeout(ctx, min(roomPatience, spacePatience-w.waited))
	defer cancel()
	answer := w.e.firstHierarchy(ctx, step.room, w.t.Suggested, true, func() (matrix.ServerName, bool) {
		s, ok := next()
		if ok {
			w.fetches++
		}
		return s, ok
	})
	w.waited += time.Since(began)
	if answer == nil {
		return w.known[step.room]
	}
	for _, id := range answer.Inaccessible {
		w.closed[id] = true
	}
	for i := range answer.Children {
		c := &answer.Children[i]
		w.known[c.RoomID] = c
	}
	return &answer.Room
}

// firstHierarchy asks servers in turn about a space; nil if none says anything of use. remembered: what one said lately is good enough.
func (e *Engine) firstHierarchy(ctx context.Context, room matrix.RoomID, suggestedOnly, remembered bool, next func() (matrix.ServerName, bool)) (first *Hierarchy) {
	if e.isolation.has(room) {
		return nil
	}
	done, _ := inquiry[*Hierarchy]{
		next: next,
		ask: func(ctx context.Context, server matrix.ServerName) (*Hierarchy, error) {
			if known, ok := e.hierarchies.Get(hierarchyKey{server, room, suggestedOnly}); remembered && ok && !time.Now().After(known.until) {
				return known.h, nil
			}
			return e.askHierarchy(ctx, server, room, suggestedOnly)
		},
		take: func(_ matrix.ServerName, answer *Hierarchy) error {
			first = answer
			return nil
		},
		failed: func(server matrix.ServerName, err error) {
			e.log.Debug().Err(err).Str("server", string(server)).Msg("ask about a space")
		},
		after: overtakeQuestion, most: mostQuestions,
	}.run(ctx, e)
	if !done {
		return nil
	}
	return first
}

// askHierarchy asks one server about a space.
func (e *Engine) askHierarchy(ctx context.Context, server matrix.ServerName, room matrix.RoomID, suggestedOnly bool) (*Hierarchy, error) {
	answer, err := e.remote.Hierarchy(ctx, server, room, suggestedOnly)
	if err != nil {
		return nil, err
	}
	root := answer.Room.checked(room)
	if root == nil {
		return nil, nonsense("it is about another room")
	}
	if suggestedOnly {
		root.setChildren(root.children, true)
	}
	out := &Hierarchy{Room: *root}
	for i := range answer.Children[:min(len(answer.Children), maxChildren)] {
		c := &answer.Children[i]
		// Only of the space's children: a server has no say about other rooms.
		if slices.ContainsFunc(root.children, func(child spaceChild) bool { return child.room == c.RoomID }) {
			out.Children = append(out.Children, *c.checked(c.RoomID))
		}
	}
	for _, id := range answer.Inaccessible {
		if slices.ContainsFunc(root.children, func(child spaceChild) bool { return child.room == id }) {
			out.Inaccessible = append(out.Inaccessible, id)
		}
	}
	e.hierarchies.Put(hierarchyKey{server, room, suggestedOnly}, cachedHierarchy{out, time.Now().Add(hierarchyLife)})
	return out, nil
}

type hierarchyKey struct {
	server    matrix.ServerName
	room      matrix.RoomID
	suggested bool
}

// cachedHierarchy is the answer of another server, which is remembered for a while. spec: ss/getSpaceHierarchy
type cachedHierarchy struct {
	h     *Hierarchy
	until time.Time
}

const (
	hierarchyLife     = 5 * time.Minute
	maxCachedChildren = 10_000 // over all answers
)

func (h *Hierarchy) weight() int {
	n := 1 + len(h.Room.children) + len(h.Inaccessible)
	for i := range h.Children {
		n += 1 + len(h.Children[i].children)
	}
	return n
}

func newHierarchyCache() *recent.Map[hierarchyKey, cachedHierarchy] {
	// A bigger answer is kept alone.
	weigh := func(c cachedHierarchy) int { return min(c.h.weight(), maxCachedChildren) }
	return recent.NewWeighedMap[hierarchyKey](maxCachedChildren, maxCachedChildren, weigh)
}

// SummaryRequest asks for the description of a room that the user need not be in. spec: cs/getRoomSummary
type SummaryRequest struct {
	Room matrix.RoomID
	User matrix.UserID // "": nobody is logged in
	Via  []matrix.ServerName
	// Fresh does without what other servers said lately.
	Fresh bool
}

// RoomDetails describes a room to somebody who is in it, could get in or look in; else M_NOT_FOUND.
// spec: cs/getRoomSummary
func (e *Engine) RoomDetails(ctx context.Context, q SummaryRequest) (*RoomDetails, error) {
	hidden := matrix.NotFound("the room is not known, or you may not see it")
	h, err := e.describe(ctx, q.Room, false)
	if err != nil && !matrix.HasCode(err, "M_NOT_FOUND") {
		return nil, err
	}
	if h == nil && q.User != "" { // strangers do not make us ask others
		named, known, err := e.serversToTry(ctx, MemberRequest{Room: q.Room, Sender: q.User, Via: q.Via})
		if err != nil {
			return nil, err
		}
		servers := slices.Concat(e.answeringFirst(named), e.answeringFirst(known))
		patient, cancel := context.WithTimeout(ctx, spacePatience)
		defer cancel()
		answer := e.firstHierarchy(patient, q.Room, false, !q.Fresh, listed(servers[:min(len(servers), 2*maxSpaceServers)]))
		if answer == nil {
			return e.invitedDetails(ctx, q, hidden)
		}
		h = &answer.Room
	}
	if h == nil {
		return nil, hidden
	}
	if ok, err := e.openTo(ctx, &h.RoomDetails, q.User); err != nil || !ok {
		if err == nil {
			err = hidden
		}
		return nil, err
	}
	return &h.RoomDetails, nil
}

// invitedDetails is what the stripped state of an invite or a knock tells of a room.
func (e *Engine) invitedDetails(ctx context.Context, q SummaryRequest, hidden error) (*RoomDetails, error) {
	m, err := e.MembershipOf(ctx, q.Room, q.User)
	if err != nil {
		return nil, err
	}
	if m.Membership != "invite" && m.Membership != "knock" {
		return nil, hidden
	}
	events, err := e.InviteState(ctx, q.User, q.Room)
	if err != nil {
		return nil, err
	}
	d := &RoomDetails{RoomSummary: RoomSummary{RoomID: q.Room, JoinRule: "invite"}}
	for _, raw := range events {
		ev, err := canonicaljson.Canonical(raw, canonicaljson.Lenient)
		if err != nil {
			continue
		}
		content, _ := canonicaljson.GetObject(ev, "content")
		text := func(key string) string { s, _ := canonicaljson.GetString(content, key); return s }
		switch t, _ := canonicaljson.GetString(ev, "type"); t {
		case "m.room.create":
			d.RoomType, d.RoomVersion = text("type"), roomversion.ID(text("room_version"))
		case "m.room.name":
			d.Name = text("name")
		case "m.room.topic":
			d.Topic = text("topic")
		case "m.room.avatar":
			d.AvatarURL = text("url")
		case "m.room.canonical_alias":
			d.CanonicalAlias = matrix.RoomAlias(text("alias"))
		case "m.room.join_rules":
			d.JoinRule = text("join_rule")
		case "m.room.encryption":
			d.Encryption = text("algorithm")
		}
	}
	return d, nil
}
