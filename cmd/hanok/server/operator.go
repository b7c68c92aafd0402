package server

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// operatorHandler is the listener for the operator's tools.
func (s *Server) operatorHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(s.metrics.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /health", s.health)
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	return mux
}

// health answers 200 when the server can do its work, 503 when it stops or its database does not answer.
func (s *Server) health(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	status, answer := http.StatusOK, map[string]string{"status": "ok", "version": s.version}
	var one int
	switch err := s.db.QueryRow(ctx, `SELECT 1`).Scan(&one); {
	case s.stopping.Load():
		status, answer["status"] = http.StatusServiceUnavailable, "stopping"
	case err != nil:
		s.log.Error().Err(err).Msg("health: the database does not answer")
		status, answer["status"] = http.StatusServiceUnavailable, "the database does not answer"
	}
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	if err := json.NewEncoder(w).Encode(answer); err != nil {
		s.log.Debug().Err(err).Msg("answer a health check")
	}
}
