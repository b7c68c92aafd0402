package queue

import (
	"time"

	"hanok/matrix"
)

// lane is a queue of destinations before a number of senders. A destination sends one transaction at a time, and goes to the end of the queue
// for the next one. One that has been silent for a while makes place for the next, and is waited for beside the others: a server that does
// not exist any more costs half a minute, and one that works has answered long before.
type lane struct {
	limit   int
	sending int
	// After patience a sender is one of those who linger, of whom there may be so many.
	patience  time.Duration // 0: never
	mayLinger int
	lingering int
	waiting   []matrix.ServerName // some may have changed to another lane since
}

// laneOf is the lane for a server now; q.mu is held.
func (q *Queue) laneOf(server matrix.ServerName) *lane {
	if q.opts.Peers.Heard(server) {
		return &q.heard
	}
	return &q.unheard
}

// line puts a destination into the queue where it belongs; q.mu is held.
func (q *Queue) line(server matrix.ServerName, d *destination) {
	d.lane = q.laneOf(server)
	d.lane.waiting = append(d.lane.waiting, server)
	q.fill(d.lane)
}

// fill starts senders while there is room for them; q.mu is held.
func (q *Queue) fill(l *lane) {
	for l.sending < l.limit && len(l.waiting) > 0 && q.ctx != nil && q.ctx.Err() == nil {
		server := l.waiting[0]
		l.waiting = l.waiting[1:]
		d := q.busy[server]
		if d == nil || d.lane != l {
			continue
		}
		d.lane = nil
		l.sending++
		ctx := q.ctx
		q.senders.Go(func() {
			leave := q.stay(l)
			q.serve(ctx, server, d)
			leave()
		})
	}
	if len(l.waiting) == 0 {
		l.waiting = nil // a burst is over: its memory is, too
	}
}

// stay gives a sender back its place when it leaves, or has taken long.
func (q *Queue) stay(l *lane) (leave func()) {
	left := false
	lingers := false
	var timer *time.Timer
	if l.patience > 0 {
		timer = time.AfterFunc(l.patience, func() {
			q.mu.Lock()
			defer q.mu.Unlock()
			if left || l.lingering == l.mayLinger {
				return
			}
			lingers = true
			l.lingering++
			l.sending--
			q.fill(l)
		})
	}
	return func() {
		if timer != nil {
			timer.Stop()
		}
		q.mu.Lock()
		defer q.mu.Unlock()
		left = true
		if lingers {
			l.lingering--
			return
		}
		l.sending--
		q.fill(l)
	}
}
