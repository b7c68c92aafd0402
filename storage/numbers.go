package storage

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// numbers hands out ascending numbers from blocks that are reserved in the database
// ahead, so that taking one costs nothing and none is ever handed out twice: after
// a crash the rest of the block is lost. Numbers start at 1.
type numbers struct {
	db    *DB
	name  string
	block int64

	mu        sync.Mutex
	next, end int64 // the block in use, end exclusive
	spare     int64 // start of the next block, 0 if it is not reserved
	reserving chan struct{}
	failed    error // of the last reservation
}

const (
	reserveQuery = `INSERT INTO reserved (name, until) VALUES ($1, $2)
		ON CONFLICT (name) DO UPDATE SET until = reserved.until + $3 RETURNING until`
	giveBackQuery = `UPDATE reserved SET until = $2 WHERE name = $1 AND until = $3`
)

func newNumbers(ctx context.Context, db *DB, name string, block int64) (*numbers, error) {
	n := &numbers{db: db, name: name, block: block}
	start, err := n.reserve(ctx)
	if err != nil {
		return nil, err
	}
	n.next, n.end = start, start+block
	return n, nil
}

// reserve takes a block from the database and returns its first number.
func (n *numbers) reserve(ctx context.Context) (int64, error) {
	var until int64
	err := n.db.Write(ctx, func(tx *Tx) error {
		return tx.QueryRow(ctx, reserveQuery, n.name, n.block+1, n.block).Scan(&until)
	})
	if err != nil {
		return 0, fmt.Errorf("reserve numbers for %s: %w", n.name, err)
	}
	return until - n.block, nil
}

// first is the lowest number not taken yet.
func (n *numbers) first() int64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.next
}

// try takes a number that is greater than another one. If there is none, it returns a channel
// that is closed when to try again.
func (n *numbers) try(above int64) (int64, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	// Another process may be some blocks ahead. The next block that is reserved is above all.
	n.next = min(max(n.next, above+1), n.end)
	if n.next == n.end && n.spare != 0 {
		n.next, n.end, n.spare = n.spare, n.spare+n.block, 0
		n.next = min(max(n.next, above+1), n.end)
	}
	if n.spare == 0 && n.reserving == nil && n.end-n.next <= n.block/2 {
		n.reserving = make(chan struct{})
		go n.refill(n.reserving)
	}
	if n.next == n.end {
		return 0, n.reserving
	}
	n.next++
	return n.next - 1, nil
}

func (n *numbers) refill(done chan struct{}) {
	start, err := n.reserve(context.Background())
	n.mu.Lock()
	defer n.mu.Unlock()
	n.failed = err
	if err == nil {
		n.spare = start
	}
	n.reserving = nil
	close(done)
}

// await waits for a reservation. One transaction that takes more than half a block waits for
// a reservation that waits for its own commit, hence the limit.
func (n *numbers) await(reserved <-chan struct{}) error {
	select {
	case <-reserved:
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.failed
	case <-time.After(10 * time.Second):
		return fmt.Errorf("storage: numbers for %s ran out", n.name)
	}
}

// take takes a number that is greater than another one.
func (n *numbers) take(above int64) (int64, error) {
	for {
		num, wait := n.try(above)
		if wait == nil {
			return num, nil
		}
		if err := n.await(wait); err != nil {
			return 0, err
		}
	}
}

// giveBack returns the unused rest at an orderly end, so that restarts do not use up numbers.
func (n *numbers) giveBack() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.reserving != nil || n.spare != 0 && n.spare != n.end {
		return nil
	}
	until := n.end
	if n.spare != 0 {
		until += n.block
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := n.db.Write(ctx, func(tx *Tx) error {
		_, err := tx.Exec(ctx, giveBackQuery, n.name, n.next, until)
		return err
	})
	n.end, n.spare = n.next, 0
	return err
}
