package users

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"hanok/matrix"
	"hanok/matrix/canonicaljson"
	"hanok/matrix/glob"
	"hanok/storage"
)

// InvitePermission is what becomes of an invite.
type InvitePermission uint8

const (
	InviteAllowed InvitePermission = iota
	InviteIgnored                  // accepted and never shown
	InviteBlocked                  // refused with M_INVITE_BLOCKED, and never shown
)

// Account data that controls invites, with the names from before the specification had them.
const (
	typeInviteBlocking         = "m.invite_permission_config"
	typeInviteBlockingUnstable = "org.matrix.msc4380.invite_permission_config"
	typeInviteFiltering        = "org.matrix.msc4155.invite_permission_config"
)

// maxInvitePatterns is how many patterns of each list count.
const maxInvitePatterns = 1000

// InviteRules decide whose invites a user sees. spec: client-server-api#invite-permission, MSC4155
type InviteRules struct {
	blockAll bool
	rules    []inviteRule // the first that matches counts
	notices  matrix.UserID
}

type inviteRule struct {
	server  bool // matched with the inviter's server, not their ID
	pattern glob.Glob
	result  InvitePermission
}

// InviteRules returns a user's rules; without any, everything is allowed.
func (a *Accounts) InviteRules(ctx context.Context, q storage.Querier, user matrix.UserID) (*InviteRules, error) {
	r := &InviteRules{notices: a.Notices}
	for _, dataType := range []string{typeInviteBlocking, typeInviteBlockingUnstable, typeInviteFiltering} {
		d, err := storage.GetAccountData(ctx, q, user, "", dataType)
		if errors.Is(err, storage.ErrNotFound) || err == nil && d.Content == nil {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("invite rules: %w", err)
		}
		if dataType == typeInviteFiltering {
			r.filter(d.Content)
			continue
		}
		action, _ := canonicaljson.GetString(d.Content, "default_action")
		r.blockAll = r.blockAll || action == "block"
	}
	return r, nil
}

// filter reads the lists of MSC4155. Users go before servers, and what allows before what does not.
func (r *InviteRules) filter(content []byte) {
	if enabled, ok := canonicaljson.GetBool(content, "enabled"); ok && !enabled {
		return
	}
	for _, list := range []struct {
		name   string
		server bool
		result InvitePermission
	}{
		{"allowed_users", false, InviteAllowed}, {"ignored_users", false, InviteIgnored}, {"blocked_users", false, InviteBlocked},
		{"allowed_servers", true, InviteAllowed}, {"ignored_servers", true, InviteIgnored}, {"blocked_servers", true, InviteBlocked},
	} {
		raw, _ := canonicaljson.Get(content, list.name)
		if !canonicaljson.IsArray(raw) {
			continue
		}
		n := 0
		for element := range canonicaljson.Elements(raw) {
			if pattern, ok := canonicaljson.String(element); ok && len(pattern) <= matrix.MaxIDLength && n < maxInvitePatterns {
				r.rules = append(r.rules, inviteRule{list.server, glob.Compile(pattern, list.server), list.result})
				n++
			}
		}
	}
}

// For decides about an inviter.
func (r *InviteRules) For(inviter matrix.UserID) InvitePermission {
	if inviter == r.notices {
		return InviteAllowed // what the server has to say is no invite of a stranger
	}
	if r.blockAll {
		return InviteBlocked
	}
	for _, rule := range r.rules {
		name := string(inviter)
		if rule.server {
			// As in server ACLs: without the port.
			name = inviter.Server().Host()
		}
		if rule.pattern.Match(name) {
			return rule.result
		}
	}
	return InviteAllowed
}

// CheckInvite returns M_INVITE_BLOCKED (403) if a local user does not want to be invited by somebody, and M_FORBIDDEN if a user of another
// server invites somebody who does not exist.
func (a *Accounts) CheckInvite(ctx context.Context, user, inviter matrix.UserID) error {
	r, err := a.InviteRules(ctx, a.DB, user)
	if err != nil {
		return err
	}
	if r.For(inviter) == InviteBlocked {
		return matrix.Errorf(http.StatusForbidden, "M_INVITE_BLOCKED", "This user does not accept the invite")
	}
	if a.local(inviter) || a.Reserved(user) {
		return nil // people are invited before they sign in for the first time, and users of a service while it is down
	}
	account, err := storage.GetAccount(ctx, a.DB, user)
	if errors.Is(err, storage.ErrNotFound) || err == nil && account.Deactivated {
		// Others would fill our tables with invites of users that they make up.
		return matrix.Forbidden("There is no user %s on this server", user)
	}
	if err != nil {
		return fmt.Errorf("check invite: %w", err)
	}
	return nil
}
