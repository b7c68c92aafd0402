package storagetest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/rs/zerolog"

	"hanok/storage"
)

// cluster is a PostgreSQL server with its data in a temporary folder.
type cluster struct {
	once sync.Once
	err  error
	dir  string
	// stop is the input of the shell that watches over the server: when it ends,
	// because this process did in whatever way, the server is stopped and the folder removed.
	stop io.Closer

	mu        sync.Mutex // creating from a template needs it to be unused
	databases int
}

// shared serves all tests of the binary: starting a server takes a second.
var shared cluster

const template = "hanok_template"

// server starts PostgreSQL and waits for its end or for the end of input.
const server = `
"$0/postgres" -D "$1/data" -k "$1" -c listen_addresses= -c fsync=off -c full_page_writes=off \
	-c max_connections=300 -c shared_buffers=32MB -c wal_level=minimal -c max_wal_senders=0 -c max_wal_size=256MB >"$1/log" 2>&1 </dev/null &
pid=$!
read -r end
kill -QUIT $pid
wait $pid
rm -rf "$1"
`

// database creates an empty database with the present schema and returns its DSN.
func (c *cluster) database() (string, error) {
	c.once.Do(func() { c.err = c.start() })
	if c.err != nil {
		return "", c.err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.databases++
	name := "test" + strconv.Itoa(c.databases)
	return c.dsn(name), c.exec(`CREATE DATABASE ` + name + ` TEMPLATE ` + template)
}

func (c *cluster) dsn(database string) string {
	return "postgres:///" + database + "?user=hanok&host=" + c.dir
}

func (c *cluster) exec(query string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, c.dsn("postgres"))
	if err != nil {
		return err
	}
	defer conn.Close(ctx)
	_, err = conn.Exec(ctx, query)
	return err
}

func (c *cluster) start() error {
	bin, err := binaries()
	if err != nil {
		return err
	}
	// A short path, because it holds a socket.
	if c.dir, err = os.MkdirTemp("/tmp", "hanok-pg"); err != nil {
		return err
	}
	as, err := serverUser(c.dir)
	if err != nil {
		return err
	}
	initdb := exec.Command(filepath.Join(bin, "initdb"), "-D", filepath.Join(c.dir, "data"), "-U", "hanok",
		"--auth=trust", "--no-sync", "--encoding=UTF8", "--locale=C", "--no-instructions")
	initdb.Dir, initdb.SysProcAttr = c.dir, as
	if out, err := initdb.CombinedOutput(); err != nil {
		os.RemoveAll(c.dir)
		return fmt.Errorf("initdb: %w\n%s", err, out)
	}
	watch := exec.Command("/bin/sh", "-c", server, bin, c.dir)
	watch.Dir, watch.SysProcAttr = c.dir, as
	if c.stop, err = watch.StdinPipe(); err != nil {
		return err
	}
	if err := watch.Start(); err != nil {
		return err
	}
	go watch.Wait()
	if err := c.await(); err != nil {
		return err
	}
	if err := c.exec(`CREATE DATABASE ` + template); err != nil {
		return err
	}
	db, err := storage.Open(context.Background(), storage.Options{DSN: c.dsn(template), Log: zerolog.Nop()})
	if err != nil {
		return err
	}
	return db.Close()
}

// await waits until the server accepts connections.
func (c *cluster) await() error {
	var err error
	for range 600 {
		if err = c.exec(`SELECT 1`); err == nil {
			return nil
		}
		time.Sleep(50 * time.Millisecond)
	}
	log, _ := os.ReadFile(filepath.Join(c.dir, "log"))
	return fmt.Errorf("the server does not answer: %w\n%s", err, log)
}

// binaries finds the newest installed server.
func binaries() (string, error) {
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		if p, err := exec.LookPath("initdb"); err == nil {
			found = append(found, p)
		}
	}
	if len(found) == 0 {
		return "", errors.New("no initdb in /usr/lib/postgresql/*/bin or PATH")
	}
	version := func(p string) int {
		n, _ := strconv.Atoi(strings.Split(p, "/")[min(4, strings.Count(p, "/"))])
		return n
	}
	slices.SortFunc(found, func(a, b string) int { return version(b) - version(a) })
	return filepath.Dir(found[0]), nil
}

// serverUser says as whom to run the server, which refuses to be root, and gives the folder to that user.
func serverUser(dir string) (*syscall.SysProcAttr, error) {
	// A process group of its own: an interrupt at the terminal ends the tests, and that ends the server.
	as := &syscall.SysProcAttr{Setpgid: true}
	if os.Geteuid() != 0 {
		return as, nil
	}
	u, err := user.Lookup("postgres")
	if err != nil {
		if u, err = user.Lookup("nobody"); err != nil {
			return nil, err
		}
	}
	uid, err := strconv.Atoi(u.Uid)
	if err != nil {
		return nil, err
	}
	gid, err := strconv.Atoi(u.Gid)
	if err != nil {
		return nil, err
	}
	as.Credential = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
	return as, os.Chown(dir, uid, gid)
}
