package sytest

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

// TestEndToEnd lets two people on two servers hold an encrypted conversation
// with a real client, also after both servers were killed. See e2e/converse.mjs.
func TestEndToEnd(t *testing.T) {
	eachEngine(t, func(t *testing.T, start func(homeserver.Options) *homeserver.Server) {
		var servers [2]*homeserver.Server
		for i := range servers {
			servers[i] = start(homeserver.Options{ExtraConfig: "privacy: {encryption: required}\n"})
		}
		converse(t, servers)
	})
}

// converse runs the conversation; env are further variables for it.
func converse(t *testing.T, servers [2]*homeserver.Server, env ...string) {
	if _, err := os.Stat("e2e/node_modules"); err != nil {
		t.Fatal("the client is not installed: run npm ci in sytest/e2e")
	}
	client := exec.Command("node", "converse.mjs")
	client.Dir = "e2e"
	client.Env = append(os.Environ(), "SERVER_A="+servers[0].ClientURL, "SERVER_B="+servers[1].ClientURL)
	client.Env = append(client.Env, env...)
	client.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	complaint := filepath.Join(t.TempDir(), "stderr")
	stderr, err := os.Create(complaint)
	if err != nil {
		t.Fatal(err)
	}
	defer stderr.Close()
	client.Stderr = stderr
	answers, err := client.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	lines, err := client.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Start(); err != nil {
		t.Fatal(err)
	}
	limit := time.AfterFunc(4*time.Minute, func() { _ = client.Process.Kill() }) // it may have ended already
	defer limit.Stop()

	var last string
	for s := bufio.NewScanner(lines); s.Scan(); {
		last = s.Text()
		if last == "RESTART" {
			restart(t, servers, answers)
			continue
		}
		t.Log(last)
	}
	err = client.Wait()
	if err != nil || !strings.HasSuffix(last, "done") {
		text, _ := os.ReadFile(complaint)
		t.Fatalf("the client ended after %q: %v\n%s", last, err, text)
	}
}

// restart kills both servers without warning and starts them again.
func restart(t *testing.T, servers [2]*homeserver.Server, answers io.Writer) {
	for _, s := range servers {
		s.Kill()
	}
	for _, s := range servers {
		s.Start()
	}
	if _, err := fmt.Fprintln(answers, "started"); err != nil {
		t.Error(err)
	}
}
