package users

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"hanok/internal/backoff"
	"hanok/internal/wake"
	"hanok/matrix"
	"hanok/storage"
)

// Lists of remote users' devices are fetched in the background when they are stale, and by a query that needs them at once. The
// background work goes by server, so that one that does not answer holds up its own lists only.

// Limits of fetching.
const (
	fetchServers    = 32  // servers asked at a time
	fetchPerServer  = 4   // lists asked of one at a time
	fetchQueue      = 256 // lists that wait for one server; more are looked up again when their lease ends
	fetchBatch      = 64  // lists leased at a time
	fetchTimeout    = 30 * time.Second
	fetchLease      = 2 * time.Minute
	fetchFirstRetry = 30 * time.Second
	fetchLastRetry  = 6 * time.Hour
)

// neverFetched is RemoteDeviceList.Seen of a list that clients have asked for and that was not fetched yet.
const neverFetched = "[]"

// resync makes run look for stale lists.
func (d *DeviceLists) resync() {
	wake.Up(d.wake)
}

// track makes lists of remote users known, if they are not: stale, to be fetched by run at the given time.
func (d *DeviceLists) track(ctx context.Context, users []matrix.UserID, at matrix.Timestamp) error {
	lists, err := storage.ListRemoteDeviceLists(ctx, d.DB, users)
	if err != nil {
		return fmt.Errorf("track device lists: %w", err)
	}
	if len(lists) == len(users) {
		return nil
	}
	err = d.DB.Write(ctx, func(tx *storage.Tx) error {
		lists, err := storage.ListRemoteDeviceLists(ctx, tx, users)
		if err != nil {
			return err
		}
		known := map[matrix.UserID]bool{}
		for _, l := range lists {
			known[l.UserID] = true
		}
		for _, user := range users {
			if known[user] {
				continue
			}
			l := storage.RemoteDeviceList{UserID: user, Seen: []byte(neverFetched), Stale: true, RetryAt: at}
			if err := storage.PutRemoteDeviceList(ctx, tx, l); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("track device lists: %w", err)
	}
	return nil
}

// run fetches stale lists of remote users until ctx ends.
func (d *DeviceLists) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return d.followMemberships(ctx) })
	g.Go(func() error {
		if err := d.untrackParted(ctx); err != nil && ctx.Err() == nil {
			d.Log.Error().Err(err).Msg("users: could not check the cached device lists")
		}
		w := newFetchWork(d)
		defer w.group.Wait()
		for {
			wait, err := w.dispatch(ctx)
			if err != nil && ctx.Err() == nil {
				d.Log.Error().Err(err).Msg("users: could not fetch device lists")
				wait = fetchFirstRetry
			}
			if wake.After(ctx, wait, d.wake) != nil {
				return nil
			}
		}
	})
	return g.Wait()
}

// untrackParted drops the lists of users who ceased to share a room while nobody looked: before a crash. Those of users who left one are looked at, too.
func (d *DeviceLists) untrackParted(ctx context.Context) error {
	for after := matrix.UserID(""); ; {
		users, err := storage.TrackedUsers(ctx, d.DB, after, 500)
		if err != nil || len(users) == 0 {
			return err
		}
		for _, user := range users {
			if err := d.userParted(ctx, user, true); err != nil {
				return err
			}
		}
		after = users[len(users)-1]
	}
}

// fetchWork hands out stale lists by server.
type fetchWork struct {
	lists *DeviceLists
	group sync.WaitGroup
	slots chan struct{} // taken by each server in work

	mu      sync.Mutex
	waiting map[matrix.ServerName][]storage.RemoteDeviceList // of servers in work
}

func newFetchWork(d *DeviceLists) *fetchWork {
	return &fetchWork{lists: d, slots: make(chan struct{}, fetchServers), waiting: map[matrix.ServerName][]storage.RemoteDeviceList{}}
}

// dispatch hands out the lists that are due and says how long to wait for the next.
func (w *fetchWork) dispatch(ctx context.Context) (wait time.Duration, err error) {
	d := w.lists
	for {
		due, err := d.lease(ctx)
		if err != nil {
			return 0, err
		}
		if len(due) == 0 {
			break
		}
		for _, l := range due {
			if !w.hand(ctx, l) {
				return 0, ctx.Err()
			}
		}
	}
	next, err := storage.NextStaleDeviceList(ctx, d.DB)
	if errors.Is(err, storage.ErrNotFound) {
		return time.Hour, nil
	}
	return min(max(next.Time().Sub(d.Clock()), time.Millisecond), time.Hour), err
}

// lease takes lists that are due: they are due again when the lease ends, unless they were fetched meanwhile.
func (d *DeviceLists) lease(ctx context.Context) (due []storage.RemoteDeviceList, err error) {
	if due, err = storage.StaleDeviceLists(ctx, d.DB, d.now(), 1); err != nil || len(due) == 0 {
		return nil, err
	}
	err = d.DB.Write(ctx, func(tx *storage.Tx) error {
		if due, err = storage.StaleDeviceLists(ctx, tx, d.now(), fetchBatch); err != nil {
			return err
		}
		for _, l := range due {
			l.RetryAt = d.now().Add(fetchLease)
			if err := storage.PutRemoteDeviceList(ctx, tx, l); err != nil {
				return err
			}
		}
		return nil
	})
	return due, err
}

// hand adds a list to those that wait for its server, and starts on a server that is not in work; false when ctx ended.
func (w *fetchWork) hand(ctx context.Context, l storage.RemoteDeviceList) bool {
	server := l.UserID.Server()
	w.mu.Lock()
	waiting, working := w.waiting[server]
	if working {
		if len(waiting) < fetchQueue {
			w.waiting[server] = append(waiting, l)
		}
		w.mu.Unlock()
		return true
	}
	w.mu.Unlock()
	select {
	case w.slots <- struct{}{}:
	case <-ctx.Done():
		return false
	}
	w.mu.Lock()
	w.waiting[server] = []storage.RemoteDeviceList{l} // only dispatch adds servers, so it is still not in work
	w.mu.Unlock()
	w.group.Go(func() {
		defer func() { <-w.slots }()
		w.serve(ctx, server)
	})
	return true
}

// serve fetches what waits for one server. When none of several lists comes, the others are put off as well.
func (w *fetchWork) serve(ctx context.Context, server matrix.ServerName) {
	for {
		lists := w.take(server, fetchPerServer)
		if len(lists) == 0 {
			return
		}
		came := make([]bool, len(lists))
		var g errgroup.Group
		for i, l := range lists {
			g.Go(func() (err error) {
				// Whoever asked for a list that was never fetched got it from the user's server just now.
				came[i], err = w.lists.fetch(ctx, l, string(l.Seen) != neverFetched)
				return err
			})
		}
		err := g.Wait()
		if err == nil && !slices.Contains(came, true) {
			err = w.lists.DB.Write(ctx, func(tx *storage.Tx) error {
				for _, l := range w.take(server, fetchQueue) {
					if err := w.lists.retryLater(ctx, tx, l.UserID); err != nil {
						return err
					}
				}
				return nil
			})
		}
		if err != nil && ctx.Err() == nil {
			w.lists.Log.Error().Err(err).Msg("users: could not fetch device lists")
		}
	}
}

// take returns some of the lists that wait for a server; when there is none, the server is not in work any more.
func (w *fetchWork) take(server matrix.ServerName, n int) []storage.RemoteDeviceList {
	w.mu.Lock()
	defer w.mu.Unlock()
	waiting := w.waiting[server]
	if len(waiting) == 0 {
		delete(w.waiting, server)
		return nil
	}
	n = min(n, len(waiting))
	w.waiting[server] = waiting[n:]
	return waiting[:n]
}

// fetch fetches one list, or waits for who does already. It is false if the user's server did not give it; the next try is
// noted then. tell says whether local users are told when it differs from what was cached.
func (d *DeviceLists) fetch(ctx context.Context, l storage.RemoteDeviceList, tell bool) (bool, error) {
	came, shared, err := d.fetches.Do(ctx, l.UserID, func() (bool, error) { return d.fetchAlone(ctx, l, tell) })
	if shared && ctx.Err() != nil {
		return false, nil
	}
	return came, err
}

func (d *DeviceLists) fetchAlone(ctx context.Context, l storage.RemoteDeviceList, tell bool) (bool, error) {
	local, err := d.localSharing(ctx, l.UserID)
	if err != nil {
		return false, err
	}
	if len(local) == 0 {
		return true, d.Untrack(ctx, l.UserID)
	}
	before, err := storage.DeviceListPosition(ctx, d.DB, l.UserID)
	if err != nil {
		return false, err
	}
	asking, cancel := context.WithTimeout(ctx, fetchTimeout)
	defer cancel()
	list, err := d.Remote.UserDevices(asking, l.UserID)
	if err == nil && (list == nil || list.UserID != l.UserID || len(list.Devices) > maxRemoteDevices) {
		err = errors.New("unusable device list")
	}
	if err != nil && errors.Is(ctx.Err(), context.Canceled) {
		return false, nil // nobody waits any more, which says nothing of the server
	}
	// What is known now is stored even if the client that asked has gone.
	ctx = context.WithoutCancel(ctx)
	if err != nil {
		return false, d.DB.Write(ctx, func(tx *storage.Tx) error { return d.retryLater(ctx, tx, l.UserID) })
	}
	if !tell {
		local = nil
	}
	return true, d.DB.Write(ctx, func(tx *storage.Tx) error { return d.store(ctx, tx, l, list, before, local) })
}

// retryLater notes a failure to fetch a list.
func (d *DeviceLists) retryLater(ctx context.Context, tx *storage.Tx, user matrix.UserID) error {
	lists, err := storage.ListRemoteDeviceLists(ctx, tx, []matrix.UserID{user})
	if err != nil || len(lists) == 0 {
		return err
	}
	l := lists[0]
	l.Failures++
	l.RetryAt = d.now() + retryDelay(l.Failures)
	return storage.PutRemoteDeviceList(ctx, tx, l)
}

// retryDelay is how long it takes until a list is tried again that could not be fetched so many times.
func retryDelay(failures int64) matrix.Timestamp {
	return matrix.Span(backoff.Doubled(fetchFirstRetry, fetchLastRetry, int(failures-1)))
}

// store replaces what is cached of a user by a fetched list. asked is what was known of the list when the fetch began, and before the position
// of its last change: if there was another since, the fetched list may be older than that change and stays stale. If the user has ceased to
// share a room meanwhile, nothing is kept: nobody would tell us of later changes.
func (d *DeviceLists) store(ctx context.Context, tx *storage.Tx, asked storage.RemoteDeviceList, list *DeviceList, before storage.Position, local []matrix.UserID) error {
	user := list.UserID
	lists, err := storage.ListRemoteDeviceLists(ctx, tx, []matrix.UserID{user})
	if err != nil || len(lists) == 0 {
		return err
	}
	var rows []storage.DeviceKeys
	size := 0
	for _, device := range list.Devices {
		if row, ok := remoteDevice(user, device); ok && size+len(row.Keys) <= maxRemoteKeys {
			rows = append(rows, row)
			size += len(row.Keys)
		}
	}
	now, err := storage.DeviceListPosition(ctx, tx, user)
	if err != nil {
		return err
	}
	was, err := loadKeys(ctx, tx, "", []matrix.UserID{user}, storage.ListRemoteDeviceKeys)
	if err != nil {
		return err
	}
	if err := storage.ForgetRemoteDeviceList(ctx, tx, user); err != nil {
		return err
	}
	if err := storage.PutRemoteDevices(ctx, tx, rows); err != nil {
		return err
	}
	for _, k := range remoteCrossSigning(user, list.MasterKey, list.SelfSigningKey) {
		if err := storage.PutCrossSigningKey(ctx, tx, k); err != nil {
			return err
		}
	}
	l := storage.RemoteDeviceList{UserID: user, StreamID: list.StreamID, Seen: encode([]int64{list.StreamID}), Stale: now != before || !bytes.Equal(lists[0].Seen, asked.Seen), RetryAt: d.now()}
	if l.Stale {
		l.RetryAt += matrix.Span(refetchAfter)
	}
	if err := storage.PutRemoteDeviceList(ctx, tx, l); err != nil {
		return err
	}
	is, err := loadKeys(ctx, tx, "", []matrix.UserID{user}, storage.ListRemoteDeviceKeys)
	if err != nil {
		return err
	}
	if bytes.Equal(encode(was.cross), encode(is.cross)) && sameDevices(was.devices, is.devices) {
		return nil
	}
	return d.noteRemote(ctx, tx, user, local)
}
