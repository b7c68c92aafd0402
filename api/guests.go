package api

import (
	"net/http"
	"strings"

	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/rooms"
	"hanok/users"
)

// admitGuest refuses a guest the way into a room that does not let guests join. That nobody can say counts as a no.
// spec: client-server-api#guest-access
func (a *API) admitGuest(r *endpoint.Request, q rooms.MemberRequest) error {
	if requester(r).Kind != users.KindGuest {
		return nil
	}
	room, err := a.Rooms.RoomDetails(r.Ctx(), rooms.SummaryRequest{Room: q.Room, User: q.Sender, Via: q.Via, Fresh: true})
	if err != nil && !matrix.HasCode(err, "M_NOT_FOUND") {
		return err
	}
	if room == nil || !room.GuestCanJoin {
		return matrix.Errorf(http.StatusForbidden, "M_GUEST_ACCESS_FORBIDDEN", "This room does not let guests join. Register an account first.")
	}
	return nil
}

// ownProfile is a profile field in the path that the requester may change: guests only have a name.
// spec: client-server-api#guest-access
func ownProfile(r *endpoint.Request) (me matrix.UserID, field string, err error) {
	if me, err = selfVar(r); err != nil {
		return "", "", err
	}
	field = r.Var("keyName")
	if requester(r).Kind == users.KindGuest && field != users.FieldDisplayName {
		return "", "", matrix.Errorf(http.StatusForbidden, "M_GUEST_ACCESS_FORBIDDEN", "Guests can only set their display name.")
	}
	return me, field, nil
}

// guestToUpgrade is the guest whose account becomes that of a user with a registration: "" if none does.
// spec: client-server-api#guest-access
func (a *API) guestToUpgrade(r *endpoint.Request, req registerRequest) (matrix.UserID, error) {
	if req.GuestToken == "" {
		return "", nil
	}
	who, err := a.Users.Sessions.Authenticate(r.Ctx(), req.GuestToken)
	if err != nil && !matrix.HasCode(err, "M_UNKNOWN_TOKEN") {
		return "", err
	}
	switch {
	case err != nil || who.Kind != users.KindGuest || who.Locked:
		return "", matrix.Forbidden("guest_access_token is not the access token of a guest.")
	case req.Username == nil || !strings.EqualFold(*req.Username, who.UserID.Localpart()):
		return "", matrix.Forbidden("A guest can only become a user of the same name: send it as username.")
	}
	return who.UserID, nil
}
