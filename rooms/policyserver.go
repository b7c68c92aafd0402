package rooms

import (
	"context"
	"errors"

	"hanok/matrix"
	"hanok/matrix/event"
	"hanok/matrix/policyserver"
)

// A room may name a policy server, which signs the events that it recommends: local events are not sent without its signature,
// those of other servers are soft-failed.
// spec: server-server-api#policy-servers

// policyServer returns the policy server that the room uses by a state, nil if it uses none; r.mu is held.
// spec: server-server-api#determining-if-a-policy-server-is-enabled-in-a-room
func (r *room) policyServer(v headView) (*policyserver.Server, error) {
	named, err := v.get(policyserver.EventType, "")
	if err != nil || named == nil {
		return nil, err
	}
	s, ok := policyserver.Parse(named.Content())
	if !ok {
		return nil, nil
	}
	if in, err := r.hasServer(v.ctx, s.Name); err != nil || !in || r.e.isolation.has(r.id) {
		return nil, err
	}
	return &s, nil
}

// currentPolicyServer is policyServer by the room's head, for who does not hold r.mu.
func (r *room) currentPolicyServer(ctx context.Context) (*policyserver.Server, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.load(ctx); err != nil {
		return nil, err
	}
	return r.policyServer(headView{ctx, r, r.head.state})
}

// recommended returns the event with the signature of the room's policy server, asking for one that is missing or not valid.
// urgent: a client waits, so the server is asked although it did not answer lately. What the server says against the event is the error.
// spec: server-server-api#asking-for-a-policy-server-signature-on-an-event
func (e *Engine) recommended(ctx context.Context, s *policyserver.Server, ev *event.Event, urgent bool) (*event.Event, error) {
	if s == nil || policyserver.Exempt(ev) || s.Signed(ev) {
		return ev, nil
	}
	signature, err := e.remote.PolicySign(ctx, s.Name, ev.JSON(), urgent)
	if err != nil {
		return nil, err
	}
	signed, err := ev.WithSignature(s.Name, policyserver.KeyID, signature)
	if err != nil {
		return nil, err
	}
	if !s.Signed(signed) {
		return nil, matrix.Forbidden("the room's policy server %s signed with another key than the room knows", s.Name)
	}
	return signed, nil
}

// maxRecompose is how often a local event is built again because the head it was built on was not committed.
const maxRecompose = 3

// appendRecommended is append for a room with a policy server. The server is asked while the room goes on, so the event may come
// to lie beside others, like one of another server.
func (r *room) appendRecommended(ctx context.Context, d *draft, o appendOptions) (en *entry, err error) {
	for range maxRecompose {
		if en, err = r.tryRecommended(ctx, d, o); !errors.Is(err, errHeadLost) {
			break
		}
	}
	return en, err
}

func (r *room) tryRecommended(ctx context.Context, d *draft, o appendOptions) (*entry, error) {
	p := &placement{relay: true, check: o.check, local: &local{d, o}}
	server, err := r.composeRecommended(ctx, p)
	if err != nil {
		return nil, err
	}
	if p.ev, err = p.ev.Sign(r.e.server, r.e.key); err != nil {
		return nil, err
	}
	if p.ev, err = r.e.recommended(ctx, server, p.ev, !p.local.unasked); err != nil {
		return nil, err
	}
	// The server has said yes: finish even if the client has gone away.
	return r.place(context.WithoutCancel(ctx), p)
}

func (r *room) composeRecommended(ctx context.Context, p *placement) (*policyserver.Server, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if err := r.load(ctx); err != nil {
		return nil, err
	}
	view := headView{ctx, r, r.head.state}
	if p.local.check != nil {
		if err := p.local.check(view); err != nil {
			return nil, err
		}
	}
	server, err := r.policyServer(view)
	if err != nil {
		return nil, err
	}
	if server != nil {
		p.local.signers = []matrix.ServerName{server.Name}
	}
	c, err := r.compose(ctx, r.head, p.local.draft, p.local.appendOptions)
	if err != nil {
		return nil, err
	}
	p.ev, p.before, p.partial, p.line = c.event, r.head.state, r.head.partial(), r.line
	return server, nil
}

// heedPolicyServer looks for the policy server's word on a received event that is news. One that it does not recommend, or on which it
// has no word to be had, will be soft-failed. spec: server-server-api#validating-policy-server-signatures
func (in *inbound) heedPolicyServer(ctx context.Context, p *placement) error {
	if p.rejection != nil || p.found {
		return nil
	}
	server, err := in.r.currentPolicyServer(ctx)
	if err != nil || server == nil {
		return err
	}
	if policyserver.Exempt(p.ev) || server.Signed(p.ev) {
		return nil
	}
	given, known := in.advice[p.ev.ID()]
	if !known || given.by != server.Name {
		if err := in.fetch(); err != nil {
			return err
		}
		given = advice{by: server.Name}
		lost := in.away(ctx, func() { given.signed, given.against = in.e.recommended(ctx, server, p.ev, false) })
		if lost != nil {
			return lost
		}
		in.advice[p.ev.ID()] = given
	}
	if given.against != nil {
		in.e.log.Debug().Err(given.against).Str("event", string(p.ev.ID())).Msg("not recommended by the policy server")
		p.unwanted, in.refusal = true, given.against
		return nil
	}
	p.ev = given.signed
	return nil
}

// advice is what a policy server says of an event.
type advice struct {
	by      matrix.ServerName
	signed  *event.Event
	against error
}
