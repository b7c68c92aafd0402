package main

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"hanok/cmd/hanok/server"
	"hanok/matrix/signing"
)

// keyCommands are about the key that signs what this server sends to others.
type keyCommands struct {
	Show   keyShow   `cmd:"" help:"Show the public signing keys, old ones too."`
	Rotate keyRotate `cmd:"" help:"Make a new signing key, to be used from the next start on."`
}

type keyShow struct {
	configFlags
}

func (keyShow) Help() string { return "Example:\n  hanok key show" }

func (k keyShow) Run(ctx context.Context, c console) error {
	return k.withServer(ctx, c, func(s *server.Server) error {
		current, old, err := s.SigningKeys(ctx)
		if err != nil {
			return err
		}
		w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "KEY\tPUBLIC\tUSED UNTIL")
		fmt.Fprintf(w, "%s\t%s\tnow\n", current.ID, signing.EncodeBase64(current.Public()))
		for _, o := range old {
			fmt.Fprintf(w, "%s\t%s\t%s\n", o.ID, signing.EncodeBase64(o.Public), o.Expired.Time().UTC().Format(time.DateTime))
		}
		return w.Flush()
	})
}

type keyRotate struct {
	configFlags
}

func (keyRotate) Help() string {
	return "Example:\n  hanok key rotate && systemctl restart hanok\n\n" +
		"The server goes on with its key until it is started again. What was signed with the old key stays valid: its public part is published for good."
}

func (k keyRotate) Run(ctx context.Context, c console) error {
	return k.withServer(ctx, c, func(s *server.Server) error {
		key, kept, err := s.RotateSigningKey(ctx)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.out, "The new key is %s; start the server again to use it. The old one is in %s: keep it safe, or delete it.\n", key.ID, kept)
		return err
	})
}
