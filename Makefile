# The common tasks; the README's two commands are `make serve` and `make check` spelt out.

BENCH ?= .
BENCHTIME ?= 1s
SEEDS ?= 2000
FRESH ?= 0

.PHONY: build serve check test lint simulation e2e interop bench fuzz spec launch-build

build: ## the one binary, in bin/
	go build -trimpath -o bin/hanok ./cmd/hanok

serve: ## a server on this machine, see README.md
	go run ./cmd/hanok quickstart

check: ## install what the tests need, then run them all
	./.ci/run

lint:
	go vet ./...
	@unformatted=$$(gofmt -l $$(git ls-files '*.go')); [ -z "$$unformatted" ] || { echo "gofmt: $$unformatted"; exit 1; }

test: lint ## all Go tests, end-to-end test included, then the simulation
	go test ./...
	$(MAKE) simulation

simulation: ## thousands of seeds: SEEDS always the same ones, FRESH others every day
	go test ./sytest/simulation -run TestSimulation -count=1 -timeout 0 -v -seeds $(SEEDS) -fresh $(FRESH)

e2e: ## two servers and a real client, a line per step; needs `npm ci` in sytest/e2e
	go test ./sytest -run 'TestEndToEnd' -count=1 -v

interop: ## against another homeserver, by default Synapse; see docs/contributing.md
	@launch=$${HANOK_INTEROP:-$(CURDIR)/sytest/synapse}; \
	if [ "$$launch" = "$(CURDIR)/sytest/synapse" ] && ! sytest/synapse --installed; then \
		echo "Synapse is not installed. Run 'sytest/synapse --install' (Debian's package, into a folder of its own; needs debootstrap and root),"; \
		echo "or set HANOK_INTEROP to a program that starts another homeserver from the variables that sytest/launch describes."; exit 1; \
	fi; \
	HANOK_INTEROP=$$launch go test ./sytest -run 'TestInterop(Corners)?$$' -count=1 -timeout 45m -v

bench: ## BENCH=regexp selects, as in make bench BENCH=Append
	go test -run '^$$' -bench '$(BENCH)' -benchtime $(BENCHTIME) -benchmem ./...

fuzz: ## every fuzz target for FUZZTIME
	@for target in $$(grep -rlE '^func Fuzz' --include=*_test.go . | xargs -n1 dirname | sort -u); do \
		for f in $$(grep -hoE '^func Fuzz[A-Za-z0-9_]*' $$target/*_test.go | cut -d' ' -f2); do \
			echo "$$target $$f"; go test $$target -run '^$$' -fuzz "^$$f$$" -fuzztime $${FUZZTIME:-10s} || exit 1; \
		done; \
	done

spec: ## operations of the specification that have no handler
	go test ./internal/specref -run TestHandlers -count=1 -v

launch-build: ## the binary that sytest/launch starts
	sytest/launch --build
