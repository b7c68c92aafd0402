package delayed

import (
	"context"
	"encoding/json"
	"time"

	"golang.org/x/sync/errgroup"

	"hanok/matrix"
	"hanok/storage"
)

const (
	// lookEvery bounds how long an event waits that another process scheduled.
	lookEvery = 5 * time.Second
	// dueBatch is how many due events are worked on together, maxRooms in how many rooms at a time.
	dueBatch = 200
	maxRooms = 16
	// retryAfter is when an event is tried again that the server failed to send.
	retryAfter = 5 * time.Second
	// sendTimeout bounds a change of membership that other servers have a part in.
	sendTimeout = time.Minute
)

// Run sends events when they are due, until ctx ends. Those that became due while the server was down come first.
func (s *Scheduler) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.news:
		case <-timer.C:
		}
		wait, err := s.sendDue(ctx)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			s.Log.Error().Err(err).Msg("send delayed events")
			wait = retryAfter
		}
		timer.Reset(wait)
	}
}

// sendDue sends what is due and returns how long to wait for what comes next.
func (s *Scheduler) sendDue(ctx context.Context) (wait time.Duration, err error) {
	for {
		due, err := storage.DueDelayedEvents(ctx, s.DB, s.now(), dueBatch)
		if err != nil {
			return 0, err
		}
		if len(due) == 0 {
			break
		}
		if err := s.sendAll(ctx, due); err != nil {
			return 0, err
		}
	}
	next, err := storage.NextDelayedEvent(ctx, s.DB)
	if err != nil || next == 0 {
		return lookEvery, err
	}
	return min(max(time.Duration(next-s.now())*time.Millisecond, 0), lookEvery), nil
}

// sendAll sends due events: those of a room in order, rooms side by side.
func (s *Scheduler) sendAll(ctx context.Context, due []Event) error {
	var order []matrix.RoomID
	byRoom := make(map[matrix.RoomID][]Event)
	for _, ev := range due {
		if byRoom[ev.Room] == nil {
			order = append(order, ev.Room)
		}
		byRoom[ev.Room] = append(byRoom[ev.Room], ev)
	}
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(maxRooms)
	for _, room := range order {
		group.Go(func() error {
			for _, ev := range byRoom[room] {
				if err := s.sendOne(ctx, ev.ID); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// sendOne sends an event if it is still due. An event that may not be sent is finalised with the reason.
func (s *Scheduler) sendOne(ctx context.Context, id string) error {
	release, err := s.claims.take(ctx, id)
	if err != nil {
		return err
	}
	defer release()
	ev, err := s.get(ctx, id)
	if err != nil {
		if _, gone := matrix.AsError(err); gone {
			return nil
		}
		return err
	}
	if ev.SendAt == 0 || ev.SendAt > s.now() {
		return nil
	}
	sending, cancel := context.WithTimeout(ctx, sendTimeout)
	err = s.send(sending, ev)
	cancel()
	if err == nil || ctx.Err() != nil {
		return ctx.Err()
	}
	if refused, ok := matrix.AsError(err); ok && refused.Status < 500 {
		s.Log.Debug().Str("errcode", refused.Code).Msg("a delayed event could not be sent")
		reason, err := json.Marshal(map[string]string{"errcode": refused.Code, "error": refused.Message})
		if err != nil {
			return err
		}
		return s.finalise(ctx, ev, "", reason)
	}
	s.Log.Error().Err(err).Msg("a delayed event was not sent; it is tried again")
	return s.DB.Write(ctx, func(tx *storage.Tx) error {
		return storage.PostponeDelayedEvent(ctx, tx, ev.ID, s.now().Add(retryAfter))
	})
}
