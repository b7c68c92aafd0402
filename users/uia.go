package users

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"time"

	"hanok/matrix"
	"hanok/storage"
)

// UIA is user-interactive authentication: sessions in which a client completes the stages of one flow.
// They are kept in the database: each request may meet another process, or the same after a restart.
// spec: client-server-api#user-interactive-authentication-api
type UIA struct {
	*core
	accounts *Accounts
}

// The stages known here. Others may stand in flows; Complete marks them when they were completed elsewhere.
const (
	StagePassword          = "m.login.password"
	StageDummy             = "m.login.dummy"
	StageRegistrationToken = "m.login.registration_token"
)

// Lives of sessions: while stages are missing, and after the last one.
const (
	uiaLifetime     = 15 * time.Minute
	uiaDoneLifetime = time.Minute
	// maxUIABody is the largest request body that is kept with a session.
	maxUIABody = 64 << 10
)

// Operation is what must be authenticated.
type Operation struct {
	// Name binds the session to one thing, as in "DELETE /devices/ABC"; a session cannot be used for another.
	Name string
	// User is who must authenticate; "" in a registration.
	User matrix.UserID
	// Flows are the acceptable sequences of stages.
	Flows [][]string
	// Params are given to the client, by stage; may be nil.
	Params map[string]any
	// Body is the request's body without `auth`. It is kept with the session, so that
	// a client may complete the stages with a bare {"auth": ...}.
	Body []byte
	// Once ends the session with its completion; else the request may be repeated for a minute.
	Once bool
}

// Authenticated is a completed session.
type Authenticated struct {
	Completed         []string
	Session           string
	RegistrationToken string // if that stage was completed
	// Registered is the account that this session has made already, "" if none: the client did not get the answer.
	Registered matrix.UserID
	// Body is that of the request that opened the session.
	Body []byte
}

// progress is what is stored of a session's stages.
type progress struct {
	Stages            []string `json:"stages"`
	RegistrationToken string   `json:"registration_token,omitempty"`
	// Registered is the account that was made with the session.
	Registered matrix.UserID `json:"registered,omitempty"`
}

// authData is the `auth` member of a request.
type authData struct {
	Type       string `json:"type"`
	Session    string `json:"session"`
	Password   string `json:"password"`
	User       string `json:"user"` // of old clients, in place of identifier
	Token      string `json:"token"`
	Identifier struct {
		Type string `json:"type"`
		User string `json:"user"`
	} `json:"identifier"`
}

var (
	errOtherOperation = matrix.Forbidden("This authentication session belongs to another operation")
	errOtherUser      = matrix.Forbidden("Authenticate as the user who makes the request")
)

// Authenticate takes one step: auth is the request's `auth` member, nil if absent. It returns
// a *matrix.Error with status 401 whose Extra holds flows, params, session and completed until a flow is complete.
// The Code of that error is empty unless a stage failed: then `errcode` is left out of the body.
// A session of another operation or user is M_FORBIDDEN (403).
func (u *UIA) Authenticate(ctx context.Context, op Operation, auth json.RawMessage) (*Authenticated, error) {
	if len(auth) == 0 || string(auth) == "null" {
		return u.begin(ctx, op)
	}
	var a authData
	if err := decode(auth, &a, "auth"); err != nil {
		return nil, err
	}
	s, err := u.find(ctx, op, a.Session)
	if err != nil {
		return nil, err
	}
	done, err := progressOf(s)
	if err != nil {
		return nil, err
	}
	if a.Type != "" && !slices.Contains(done.Stages, a.Type) {
		if !isNext(op.Flows, done.Stages, a.Type) {
			return nil, challenge(op, s.ID, done.Stages, matrix.Errorf(0, "M_UNRECOGNIZED", "This stage is not the next of any flow"))
		}
		err := u.stage(ctx, op, a, &done)
		if refused, ok := matrix.AsError(err); ok && refused != errOtherUser {
			return nil, challenge(op, s.ID, done.Stages, refused)
		}
		if err != nil {
			return nil, err
		}
		done.Stages = append(done.Stages, a.Type)
	}
	complete := false
	done, err = u.advance(ctx, s.ID, func(stored *progress) time.Duration {
		for _, stage := range done.Stages {
			stored.complete(stage)
		}
		if done.RegistrationToken != "" {
			stored.RegistrationToken = done.RegistrationToken
		}
		complete = slices.ContainsFunc(op.Flows, func(flow []string) bool { return slices.Equal(flow, stored.Stages) })
		switch {
		case complete && op.Once:
			return 0
		case complete:
			return uiaDoneLifetime
		}
		return uiaLifetime
	})
	if errors.Is(err, storage.ErrNotFound) { // it has ended while the stage was checked
		return u.begin(ctx, op)
	}
	if err != nil {
		return nil, err
	}
	if !complete {
		return nil, challenge(op, s.ID, done.Stages, nil)
	}
	return &Authenticated{
		Completed: done.Stages, Session: s.ID, RegistrationToken: done.RegistrationToken, Registered: done.Registered, Body: s.Body,
	}, nil
}

// begin opens a session and asks for its first stage.
func (u *UIA) begin(ctx context.Context, op Operation) (*Authenticated, error) {
	s, err := u.open(ctx, op)
	if err != nil {
		return nil, err
	}
	return nil, challenge(op, s.ID, nil, nil)
}

// Complete marks a stage that was completed by other means (a web page, an e-mail): storage.ErrNotFound
// for an unknown session.
func (u *UIA) Complete(ctx context.Context, session, stage string) error {
	_, err := u.advance(ctx, session, func(done *progress) time.Duration {
		done.complete(stage)
		return uiaLifetime
	})
	return err
}

// complete marks a stage.
func (p *progress) complete(stage string) {
	if !slices.Contains(p.Stages, stage) {
		p.Stages = append(p.Stages, stage)
	}
}

func progressOf(s storage.UIASession) (progress, error) {
	var done progress
	if err := json.Unmarshal(s.Completed, &done); err != nil {
		return done, fmt.Errorf("uia session: %w", err)
	}
	return done, nil
}

// advance changes what is stored of a session, which other requests may have changed meanwhile, and how long it lives from now:
// storage.ErrNotFound if it has ended.
func (c *core) advance(ctx context.Context, session string, change func(*progress) time.Duration) (done progress, err error) {
	err = c.DB.Write(ctx, func(tx *storage.Tx) error {
		s, err := storage.GetUIASession(ctx, tx, session, c.now())
		if err != nil {
			return fmt.Errorf("uia session: %w", err)
		}
		if done, err = progressOf(s); err != nil {
			return err
		}
		lifetime := change(&done)
		s.Completed, s.ExpiresAt = encode(done), c.now().Add(lifetime)
		return storage.PutUIASession(ctx, tx, s)
	})
	return done, err
}

var (
	errSessionUsed  = matrix.Forbidden("Another account was registered with this authentication session")
	errSessionEnded = matrix.Forbidden("The authentication session has ended. Start the registration again")
)

// registeredWith is the account that a session has made already, "" if none. M_FORBIDDEN if the session has ended.
func (a *Accounts) registeredWith(ctx context.Context, q storage.Querier, session string) (matrix.UserID, error) {
	s, err := storage.GetUIASession(ctx, q, session, a.now())
	if errors.Is(err, storage.ErrNotFound) {
		return "", errSessionEnded
	}
	if err != nil {
		return "", fmt.Errorf("uia session: %w", err)
	}
	done, err := progressOf(s)
	return done.Registered, err
}

// noteRegistered keeps with a completed session which account was made with it: one at most.
func (a *Accounts) noteRegistered(ctx context.Context, tx *storage.Tx, session string, user matrix.UserID) error {
	s, err := storage.GetUIASession(ctx, tx, session, a.now())
	if err != nil {
		return fmt.Errorf("uia session: %w", err)
	}
	done, err := progressOf(s)
	if err != nil {
		return err
	}
	done.Registered = user
	s.Completed = encode(done)
	return storage.PutUIASession(ctx, tx, s)
}

// find returns the session a client names. Without a name, and when it has ended, a new one is opened:
// old clients send a single stage at once.
func (u *UIA) find(ctx context.Context, op Operation, id string) (storage.UIASession, error) {
	if id == "" || !opaqueIdentifier(id, 64) {
		return u.open(ctx, op)
	}
	s, err := storage.GetUIASession(ctx, u.DB, id, u.now())
	if errors.Is(err, storage.ErrNotFound) {
		return u.open(ctx, op)
	}
	if err != nil {
		return s, fmt.Errorf("find uia session: %w", err)
	}
	if s.Operation != op.Name || s.UserID != op.User {
		return s, errOtherOperation
	}
	return s, nil
}

// open makes a session.
func (u *UIA) open(ctx context.Context, op Operation) (storage.UIASession, error) {
	s := storage.UIASession{ID: rand.Text(), Operation: op.Name, UserID: op.User, Body: op.Body}
	if len(s.Body) > maxUIABody || s.Body == nil {
		s.Body = []byte{}
	}
	s.Completed = encode(progress{Stages: []string{}})
	s.ExpiresAt = u.now().Add(uiaLifetime)
	if err := u.DB.Write(ctx, func(tx *storage.Tx) error { return storage.PutUIASession(ctx, tx, s) }); err != nil {
		return s, fmt.Errorf("store uia session: %w", err)
	}
	return s, nil
}

// isNext reports whether some flow begins with what is done, followed by the stage.
func isNext(flows [][]string, done []string, stage string) bool {
	return slices.ContainsFunc(flows, func(flow []string) bool {
		return len(flow) > len(done) && slices.Equal(flow[:len(done)], done) && flow[len(done)] == stage
	})
}

// stage checks one stage: a *matrix.Error if the client failed it.
func (u *UIA) stage(ctx context.Context, op Operation, a authData, done *progress) error {
	switch a.Type {
	case StageDummy:
		return nil
	case StagePassword:
		user, err := u.identify(a, op.User)
		if err != nil {
			return err
		}
		if user != op.User {
			return errOtherUser
		}
		_, err = u.accounts.CheckPassword(ctx, user, a.Password)
		return err
	case StageRegistrationToken:
		tokens := RegistrationTokens{u.core}
		ok, err := tokens.Valid(ctx, a.Token)
		if err == nil && !ok {
			err = matrix.Errorf(http.StatusUnauthorized, "M_UNAUTHORIZED", "The registration token is not valid")
		}
		if err == nil {
			done.RegistrationToken = a.Token
		}
		return err
	}
	return matrix.Errorf(http.StatusUnauthorized, "M_UNRECOGNIZED", "This stage cannot be completed here")
}

// identify reads whose password was sent; without a name it is the one who makes the request.
func (u *UIA) identify(a authData, requester matrix.UserID) (matrix.UserID, error) {
	name := a.Identifier.User
	if name == "" {
		name = a.User
	}
	switch {
	case a.Identifier.Type != "" && a.Identifier.Type != "m.id.user":
		return "", matrix.Forbidden("Only m.id.user is supported")
	case name == "":
		return requester, nil
	case strings.HasPrefix(name, "@"):
		return matrix.ParseUserID(name)
	}
	return matrix.ParseUserID("@" + name + ":" + string(u.ServerName))
}

// challenge is the answer that asks for the next stage; failed says what was wrong with the last one.
func challenge(op Operation, session string, completed []string, failed *matrix.Error) error {
	type flow struct {
		Stages []string `json:"stages"`
	}
	flows := make([]flow, len(op.Flows))
	for i, stages := range op.Flows {
		flows[i] = flow{stages}
	}
	params := op.Params
	if params == nil {
		params = map[string]any{}
	}
	e := &matrix.Error{Status: http.StatusUnauthorized, Extra: map[string]any{"flows": flows, "params": params, "session": session}}
	if completed != nil { // nothing was tried yet: there is nothing to say
		e.Extra["completed"] = completed
	}
	if failed != nil {
		e.Code, e.Message, e.Cause = failed.Code, failed.Message, failed.Cause
	}
	return e
}
