// Command hanok is the homeserver: one binary, with everything to run and look
// after it. The command line is in this package; package server beside it wires
// the parts together and runs them.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"syscall"

	"github.com/alecthomas/kong"
	"github.com/rs/zerolog"

	"hanok/cmd/hanok/server"
	"hanok/config"
	"hanok/matrix"
)

// commands is the command line.
type commands struct {
	Serve      serveCommand       `cmd:"" help:"Run the server."`
	Quickstart quickstartCommand  `cmd:"" help:"Make a config, keys, TLS for localhost and a first admin, then run the server."`
	User       userCommands       `cmd:"" help:"Make and look after accounts."`
	Room       roomCommands       `cmd:"" help:"Change what rooms may do."`
	Federation federationCommands `cmd:"" help:"Look at other servers."`
	Appservice appserviceCommands `cmd:"" help:"Look at application services: bridges and bots."`
	Push       pushCommands       `cmd:"" help:"Look at push notifications."`
	Key        keyCommands        `cmd:"" help:"Look at the signing key, or make a new one."`
	Report     reportCommands     `cmd:"" help:"Look at what users reported."`
	Config     configCommands     `cmd:"" help:"Explain or check the configuration."`
	Version    versionCommand     `cmd:"" help:"Print the version."`
}

// configFlags are shared by all commands that read the configuration.
type configFlags struct {
	Config string `short:"c" default:"hanok.yaml" env:"HANOK_CONFIG" help:"The configuration file."`
	Extra  string `env:"HANOK_EXTRA_CONFIG" help:"A further YAML file, merged over it."`
}

func (f configFlags) load() (*config.Config, error) {
	var over []string
	if f.Extra != "" {
		over = append(over, f.Extra)
	}
	return config.Load(f.Config, over...)
}

// console is where a command writes.
type console struct {
	in       io.Reader
	out, err io.Writer
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], console{os.Stdin, os.Stdout, os.Stderr}))
}

// run is the whole program; its result is the exit status.
func run(ctx context.Context, args []string, c console) int {
	exit := -1
	parser, err := kong.New(&commands{},
		kong.Name("hanok"),
		kong.Description("Hanok, a Matrix homeserver under your own roof."),
		kong.Writers(c.out, c.err),
		kong.Exit(func(code int) { exit = code }),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.Bind(c),
	)
	if err != nil {
		fmt.Fprintln(c.err, "hanok:", err)
		return 1
	}
	if len(args) == 0 {
		args = []string{"--help"}
	}
	command, err := parser.Parse(args)
	if exit >= 0 { // --help was answered
		return exit
	}
	if err != nil {
		fmt.Fprintf(c.err, "hanok: %v\nSee 'hanok --help', or '--help' after a command.\n", err)
		return 2
	}
	if err := command.Run(); err != nil {
		var problems config.Problems
		switch {
		case errors.As(err, &problems):
			fmt.Fprintf(c.err, "hanok: the configuration has %d mistake(s):\n%v\n", len(problems), err)
		default:
			if e, ok := matrix.AsError(err); ok && e.Cause == nil {
				err = errors.New(e.Message)
			}
			fmt.Fprintf(c.err, "hanok: %v\n", err)
		}
		return 1
	}
	return 0
}

type serveCommand struct {
	configFlags
}

func (serveCommand) Help() string {
	return "Example:\n  hanok serve --config /etc/hanok/hanok.yaml\n\nStops cleanly on SIGTERM or Ctrl-C."
}

func (s serveCommand) Run(ctx context.Context, c console) error {
	cfg, err := s.load()
	if err != nil {
		return err
	}
	return serve(ctx, cfg, c, nil)
}

// serve runs the server until ctx ends. ready, if not nil, is called when it listens.
func serve(ctx context.Context, cfg *config.Config, c console, ready func(*server.Server) error) error {
	limitMemory()
	s, err := server.Open(ctx, server.Options{Config: cfg, Log: newLog(cfg.Log, c.err), Version: version()})
	if err != nil {
		return err
	}
	defer s.Close()
	if err := s.Listen(); err != nil {
		return err
	}
	if ready != nil {
		if err := ready(s); err != nil {
			return err
		}
	}
	return s.Run(ctx)
}

// limitMemory makes the garbage collector work for a small footprint while there is little in use.
func limitMemory() {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(75)
	}
}

func newLog(cfg config.Log, w io.Writer) zerolog.Logger {
	level, err := zerolog.ParseLevel(cfg.Level)
	if err != nil {
		level = zerolog.InfoLevel
	}
	text := cfg.Format == "text"
	if f, ok := w.(*os.File); ok && cfg.Format == "" {
		info, err := f.Stat()
		text = err == nil && info.Mode()&os.ModeCharDevice != 0
	}
	if text {
		w = zerolog.ConsoleWriter{Out: w, TimeFormat: "15:04:05.000"}
	}
	return zerolog.New(w).Level(level).With().Timestamp().Logger()
}

type versionCommand struct{}

func (versionCommand) Help() string { return "Example:\n  hanok version" }

func (versionCommand) Run(c console) error {
	_, err := fmt.Fprintf(c.out, "hanok %s %s %s/%s\n", version(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	return err
}

// version is the release, or the commit that was built.
func version() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range info.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return s.Value[:12]
		}
	}
	return "dev"
}
