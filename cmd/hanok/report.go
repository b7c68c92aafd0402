package main

import (
	"context"
	"fmt"
	"strconv"
	"text/tabwriter"
	"time"

	"hanok/cmd/hanok/server"
	"hanok/users"
)

// reportCommands are for what users reported as inappropriate.
type reportCommands struct {
	List   reportList   `cmd:"" help:"List what users reported, the newest first."`
	Delete reportDelete `cmd:"" help:"Remove a report that was dealt with."`
}

type reportList struct {
	configFlags
	Before int64 `help:"List reports with lower numbers than this one."`
	Limit  int   `default:"100" help:"How many, at most."`
}

func (reportList) Help() string { return "Example:\n  hanok report list" }

func (r reportList) Run(ctx context.Context, c console) error {
	return r.withServer(ctx, c, func(s *server.Server) error {
		list, err := s.Users().Reports.List(ctx, r.Before, r.Limit)
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "NUMBER\tMADE\tBY\tABOUT\tREASON")
		for _, one := range list {
			fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\n", one.ID, one.At.Time().UTC().Format(time.DateTime), one.Reporter, subject(one), strconv.Quote(one.Reason))
		}
		return w.Flush()
	})
}

// subject says what a report is about.
func subject(r users.Report) string {
	switch {
	case r.Event != "":
		return fmt.Sprintf("%s of %s in %s", r.Event, r.User, r.Room)
	case r.Room != "":
		return string(r.Room)
	}
	return string(r.User)
}

type reportDelete struct {
	configFlags
	Number int64 `arg:"" help:"The report's number."`
}

func (reportDelete) Help() string { return "Example:\n  hanok report delete 1234" }

func (r reportDelete) Run(ctx context.Context, c console) error {
	return r.withServer(ctx, c, func(s *server.Server) error {
		if err := s.Users().Reports.Delete(ctx, r.Number); err != nil {
			return err
		}
		_, err := fmt.Fprintf(c.out, "Removed report %d.\n", r.Number)
		return err
	})
}
