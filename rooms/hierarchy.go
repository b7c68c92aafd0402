package rooms

import (
	"cmp"
	"context"
	"encoding/json"
	"slices"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/roomversion"
	"hanok/storage"
)

// RoomDetails describe a room to somebody who may join it or look into it. spec: cs/getRoomSummary
type RoomDetails struct {
	RoomSummary
	AllowedRooms []matrix.RoomID `json:"allowed_room_ids,omitempty"`
	Encryption   string          `json:"encryption,omitempty"`
	RoomVersion  roomversion.ID  `json:"room_version,omitempty"`
}

// HierarchyRoom is a room of a space.
type HierarchyRoom struct {
	RoomDetails
	// ChildrenState are the m.space.child events, stripped, with origin_server_ts, in the order in which they are shown.
	ChildrenState []json.RawMessage `json:"children_state"`

	children []spaceChild
}

// Hierarchy is a space with its children. spec: ss/getSpaceHierarchy
type Hierarchy struct {
	Room         HierarchyRoom   `json:"room"`
	Children     []HierarchyRoom `json:"children"`
	Inaccessible []matrix.RoomID `json:"inaccessible_children"`
}

// Limits on one space.
const (
	maxChildren = 1000 // children of a space that are looked at
	// maxServedGrandchildren bounds the children of children in one answer to another server, in bytes. The specification does not ask for them: who
	// misses them asks about the child.
	maxServedGrandchildren = 1 << 20
)

// spaceChild is what an m.space.child event says.
type spaceChild struct {
	room      matrix.RoomID
	via       []matrix.ServerName
	suggested bool
	order     string // "": none
	ts        matrix.Timestamp
	stripped  json.RawMessage
}

// readChild reads the content of an m.space.child event; ok is false if it names no child.
// spec: client-server-api#mspacechild-relationship
func readChild(key string, content []byte) (c spaceChild, ok bool) {
	room, err := matrix.ParseRoomID(key)
	if err != nil {
		return c, false
	}
	c.room = room
	via, _ := canonicaljson.Get(content, "via")
	if !canonicaljson.IsArray(via) {
		return c, false
	}
	for el := range canonicaljson.Elements(via) {
		name, _ := canonicaljson.String(el)
		if s, err := matrix.ParseServerName(name); err == nil && len(c.via) < maxVia {
			c.via = append(c.via, s)
		}
	}
	c.suggested, _ = canonicaljson.GetBool(content, "suggested")
	if order, _ := canonicaljson.GetString(content, "order"); validOrder(order) {
		c.order = order
	}
	return c, len(c.via) > 0
}

// validOrder: at most 50 printable ASCII characters. spec: client-server-api#mspacechild
func validOrder(s string) bool {
	for i := range len(s) {
		if s[i] < 0x20 || s[i] > 0x7E {
			return false
		}
	}
	return s != "" && len(s) <= 50
}

// compareChildren orders the children of a space. spec: client-server-api#ordering-of-children-within-a-space
func compareChildren(a, b spaceChild) int {
	if (a.order == "") != (b.order == "") {
		if a.order == "" {
			return 1
		}
		return -1
	}
	return cmp.Or(cmp.Compare(a.order, b.order), cmp.Compare(a.ts, b.ts), cmp.Compare(a.room, b.room))
}

func (h *HierarchyRoom) setChildren(children []spaceChild, suggestedOnly bool) {
	if suggestedOnly {
		children = slices.DeleteFunc(children, func(c spaceChild) bool { return !c.suggested })
	}
	slices.SortFunc(children, compareChildren)
	h.children = children[:min(len(children), maxChildren)]
	h.ChildrenState = make([]json.RawMessage, len(h.children))
	for i, c := range h.children {
		h.ChildrenState[i] = c.stripped
	}
}

func detailsOf(s *RoomSummary) RoomDetails {
	d := RoomDetails{RoomSummary: *s, Encryption: s.Encryption, RoomVersion: s.RoomVersion}
	if isRestricted(s.JoinRule) {
		d.AllowedRooms = s.AllowedRooms
	}
	return d
}

func isRestricted(rule string) bool { return rule == "restricted" || rule == "knock_restricted" }

// describe returns a room in which this server takes part, with its children if it is a space; M_NOT_FOUND for any other.
func (e *Engine) describe(ctx context.Context, id matrix.RoomID, suggestedOnly bool) (*HierarchyRoom, error) {
	r, err := e.room(ctx, id)
	if err != nil {
		return nil, err
	}
	defer r.release()
	if ok, err := r.resident(ctx); err != nil || !ok {
		if err == nil {
			err = matrix.NotFound("this server is not in the room")
		}
		return nil, err
	}
	s, err := r.summary(ctx)
	if err != nil {
		return nil, err
	}
	h := &HierarchyRoom{RoomDetails: detailsOf(s)}
	if s.RoomType != "m.space" {
		return h, nil
	}
	c, err := r.current(ctx)
	if err != nil {
		return nil, err
	}
	events, err := State{e, c.head.state}.OfType(ctx, "m.space.child")
	if err != nil {
		return nil, err
	}
	var children []spaceChild
	for _, ev := range events {
		key, _ := ev.StateKey()
		child, ok := readChild(key, ev.Content())
		if !ok {
			continue
		}
		child.ts = ev.OriginServerTS()
		child.stripped = strippedWithTime(ev)
		children = append(children, child)
	}
	h.setChildren(children, suggestedOnly)
	return h, nil
}

// strippedWithTime is a stripped state event with origin_server_ts, as children_state wants it.
func strippedWithTime(ev *Event) json.RawMessage {
	ts, err := canonicaljson.Marshal(ev.OriginServerTS())
	if err != nil {
		return nil // an integer
	}
	return canonicaljson.Set(ev.AppendStripped(nil), "origin_server_ts", ts)
}

// ServeHierarchy describes a space, and those of its children that another server's users could get into or look into.
// M_NOT_FOUND. spec: ss/getSpaceHierarchy
func (e *Engine) ServeHierarchy(ctx context.Context, origin matrix.ServerName, room matrix.RoomID, suggestedOnly bool) (*Hierarchy, error) {
	hidden := matrix.NotFound("the room is not known, or not open to your server")
	root, err := e.describe(ctx, room, suggestedOnly)
	if err != nil {
		return nil, err
	}
	if ok, err := e.openToServer(ctx, &root.RoomDetails, origin); err != nil || !ok {
		if err == nil {
			err = hidden
		}
		return nil, err
	}
	out := &Hierarchy{Room: *root}
	left := maxServedGrandchildren
	for _, c := range root.children {
		child, err := e.describe(ctx, c.room, suggestedOnly)
		if matrix.HasCode(err, "M_NOT_FOUND") {
			continue // we are not in it: somebody else may know
		}
		if err != nil {
			return nil, err
		}
		ok, err := e.openToServer(ctx, &child.RoomDetails, origin)
		if err != nil {
			return nil, err
		}
		if ok {
			size := 0
			for _, state := range child.ChildrenState {
				size += len(state)
			}
			if size <= left {
				left -= size
			} else {
				child.ChildrenState = nil
			}
			out.Children = append(out.Children, *child)
		} else {
			out.Inaccessible = append(out.Inaccessible, c.room)
		}
	}
	return out, nil
}

// open says whether anybody may join a room, knock or look into it.
func (d *RoomDetails) open() bool {
	return d.WorldReadable || d.JoinRule == "public" || d.JoinRule == "knock" || d.JoinRule == "knock_restricted"
}

// openToServer says whether a server's users are in a room, or invited, or could get in or look in.
func (e *Engine) openToServer(ctx context.Context, d *RoomDetails, server matrix.ServerName) (bool, error) {
	if err := e.AllowsServer(ctx, d.RoomID, server); err != nil {
		return false, ignoreRefusal(err)
	}
	if own, err := e.ownOnly(ctx, d.RoomID); err != nil || own {
		return false, err
	}
	if d.open() {
		return true, nil
	}
	for _, id := range append([]matrix.RoomID{d.RoomID}, d.AllowedRooms...) {
		r, err := e.room(ctx, id)
		if matrix.HasCode(err, "M_NOT_FOUND") {
			continue
		}
		if err != nil {
			return false, err
		}
		in, err := r.hasServer(ctx, server)
		if err == nil && !in && id == d.RoomID {
			in, err = r.invitedServer(ctx, server)
		}
		r.release()
		if err != nil || in {
			return in, err
		}
	}
	return false, nil
}

// ignoreRefusal drops errors that are answers.
func ignoreRefusal(err error) error {
	if _, ok := matrix.AsError(err); ok {
		return nil
	}
	return err
}

func (r *room) invitedServer(ctx context.Context, server matrix.ServerName) (bool, error) {
	nid, err := r.e.db.LookupName(ctx, string(server))
	if err != nil {
		return false, ignoreNotFound(err)
	}
	rows, err := storage.MembershipsIn(ctx, r.e.db, r.nid, storage.MembershipInvite)
	return slices.ContainsFunc(rows, func(m storage.MembershipRow) bool { return m.Server == nid }), err
}

// openTo says whether a user is in a room, is invited, or could get in, knock or look in. user "" is anybody.
// spec: cs/getSpaceHierarchy
func (e *Engine) openTo(ctx context.Context, d *RoomDetails, user matrix.UserID) (bool, error) {
	if user != "" {
		m, err := e.MembershipOf(ctx, d.RoomID, user)
		if err != nil || m.Membership == "join" || m.Membership == "invite" {
			return err == nil, err
		}
		if m.Membership == "ban" {
			return d.WorldReadable, nil
		}
	}
	if d.open() {
		return true, nil
	}
	if d.JoinRule != "restricted" || user == "" {
		return false, nil
	}
	for _, id := range d.AllowedRooms {
		m, err := e.MembershipOf(ctx, id, user)
		if err != nil || m.Membership == "join" {
			return err == nil, err
		}
	}
	return false, nil
}

// checked is what another server says about a room, with what is not as it should be left out; nil if it is about another room.
func (h *HierarchyRoom) checked(id matrix.RoomID) *HierarchyRoom {
	if h.RoomID != id {
		return nil
	}
	out := &HierarchyRoom{RoomDetails: h.RoomDetails}
	out.AllowedRooms = out.AllowedRooms[:min(len(out.AllowedRooms), 100)]
	if h.RoomType != "m.space" {
		return out
	}
	var children []spaceChild
	for _, raw := range h.ChildrenState[:min(len(h.ChildrenState), maxChildren)] {
		c, err := canonicaljson.Canonical(raw, canonicaljson.Lenient)
		if err != nil || !canonicaljson.IsObject(c) {
			continue
		}
		key, _ := canonicaljson.GetString(c, "state_key")
		content, _ := canonicaljson.GetObject(c, "content")
		if t, _ := canonicaljson.GetString(c, "type"); t != "m.space.child" || content == nil {
			continue
		}
		child, ok := readChild(key, content)
		if !ok {
			continue
		}
		ts, _ := canonicaljson.GetInt(c, "origin_server_ts")
		child.ts, child.stripped = matrix.Timestamp(ts), c
		children = append(children, child)
	}
	out.setChildren(children, false)
	return out
}
