package sytest

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"hanok/sytest/homeserver"
)

// TestReadyAndIdle holds the binary to what it promises of an empty server: ready
// in under a second (launch's own work comes on top), 40 MB of memory.
func TestReadyAndIdle(t *testing.T) {
	s := homeserver.NewNetwork(t).Start(homeserver.Options{}) // the first start may build the binary
	if err := s.Stop(); err != nil {
		t.Fatalf("SIGTERM: %v", err)
	}
	began := time.Now()
	s.Start()
	took := time.Since(began)
	t.Logf("ready after %v", took.Round(time.Millisecond))
	if took > 2*time.Second {
		t.Errorf("ready after %v, the promise is 2 s", took)
	}
	time.Sleep(time.Second) // memory is measured at rest
	if kb := residentKB(t, s.PID()); kb > 40<<10 {
		t.Errorf("%d kB of memory at rest, the promise is 40 MB", kb)
	} else {
		t.Logf("%d kB of memory at rest", kb)
	}
}

func residentKB(t *testing.T, pid int) int {
	t.Helper()
	status, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "status"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kb, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				t.Fatal(err)
			}
			return kb
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// TestHealthAndMetrics: both answer, and metrics only on their own listener.
func TestHealthAndMetrics(t *testing.T) {
	s := homeserver.NewNetwork(t).Start(homeserver.Options{})
	if status, body := s.Anonymous(t).Raw("GET", "/_matrix/client/versions", nil); status != http.StatusOK {
		t.Errorf("versions: %d %s", status, body)
	}
	for url, want := range map[string]string{
		s.ClientURL + "/health":                                  `"status":"ok"`,
		strings.TrimSuffix(s.MetricsURL, "/metrics") + "/health": `"status":"ok"`,
		s.MetricsURL: `hanok_http_request_seconds_count{api="client",method="GET",operation="getVersions",status="200"}`,
	} {
		if status, body := get(t, url); status != http.StatusOK || !strings.Contains(body, want) {
			t.Errorf("%s: %d %s", url, status, body)
		}
	}
	if status, _ := get(t, s.ClientURL+"/metrics"); status != http.StatusNotFound {
		t.Errorf("clients can read metrics: %d", status)
	}
}

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	res, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(body)
}
