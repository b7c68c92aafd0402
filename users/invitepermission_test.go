package users

import (
	"testing"

	"hanok/matrix"
)

func TestInvitePermission(t *testing.T) {
	each(t, func(t *testing.T, w *world) {
		ctx := t.Context()
		alice := w.register(t, "alice")
		const bob, eve = matrix.UserID("@bob:good.test"), matrix.UserID("@eve:evil.test:8448")
		for _, c := range []struct {
			dataType, content string
			bob, eve          InvitePermission
		}{
			{typeInviteFiltering, `{"other":1}`, InviteAllowed, InviteAllowed},
			{typeInviteFiltering, `{"blocked_users":["@eve:*"]}`, InviteAllowed, InviteBlocked},
			{typeInviteFiltering, `{"blocked_servers":["EVIL.test"]}`, InviteAllowed, InviteBlocked},
			{typeInviteFiltering, `{"ignored_servers":["evil.*"],"blocked_servers":["*"]}`, InviteBlocked, InviteIgnored},
			{typeInviteFiltering, `{"allowed_users":["@eve:evil.test:8448"],"blocked_users":["@*"]}`, InviteBlocked, InviteAllowed},
			{typeInviteFiltering, `{"allowed_servers":["good.test"],"ignored_users":["@bob:*"],"blocked_servers":["*"]}`, InviteIgnored, InviteBlocked},
			{typeInviteFiltering, `{"enabled":false,"blocked_servers":["*"]}`, InviteAllowed, InviteAllowed},
			{typeInviteFiltering, `{"blocked_servers":"*","blocked_users":{},"ignored_users":[1,null,["x"]]}`, InviteAllowed, InviteAllowed},
			{typeInviteBlocking, `{"default_action":"block"}`, InviteBlocked, InviteBlocked},
			{typeInviteBlockingUnstable, `{"default_action":"block"}`, InviteBlocked, InviteBlocked},
			{typeInviteBlocking, `{"default_action":"allow"}`, InviteAllowed, InviteAllowed},
			{typeInviteBlocking, `{"default_action":1}`, InviteAllowed, InviteAllowed},
		} {
			must(t, w.AccountData.Set(ctx, alice, "", c.dataType, rawJSON(c.content)))
			r := mustGet[*InviteRules](t)(w.Accounts.InviteRules(ctx, w.db, alice))
			if r.For(bob) != c.bob || r.For(eve) != c.eve {
				t.Errorf("%s: bob %d, eve %d", c.content, r.For(bob), r.For(eve))
			}
			if err := w.Accounts.CheckInvite(ctx, alice, eve); (err != nil) != (c.eve == InviteBlocked) {
				t.Errorf("%s: %v", c.content, err)
			} else if err != nil {
				wantCode(t, err, 403, "M_INVITE_BLOCKED")
			}
			must(t, w.AccountData.Delete(ctx, alice, "", c.dataType))
		}
		must(t, w.Accounts.CheckInvite(ctx, alice, eve))
		wantCode(t, w.Accounts.CheckInvite(ctx, "@nobody:here.test", eve), 403, "M_FORBIDDEN")
		w.Accounts.Reserved = func(user matrix.UserID) bool { return user == "@bridge_1:here.test" }
		must(t, w.Accounts.CheckInvite(ctx, "@bridge_1:here.test", eve))
	})
}
