package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
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
	Retry federationRetry `cmd:"" help:"Try servers that did not answer again at once."`
}

var errNoFederation = errors.New("federation is turned off in the configuration: federation.disabled")

type federationCheck struct {
	configFlags
	Server string `arg:"" optional:"" help:"The server's name, as in matrix.org. None: this server, as others see it."`
}

func (federationCheck) Help() string {
	return "Examples:\n  hanok federation check\n  hanok federation check matrix.org\n\n" +
		"Without a name it goes the way that other servers go to this one, which has to run. " +
		"The last step towards another server needs this one to run and to be reachable: the other one fetches its keys."
}

func (f federationCheck) Run(ctx context.Context, c console) error {
	if f.Server != "" {
		if _, err := matrix.ParseServerName(f.Server); err != nil {
			return err
		}
	}
	return f.withServer(ctx, c, func(s *server.Server) error {
		out := s.Outbound()
		if out == nil {
			return errNoFederation
		}
		name := matrix.ServerName(f.Server)
		if name == "" {
			name = s.Name()
		}
		ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
		defer cancel()
		for finding := range out.Check(ctx, name) {
			hint := finding.Hint()
			switch {
			case finding.Err != nil:
				fmt.Fprintf(c.out, "FAILED  %s: %s\n", finding.Step, strings.ReplaceAll(finding.Err.Error(), "\n", "\n        "))
			case hint != "":
				fmt.Fprintf(c.out, "LOOK    %s: %s\n", finding.Step, finding.Detail)
			default:
				fmt.Fprintf(c.out, "ok      %s: %s\n", finding.Step, finding.Detail)
			}
			if hint != "" {
				fmt.Fprintf(c.out, "        %s\n", hint)
			}
			if finding.Err != nil {
				return fmt.Errorf("federation with %s does not work: the step %q failed", name, finding.Step)
			}
		}
		return nil
	})
}

type federationQueue struct {
	configFlags
}

func (federationQueue) Help() string {
	return "Example:\n  hanok federation queue\n\nAlso while the server runs. Try a server again before its time with: hanok federation retry SERVER"
}

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
	fmt.Fprintln(w, "SERVER\tEVENTS\tOTHER\tFAILING SINCE\tNEXT ATTEMPT\tREASON")
	stamp := func(t time.Time, ok bool) string {
		if !ok {
			return "-"
		}
		return t.UTC().Format(time.DateTime)
	}
	known := s.Outbound().Peers
	for _, q := range sizes {
		reason := known.Reason(q.Destination)
		if known.Check(q.Destination) != nil {
			reason = "refused by the lists in the configuration: it waits until they change"
		}
		fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\t%s\n", q.Destination, q.PDUs, q.EDUs,
			stamp(known.FailingSince(q.Destination)), stamp(known.RetryAt(q.Destination)), reason)
	}
	return w.Flush()
}

type federationRetry struct {
	configFlags
	Servers []string `arg:"" optional:"" help:"Names of servers, as in matrix.org."`
	All     bool     `help:"All servers that did not answer."`
}

func (federationRetry) Help() string {
	return "Examples:\n  hanok federation retry matrix.org\n  hanok federation retry --all\n\nThe running server looks for such requests every few seconds; one that does not run tries them when it starts."
}

func (f federationRetry) Run(ctx context.Context, c console) error {
	if f.All == (len(f.Servers) > 0) {
		return errors.New("name the servers to try again, or say --all")
	}
	names := []matrix.ServerName{""} // all
	if !f.All {
		names = names[:0]
		for _, text := range f.Servers {
			name, err := matrix.ParseServerName(text)
			if err != nil {
				return err
			}
			names = append(names, name)
		}
	}
	return f.withServer(ctx, c, func(s *server.Server) error {
		for _, name := range names {
			n, err := s.RetryServer(ctx, name)
			switch {
			case err != nil:
				return err
			case name == "":
				fmt.Fprintf(c.out, "%d servers will be tried again.\n", n)
			case n == 0:
				fmt.Fprintf(c.out, "%s is not waited for: it answered the last time.\n", name)
			default:
				fmt.Fprintf(c.out, "%s will be tried again.\n", name)
			}
		}
		return nil
	})
}
