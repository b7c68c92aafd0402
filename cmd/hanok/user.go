package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/rs/zerolog"

	"hanok/cmd/hanok/server"
	"hanok/matrix"
	"hanok/storage"
	"hanok/users"
)

// userCommands work on the database, whether the server runs or not.
type userCommands struct {
	Create   userCreate   `cmd:"" help:"Make an account."`
	Password userPassword `cmd:"" help:"Set a new password and log the user out everywhere."`
	List     userList     `cmd:"" help:"List the accounts."`

	Federation userFederation `cmd:"" help:"Keep a user to this server, or no longer."`
}

// passwordFlag says where a password comes from. It is not taken from the command
// line, where other users of the machine could see it.
type passwordFlag struct {
	PasswordStdin bool `help:"Read the password from standard input instead of making one up."`
}

// password returns the password, and a line to print if it was made up.
func (f passwordFlag) password(in io.Reader) (password, note string, err error) {
	if !f.PasswordStdin {
		password = rand.Text()[:20]
		return password, "Password: " + password + "\n", nil
	}
	line, err := bufio.NewReader(in).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return "", "", fmt.Errorf("read the password: %w", err)
	}
	if password = strings.TrimRight(line, "\r\n"); password == "" {
		return "", "", errors.New("no password on standard input. Try: echo 'the password' | hanok user create alice --password-stdin")
	}
	return password, "", nil
}

type userCreate struct {
	configFlags
	passwordFlag
	Name  string `arg:"" help:"The localpart: alice for @alice:example.org."`
	Admin bool   `help:"Let the user administer the server."`
}

func (userCreate) Help() string {
	return "Examples:\n  hanok user create alice\n  echo 'correct horse battery staple' | hanok user create bob --admin --password-stdin"
}

func (u userCreate) Run(ctx context.Context, c console) error {
	password, note, err := u.password(c.in)
	if err != nil {
		return err
	}
	return u.withServer(ctx, c, func(s *server.Server) error {
		account, err := s.Users().Accounts.Register(ctx, users.Registration{Localpart: localpart(u.Name), Password: password, Admin: u.Admin})
		if matrix.HasCode(err, "M_USER_IN_USE") {
			return fmt.Errorf("there is a user %s already. Set a password with: hanok user password %s", u.Name, u.Name)
		}
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.out, "Made %s.\n%s", account.UserID, note)
		return err
	})
}

type userPassword struct {
	configFlags
	passwordFlag
	Name string `arg:"" help:"The user, as alice or @alice:example.org."`
}

func (userPassword) Help() string { return "Example:\n  hanok user password alice" }

func (u userPassword) Run(ctx context.Context, c console) error {
	password, note, err := u.password(c.in)
	if err != nil {
		return err
	}
	return u.withServer(ctx, c, func(s *server.Server) error {
		id := matrix.UserID("@" + localpart(u.Name) + ":" + string(s.Name()))
		if _, err := s.Users().Accounts.Get(ctx, id); errors.Is(err, storage.ErrNotFound) {
			return fmt.Errorf("there is no user %s. List them with: hanok user list", id)
		} else if err != nil {
			return err
		}
		nobody := matrix.DeviceID("")
		if err := s.Users().Accounts.SetPassword(ctx, id, password, &nobody); err != nil {
			return err
		}
		_, err := fmt.Fprintf(c.out, "Set a new password for %s, who is logged out everywhere.\n%s", id, note)
		return err
	})
}

type userList struct {
	configFlags
}

func (userList) Help() string { return "Example:\n  hanok user list" }

func (u userList) Run(ctx context.Context, c console) error {
	return u.withServer(ctx, c, func(s *server.Server) error {
		const page = 500
		w := tabwriter.NewWriter(c.out, 0, 0, 2, ' ', 0)
		fmt.Fprintln(w, "USER\tMADE\tNOTES")
		for after := matrix.UserID(""); ; {
			accounts, err := s.Users().Accounts.List(ctx, after, page)
			if err != nil {
				return err
			}
			for _, a := range accounts {
				fmt.Fprintf(w, "%s\t%s\t%s\n", a.UserID, a.CreatedAt.Time().UTC().Format(time.DateOnly), notes(a))
				after = a.UserID
			}
			if len(accounts) < page {
				return w.Flush()
			}
		}
	})
}

func notes(a users.Account) string {
	var words []string
	for _, n := range []struct {
		on   bool
		word string
	}{
		{a.Admin, "admin"}, {a.Kind != users.KindUser, string(a.Kind)}, {a.Locked, "locked"}, {a.Suspended, "suspended"}, {a.LocalOnly, "local only"}, {a.Deactivated, "deactivated"},
	} {
		if n.on {
			words = append(words, n.word)
		}
	}
	return strings.Join(words, ", ")
}

type userFederation struct {
	configFlags
	Name  string `arg:"" help:"The user, as alice or @alice:example.org."`
	State string `arg:"" enum:"on,off" help:"off: only rooms that nobody of another server can enter. on: any room."`
	Leave bool   `help:"With off: leave the rooms that other servers can be in, and turn down invites to such."`
}

func (userFederation) Help() string {
	return "Examples:\n  hanok user federation alice off\n  hanok user federation alice off --leave\n\n" +
		"Without --leave the user stays in the rooms that they are in already, and goes on there. " +
		"A room that its own users are to keep can be kept apart from other servers before: hanok room federation ROOM off. " +
		"What new accounts get is registration.local_only in the configuration."
}

func (u userFederation) Run(ctx context.Context, c console) error {
	if u.Leave && u.State != "off" {
		return errors.New("--leave goes with off")
	}
	return u.withServer(ctx, c, func(s *server.Server) error {
		id := matrix.UserID("@" + localpart(u.Name) + ":" + string(s.Name()))
		err := s.Users().Accounts.SetLocalOnly(ctx, id, u.State == "off")
		if errors.Is(err, storage.ErrNotFound) {
			return fmt.Errorf("there is no user %s. List them with: hanok user list", id)
		}
		if err != nil {
			return err
		}
		fmt.Fprintf(c.out, "Federation is %s for %s.\n", u.State, id)
		if u.State == "on" {
			return nil
		}
		rooms, err := s.Rooms().FederatedRooms(ctx, id)
		if err != nil || len(rooms) == 0 {
			return err
		}
		if !u.Leave {
			_, err = fmt.Fprintf(c.out, "They stay in %d rooms that other servers can be in. To leave those: hanok user federation %s off --leave\n", len(rooms), localpart(u.Name))
			return err
		}
		if err := s.Rooms().Withdraw(ctx, id); err != nil {
			return err
		}
		_, err = fmt.Fprintf(c.out, "They leave %d rooms that other servers can be in, as soon as the server runs.\n", len(rooms))
		return err
	})
}

// withServer opens the server without running it.
func (f configFlags) withServer(ctx context.Context, c console, fn func(*server.Server) error) (err error) {
	cfg, err := f.load()
	if err != nil {
		return err
	}
	s, err := server.Open(ctx, server.Options{Config: cfg, Log: newLog(cfg.Log, c.err).Level(zerolog.WarnLevel), Version: version()})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.Close()) }()
	return fn(s)
}

// localpart accepts alice and @alice:example.org alike.
func localpart(name string) string {
	name, _, _ = strings.Cut(strings.TrimPrefix(name, "@"), ":")
	return name
}
