package appservice

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"hanok/config"
	"hanok/internal/wake"
	"hanok/matrix"
	"hanok/storage"
)

const (
	// sendTimeout is how long a service may take over a transaction.
	sendTimeout = time.Minute
	// A service that does not take a transaction is tried again after firstPause, then ever more rarely, up to every longestPause; sooner
	// when it makes a request, as that shows that it runs.
	firstPause   = time.Second
	longestPause = 5 * time.Minute
)

// progress is how far a service is, for those who look from outside.
type progress struct {
	at           atomic.Int64 // the reader's place in the stream
	failingSince atomic.Int64 // ms since 1970; 0: the service takes what it is sent
}

// Lag is how many positions of the stream the service's reader is behind.
func (s *Services) Lag(x *Service) int64 {
	at := x.progress.at.Load()
	if x.URL == "" || at == 0 {
		return 0
	}
	return max(0, int64(s.DB.Current())-at)
}

// FailingFor is for how long the service has not taken what it is sent; 0 if it does.
func (x *Service) FailingFor() time.Duration {
	since := x.progress.failingSince.Load()
	if since == 0 {
		return 0
	}
	return max(x.now().Sub(time.UnixMilli(since)), time.Millisecond)
}

// deliver sends a transaction until it is taken. Its error is that of ctx, or of the database. spec: as/sendTransaction
func (r *reader) deliver(ctx context.Context, t *storage.AppserviceTransaction) error {
	body, err := r.body(ctx, t)
	if err != nil {
		return err
	}
	id := strconv.FormatInt(t.ID, 10)
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		err := r.send(ctx, id, body)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if r.s.Sent != nil {
			r.s.Sent(r.ID, err == nil, len(t.Events))
		}
		if err == nil {
			if r.progress.failingSince.Swap(0) != 0 {
				r.s.Log.Info().Str("service", r.ID).Msg("an application service takes what it is sent again")
			}
			return nil
		}
		if r.progress.failingSince.CompareAndSwap(0, r.now().UnixMilli()) {
			r.s.Log.Warn().Err(err).Str("service", r.ID).Str("txn", id).Msg("an application service does not take what it is sent; it is tried again")
		}
		if err := r.wait(ctx, pause); err != nil {
			return err
		}
	}
}

// wait waits before the next attempt: at least as long as the first pause, and no longer than that once the service is heard from.
func (r *reader) wait(ctx context.Context, pause time.Duration) error {
	select {
	case <-r.heard: // from before it failed
	default:
	}
	if err := wake.After(ctx, firstPause, nil); err != nil {
		return err
	}
	return wake.After(ctx, pause-firstPause, r.heard)
}

func (r *reader) send(ctx context.Context, id string, body []byte) error {
	ctx, cancel := context.WithTimeout(ctx, sendTimeout)
	defer cancel()
	a, err := r.ask(ctx, http.MethodPut, "/transactions/"+id, "/transactions/"+id, body)
	if err == nil && !a.ok() {
		err = fmt.Errorf("it answers with status %d", a.status)
	}
	return err
}

// body makes the body of a transaction. Events are as old as they were when it was made, so that it is the same whenever it is sent; only what was redacted
// meanwhile is not kept for it.
func (r *reader) body(ctx context.Context, t *storage.AppserviceTransaction) ([]byte, error) {
	events, err := r.from.Rooms.EventsByID(ctx, t.Events...)
	if err != nil {
		return nil, fmt.Errorf("events of a transaction: %w", err)
	}
	list := make([][]byte, 0, len(events))
	for _, ev := range events {
		one, err := r.from.Rooms.AppendForService(ctx, nil, ev, t.CreatedAt)
		if _, odd := matrix.AsError(err); odd {
			r.s.Log.Error().Err(err).Str("service", r.ID).Str("event", string(ev.ID())).Msg("an event cannot be told to an application service")
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("event %s: %w", ev.ID(), err)
		}
		list = append(list, one)
	}
	b := append([]byte(`{"events":`), jsonArray(list)...)
	if t.Ephemeral != nil {
		name := `,"ephemeral":`
		if r.Ephemeral == config.EphemeralUnstable {
			name = `,"de.sorunome.msc2409.ephemeral":`
		}
		b = append(append(b, name...), t.Ephemeral...)
	}
	return append(b, '}'), nil
}

// Waiting is a transaction that a service has not taken yet.
type Waiting struct {
	Events int
	Since  time.Time
}

// Waiting is what the database says that is under way to a service; nil: nothing. Further events may wait behind it.
func (s *Services) Waiting(ctx context.Context, x *Service) (*Waiting, error) {
	t, err := storage.GetAppserviceTransaction(ctx, s.DB, x.ID)
	if errors.Is(err, storage.ErrNotFound) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("what waits for an application service: %w", err)
	}
	return &Waiting{Events: len(t.Events), Since: t.CreatedAt.Time()}, nil
}
