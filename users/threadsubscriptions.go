package users

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"hanok/matrix"
	"hanok/storage"
)

// ThreadSubscriptions are the threads that users follow. spec: MSC4306
type ThreadSubscriptions struct{ *core }

// ThreadSubscription is one of them.
type ThreadSubscription = storage.ThreadSubscription

// maxThreadSubscriptions is how many a user may have, ended ones included.
const maxThreadSubscriptions = 20_000

var (
	errNoSubscription = matrix.NotFound("You are not subscribed to this thread")
	// errUnsubscribedSince answers an automatic subscription for an event from before the user ended it.
	errUnsubscribedSince = matrix.Errorf(http.StatusConflict, "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION", "You have unsubscribed from this thread after that event")
)

// Get returns a subscription: M_NOT_FOUND if the user is not subscribed.
func (t *ThreadSubscriptions) Get(ctx context.Context, user matrix.UserID, room matrix.RoomID, root matrix.EventID) (*ThreadSubscription, error) {
	s, err := storage.GetThreadSubscription(ctx, t.DB, user, room, root)
	if errors.Is(err, storage.ErrNotFound) || err == nil && !s.Subscribed {
		return nil, errNoSubscription
	}
	if err != nil {
		return nil, fmt.Errorf("get thread subscription: %w", err)
	}
	return &s, nil
}

// Subscribe follows a thread. cause is the position of the event in the thread for which a client subscribes by itself, nil
// if the user asked for it: then it counts always. A subscription that the user asked for stays one. The caller has checked
// that the user sees the root, and that the event is in the thread.
func (t *ThreadSubscriptions) Subscribe(ctx context.Context, user matrix.UserID, room matrix.RoomID, root matrix.EventID, cause *storage.Position) error {
	err := t.DB.Write(ctx, func(tx *storage.Tx) error {
		was, err := storage.GetThreadSubscription(ctx, tx, user, room, root)
		switch {
		case errors.Is(err, storage.ErrNotFound):
			n, err := storage.CountThreadSubscriptions(ctx, tx, user)
			if err != nil {
				return err
			}
			if n >= maxThreadSubscriptions {
				return matrix.TooLarge("There are too many thread subscriptions")
			}
		case err != nil:
			return err
		case was.Subscribed && (cause != nil || !was.Automatic):
			return nil
		case !was.Subscribed && cause != nil && *cause <= was.Position:
			return errUnsubscribedSince
		}
		return t.put(ctx, tx, user, ThreadSubscription{Room: room, Root: root, Subscribed: true, Automatic: cause != nil})
	})
	if err != nil {
		return fmt.Errorf("subscribe to thread: %w", err)
	}
	return nil
}

// Unsubscribe ends a subscription; none is no error.
func (t *ThreadSubscriptions) Unsubscribe(ctx context.Context, user matrix.UserID, room matrix.RoomID, root matrix.EventID) error {
	err := t.DB.Write(ctx, func(tx *storage.Tx) error {
		was, err := storage.GetThreadSubscription(ctx, tx, user, room, root)
		if errors.Is(err, storage.ErrNotFound) || err == nil && !was.Subscribed {
			return nil
		}
		if err != nil {
			return err
		}
		return t.put(ctx, tx, user, ThreadSubscription{Room: room, Root: root})
	})
	if err != nil {
		return fmt.Errorf("unsubscribe from thread: %w", err)
	}
	return nil
}

func (t *ThreadSubscriptions) put(ctx context.Context, tx *storage.Tx, user matrix.UserID, s ThreadSubscription) error {
	pos, err := tx.NextPosition()
	if err != nil {
		return err
	}
	s.Position = pos
	t.wake(tx, user)
	return storage.PutThreadSubscription(ctx, tx, user, s)
}

// Changed returns up to limit subscriptions that began or ended in (from, to], the newest first. spec: MSC4308
func (t *ThreadSubscriptions) Changed(ctx context.Context, q storage.Querier, user matrix.UserID, from, to storage.Position, limit int) ([]ThreadSubscription, error) {
	changed, err := storage.ChangedThreadSubscriptions(ctx, q, user, from, to, limit)
	if err != nil {
		return nil, fmt.Errorf("changed thread subscriptions: %w", err)
	}
	return changed, nil
}
