package rooms

import (
	"cmp"
	"context"
	"slices"
	"strconv"
	"strings"

	"hanok/matrix"
	"hanok/matrix/roomversion"
	"hanok/storage"
	"hanok/storage/statetree"
)

// SetPublished puts a room into the public directory or takes it out, as whoever may set aliases there, or an administrator of
// this server, may want it. spec: cs/setRoomVisibilityOnDirectory
func (e *Engine) SetPublished(ctx context.Context, user matrix.UserID, room matrix.RoomID, published, admin bool) error {
	nid, err := e.RoomNID(ctx, room)
	if err != nil {
		return err
	}
	if !admin {
		if err := e.maySetAliases(ctx, user, nid); err != nil {
			return err
		}
	}
	return e.db.Write(ctx, func(tx *storage.Tx) error { return storage.SetPublished(ctx, tx, nid, published) })
}

// SetPublishedIn puts a room into the directory of a network of an application service, or takes it out. M_NOT_FOUND.
// spec: cs/updateAppserviceRoomDirectoryVisibility
func (e *Engine) SetPublishedIn(ctx context.Context, network string, room matrix.RoomID, published bool) error {
	nid, err := e.RoomNID(ctx, room)
	if err != nil {
		return err
	}
	return e.db.Write(ctx, func(tx *storage.Tx) error { return storage.SetPublishedIn(ctx, tx, network, nid, published) })
}

// Published says whether a room is in the public directory. spec: cs/getRoomVisibilityOnDirectory
func (e *Engine) Published(ctx context.Context, room matrix.RoomID) (bool, error) {
	row, err := storage.RoomByID(ctx, e.db, room)
	if err != nil {
		return false, notFound(err, "no such room")
	}
	return row.Published, nil
}

// PublicRoomsRequest asks for a page of the directory. spec: cs/queryPublicRooms
type PublicRoomsRequest struct {
	Limit     int    // 0 means 100
	Since     string // a token of PublicRooms
	Search    string
	RoomTypes []*string // nil: all; an entry nil: rooms without a type
	// Network is the instance_id of a network of an application service, whose directory is meant; AllNetworks means all together.
	Network     string
	AllNetworks bool
}

// RoomSummary describes a room to somebody who is not in it. spec: cs/getPublicRooms
type RoomSummary struct {
	RoomID           matrix.RoomID    `json:"room_id"`
	RoomType         string           `json:"room_type,omitempty"`
	Name             string           `json:"name,omitempty"`
	Topic            string           `json:"topic,omitempty"`
	AvatarURL        string           `json:"avatar_url,omitempty"`
	CanonicalAlias   matrix.RoomAlias `json:"canonical_alias,omitempty"`
	JoinRule         string           `json:"join_rule,omitempty"`
	NumJoined        int              `json:"num_joined_members"`
	GuestCanJoin     bool             `json:"guest_can_join"`
	WorldReadable    bool             `json:"world_readable"`
	Encryption       string           `json:"-"`
	RoomVersion      roomversion.ID   `json:"-"`
	AllowedRooms     []matrix.RoomID  `json:"-"`
	CreationTS       matrix.Timestamp `json:"-"`
	ParticipantsHere []matrix.UserID  `json:"-"`
}

// PublicRooms is a page of the directory, biggest rooms first.
type PublicRooms struct {
	Chunk     []RoomSummary `json:"chunk"`
	NextBatch string        `json:"next_batch,omitempty"`
	PrevBatch string        `json:"prev_batch,omitempty"`
	Total     int           `json:"total_room_count_estimate"`
}

// PublicRooms lists published rooms. M_INVALID_PARAM for a bad token.
func (e *Engine) PublicRooms(ctx context.Context, q PublicRoomsRequest) (*PublicRooms, error) {
	start := 0
	if q.Since != "" {
		var err error
		if start, err = strconv.Atoi(strings.TrimPrefix(q.Since, "p")); err != nil || start < 0 {
			return nil, matrix.InvalidParam("since is not a token of this list")
		}
	}
	if q.Limit <= 0 || q.Limit > 500 {
		q.Limit = 100
	}
	if q.AllNetworks && q.Network != "" {
		return nil, matrix.InvalidParam("third_party_instance_id cannot stand beside include_all_networks")
	}
	nids, err := e.publishedRooms(ctx, &q)
	if err != nil {
		return nil, err
	}
	var all []RoomSummary
	for _, nid := range nids {
		r, err := e.roomByNID(ctx, nid)
		if err != nil {
			return nil, err
		}
		s, err := r.summary(ctx)
		r.release()
		if err != nil {
			return nil, err
		}
		if q.matches(s) {
			all = append(all, *s)
		}
	}
	slices.SortFunc(all, func(a, b RoomSummary) int {
		return cmp.Or(cmp.Compare(b.NumJoined, a.NumJoined), cmp.Compare(a.RoomID, b.RoomID))
	})
	start = min(start, len(all))
	end := min(start+q.Limit, len(all))
	page := &PublicRooms{Chunk: all[start:end:end], Total: len(all)}
	if page.Chunk == nil {
		page.Chunk = []RoomSummary{}
	}
	if end < len(all) {
		page.NextBatch = pageToken(end)
	}
	if start > 0 {
		page.PrevBatch = pageToken(max(0, start-q.Limit))
	}
	return page, nil
}

func (e *Engine) publishedRooms(ctx context.Context, q *PublicRoomsRequest) ([]storage.RoomNID, error) {
	switch {
	case q.AllNetworks:
		return storage.PublishedRoomsAnywhere(ctx, e.db)
	case q.Network != "":
		return storage.PublishedRoomsIn(ctx, e.db, q.Network)
	}
	return storage.PublishedRooms(ctx, e.db)
}

// pageToken names a place in the list. A bare 0 would be nothing to clients in some languages.
func pageToken(start int) string { return "p" + strconv.Itoa(start) }

func (q *PublicRoomsRequest) matches(s *RoomSummary) bool {
	if q.RoomTypes != nil && !slices.ContainsFunc(q.RoomTypes, func(t *string) bool {
		return t == nil && s.RoomType == "" || t != nil && *t == s.RoomType
	}) {
		return false
	}
	if q.Search == "" {
		return true
	}
	term := strings.ToLower(q.Search)
	return strings.Contains(strings.ToLower(s.Name), term) || strings.Contains(strings.ToLower(s.Topic), term) ||
		strings.Contains(strings.ToLower(string(s.CanonicalAlias)), term)
}

// Summary describes one room; access is the caller's to check. spec: cs/getRoomSummary
func (e *Engine) Summary(ctx context.Context, room matrix.RoomID) (*RoomSummary, error) {
	r, err := e.room(ctx, room)
	if err != nil {
		return nil, err
	}
	defer r.release()
	return r.summary(ctx)
}

func (r *room) summary(ctx context.Context) (*RoomSummary, error) {
	c, err := r.current(ctx)
	if err != nil {
		return nil, err
	}
	types := []string{"m.room.create", "m.room.name", "m.room.topic", "m.room.avatar", "m.room.canonical_alias", "m.room.join_rules",
		"m.room.guest_access", "m.room.history_visibility", "m.room.encryption"}
	keys := make([]matrix.StateKey, len(types))
	for i, t := range types {
		keys[i].Type = t
	}
	events, err := State{r.e, c.head.state}.Events(ctx, keys...)
	if err != nil {
		return nil, err
	}
	text := func(i int, key string) string {
		if events[i] == nil {
			return ""
		}
		s, _ := events[i].ContentString(key)
		return s
	}
	s := &RoomSummary{
		RoomID: r.id, RoomType: text(0, "type"), Name: text(1, "name"), Topic: text(2, "topic"), AvatarURL: text(3, "url"),
		CanonicalAlias: matrix.RoomAlias(text(4, "alias")), JoinRule: text(5, "join_rule"), GuestCanJoin: text(6, "guest_access") == "can_join",
		WorldReadable: text(7, "history_visibility") == "world_readable", Encryption: text(8, "algorithm"),
		RoomVersion: r.version.ID, ParticipantsHere: c.local,
	}
	if events[0] != nil {
		s.CreationTS = events[0].OriginServerTS()
	}
	if events[5] != nil {
		s.AllowedRooms = allowedRooms(events[5])
	}
	if s.JoinRule == "" {
		s.JoinRule = "invite"
	}
	s.NumJoined, err = r.countJoined(ctx, c.head.state.Ref())
	return s, err
}

// joinedCount is how many were joined in a state.
type joinedCount struct {
	state statetree.Ref
	n     int
}

// countJoined counts the members of the current state. Every page of the directory needs the number of all published rooms.
func (r *room) countJoined(ctx context.Context, state statetree.Ref) (int, error) {
	if last := r.joined.Load(); last != nil && last.state == state {
		return last.n, nil
	}
	n, err := storage.CountMembers(ctx, r.e.db, r.nid, storage.MembershipJoin)
	if err == nil {
		r.joined.Store(&joinedCount{state, n})
	}
	return n, err
}
