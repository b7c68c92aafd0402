package simulation

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"

	"github.com/google/go-cmp/cmp"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/users"
)

// What end-to-end encryption needs: messages to devices, lists of devices, one-time keys.

type rawMessage = json.RawMessage

// toDevice sends a message from one first device to another: the next when the one before was answered.
func (w *world) toDevice(u, to *user) {
	if !u.sending.TryLock() {
		return
	}
	if u.s.current() == nil {
		u.sending.Unlock()
		return
	}
	n := len(u.sent[to])
	text := fmt.Sprint("d", n)
	u.sent[to] = append(u.sent[to], sentMessage{text: text})
	w.perform(u, fmt.Sprintf("sends %s to the device of %s", text, to), func(ctx context.Context, p *process) (matrix.EventID, error) {
		defer u.sending.Unlock()
		err := p.users.ToDevice.Send(ctx, u.id, firstDevice, fmt.Sprint(to.id, text), "m.room.encrypted", map[matrix.UserID]map[matrix.DeviceID]rawMessage{
			to.id: {firstDevice: fmt.Appendf(nil, `{"text":%q}`, text)},
		})
		if err == nil && !p.dead.Load() {
			u.sent[to][n].acked = true
		}
		return "", err
	}, nil)
}

// device gives a user a further device, other keys for it, or takes it away.
func (w *world) device(u *user) {
	device := matrix.DeviceID(fmt.Sprint("D", 1+w.random.IntN(3)))
	key := fmt.Sprint(w.random.IntN(1000))
	if w.random.IntN(3) == 0 {
		w.perform(u, fmt.Sprintf("deletes device %s", device), func(ctx context.Context, p *process) (matrix.EventID, error) {
			return "", p.users.Devices.Delete(ctx, u.id, device)
		}, nil)
		return
	}
	w.perform(u, fmt.Sprintf("gives device %s key %s", device, key), func(ctx context.Context, p *process) (matrix.EventID, error) {
		return "", u.addDevice(ctx, p, device, key)
	}, nil)
}

// claimKey takes a one-time key of another user's first device.
func (w *world) claimKey(u, of *user) {
	w.perform(u, fmt.Sprintf("claims a key of %s", of), func(ctx context.Context, p *process) (matrix.EventID, error) {
		got, err := p.users.Keys.Claim(ctx, users.Claims{of.id: {firstDevice: "signed_curve25519"}})
		if err != nil || p.dead.Load() {
			return "", err
		}
		for id, key := range got.OneTimeKeys[of.id][firstDevice] {
			w.mu.Lock()
			other := w.claimed[string(key)]
			w.claimed[string(key)] = u
			w.mu.Unlock()
			if other != nil {
				w.fail("%s of %s was given to %s, and to %s", id, of, other, u)
			}
		}
		return "", nil
	}, nil)
}

func (w *world) checkToDevice(from, to *user) {
	got := to.client.received[from.id]
	for _, m := range from.sent[to] {
		switch {
		case len(got) > 0 && got[0] == m.text:
			got = got[1:]
		case m.acked:
			w.fail("%s has not got %s of %s, or not in order: %s", to, m.text, from, to.client.received[from.id])
			return
		}
	}
	if len(got) > 0 {
		w.fail("%s has got more of %s than was sent, or not in order: %s", to, from, to.client.received[from.id])
	}
}

// checkDeviceLists: who shares a room with somebody is given the devices that there are.
func (w *world) checkDeviceLists(ctx context.Context) {
	for _, u := range w.users {
		want := w.devicesSeen(ctx, u, u)
		for _, s := range w.servers {
			if s == u.s {
				continue
			}
			sharing, err := s.current().rooms.Sharing(ctx, u.id)
			if err != nil {
				w.fail("%s: %v", s.short, err)
			}
			for _, other := range s.users {
				if !slices.Contains(sharing, other.id) || w.shutOut(u, other) {
					continue
				}
				if diff := cmp.Diff(want, w.devicesSeen(ctx, other, u)); diff != "" {
					w.fail("%s sees other devices of %s than there are: %s", other, u, diff)
				}
				break
			}
		}
	}
}

// shutOut says whether two users may share only rooms whose server ACL kept one from the other's.
func (w *world) shutOut(a, b *user) bool {
	for _, r := range w.rooms {
		if r.excluded[a.s] || r.excluded[b.s] {
			return true
		}
	}
	return false
}

func (w *world) devicesSeen(ctx context.Context, by, of *user) []string {
	res, err := by.s.current().users.Keys.Query(ctx, by.id, map[matrix.UserID][]matrix.DeviceID{of.id: nil})
	if err != nil || len(res.Failures) > 0 {
		w.fail("%s asks for the devices of %s: %v %v", by, of, err, res)
		return nil
	}
	var out []string
	for _, id := range slices.Sorted(maps.Keys(res.DeviceKeys[of.id])) {
		out = append(out, fmt.Sprintf("%s %s", id, canonicaljson.Delete(res.DeviceKeys[of.id][id], "unsigned")))
	}
	return out
}
