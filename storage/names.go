package storage

import (
	"context"
	"fmt"
	"sync"

	"hanok/matrix"
)

const (
	insertNameQuery  = `INSERT INTO names (name_nid, name) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING`
	nameNumbersQuery = `SELECT name_nid, name FROM names WHERE name IN ($in)`
	namesQuery       = `SELECT name_nid, name FROM names WHERE name_nid IN ($in)`
)

// names is the cache of the names table. Names are only ever added, so nothing in it goes stale.
type names struct {
	db *DB
	mu sync.Mutex
	// byName and byNumber hold what was used lately; beyond a limit the older half goes.
	byName   generations[string, NameNID]
	byNumber generations[NameNID, string]
}

// maxNames bounds each map of the cache. At some 150 bytes a name it can reach about 30 MB.
const maxNames = 100_000

func newNames(db *DB) *names {
	return &names{
		db:       db,
		byName:   generations[string, NameNID]{half: maxNames / 2},
		byNumber: generations[NameNID, string]{half: maxNames / 2},
	}
}

func (n *names) add(name string, nid NameNID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.byName.put(name, nid)
	n.byNumber.put(nid, name)
}

// number is that of one known name.
func (n *names) number(name string) (NameNID, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.byName.get(name)
}

// find fills the numbers of known names and returns the names missing in the cache, without duplicates.
func (n *names) find(list []string, nids []NameNID) (missing []string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	var seen map[string]bool
	for i, name := range list {
		if nid, ok := n.byName.get(name); ok {
			nids[i] = nid
		} else if !seen[name] {
			if seen == nil {
				seen = make(map[string]bool)
			}
			seen[name] = true
			missing = append(missing, name)
		}
	}
	return missing
}

// load reads names from the database into the cache and adds them to found.
func (n *names) load(ctx context.Context, q Querier, list []string, found map[string]NameNID) error {
	keys := make([][]byte, len(list))
	for i, name := range list {
		keys[i] = []byte(name)
	}
	return queryIn(ctx, q, nameNumbersQuery, nil, keys, func(rows *Rows) error {
		var nid NameNID
		var name string
		if err := rows.Scan(&nid, &name); err != nil {
			return err
		}
		found[name] = nid
		return nil
	})
}

// Intern returns the numbers of names, making new ones durable first. Cached.
// It is a Write of its own: call it before a transaction, not within.
func (db *DB) Intern(ctx context.Context, names ...string) ([]NameNID, error) {
	return db.numbersOf(ctx, names, true)
}

// LookupName is Intern that creates nothing: ErrNotFound for an unknown name. Cached.
func (db *DB) LookupName(ctx context.Context, name string) (NameNID, error) {
	if nid, ok := db.names.number(name); ok { // the rule, many times in each request
		return nid, nil
	}
	nids, err := db.numbersOf(ctx, []string{name}, false)
	if err != nil {
		return 0, err
	}
	return nids[0], nil
}

func (db *DB) numbersOf(ctx context.Context, list []string, create bool) ([]NameNID, error) {
	nids := make([]NameNID, len(list))
	missing := db.names.find(list, nids)
	if len(missing) == 0 {
		return nids, nil
	}
	found := make(map[string]NameNID, len(missing))
	if err := db.names.load(ctx, db, missing, found); err != nil {
		return nil, fmt.Errorf("look up names: %w", err)
	}
	if create && len(found) < len(missing) {
		if err := db.createNames(ctx, missing, found); err != nil {
			return nil, fmt.Errorf("intern names: %w", err)
		}
	}
	for name, nid := range found {
		db.names.add(name, nid)
	}
	for i, name := range list {
		if nids[i] != 0 {
			continue
		}
		nid, ok := found[name]
		if !ok {
			return nil, fmt.Errorf("name: %w", ErrNotFound)
		}
		nids[i] = nid
	}
	return nids, nil
}

// createNames stores the names that are not in found yet and adds them.
func (db *DB) createNames(ctx context.Context, list []string, found map[string]NameNID) error {
	var rows [][]any
	var created []string
	for _, name := range list {
		if _, ok := found[name]; ok {
			continue
		}
		nid, err := db.nameNumbers.take(0)
		if err != nil {
			return err
		}
		rows = append(rows, []any{nid, []byte(name)})
		created = append(created, name)
	}
	added := make(map[string]NameNID, len(created))
	err := db.Write(ctx, func(tx *Tx) error {
		clear(added)
		if err := tx.ExecBatch(ctx, insertNameQuery, rows); err != nil {
			return err
		}
		// Somebody else may have been first.
		return db.names.load(ctx, tx, created, added)
	})
	if err != nil {
		return err
	}
	for name, nid := range added {
		found[name] = nid
	}
	return nil
}

// UserIDs returns the users of numbers. Cached.
func (db *DB) UserIDs(ctx context.Context, nids ...NameNID) ([]matrix.UserID, error) {
	names, err := db.Names(ctx, nids...)
	if err != nil {
		return nil, err
	}
	out := make([]matrix.UserID, len(names))
	for i, n := range names {
		out[i] = matrix.UserID(n)
	}
	return out, nil
}

// Names returns the names of numbers. Cached.
func (db *DB) Names(ctx context.Context, nids ...NameNID) ([]string, error) {
	out := make([]string, len(nids))
	var missing []NameNID
	var places []int // of the missing in out
	db.names.mu.Lock()
	for i, nid := range nids {
		var ok bool
		if out[i], ok = db.names.byNumber.get(nid); !ok {
			missing, places = append(missing, nid), append(places, i)
		}
	}
	db.names.mu.Unlock()
	if len(missing) == 0 {
		return out, nil
	}
	found := make(map[NameNID]string, len(missing))
	err := queryIn(ctx, db, namesQuery, nil, missing, func(rows *Rows) error {
		var nid NameNID
		var name string
		if err := rows.Scan(&nid, &name); err != nil {
			return err
		}
		found[nid] = name
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("look up names: %w", err)
	}
	for nid, name := range found {
		db.names.add(name, nid)
	}
	for i, nid := range missing {
		name, ok := found[nid]
		if !ok {
			return nil, fmt.Errorf("name %d: %w", nid, ErrNotFound)
		}
		out[places[i]] = name
	}
	return out, nil
}

// generations is a map that keeps at least the last half entries used, and at most twice as many. Unlike recent.Map it keeps no order, which
// many small entries would pay for with more memory than they take.
type generations[K comparable, V any] struct {
	half     int
	now, old map[K]V
}

func (g *generations[K, V]) get(k K) (V, bool) {
	if v, ok := g.now[k]; ok {
		return v, true
	}
	v, ok := g.old[k]
	if ok {
		g.put(k, v)
	}
	return v, ok
}

func (g *generations[K, V]) put(k K, v V) {
	if g.now == nil {
		g.now = make(map[K]V)
	}
	g.now[k] = v
	if len(g.now) >= g.half {
		g.old, g.now = g.now, nil
	}
}
