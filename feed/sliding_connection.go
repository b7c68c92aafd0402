package feed

import (
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"time"

	"hanok/internal/recent"
	"hanok/matrix"
	"hanok/storage"
)

// What a client of sliding sync has been told is kept per connection in the database, and what its pos says is enough to find it:
// the version of the connection that was stored last, and how far the stream was told since then. A response to a client
// that already knows all rooms in it moves only the second, so it writes nothing; a version is stored when a room is
// told for the first time, falls behind, or is told by other rules. Versions are immutable and a repeated request
// starts from the same one, so a lost response loses nothing. Memory holds the versions used last, as a cache.

// slidingPos is a pos as text: "p", the place in the stream, "_" and the version.
type slidingPos struct {
	until   storage.Position
	version storage.Position
}

func (p slidingPos) String() string { return fmt.Sprintf("p%d_%d", p.until, p.version) }

func parseSlidingPos(s string) (p slidingPos, ok bool) {
	rest, ok := strings.CutPrefix(s, "p")
	first, second, ok2 := strings.Cut(rest, "_")
	if !ok || !ok2 {
		return p, false
	}
	var err1, err2 error
	p.until, err1 = parsePosition(first)
	p.version, err2 = parsePosition(second)
	return p, err1 == nil && err2 == nil
}

// errUnknownPos makes a client start its connection anew. spec: MSC4186#connections
func errUnknownPos() error {
	return matrix.Errorf(400, "M_UNKNOWN_POS", "This pos is not known here, or has expired. Start again without one.")
}

// progress is how far a client was told one thing about a room: never, up to its pos, or up to an earlier position.
type progress storage.Position

const (
	never progress = 0
	live  progress = -1
)

// from is the position up to which the client was told; since is its pos.
func (p progress) from(since storage.Position) storage.Position {
	if p == live {
		return since
	}
	return storage.Position(p)
}

// behind is the progress of a room in which something happened after since that this response does not tell.
func (p progress) behind(since storage.Position) progress {
	if p == live {
		return progress(since)
	}
	return p
}

// sentRoom is what a connection was told of a room.
type sentRoom struct {
	events      progress // timeline, state and all that goes with them
	receipts    progress
	accountData progress
	dm          bool // as which is_dm was told
	// The client has the events from low on without a gap, noEvents if it has none, and was looked after up to limit of them.
	low    storage.Position
	limit  int
	config int // whose required_state the client has: index into configs plus one
}

// behind is the room when nothing of what happened in it since is told.
func (r sentRoom) behind(since storage.Position) sentRoom {
	r.events, r.receipts, r.accountData = r.events.behind(since), r.receipts.behind(since), r.accountData.behind(since)
	return r
}

const noEvents = storage.Position(math.MaxInt64)

// connection is a version of a connection. It is immutable once it is stored.
type connection struct {
	version storage.Position
	rooms   map[storage.RoomNID]sentRoom
	configs []*requiredState
}

func (c *connection) config(r sentRoom) *requiredState {
	if r.config == 0 {
		return nil
	}
	return c.configs[r.config-1]
}

// draft is a connection as it will be after a response.
type draft struct {
	base    *connection
	changed map[storage.RoomNID]sentRoom
	configs []*requiredState // of base, and those added
}

func newDraft(base *connection) *draft {
	return &draft{base: base, changed: make(map[storage.RoomNID]sentRoom), configs: slices.Clip(base.configs)}
}

func (d *draft) set(nid storage.RoomNID, r sentRoom) {
	if d.base.rooms[nid] != r {
		d.changed[nid] = r
	}
}

// number finds a config among those of the connection, or adds it.
func (d *draft) number(c *requiredState) int {
	i := slices.IndexFunc(d.configs, func(known *requiredState) bool { return known.digest == c.digest })
	if i < 0 {
		i = len(d.configs)
		d.configs = append(d.configs, c)
	}
	return i + 1
}

// connection is the draft as a connection, without the configs that no room refers to any more.
func (d *draft) connection() *connection {
	c := &connection{rooms: maps.Clone(d.base.rooms)}
	if c.rooms == nil {
		c.rooms = make(map[storage.RoomNID]sentRoom, len(d.changed))
	}
	maps.Copy(c.rooms, d.changed)
	renumbered := make(map[int]int)
	for nid, r := range c.rooms {
		if r.config == 0 {
			continue
		}
		n, ok := renumbered[r.config]
		if !ok {
			c.configs = append(c.configs, d.configs[r.config-1])
			n = len(c.configs)
			renumbered[r.config] = n
		}
		r.config = n
		c.rooms[nid] = r
	}
	return c
}

// maxConfigText bounds, in bytes, how much of the rules of a connection is stored. Of those beyond only the digest is: when they
// change, the client is told all that the new ones ask for.
const maxConfigText = 64 << 10

const connectionFormat = 1

// encode is a connection as stored: numbers as varints, rooms in order of number.
func (c *connection) encode() []byte {
	b := []byte{connectionFormat}
	b = binary.AppendUvarint(b, uint64(len(c.configs)))
	room := maxConfigText
	for _, cfg := range c.configs {
		text := cfg.text
		if len(text) > room {
			text = nil
		}
		room -= len(text)
		b = append(b, cfg.digest[:]...)
		b = binary.AppendUvarint(b, uint64(len(text)))
		b = append(b, text...)
	}
	b = binary.AppendUvarint(b, uint64(len(c.rooms)))
	var last storage.RoomNID
	for _, nid := range slices.Sorted(maps.Keys(c.rooms)) {
		r := c.rooms[nid]
		b = binary.AppendUvarint(b, uint64(nid-last))
		last = nid
		var flags byte
		if r.dm {
			flags = 1
		}
		b = append(b, flags)
		for _, p := range []progress{r.events, r.receipts, r.accountData} {
			b = binary.AppendUvarint(b, uint64(p+1))
		}
		low := r.low
		if low == noEvents {
			low = -1
		}
		b = binary.AppendUvarint(b, uint64(low+1))
		b = binary.AppendUvarint(b, uint64(r.limit))
		b = binary.AppendUvarint(b, uint64(r.config))
	}
	return b
}

var errConnectionFormat = errors.New("a stored connection cannot be read")

// decodeConnection reads what encode wrote.
func decodeConnection(b []byte) (*connection, error) {
	if len(b) == 0 || b[0] != connectionFormat {
		return nil, errConnectionFormat
	}
	b = b[1:]
	bad := false
	number := func() uint64 {
		n, size := binary.Uvarint(b)
		if size <= 0 {
			bad = true
			return 0
		}
		b = b[size:]
		return n
	}
	take := func(n uint64) []byte {
		if n > uint64(len(b)) {
			bad = true
			return make([]byte, min(n, digestSize))
		}
		out := b[:n]
		b = b[n:]
		return out
	}
	c := &connection{rooms: make(map[storage.RoomNID]sentRoom)}
	for n := number(); n > 0 && !bad; n-- {
		digest := [digestSize]byte(take(digestSize))
		cfg, err := parseRequiredState(take(number()))
		if err != nil {
			return nil, errConnectionFormat
		}
		cfg.digest = digest
		c.configs = append(c.configs, cfg)
	}
	var nid storage.RoomNID
	for n := number(); n > 0 && !bad; n-- {
		nid += storage.RoomNID(number())
		r := sentRoom{dm: take(1)[0] == 1}
		for _, p := range []*progress{&r.events, &r.receipts, &r.accountData} {
			*p = progress(number()) - 1
		}
		if r.low = storage.Position(number()) - 1; r.low == -1 {
			r.low = noEvents
		}
		r.limit, r.config = int(number()), int(number())
		if r.config < 0 || r.config > len(c.configs) {
			bad = true
		}
		c.rooms[nid] = r
	}
	if bad || len(b) > 0 {
		return nil, errConnectionFormat
	}
	return c, nil
}

// Limits on what is kept of a device's connections.
const (
	maxConnections   = 10                  // of a device; beyond, that not used for the longest time goes
	maxVersions      = 4                   // of a connection, besides the one a response continues from: responses that may have been lost
	connectionsKept  = 30 * 24 * time.Hour // unused
	usedGranularity  = time.Hour
	maxCachedTold    = 500_000 // rooms of all connections in memory, of some 100 bytes each
	maxCachedVersion = 20_000
)

// connections keeps the connections of all devices.
type connections struct {
	db    *storage.DB
	cache *recent.Map[storage.Position, cachedConnection] // by version
}

type cachedConnection struct {
	*connection
	owner  connectionOwner
	usedAt matrix.Timestamp
}

type connectionOwner struct {
	user   matrix.UserID
	device matrix.DeviceID
	conn   string
}

func newConnections(db *storage.DB) *connections {
	// A connection of more rooms is kept alone.
	weigh := func(c cachedConnection) int { return min(len(c.rooms), maxCachedTold) }
	return &connections{db, recent.NewWeighedMap[storage.Position](maxCachedVersion, maxCachedTold, weigh)}
}

// get returns a version that was given to this owner: M_UNKNOWN_POS. It notes that the version is in use.
func (c *connections) get(ctx context.Context, owner connectionOwner, version storage.Position, now matrix.Timestamp) (*connection, error) {
	conn, ok := c.cache.Get(version)
	if !ok {
		row, err := storage.GetSlidingConnection(ctx, c.db, version)
		if errors.Is(err, storage.ErrNotFound) {
			return nil, errUnknownPos()
		}
		if err != nil {
			return nil, fmt.Errorf("sliding sync connection: %w", err)
		}
		decoded, err := decodeConnection(row.State)
		if err != nil {
			return nil, errUnknownPos()
		}
		decoded.version = version
		conn = cachedConnection{decoded, connectionOwner{row.User, row.Device, row.ConnID}, row.UsedAt}
		c.cache.Put(version, conn)
	}
	if conn.owner != owner {
		return nil, errUnknownPos()
	}
	if now-conn.usedAt > matrix.Span(usedGranularity) {
		if err := c.db.Write(ctx, func(tx *storage.Tx) error { return storage.TouchSlidingConnection(ctx, tx, version, now) }); err != nil {
			return nil, fmt.Errorf("sliding sync connection: %w", err)
		}
		conn.usedAt = now
		c.cache.Put(version, conn)
	}
	return conn.connection, nil
}

// put stores what a connection is after a response that continued from another version, 0 for none. Versions before that
// one are done with: the client has come back with it.
func (c *connections) put(ctx context.Context, owner connectionOwner, from storage.Position, conn *connection, now matrix.Timestamp) error {
	state := conn.encode()
	var gone []storage.Position
	err := c.db.Write(ctx, func(tx *storage.Tx) error {
		var err error
		if conn.version, err = tx.NextPosition(); err != nil {
			return err
		}
		rows, err := storage.SlidingConnectionsOfDevice(ctx, tx, owner.user, owner.device)
		if err != nil {
			return err
		}
		gone = outdated(rows, owner.conn, from)
		if err := storage.DeleteSlidingConnections(ctx, tx, gone); err != nil {
			return err
		}
		if from == 0 {
			if err := storage.ExpireSlidingConnections(ctx, tx, now.Add(-connectionsKept)); err != nil {
				return err
			}
		}
		return storage.InsertSlidingConnection(ctx, tx, storage.SlidingConnection{
			Version: conn.version, User: owner.user, Device: owner.device, ConnID: owner.conn, UsedAt: now, State: state,
		})
	})
	if err != nil {
		return fmt.Errorf("store sliding sync connection: %w", err)
	}
	c.cache.Remove(gone...)
	c.cache.Put(conn.version, cachedConnection{conn, owner, now})
	return nil
}

// outdated picks which of a device's versions, the newest first, go when one that continues from another is stored.
func outdated(rows []storage.SlidingConnection, conn string, from storage.Position) (gone []storage.Position) {
	others := make(map[string]matrix.Timestamp) // when each other connection was used last
	kept := 0
	for _, r := range rows {
		if r.ConnID != conn {
			others[r.ConnID] = max(others[r.ConnID], r.UsedAt)
			continue
		}
		if r.Version == from {
			continue
		}
		if kept++; r.Version < from || kept >= maxVersions {
			gone = append(gone, r.Version)
		}
	}
	if len(others) < maxConnections {
		return gone
	}
	ids := slices.SortedFunc(maps.Keys(others), func(a, b string) int {
		return cmp.Or(cmp.Compare(others[b], others[a]), cmp.Compare(newestOf(rows, b), newestOf(rows, a)))
	})
	for _, r := range rows {
		if slices.Contains(ids[maxConnections-1:], r.ConnID) {
			gone = append(gone, r.Version)
		}
	}
	return gone
}

// newestOf is the newest version of a connection.
func newestOf(rows []storage.SlidingConnection, conn string) storage.Position {
	i := slices.IndexFunc(rows, func(r storage.SlidingConnection) bool { return r.ConnID == conn })
	return rows[i].Version
}
