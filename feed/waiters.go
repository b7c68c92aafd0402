package feed

import (
	"sync"

	"hanok/internal/wake"
	"hanok/matrix"
)

// Waiters holds the long polls of all users. It is safe for concurrent use.
type Waiters struct {
	mu    sync.Mutex
	users map[matrix.UserID]map[chan struct{}]struct{}
	shut  bool
}

// NewWaiters makes an empty set.
func NewWaiters() *Waiters {
	return &Waiters{users: make(map[matrix.UserID]map[chan struct{}]struct{})}
}

// Wake makes the long polls of these users look again. It never blocks.
func (w *Waiters) Wake(users ...matrix.UserID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, u := range users {
		for ch := range w.users[u] {
			wake.Up(ch)
		}
	}
}

// Register makes a channel that receives after every Wake of the user. Register
// first and look at the streams then, so that nothing falls between. The caller must call done.
func (w *Waiters) Register(user matrix.UserID) (woken <-chan struct{}, done func()) {
	ch := make(chan struct{}, 1)
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.shut {
		wake.Up(ch)
		return ch, func() {}
	}
	m := w.users[user]
	if m == nil {
		m = make(map[chan struct{}]struct{}, 1)
		w.users[user] = m
	}
	m[ch] = struct{}{}
	return ch, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		delete(w.users[user], ch)
		if len(w.users[user]) == 0 {
			delete(w.users, user)
		}
	}
}

// Shutdown wakes everybody and lets nobody wait again, so that long polls are answered when the server stops.
func (w *Waiters) Shutdown() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.shut = true
	for _, m := range w.users {
		for ch := range m {
			wake.Up(ch)
		}
	}
}

// Stopping reports whether Shutdown was called.
func (w *Waiters) Stopping() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.shut
}

// Waiting is the number of long polls.
func (w *Waiters) Waiting() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, m := range w.users {
		n += len(m)
	}
	return n
}
