package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"hanok/appservice"
	"hanok/cmd/hanok/server"
	"hanok/matrix"
)

// appserviceCommands look at application services: bridges and bots.
type appserviceCommands struct {
	Check appserviceCheck `cmd:"" help:"Ping application services, and say what waits for them."`
}

type appserviceCheck struct {
	configFlags
	IDs []string `arg:"" optional:"" name:"id" help:"IDs of application services, as in their registration files. None: all."`
}

func (appserviceCheck) Help() string {
	return "Examples:\n  hanok appservice check\n  hanok appservice check telegram\n\n" +
		"Registration files are read when the server starts: restart it after a change. What 'hanok config check' says holds for them, too."
}

func (a appserviceCheck) Run(ctx context.Context, c console) error {
	return a.withServer(ctx, c, func(s *server.Server) error {
		wanted := make(map[string]bool, len(a.IDs))
		for _, id := range a.IDs {
			wanted[id] = true
		}
		all, failed := s.Services().All(), 0
		for _, x := range all {
			if len(a.IDs) > 0 && !wanted[x.ID] {
				continue
			}
			delete(wanted, x.ID)
			ok, err := checkService(ctx, c, s.Services(), x)
			if err != nil {
				return err
			}
			if !ok {
				failed++
			}
		}
		for id := range wanted {
			return fmt.Errorf("there is no application service %q: its registration file is not in appservices.directory", id)
		}
		switch {
		case len(all) == 0:
			return errors.New("there are no application services: put their registration files into a folder and name it in appservices.directory")
		case failed > 0:
			return fmt.Errorf("%d application service(s) cannot be reached", failed)
		}
		return nil
	})
}

// checkService prints what there is to say about one service; ok is false if it cannot be reached.
func checkService(ctx context.Context, c console, services *appservice.Services, x *appservice.Service) (ok bool, err error) {
	fmt.Fprintf(c.out, "%s (%s), from %s\n", x.ID, x.Sender, x.File)
	if x.URL == "" {
		fmt.Fprintln(c.out, "  ok      has no url: nothing is sent to it")
		return true, nil
	}
	took, pinged := x.Ping(ctx, "hanok appservice check")
	switch refusal, known := matrix.AsError(pinged); {
	case pinged == nil:
		fmt.Fprintf(c.out, "  ok      answers at %s within %d ms\n", x.URL, took.Milliseconds())
		ok = true
	case !known:
		return false, pinged
	default:
		text, hint := refusal.Message, "Is it running, and does the url of its registration file lead to it?"
		switch refusal.Extra["status"] {
		case 401, 403:
			hint = "The hs_token of the registration file here is not the one that it has. Copy the file from it again, and restart the server."
		case 404, 405, 501:
			text, hint = "The application service is there, but knows no pings.", "It may be older than they are, and work all the same."
			ok = true
		}
		label := "FAILED"
		if ok {
			label = "ok    "
		}
		fmt.Fprintf(c.out, "  %s  %s: %s\n          %s\n", label, x.URL, text, hint)
	}
	waiting, err := services.Waiting(ctx, x)
	switch {
	case err != nil:
		return false, err
	case waiting == nil:
		fmt.Fprintln(c.out, "  ok      has taken everything that it was sent")
	default:
		fmt.Fprintf(c.out, "  waits   for %d event(s) and what came after them, since %s\n", waiting.Events, waiting.Since.UTC().Format(time.DateTime))
	}
	return ok, nil
}
