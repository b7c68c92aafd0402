// Package server wires the parts of a homeserver together, runs them and stops
// them in order. It keeps no global state: several servers run in one process.
//
// Open builds everything, Listen opens the addresses, Run serves until its
// context ends. Start reading at Open.
package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"

	"hanok/appservice"
	"hanok/config"
	"hanok/delayed"
	"hanok/federation"
	"hanok/federation/keyring"
	fedserver "hanok/federation/server"
	"hanok/feed"
	"hanok/internal/endpoint"
	"hanok/matrix"
	"hanok/matrix/signing"
	"hanok/media"
	"hanok/notices"
	"hanok/privacy"
	"hanok/push"
	"hanok/rooms"
	"hanok/storage"
	"hanok/users"
	"hanok/web"
)

// shutdownGrace is how long requests under way may take once the server stops.
const shutdownGrace = 15 * time.Second

// Options are what a Server is made from.
type Options struct {
	Config  *config.Config
	Log     zerolog.Logger
	Version string
}

// Server is one homeserver.
type Server struct {
	cfg     *config.Config
	log     zerolog.Logger
	version string
	name    matrix.ServerName
	key     signing.Key

	metrics  *metrics
	db       *storage.DB
	policy   *privacy.Policy
	hub      *feed.Hub
	rooms    *rooms.Engine
	users    *users.Service
	feed     *feed.Feed
	media    *media.Repository
	previews *media.Previews // nil: off
	delayed  *delayed.Scheduler
	push     *push.Sender     // nil: off
	notices  *notices.Notices // nil: off
	services *appservice.Services
	client   http.Handler // the client-server API

	outbound   *federation.Outbound // nil: federation is off
	federation *fedserver.Server

	listeners []listener
	// requests is the context of all requests; it ends when their time is up.
	requests   context.Context
	endRequest context.CancelFunc
	stopping   atomic.Bool

	close    sync.Once
	closeErr error
}

// Open opens the database and builds all parts; nothing runs yet. Close it, also after Run.
func Open(ctx context.Context, o Options) (*Server, error) {
	s := &Server{cfg: o.Config, log: o.Log, version: o.Version, name: matrix.ServerName(o.Config.Server.Name), metrics: newMetrics(o.Version)}
	s.requests, s.endRequest = context.WithCancel(context.WithoutCancel(ctx))
	if err := s.open(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Server) open(ctx context.Context) (err error) {
	cfg := s.cfg
	if err := os.MkdirAll(cfg.Server.DataDir, 0o700); err != nil {
		return fmt.Errorf("make the data folder: %w. Set server.data_dir to a folder that hanok may write to", err)
	}
	if s.key, err = loadSigningKey(cfg.Server.SigningKey); err != nil {
		return err
	}
	if s.policy, err = privacy.New(privacy.Options{
		Mode: privacy.Mode(cfg.Privacy.Encryption), AllowTypes: cfg.Privacy.AllowEventTypes,
		UnencryptedUpload: int64(cfg.Privacy.UnencryptedUpload), KeepIP: cfg.Privacy.LogIP, Notices: s.noticesSender(),
	}); err != nil {
		return err
	}
	if s.db, err = storage.Open(ctx, storage.Options{DSN: cfg.Database.URL, Log: s.part("storage"), Observe: s.metrics.observeCommit}); err != nil {
		return fmt.Errorf("open the database: %w", err)
	}
	s.metrics.watchQueue(s.db)
	return s.wire(ctx)
}

// part is the log of one part of the server.
func (s *Server) part(name string) zerolog.Logger { return s.log.With().Str("part", name).Logger() }

// Name is the server's name.
func (s *Server) Name() matrix.ServerName { return s.name }

// Users is what belongs to users, for the command line.
func (s *Server) Users() *users.Service { return s.users }

// Rooms is the room engine.
func (s *Server) Rooms() *rooms.Engine { return s.rooms }

// Outbound talks to other servers, for the command line; nil if federation is off.
func (s *Server) Outbound() *federation.Outbound { return s.outbound }

// Services are the application services, for the command line.
func (s *Server) Services() *appservice.Services { return s.services }

// OutboxSizes counts what waits for each server.
func (s *Server) OutboxSizes(ctx context.Context) ([]storage.OutboxSize, error) {
	return storage.FindOutboxSizes(ctx, s.db)
}

// RetryServer has the running server try another one again at once, or all that did not answer if none is named. n is how many.
func (s *Server) RetryServer(ctx context.Context, server matrix.ServerName) (n int64, err error) {
	err = s.db.Write(ctx, func(tx *storage.Tx) (err error) {
		n, err = storage.RequestRetry(ctx, tx, server)
		return err
	})
	return n, err
}

// Run serves until ctx ends or something breaks, then stops in order:
// listeners, requests and long polls, workers, outbox. Close does the rest.
func (s *Server) Run(ctx context.Context) error {
	if err := keyring.Record(ctx, s.db, s.name, s.key, matrix.TimestampOf(time.Now())); err != nil {
		return fmt.Errorf("record the signing key: %w", err)
	}
	outbox, stopOutbox := context.WithCancel(context.WithoutCancel(ctx))
	defer stopOutbox()
	workers, stopWorkers := context.WithCancel(outbox)
	defer stopWorkers()
	sending, sendingFailed := errgroup.WithContext(outbox)
	working, workingFailed := errgroup.WithContext(workers)
	running := []func(context.Context) error{s.users.Run, s.media.Run, s.feed.Run, s.feed.FollowDirectory, s.delayed.Run, s.rooms.Run}
	if s.outbound != nil {
		running = append(running, s.federation.Run)
		sending.Go(func() error { return s.outbound.Queue.Run(sendingFailed, s.rooms) })
	}
	// Like the outbox it goes on until the workers have ended, who may have something to tell.
	sending.Go(func() error {
		return s.services.Run(sendingFailed, appservice.Sources{Rooms: s.rooms, Users: s.users, Typing: s.feed.Typing})
	})
	if s.push != nil {
		running = append(running, s.push.Run)
	}
	for _, worker := range running {
		working.Go(func() error { return worker(workingFailed) })
	}
	for _, l := range s.listeners {
		s.log.Info().Str("address", l.name).Msg("listening")
		working.Go(func() error {
			if err := l.http.Serve(l.Listener); !errors.Is(err, http.ErrServerClosed) {
				return fmt.Errorf("serve %s: %w", l.name, err)
			}
			return nil
		})
	}
	select {
	case <-ctx.Done():
	case <-workingFailed.Done(): // something broke: stop the rest, and say what it was
	case <-sendingFailed.Done():
	}
	s.log.Info().Msg("stopping")
	s.stopRequests()
	stopWorkers()
	err := unlessCanceled(working.Wait())
	stopOutbox()
	return errors.Join(err, unlessCanceled(sending.Wait()))
}

func unlessCanceled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// stopRequests closes the listeners and waits for the requests under way, long polls included.
func (s *Server) stopRequests() {
	s.stopping.Store(true)
	s.hub.Shutdown() // long polls are answered at once
	ctx, cancel := context.WithTimeout(context.Background(), shutdownGrace)
	defer cancel()
	var all errgroup.Group
	for _, l := range s.listeners {
		all.Go(func() error { return l.http.Shutdown(ctx) })
	}
	if err := all.Wait(); err != nil {
		s.log.Warn().Err(err).Msg("requests took too long to finish")
	}
	s.endRequest()
	for _, l := range s.listeners {
		if err := l.http.Close(); err != nil {
			s.log.Warn().Err(err).Msg("close a listener")
		}
	}
}

// Close releases everything. It may be called more than once.
func (s *Server) Close() error {
	s.close.Do(func() {
		s.endRequest()
		for _, l := range s.listeners {
			l.Close() // closed already if Run has ended
		}
		if s.rooms != nil {
			s.closeErr = s.rooms.Close()
		}
		if s.outbound != nil {
			s.outbound.Close()
		}
		if s.db != nil {
			s.closeErr = errors.Join(s.closeErr, s.db.Close())
		}
	})
	return s.closeErr
}

// handler is what one listener serves. Paths are matched as they were sent: a
// router that tidies them up would change identifiers in them.
func (s *Server) handler(l config.Listener) http.Handler {
	client, federation := l.Serves("client"), s.federation != nil && l.Serves("federation")
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.metrics.inFlight.Inc()
		defer s.metrics.inFlight.Dec()
		path := r.URL.Path
		switch {
		case path == "/health":
			s.health(endpoint.Writer(w), r)
		case path == "/" && client && r.Method == http.MethodGet:
			web.Index(endpoint.Writer(w), r)
		case path == "/.well-known/matrix/server" && s.cfg.Server.FederationName != "":
			s.wellKnownServer(endpoint.Writer(w))
		case federation && (!client || strings.HasPrefix(path, "/_matrix/federation/") || strings.HasPrefix(path, "/_matrix/key/")):
			s.federation.ServeHTTP(w, r)
		default:
			s.client.ServeHTTP(w, r)
		}
	})
}

// wellKnownServer tells other servers where to go. spec: ss/getWellKnown
func (s *Server) wellKnownServer(w http.ResponseWriter) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Access-Control-Allow-Origin", "*")
	if err := json.NewEncoder(w).Encode(map[string]string{"m.server": s.cfg.Server.FederationName}); err != nil {
		s.log.Debug().Err(err).Msg("answer .well-known/matrix/server")
	}
}
