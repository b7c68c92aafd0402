package storage

import (
	"container/heap"
	"container/list"
	"sync"
	"sync/atomic"
)

// stream hands out positions and knows which are visible.
//
// A transaction is registered, with its first position, in the same moment it takes
// that position, so everything below the first position of the oldest transaction
// under way has ended: that is what is visible. Transactions may commit in any order.
//
// Several processes on one PostgreSQL will need the same rule across processes: each
// takes positions from one counter in the database under its own registered lower bound,
// and what is visible is the lowest of all bounds. The rule stays in this file; what changes
// is where next takes the number and where finish publishes the bound.
type stream struct {
	calls   *caller
	changes *changes
	visible atomic.Int64

	mu      sync.Mutex
	numbers *numbers
	last    Position   // highest position taken
	open    *list.List // of *span under way, in order of their first position
	waiting callHeap
	order   int
}

// span is the range of a transaction's positions.
type span struct {
	first, last Position
	element     *list.Element
}

func newStream(calls *caller) *stream {
	return &stream{calls: calls, open: list.New()}
}

// start sets the numbers to take positions from. All below is visible.
func (s *stream) start(n *numbers) {
	s.numbers = n
	s.last = Position(n.first() - 1)
	s.visible.Store(int64(s.last))
}

// take takes a number and calls register with it before anybody can take the next.
func (s *stream) take(register func(Position)) error {
	for {
		s.mu.Lock()
		n, wait := s.numbers.try(0)
		if wait == nil {
			s.last = Position(n)
			register(s.last)
			s.mu.Unlock()
			return nil
		}
		s.mu.Unlock()
		if err := s.numbers.await(wait); err != nil {
			return err
		}
	}
}

// taken is the highest position that was ever taken.
func (s *stream) taken() Position {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.last
}

func (s *stream) next(tx *Tx) (p Position, err error) {
	err = s.take(func(n Position) {
		p = n
		if tx.span == nil {
			tx.span = &span{first: n}
			tx.span.element = s.open.PushBack(tx.span)
		}
		tx.span.last = n
	})
	return p, err
}

// finish ends transactions, in the order given, after their commit or after they were undone.
func (s *stream) finish(txs []*Tx, committed bool) {
	if len(txs) == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, tx := range txs {
		at := Position(s.visible.Load()) // without a position: as soon as possible
		if tx.span != nil {
			at = tx.span.last
			s.open.Remove(tx.span.element)
		}
		if committed {
			for _, fn := range tx.visible {
				s.callAt(at, fn)
			}
		}
	}
	s.advance()
}

// callAt has fn called when position at is visible. s.mu is held.
func (s *stream) callAt(at Position, fn func()) {
	s.order++
	heap.Push(&s.waiting, visibleCall{at, s.order, fn})
}

// advance moves what is visible. s.mu is held, so that calls are queued in order.
func (s *stream) advance() {
	visible := s.last
	if e := s.open.Front(); e != nil {
		visible = e.Value.(*span).first - 1
	}
	s.visible.Store(int64(visible))
	var due []func()
	for len(s.waiting) > 0 && s.waiting[0].at <= visible {
		due = append(due, heap.Pop(&s.waiting).(visibleCall).fn)
	}
	s.calls.add(due...)
}

// Current is the highest position such that everything up to it is committed.
// It never goes back, not even over a restart.
func (db *DB) Current() Position { return Position(db.stream.visible.Load()) }

// EphemeralPosition takes a position for something that is kept in memory only (typing, presence).
// place is called with it before anybody can see it, and must not block nor take another position; onVisible
// is called as OnVisible calls, when it is visible.
func (db *DB) EphemeralPosition(place func(Position), onVisible func()) {
	s := db.stream
	err := s.take(func(p Position) {
		place(p)
		s.callAt(p, onVisible)
		s.advance()
	})
	if err != nil {
		// Only when the database has not taken a write for a long time; the effect is ephemeral.
		db.log.Warn().Err(err).Msg("no position for ephemeral data")
	}
}

// visibleCall is a call to be made when a position is visible.
type visibleCall struct {
	at    Position
	order int
	fn    func()
}

type callHeap []visibleCall

func (h callHeap) Len() int { return len(h) }
func (h callHeap) Less(i, j int) bool {
	return h[i].at < h[j].at || h[i].at == h[j].at && h[i].order < h[j].order
}
func (h callHeap) Swap(i, j int) { h[i], h[j] = h[j], h[i] }
func (h *callHeap) Push(x any)   { *h = append(*h, x.(visibleCall)) }
func (h *callHeap) Pop() any {
	old := *h
	last := old[len(old)-1]
	old[len(old)-1] = visibleCall{}
	*h = old[:len(old)-1]
	return last
}
