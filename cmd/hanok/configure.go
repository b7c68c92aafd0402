package main

import (
	"fmt"

	"hanok/config"
)

type configCommands struct {
	Describe describeCommand `cmd:"" help:"Print a configuration file with every key explained."`
	Check    checkCommand    `cmd:"" help:"Report every mistake in the configuration."`
}

type describeCommand struct{}

func (describeCommand) Help() string { return "Example:\n  hanok config describe > hanok.yaml" }

func (describeCommand) Run(c console) error { return config.Describe(c.out) }

type checkCommand struct {
	configFlags
}

func (checkCommand) Help() string { return "Example:\n  hanok config check --config hanok.yaml" }

func (k checkCommand) Run(c console) error {
	if _, err := k.load(); err != nil {
		return err
	}
	_, err := fmt.Fprintf(c.out, "%s is fine.\n", k.Config)
	return err
}
