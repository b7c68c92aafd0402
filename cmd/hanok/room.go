package main

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"text/tabwriter"
	"time"

	"hanok/cmd/hanok/server"
	"hanok/matrix"
)

// roomCommands change what rooms may do, whether the server runs or not.
type roomCommands struct {
	Federation roomFederation `cmd:"" help:"Keep a room apart from other servers, or give it back to them."`
	Isolated   roomIsolated   `cmd:"" help:"List the rooms that are kept apart."`
}

type roomFederation struct {
	configFlags
	Room  string `arg:"" help:"The room's ID, as in !abc:example.org."`
	State string `arg:"" enum:"on,off" help:"off: nothing of the room goes to other servers or is taken from them. on: as ever."`
}

func (roomFederation) Help() string {
	return "Examples:\n  hanok room federation '!abc:example.org' off\n  hanok room federation '!abc:example.org' on\n\n" +
		"Users of this server go on in the room; those of other servers stay in its list of members, and get nothing. Nobody else enters it from elsewhere, " +
		"also a room that nobody of this server is in. A running server follows within a few seconds. Once it is on again, servers fetch from one another what they missed."
}

func (r roomFederation) Run(ctx context.Context, c console) error {
	id, err := matrix.ParseRoomID(r.Room)
	if err != nil {
		return err
	}
	return r.withServer(ctx, c, func(s *server.Server) error {
		if err := s.Rooms().Isolate(ctx, id, r.State == "off"); err != nil {
			return err
		}
		note := ""
		if _, err := s.Rooms().RoomNID(ctx, id); matrix.HasCode(err, "M_NOT_FOUND") {
			note = " (it is not known here)"
		} else if err != nil {
			return err
		}
		_, err := fmt.Fprintf(c.out, "Federation is %s for %s%s.\n", r.State, id, note)
		return err
	})
}

type roomIsolated struct {
	configFlags
}

func (roomIsolated) Help() string { return "Example:\n  hanok room isolated" }

func (r roomIsolated) Run(ctx context.Context, c console) error {
	return r.withServer(ctx, c, func(s *server.Server) error {
		all := s.Rooms().Isolated()
		w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "ROOM\tSINCE")
		for _, id := range slices.Sorted(maps.Keys(all)) {
			fmt.Fprintf(w, "%s\t%s\n", id, all[id].Time().UTC().Format(time.DateOnly))
		}
		return w.Flush()
	})
}
