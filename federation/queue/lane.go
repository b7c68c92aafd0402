package queue

import "hanok/matrix"

// lane is a queue of destinations before a number of senders. A destination sends one transaction at a time, and goes to the end of the queue
// for the next one.
type lane struct {
	limit   int
	sending int
	waiting []matrix.ServerName // some may have changed to another lane since
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
			q.serve(ctx, server, d)
			q.mu.Lock()
			l.sending--
			q.fill(l)
			q.mu.Unlock()
		})
	}
	if len(l.waiting) == 0 {
		l.waiting = nil // a burst is over: its memory is, too
	}
}
