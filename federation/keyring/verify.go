package keyring

import (
	"context"
	"errors"
	"fmt"

	"hanok/federation/xmatrix"
	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/signing"
	"hanok/storage"
)

// VerifyRequest checks the signature of a request. The key must be valid now.
// spec: server-server-api#request-authentication
func (r *Ring) VerifyRequest(ctx context.Context, req xmatrix.Request, h xmatrix.Header) error {
	if err := r.Fetch(ctx, h); err != nil {
		return err
	}
	known, err := r.load(ctx, h.Origin)
	if err != nil {
		return err
	}
	if err := req.Verify(h, known.keys[h.Key].Public); err != nil {
		return unauthorized("The signature of the request is not valid.").Because(err)
	}
	return nil
}

// Known says whether the key of a request's signature is here and valid now, without asking anybody.
func (r *Ring) Known(ctx context.Context, h xmatrix.Header) (bool, error) {
	known, err := r.load(ctx, h.Origin)
	return err == nil && known.satisfies(need{h.Key, r.now()}), err
}

// Fetch gets the key of a request's signature, if it is not here. M_UNAUTHORIZED if there is none that is valid now.
func (r *Ring) Fetch(ctx context.Context, h xmatrix.Header) error {
	now := r.now()
	known, err := r.load(ctx, h.Origin)
	if err != nil {
		return err
	}
	if !known.satisfies(need{h.Key, now}) {
		p := forRequests
		if stranger, err := r.stranger(ctx, h.Origin); err != nil {
			return err
		} else if stranger {
			p = forStrangers
		}
		if err := r.ensure(ctx, map[matrix.ServerName][]need{h.Origin: {{h.Key, now}}}, p); err != nil {
			return err
		}
	}
	known, err = r.load(ctx, h.Origin)
	if err != nil {
		return err
	}
	k, ok := known.keys[h.Key]
	switch {
	case !ok:
		return unauthorized("No key %s of %s could be found.", h.Key, h.Origin)
	case k.Expired || validUntil(k) < now:
		return unauthorized("The key %s of %s has expired.", h.Key, h.Origin)
	}
	return nil
}

// stranger says whether no user of a server was ever in a room that is known here: servers of members have a number.
func (r *Ring) stranger(ctx context.Context, server matrix.ServerName) (bool, error) {
	_, err := r.opts.DB.LookupName(ctx, string(server))
	if errors.Is(err, storage.ErrNotFound) {
		return true, nil
	}
	return false, err
}

func unauthorized(format string, args ...any) *matrix.Error {
	return matrix.Errorf(401, "M_UNAUTHORIZED", format, args...)
}

// errNoSignature is why an event without the signature of a required signer is refused.
var errNoSignature = errors.New("no signature with a known key that was valid at the time")

// Verify checks the signatures that events must carry; result i is nil when events[i] has them all.
// spec: server-server-api#validating-hashes-and-signatures-on-received-events
func (r *Ring) Verify(ctx context.Context, events []*event.Event) []error {
	errs := make([]error, len(events))
	needs := map[matrix.ServerName][]need{}
	seen := map[matrix.ServerName]map[matrix.KeyID]matrix.Timestamp{}
	for _, e := range events {
		for _, server := range e.RequiredSigners() {
			for _, id := range e.SignatureKeyIDs(server) {
				if seen[server] == nil {
					seen[server] = map[matrix.KeyID]matrix.Timestamp{}
				}
				seen[server][id] = max(seen[server][id], requiredValidity(e))
			}
		}
	}
	for server, ids := range seen {
		for id, at := range ids {
			needs[server] = append(needs[server], need{id, at})
		}
	}
	if err := r.ensure(ctx, needs, forEvents); err != nil {
		for i := range errs {
			errs[i] = err
		}
		return errs
	}
	var checks []signing.Check
	var of []int // the event that checks[i] belongs to
	for i, e := range events {
		mine, err := r.checks(ctx, e)
		if err != nil {
			errs[i] = err
			continue
		}
		for _, c := range mine {
			checks, of = append(checks, c), append(of, i)
		}
	}
	for j, ok := range signing.VerifyBatch(checks) {
		if !ok {
			errs[of[j]] = signing.ErrBad
		}
	}
	return errs
}

// requiredValidity is until when the key of an event's signature must have been valid; 0 if its room version does not care.
func requiredValidity(e *event.Event) matrix.Timestamp {
	if e.Version().EnforceKeyValidity {
		return e.OriginServerTS()
	}
	return 0
}

// checks lists the signatures of an event to verify: all by keys that are known and were valid, one at least per signer.
func (r *Ring) checks(ctx context.Context, e *event.Event) ([]signing.Check, error) {
	var out []signing.Check
	for _, server := range e.RequiredSigners() {
		known, err := r.load(ctx, server)
		if err != nil {
			return nil, err
		}
		found := false
		for _, id := range e.SignatureKeyIDs(server) {
			k, ok := known.keys[id]
			if !ok || k.Expired && k.ValidUntil < e.OriginServerTS() || validUntil(k) < requiredValidity(e) {
				continue
			}
			message, signature, ok := e.SignatureCheck(server, id)
			if !ok {
				continue
			}
			out = append(out, signing.Check{Public: k.Public, Message: message, Signature: signature})
			found = true
		}
		if !found {
			return nil, fmt.Errorf("%w: %s", errNoSignature, server)
		}
	}
	return out, nil
}
