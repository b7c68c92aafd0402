package push

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"

	"hanok/internal/wake"
	"hanok/matrix"
	"hanok/storage"
)

// readsReader names the cursor of followReads in the database.
const readsReader = "push-reads"

const (
	readsBatch = 1000
	// readsEvery is the shortest time between two looks at receipts: people read many messages one after the other.
	readsEvery = time.Second
	// storeReadsEvery is how often the cursor is stored: receipts that are looked at again after a restart do no harm.
	storeReadsEvery = 30 * time.Second
)

// reads is how far receipts have been followed.
type reads struct {
	poke chan struct{}
	at   atomic.Int64 // the position up to which receipts were looked at
}

// MayHaveRead tells that receipts may have been stored. It does not block.
func (s *Sender) MayHaveRead() {
	if !s.opts.DB.Unchanged(storage.Subject{Topic: storage.TopicReceipts}, storage.Position(s.reads.at.Load())) {
		wake.Up(s.reads.poke)
	}
}

// followReads has users' counts told anew when they have read something.
func (s *Sender) followReads(ctx context.Context) error {
	cursor, err := storage.Cursor(ctx, s.opts.DB, readsReader)
	if err != nil && ctx.Err() == nil {
		return fmt.Errorf("push: %w", err)
	}
	if cursor == 0 {
		cursor = s.opts.DB.Current() // nobody was told anything before
	}
	stored, storedAt := cursor, s.opts.Now()
	pause := time.NewTimer(0)
	defer pause.Stop()
	for {
		next, err := s.lookAtReads(ctx, cursor)
		if ctx.Err() != nil {
			return nil
		}
		wait := readsEvery
		if err != nil {
			s.opts.Log.Error().Err(err).Msg("push: look who has read what")
			wait = retryAfter
		}
		moved := next > cursor
		cursor = max(cursor, next)
		s.reads.at.Store(int64(cursor))
		if moved && cursor > stored && s.opts.Now().Sub(storedAt) >= storeReadsEvery {
			err := s.opts.DB.Write(ctx, func(tx *storage.Tx) error { return storage.SetCursor(ctx, tx, readsReader, cursor) })
			if err == nil {
				stored, storedAt = cursor, s.opts.Now()
			}
		}
		pause.Reset(wait)
		select {
		case <-ctx.Done():
			return nil
		case <-pause.C:
		}
		if err != nil {
			continue
		}
		select {
		case <-ctx.Done():
			return nil
		case <-s.reads.poke:
		}
	}
}

// lookAtReads finds who has read something after a position, and returns up to where it looked.
func (s *Sender) lookAtReads(ctx context.Context, from storage.Position) (storage.Position, error) {
	for {
		until := s.opts.DB.Current()
		if s.opts.DB.UnchangedIn(storage.Subject{Topic: storage.TopicReceipts}, from, until) {
			return from, nil
		}
		readers, err := storage.ReadersBetween(ctx, s.opts.DB, from, until, readsBatch)
		if err != nil {
			return from, err
		}
		var local []matrix.UserID
		for _, r := range readers {
			if r.User.Server() == s.opts.ServerName {
				local = append(local, r.User)
			}
		}
		if len(local) > 0 {
			s.fresh.add(true, local...)
		}
		if len(readers) < readsBatch {
			return until, nil
		}
		from = readers[len(readers)-1].Position
	}
}
