package main

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"hanok/cmd/hanok/server"
	"hanok/matrix"
	"hanok/storage"
)

// federationCommands look at other servers, whether this one runs or not.
type federationCommands struct {
	Check federationCheck `cmd:"" help:"Go step by step through what federation with a server needs."`
	Queue federationQueue `cmd:"" help:"List what waits to be sent, and to whom."`
}

var errNoFederation = errors.New("federation is turned off in the configuration: federation.disabled")

type federationCheck struct {
	configFlags
	Server string `arg:"" help:"The server's name, as in matrix.org."`
}

func (federationCheck) Help() string {
	return "Example:\n  hanok federation check matrix.org\n\nThe last step needs this server to run and to be reachable: the other one fetches its keys."
}

func (f federationCheck) Run(ctx context.Context, c console) error {
	name, err := matrix.ParseServerName(f.Server)
	if err != nil {
		return err
	}
	return f.withServer(ctx, c, func(s *server.Server) error {
		out := s.Outbound()
		if out == nil {
			return errNoFederation
		}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
		defer cancel()
		for finding := range out.Check(ctx, name) {
			if finding.Err != nil {
				fmt.Fprintf(c.out, "FAILED  %s: %v\n", finding.Step, finding.Err)
				return fmt.Errorf("federation with %s does not work: the step %q failed", name, finding.Step)
			}
			fmt.Fprintf(c.out, "ok      %s: %s\n", finding.Step, finding.Detail)
		}
		return nil
	})
}

type federationQueue struct {
	configFlags
}

func (federationQueue) Help() string { return "Example:\n  hanok federation queue" }

func (f federationQueue) Run(ctx context.Context, c console) error {
	return f.withServer(ctx, c, func(s *server.Server) error {
		if s.Outbound() == nil {
			return errNoFederation
		}
		sizes, err := s.OutboxSizes(ctx)
		if err != nil {
			return err
		}
		return printQueue(c, s, sizes)
	})
}

func printQueue(c console, s *server.Server, sizes []storage.OutboxSize) error {
	w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SERVER\tEVENTS\tOTHER\tFAILING SINCE\tNEXT ATTEMPT")
	stamp := func(t time.Time, ok bool) string {
		if !ok {
			return "-"
		}
		return t.UTC().Format(time.DateTime)
	}
	for _, q := range sizes {
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\n", q.Destination, q.PDUs, q.EDUs,
			stamp(s.Outbound().Peers.FailingSince(q.Destination)), stamp(s.Outbound().Peers.RetryAt(q.Destination)))
	}
	return w.Flush()
}
