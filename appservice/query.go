package appservice

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"

	"hanok/matrix"
	"hanok/storage"
)

const (
	// A query is tried queryAttempts times, with queryPause between them, and takes queryTime at most: a client waits.
	queryAttempts = 3
	queryTimeout  = 10 * time.Second
	queryPause    = 500 * time.Millisecond
	queryTime     = 30 * time.Second
)

// errNoAnswer is for who waits for a service. spec: application-service-api#querying
var errNoAnswer = matrix.Errorf(http.StatusRequestTimeout, "M_UNKNOWN", "The application service that this belongs to does not answer.")

// MakeUser gives the services in whose namespaces a user of this server is, but who does not exist, the occasion to make the account, and waits for it.
// 408 if none of them says that there is such a user and one does not answer. spec: as/queryUserById
func (s *Services) MakeUser(ctx context.Context, user matrix.UserID) error {
	if s.None() || user.Server() != s.ServerName {
		return nil
	}
	asked := s.urls(func(x *Service) bool { return within(x.Users, string(user)) })
	if len(asked) == 0 {
		return nil
	}
	if _, err := storage.GetAccount(ctx, s.DB, user); !errors.Is(err, storage.ErrNotFound) {
		return err
	}
	return s.query(ctx, asked, "/users/"+url.PathEscape(string(user)))
}

// MakeAlias is MakeUser for an alias that does not exist. spec: as/queryRoomByAlias
func (s *Services) MakeAlias(ctx context.Context, alias matrix.RoomAlias) error {
	asked := s.urls(func(x *Service) bool { return x.OwnsAlias(alias) })
	if len(asked) == 0 {
		return nil
	}
	return s.query(ctx, asked, "/rooms/"+url.PathEscape(string(alias)))
}

// urls lists the services that can be asked something and that which picks.
func (s *Services) urls(which func(*Service) bool) []*Service {
	var list []*Service
	for _, x := range s.All() {
		if x.URL != "" && which(x) {
			list = append(list, x)
		}
	}
	return list
}

// query asks services one after the other, until one says yes. Those who ask for the same at the same time share the answer.
func (s *Services) query(ctx context.Context, asked []*Service, path string) error {
	shared := s.queries.DoChan(path, func() (any, error) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), queryTime)
		defer cancel()
		var failed error
		for _, x := range asked {
			yes, err := x.exists(ctx, path)
			if yes {
				return nil, nil
			}
			if err != nil {
				failed = errors.Join(failed, fmt.Errorf("application service %q: %w", x.ID, err))
			}
		}
		if failed != nil {
			return nil, errNoAnswer.Because(failed)
		}
		return nil, nil
	})
	select {
	case result := <-shared:
		return result.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// exists asks whether there is something. The error says why there is no answer.
func (x *Service) exists(ctx context.Context, path string) (bool, error) {
	if err := x.takeTurn(ctx); err != nil {
		return false, err
	}
	defer x.endTurn()
	for attempt := 1; ; attempt++ {
		a, err := x.askOnce(ctx, path)
		switch {
		case err == nil && a.ok():
			return true, nil
		case err == nil && a.status < 500:
			return false, nil
		case err == nil:
			err = fmt.Errorf("it answers with status %d", a.status)
		}
		if attempt == queryAttempts || x.FailingFor() > 0 { // it is known to be down: nobody has to wait for it
			return false, err
		}
		select {
		case <-time.After(queryPause):
		case <-ctx.Done():
			return false, err
		}
	}
}

// takeTurn waits until the service is asked few enough things at a time; endTurn lets the next one in.
func (x *Service) takeTurn(ctx context.Context) error {
	select {
	case x.asking <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (x *Service) endTurn() { <-x.asking }

func (x *Service) askOnce(ctx context.Context, path string) (answer, error) {
	ctx, cancel := context.WithTimeout(ctx, queryTimeout)
	defer cancel()
	return x.ask(ctx, http.MethodGet, path, path, nil)
}
