package media

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
)

// headSize is how many first bytes of an upload the Policy is shown.
const headSize = 4096

var errTooLarge = errors.New("larger than allowed")

// fileStore keeps contents under DIR/content/ab/cd/HASH and what is derived from
// them under DIR/thumbnails/ab/cd/HASH/.
type fileStore struct {
	dir string
	// Between writing a file and committing the row that refers to it, nobody
	// may find the file without references: writers share this lock, removal takes it alone.
	lock *sync.RWMutex
}

func newFileStore(dir string) (fileStore, error) {
	s := fileStore{dir: dir, lock: new(sync.RWMutex)}
	// What an earlier run left half written is of no use.
	if err := os.RemoveAll(s.temporary()); err != nil {
		return s, err
	}
	return s, os.MkdirAll(s.temporary(), 0o700)
}

func (s fileStore) temporary() string { return filepath.Join(s.dir, "tmp") }

func (s fileStore) path(kind, hash string) string {
	return filepath.Join(s.dir, kind, hash[:2], hash[2:4], hash)
}

// stored is a file that no row may refer to yet; release it after the commit.
type stored struct {
	hash    string
	size    int64
	release func()
}

// write stores what it reads, durably, if it has at most limit bytes; else errTooLarge.
func (s fileStore) write(body io.Reader, limit int64) (stored, error) {
	tmp, err := os.CreateTemp(s.temporary(), "")
	if err != nil {
		return stored{}, err
	}
	defer os.Remove(tmp.Name()) // fails when it was moved, as it should
	defer tmp.Close()
	sum := sha256.New()
	size, err := io.Copy(io.MultiWriter(tmp, sum), io.LimitReader(body, limit+1))
	if err != nil {
		return stored{}, err
	}
	if size > limit {
		return stored{}, errTooLarge
	}
	if err := tmp.Sync(); err != nil {
		return stored{}, err
	}
	hash := hex.EncodeToString(sum.Sum(nil))
	path := s.path("content", hash)
	s.lock.RLock()
	if err := s.place(tmp.Name(), path); err != nil {
		s.lock.RUnlock()
		return stored{}, err
	}
	return stored{hash: hash, size: size, release: s.lock.RUnlock}, nil
}

// place moves a finished file to its path, durably.
func (s fileStore) place(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
		return err
	}
	if err := os.Rename(from, to); err != nil {
		return err
	}
	for dir := filepath.Dir(to); dir != filepath.Dir(s.dir); dir = filepath.Dir(dir) {
		if err := syncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

func (s fileStore) open(hash string) (*os.File, error) { return os.Open(s.path("content", hash)) }

// exclusive runs fn while no file is between disk and database.
func (s fileStore) exclusive(fn func() error) error {
	s.lock.Lock()
	defer s.lock.Unlock()
	return fn()
}

func (s fileStore) remove(hash string) error {
	if err := os.RemoveAll(s.path("thumbnails", hash)); err != nil {
		return err
	}
	if err := os.Remove(s.path("content", hash)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// peek returns the first headSize bytes, fewer of a shorter file, and a reader of everything.
func peek(r io.Reader) (io.Reader, []byte, error) {
	b := bufio.NewReaderSize(r, headSize)
	head, err := b.Peek(headSize)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, nil, err
	}
	return b, head, nil
}
