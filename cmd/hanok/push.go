package main

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"hanok/cmd/hanok/server"
	"hanok/matrix"
)

// pushCommands look at push notifications.
type pushCommands struct {
	Gateways pushGateways `cmd:"" help:"List the push gateways that users have chosen, and which do not answer."`
}

type pushGateways struct {
	configFlags
}

func (pushGateways) Help() string {
	return "Example:\n  hanok push gateways\n\nAlso while the server runs. These are all the parties that are told when somebody here gets a message."
}

func (p pushGateways) Run(ctx context.Context, c console) error {
	return p.withServer(ctx, c, func(s *server.Server) error {
		uses, err := s.PushGateways(ctx)
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "GATEWAY\tPUSHERS\tWAITING\tFAILING SINCE\tNEXT ATTEMPT")
		stamp := func(t matrix.Timestamp) string {
			if t == 0 {
				return "-"
			}
			return t.Time().UTC().Format(time.DateTime)
		}
		for _, u := range uses {
			fmt.Fprintf(w, "%s\t%d\t%d\t%s\t%s\n", u.Gateway, u.Pushers, u.Waiting, stamp(u.FailingSince), stamp(u.RetryAt))
		}
		return w.Flush()
	})
}
