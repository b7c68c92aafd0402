package rooms

import (
	"context"
	"slices"
	"strings"

	"hanok/internal/fold"
	"hanok/matrix"
	"hanok/matrix/canonicaljson"
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
	err = e.db.Write(ctx, func(tx *storage.Tx) error { return storage.SetPublished(ctx, tx, nid, published) })
	e.directory.published(nid)
	return err
}

// SetPublishedIn puts a room into the directory of a network of an application service, or takes it out. M_NOT_FOUND.
// spec: cs/updateAppserviceRoomDirectoryVisibility
func (e *Engine) SetPublishedIn(ctx context.Context, network string, room matrix.RoomID, published bool) error {
	nid, err := e.RoomNID(ctx, room)
	if err != nil {
		return err
	}
	err = e.db.Write(ctx, func(tx *storage.Tx) error { return storage.SetPublishedIn(ctx, tx, network, nid, published) })
	e.directory.published(nid)
	return err
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
	Server      bool // another server asks: rooms that its users cannot join are left out
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
	at := directoryToken{}
	if q.Since != "" {
		var ok bool
		if at, ok = parseDirectoryToken(q.Since); !ok {
			return nil, matrix.InvalidParam("since is not a token of this list")
		}
	}
	if q.Limit <= 0 || q.Limit > 500 {
		q.Limit = 100
	}
	if q.AllNetworks && q.Network != "" {
		return nil, matrix.InvalidParam("third_party_instance_id cannot stand beside include_all_networks")
	}
	all, err := e.directory.listings(ctx)
	if err != nil {
		return nil, err
	}
	term := fold.Text(q.Search)
	all = slices.DeleteFunc(slices.Clone(all), func(l *listing) bool { return !q.matches(l, term) || q.Server && e.isolation.has(l.room) })
	start, end := at.page(all, q.Limit)
	page := &PublicRooms{Chunk: make([]RoomSummary, 0, end-start), Total: len(all)}
	for _, l := range all[start:end] {
		s, err := e.summaryOf(ctx, l.nid)
		if err != nil {
			return nil, err
		}
		page.Chunk = append(page.Chunk, *s)
	}
	if end < len(all) && end > 0 {
		page.NextBatch = all[end-1].after().String()
	}
	if start > 0 && start < len(all) {
		page.PrevBatch = all[start].before().String()
	}
	return page, nil
}

func (e *Engine) summaryOf(ctx context.Context, nid storage.RoomNID) (*RoomSummary, error) {
	r, err := e.roomByNID(ctx, nid)
	if err != nil {
		return nil, err
	}
	defer r.release()
	return r.summary(ctx)
}

func (q *PublicRoomsRequest) matches(l *listing, term string) bool {
	switch {
	case q.Server && l.localOnly,
		q.Network != "" && !slices.Contains(l.networks, q.Network),
		q.Network == "" && !q.AllNetworks && !l.published:
		return false
	}
	if q.RoomTypes != nil && !slices.ContainsFunc(q.RoomTypes, func(t *string) bool {
		return t == nil && l.roomType == "" || t != nil && *t == l.roomType
	}) {
		return false
	}
	return strings.Contains(l.search, term)
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
	text := func(i int, key string) string { return textIn(events[i], key) }
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

// textIn is a string in the content of an event, "" if there is none.
func textIn(ev *Event, key string) string {
	if ev == nil {
		return ""
	}
	s, _ := ev.ContentString(key)
	return s
}

// localOnly says whether a room is for users of its creator's server only.
func localOnly(create *Event) bool {
	if create == nil {
		return false
	}
	federate, ok := canonicaljson.Get(create.Content(), "m.federate")
	return ok && string(federate) == "false"
}

// joinedCount is how many were joined in a state.
type joinedCount struct {
	state statetree.Ref
	n     int
}

// countJoined counts the members of the current state.
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
