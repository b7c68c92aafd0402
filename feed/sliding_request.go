package feed

import (
	"cmp"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"hanok/internal/strictjson"
	"hanok/matrix"
	"hanok/storage"
)

// Dialect is a form of sliding sync on the wire. Both say the same to one engine.
type Dialect int

const (
	// Stable is POST /v4/sync. spec: MSC4186
	Stable Dialect = iota
	// Unstable is what clients spoke before MSC4186 was accepted, at org.matrix.simplified_msc3575.
	Unstable
)

// SlidingRequest is one request of sliding sync. spec: MSC4186#request-body
type SlidingRequest struct {
	User    matrix.UserID
	Device  matrix.DeviceID
	Dialect Dialect

	ConnID        string
	Pos           string // "": a new connection
	Timeout       time.Duration
	SetPresence   string
	Lists         []slidingList // in order of their keys
	Subscriptions map[matrix.RoomID]roomConfig
	extensions    slidingExtensions
}

// slidingList is a list of rooms and what to tell of those in its window.
type slidingList struct {
	key     string
	filters *roomFilters  // nil: all rooms
	ranges  []windowRange // in order, apart from each other
	roomConfig
}

// windowRange is a part of a list, both ends included.
type windowRange struct{ first, last int64 }

// roomConfig says what to tell of a room.
type roomConfig struct {
	timelineLimit int
	state         stateRule
	text          string // what state was read from
}

// roomConfigKey is the same for configs that are.
type roomConfigKey struct {
	timelineLimit int
	text          string
}

func (c *roomConfig) key() roomConfigKey { return roomConfigKey{c.timelineLimit, c.text} }

// roomFilters select rooms of a list; all that are set must hold. spec: MSC4186#slidingroomfilter
type roomFilters struct {
	isDM, isEncrypted, isInvited *bool
	spaces                       map[matrix.RoomID]bool // nil: not filtered by
	roomTypes, notRoomTypes      map[string]bool        // "": rooms without a type
	tags, notTags                map[string]bool
	nameLike                     string // in lower case; the unstable dialect only
}

// roomSelection names lists and subscribed rooms for an extension; "*" means all.
type roomSelection struct{ lists, rooms map[string]bool }

// slidingExtensions are those that a request enables; nil ones are off. spec: MSC4186#extensions
type slidingExtensions struct {
	toDevice    *positionRequest
	sticky      *positionRequest
	e2ee        bool
	accountData *roomSelection
	receipts    *roomSelection
	typing      *roomSelection
	threads     *threadsRequest
}

// positionRequest asks for what came after the next_batch of an earlier response.
type positionRequest struct {
	since storage.Position // 0: everything
	limit int
}

type threadsRequest struct{ limit int }

// Limits on a request. spec: MSC4186#top-level
const (
	maxLists             = 100
	maxSubscriptions     = 100
	maxSubscriptionsOld  = 1000 // the unstable dialect has no limit
	maxListKey           = 255
	maxListKeyOld        = 64
	maxRanges            = 100
	maxStateElements     = 2000 // of all lists and subscriptions that differ in them
	maxFilterElements    = 500
	maxConnID            = 255
	MaxThreadChanges     = 512
	defaultThreadChanges = 100
)

// wireRequest is the body in either dialect.
type wireRequest struct {
	ConnID        string                 `json:"conn_id"`
	Pos           string                 `json:"pos"`
	Timeout       int64                  `json:"timeout"`
	SetPresence   string                 `json:"set_presence"`
	Lists         map[string]wireList    `json:"lists"`
	Subscriptions map[string]wireRoom    `json:"room_subscriptions"`
	Extensions    *wireSlidingExtensions `json:"extensions"`
}

type wireRoom struct {
	TimelineLimit *int64          `json:"timeline_limit"`
	RequiredState json.RawMessage `json:"required_state"`
}

type wireList struct {
	wireRoom
	Range   *[2]int64    `json:"range"`
	Ranges  [][2]int64   `json:"ranges"`             // unstable
	GetAll  bool         `json:"slow_get_all_rooms"` // unstable
	Filters *wireFilters `json:"filters"`
}

type wireFilters struct {
	IsDM         *bool     `json:"is_dm"`
	Spaces       []string  `json:"spaces"`
	IsEncrypted  *bool     `json:"is_encrypted"`
	IsInvited    *bool     `json:"is_invited"`
	IsInvite     *bool     `json:"is_invite"` // unstable
	RoomTypes    []*string `json:"room_types"`
	NotRoomTypes []*string `json:"not_room_types"`
	Tags         []string  `json:"tags"`
	NotTags      []string  `json:"not_tags"`
	RoomNameLike string    `json:"room_name_like"` // unstable
}

type wireRoomsExtension struct {
	Enabled *bool    `json:"enabled"`
	Lists   []string `json:"lists"`
	Rooms   []string `json:"rooms"`
}

type wirePositionExtension struct {
	Enabled *bool  `json:"enabled"`
	Limit   *int64 `json:"limit"`
	Since   string `json:"since"`
}

type wireSlidingExtensions struct {
	ToDevice *wirePositionExtension `json:"to_device"`
	Sticky   *wirePositionExtension `json:"org.matrix.msc4354.sticky_events"`
	E2EE     *struct {
		Enabled *bool `json:"enabled"`
	} `json:"e2ee"`
	AccountData *wireRoomsExtension `json:"account_data"`
	Receipts    *wireRoomsExtension `json:"receipts"`
	Typing      *wireRoomsExtension `json:"typing"`
	Threads     *struct {
		Enabled *bool  `json:"enabled"`
		Limit   *int64 `json:"limit"`
	} `json:"io.element.msc4308.thread_subscriptions"`
}

// ParseSlidingRequest reads a body. What is of the wrong type gives M_BAD_JSON, what is out of range M_INVALID_PARAM.
// User and Device are the caller's to fill in. spec: MSC4186#request-body
func ParseSlidingRequest(d Dialect, user matrix.UserID, body []byte) (*SlidingRequest, error) {
	var w wireRequest
	if err := strictjson.Unmarshal(body, &w); err != nil {
		return nil, err
	}
	q := &SlidingRequest{User: user, Dialect: d, ConnID: w.ConnID, Pos: w.Pos, SetPresence: w.SetPresence, Timeout: PollTimeout(w.Timeout)}
	if len(w.ConnID) > maxConnID || strings.ContainsFunc(w.ConnID, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return nil, matrix.InvalidParam("conn_id must have at most %d bytes and no control characters.", maxConnID)
	}
	subscriptions := maxSubscriptions
	if d == Unstable {
		subscriptions = maxSubscriptionsOld
	}
	if len(w.Lists) > maxLists {
		return nil, matrix.InvalidParam("There are %d lists; %d are allowed.", len(w.Lists), maxLists)
	}
	if len(w.Subscriptions) > subscriptions {
		return nil, matrix.InvalidParam("There are %d room subscriptions; %d are allowed.", len(w.Subscriptions), subscriptions)
	}
	for _, key := range slices.Sorted(maps.Keys(w.Lists)) {
		if err := checkListKey(d, key); err != nil {
			return nil, err
		}
		list, err := w.Lists[key].parse(d, user, key)
		if err != nil {
			return nil, err
		}
		q.Lists = append(q.Lists, *list)
	}
	for room, s := range w.Subscriptions {
		cfg, err := s.parse(d, user)
		if err != nil {
			return nil, err
		}
		if q.Subscriptions == nil {
			q.Subscriptions = make(map[matrix.RoomID]roomConfig, len(w.Subscriptions))
		}
		q.Subscriptions[matrix.RoomID(room)] = *cfg
	}
	if err := q.checkState(); err != nil {
		return nil, err
	}
	return q, w.Extensions.parse(&q.extensions)
}

// checkState bounds the rules for state that have to be combined.
func (q *SlidingRequest) checkState() error {
	elements := make(map[string]int) // by the text of the rules: most are the same
	for i := range q.Lists {
		elements[q.Lists[i].text] = len(q.Lists[i].state.Include) + len(q.Lists[i].state.Exclude)
	}
	for _, s := range q.Subscriptions {
		elements[s.text] = len(s.state.Include) + len(s.state.Exclude)
	}
	sum := 0
	for _, n := range elements {
		sum += n
	}
	if sum > maxStateElements {
		return matrix.InvalidParam("required_state has %d elements over all lists and subscriptions; %d are allowed.", sum, maxStateElements)
	}
	return nil
}

// maxPoll bounds how long a client may wait for news.
const maxPoll = 5 * time.Minute

// PollTimeout is how long to wait for a client that asks for some milliseconds.
func PollTimeout(ms int64) time.Duration {
	return time.Duration(max(0, min(ms, maxPoll.Milliseconds()))) * time.Millisecond
}

// checkListKey checks the form of a list's name. spec: MSC4186#top-level
func checkListKey(d Dialect, key string) error {
	if d == Unstable {
		if utf8.RuneCountInString(key) > maxListKeyOld {
			return matrix.InvalidParam("The key of a list has at most %d characters.", maxListKeyOld)
		}
		return nil
	}
	opaque := func(r rune) bool {
		return r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("-._~", r)
	}
	if key == "" || len(key) > maxListKey || strings.ContainsFunc(key, func(r rune) bool { return !opaque(r) }) {
		return matrix.InvalidParam("The key of a list must be 1 to %d of the characters A-Z, a-z, 0-9, - . _ and ~.", maxListKey)
	}
	return nil
}

func (w *wireRoom) parse(d Dialect, user matrix.UserID) (*roomConfig, error) {
	if w.TimelineLimit == nil {
		return nil, matrix.MissingParam("timeline_limit is missing.")
	}
	if *w.TimelineLimit < 0 {
		return nil, matrix.InvalidParam("timeline_limit must not be negative.")
	}
	c := &roomConfig{timelineLimit: int(min(*w.TimelineLimit, maxTimeline)), text: string(w.RequiredState)}
	if len(w.RequiredState) == 0 || string(w.RequiredState) == "null" {
		return c, nil
	}
	var err error
	if d == Unstable {
		err = c.state.parsePairs(user, w.RequiredState)
	} else {
		err = strictjson.Unmarshal(w.RequiredState, &c.state)
	}
	return c, err
}

// parsePairs reads required_state of the unstable dialect: pairs of type and state key, each of them perhaps "*", the key
// perhaps $ME, or $LAZY for members.
func (r *stateRule) parsePairs(user matrix.UserID, raw []byte) error {
	var pairs [][2]string
	if err := strictjson.Unmarshal(raw, &pairs); err != nil {
		return err
	}
	everyMember := false
	for _, p := range pairs {
		eventType, key := p[0], p[1]
		switch {
		case eventType == "m.room.member" && key == "$LAZY":
			r.LazyMembers = true
			continue
		case key == "$ME":
			key = string(user)
		}
		everyMember = everyMember || eventType == "m.room.member" && key == "*"
		var e stateElement
		if eventType != "*" {
			e.Type = &eventType
		}
		if key != "*" {
			e.StateKey = &key
		}
		r.Include = append(r.Include, e)
	}
	r.LazyMembers = r.LazyMembers && !everyMember
	return nil
}

func (w wireList) parse(d Dialect, user matrix.UserID, key string) (*slidingList, error) {
	cfg, err := w.wireRoom.parse(d, user)
	if err != nil {
		return nil, err
	}
	l := &slidingList{key: key, roomConfig: *cfg}
	if l.filters, err = w.Filters.parse(d); err != nil {
		return nil, err
	}
	ranges := w.Ranges
	switch {
	case d == Stable && w.Range == nil, d == Unstable && (w.GetAll || w.Ranges == nil):
		l.ranges = []windowRange{{0, 1<<63 - 1}}
		return l, nil
	case d == Stable:
		ranges = [][2]int64{*w.Range}
	}
	l.ranges, err = parseRanges(ranges)
	return l, err
}

// parseRanges checks ranges, and joins those that overlap or touch.
func parseRanges(ranges [][2]int64) ([]windowRange, error) {
	if len(ranges) > maxRanges {
		return nil, matrix.InvalidParam("There are %d ranges in a list; %d are allowed.", len(ranges), maxRanges)
	}
	var all []windowRange
	for _, r := range ranges {
		if r[0] < 0 || r[1] < r[0] {
			return nil, matrix.InvalidParam("[%d, %d] is no range of a list.", r[0], r[1])
		}
		all = append(all, windowRange{r[0], r[1]})
	}
	slices.SortFunc(all, func(a, b windowRange) int { return cmp.Compare(a.first, b.first) })
	out := all[:0]
	for _, r := range all {
		if n := len(out); n > 0 && r.first-1 <= out[n-1].last {
			out[n-1].last = max(out[n-1].last, r.last)
			continue
		}
		out = append(out, r)
	}
	return out, nil
}

func (w *wireFilters) parse(d Dialect) (*roomFilters, error) {
	if w == nil {
		return nil, nil
	}
	if len(w.Spaces)+len(w.RoomTypes)+len(w.NotRoomTypes)+len(w.Tags)+len(w.NotTags) > maxFilterElements {
		return nil, matrix.InvalidParam("The filters of a list have more than %d elements.", maxFilterElements)
	}
	f := &roomFilters{
		isDM: w.IsDM, isEncrypted: w.IsEncrypted, isInvited: w.IsInvited, roomTypes: typeSet(w.RoomTypes), notRoomTypes: typeSet(w.NotRoomTypes),
		tags: nameSet(w.Tags), notTags: nameSet(w.NotTags),
	}
	if w.Spaces != nil {
		f.spaces = make(map[matrix.RoomID]bool, len(w.Spaces))
		for _, s := range w.Spaces {
			f.spaces[matrix.RoomID(s)] = true
		}
	}
	if d == Unstable {
		f.isInvited = w.IsInvite
		f.nameLike = strings.ToLower(w.RoomNameLike)
	}
	return f, nil
}

// nameSet is nil for a nil list, which is not the same as an empty one.
func nameSet(list []string) map[string]bool {
	if list == nil {
		return nil
	}
	set := make(map[string]bool, len(list))
	for _, name := range list {
		set[name] = true
	}
	return set
}

// typeSet is nameSet for lists in which null stands for no type.
func typeSet(list []*string) map[string]bool {
	if list == nil {
		return nil
	}
	names := make([]string, len(list))
	for i, t := range list {
		if t != nil {
			names[i] = *t
		}
	}
	return nameSet(names)
}

func enabled(b *bool) bool { return b != nil && *b }

func (w *wireRoomsExtension) parse() *roomSelection {
	if w == nil || !enabled(w.Enabled) {
		return nil
	}
	all := map[string]bool{"*": true}
	s := &roomSelection{nameSet(w.Lists), nameSet(w.Rooms)}
	if s.lists == nil {
		s.lists = all
	}
	if s.rooms == nil {
		s.rooms = all
	}
	return s
}

func (w *wirePositionExtension) parse(limit int64) (*positionRequest, error) {
	if w == nil || !enabled(w.Enabled) {
		return nil, nil
	}
	r := &positionRequest{}
	var err error
	if r.limit, err = parseLimit(w.Limit, limit, limit); err != nil {
		return nil, err
	}
	if w.Since == "" {
		return r, nil
	}
	if r.since, err = parsePosition(w.Since); err != nil {
		return nil, matrix.InvalidParam("%q is not a next_batch of this extension.", w.Since)
	}
	return r, nil
}

// parseLimit reads the limit of an extension, which may be missing.
func parseLimit(n *int64, def, bound int64) (int, error) {
	if n == nil {
		return int(def), nil
	}
	if *n < 1 {
		return 0, matrix.InvalidParam("limit in an extension must be positive.")
	}
	return int(min(*n, bound)), nil
}

func (w *wireSlidingExtensions) parse(e *slidingExtensions) error {
	if w == nil {
		return nil
	}
	var err error
	if e.toDevice, err = w.ToDevice.parse(maxToDevice); err != nil {
		return err
	}
	if e.sticky, err = w.Sticky.parse(maxSticky); err != nil {
		return err
	}
	if t := w.Threads; t != nil && enabled(t.Enabled) {
		e.threads = &threadsRequest{}
		if e.threads.limit, err = parseLimit(t.Limit, defaultThreadChanges, MaxThreadChanges); err != nil {
			return err
		}
	}
	e.e2ee = w.E2EE != nil && enabled(w.E2EE.Enabled)
	e.accountData, e.receipts, e.typing = w.AccountData.parse(), w.Receipts.parse(), w.Typing.parse()
	return nil
}
