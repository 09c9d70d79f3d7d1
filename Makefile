# Crake. `make help` lists what there is. Local equals CI: .ci/run calls `make test` and nothing else.

SHELL       := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS   += --no-print-directory

GO      ?= go
MOUNT   ?= /mnt/weka
# Where `make demo` keeps its cluster: on a disk, so that the data outlives a reboot.
DEMO    ?= $(CURDIR)/.demo
DRIVE_SIZE ?= 4GiB
FUZZTIME ?= 20s

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
LDFLAGS := -s -w -X main.version=$(VERSION)
GOBUILD  = CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)'

# Unit tests are everything but the tests on a real cluster, which run alone, after them.
E2E      := ./bench/e2e/...
UNIT      = $$($(GO) list ./... | grep -v /bench/e2e)
# Packages with goroutines worth the race detector (it needs cgo, so a C compiler).
RACE      = $$($(GO) list ./wire/... ./drive/... ./compute/... ./frontend/... ./mgmt/...)

# Tests that walk through every state a crash can leave, one after the other in one goroutine: unit runs them, race would only be slow.
ENUMERATE = ^(TestCrashExhaustive|TestCrashEverywhere|TestCrashAtEveryStep)$$

.DEFAULT_GOAL := help

.PHONY: help
help: ## this list
	@echo "Crake: a parallel filesystem. As root on a Debian machine with Go: make demo"
	@echo
	@sed -nE 's/^([a-z0-9-]+):.*## (.*)$$/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "  %-14s %s\n", $$1, $$2}'
	@echo
	@echo "  Settings: MOUNT=$(MOUNT) DEMO=$(DEMO) DRIVE_SIZE=$(DRIVE_SIZE) FUZZTIME=$(FUZZTIME)"

.PHONY: build
build: ## the one static binary, bin/crake
	@mkdir -p bin
	$(GOBUILD) -o bin/crake ./cmd/crake

.PHONY: demo
demo: build ## build, form a one-server cluster, mount it at MOUNT, say what to try
	@bash scripts/demo.sh up "$(DEMO)" "$(MOUNT)" "$(DRIVE_SIZE)"

.PHONY: demo-stop
demo-stop: ## unmount and stop; the data stays, and make demo brings it back
	@bash scripts/demo.sh down "$(DEMO)"

.PHONY: demo-wipe
demo-wipe: ## unmount, stop and remove the data of the demo
	@bash scripts/demo.sh wipe "$(DEMO)"

.PHONY: deps
deps: ## install what the tests call (fio, sqlite3, git, gcc for -race), only what is missing
	@bash scripts/deps.sh

.PHONY: check
check: ## gofmt, vet, staticcheck, the rules of the tree, generated code up to date
	@echo "== gofmt"; out=$$(gofmt -l $$(git ls-files '*.go')); if [ -n "$$out" ]; then echo "not formatted: $$out"; exit 1; fi
	@echo "== go vet"; $(GO) vet ./...; $(GO) vet -tags crake_next ./wire/...
	@echo "== staticcheck"; $(GO) tool staticcheck ./...
	@echo "== rules of the tree"; $(GO) test ./bench/lint
	@echo "== generated code"; bash scripts/generated.sh

.PHONY: unit
unit: ## unit tests of all packages
	$(GO) test -timeout 5m $(UNIT)
	$(GO) test -tags crake_next ./wire && $(GO) test -tags crake_next -run TestNext ./wire/rpc

.PHONY: race
race: ## the same for everything with goroutines, under the race detector
	CGO_ENABLED=1 $(GO) test -race -short -timeout 8m -skip '$(ENUMERATE)' $(RACE)

.PHONY: e2e
e2e: build deps ## tests on real clusters: real input, kill -9 of every role, hostile peers, bad input (needs root and /dev/fuse)
	CRAKE_BIN=$(CURDIR)/bin/crake $(GO) test -count=1 -v -parallel 12 -timeout 12m $(E2EFLAGS) $(E2E) 2>&1 | bash scripts/e2efilter.sh

.PHONY: test
test: deps build check unit race e2e ## everything, on a fresh machine, in under 15 minutes on two cores
	@echo "== all tests passed"

.PHONY: fuzz
fuzz: ## every fuzz test for FUZZTIME each
	@bash scripts/fuzz.sh $(FUZZTIME)

.PHONY: bench
bench: build deps ## measure the figures of BENCHMARKS.md on a cluster in memory; prints a table and JSON
	CRAKE_BIN=$(CURDIR)/bin/crake $(GO) run ./bench/speed $(BENCHFLAGS)

.PHONY: bench-drive
bench-drive: build deps ## measure one drive against fio on the same device: disk, loop device, memory (needs root)
	@$(GO) build -trimpath -o bin/drivespeed ./bench/drivespeed
	CRAKE_BIN=$(CURDIR)/bin/crake bin/drivespeed $(BENCHFLAGS)

.PHONY: bench-wire
bench-wire: ## measure one request and its answer against a bare exchange over a unix socket, with and without spinning
	@$(GO) build -trimpath -o bin/wirespeed ./bench/wirespeed
	bin/wirespeed $(BENCHFLAGS)

.PHONY: bench-drive-perf
bench-drive-perf: deps ## the same with profiles of both sides by perf: BENCHFLAGS='--devices disk --runs 1'
	@CGO_ENABLED=0 $(GO) build -trimpath -o bin/symbols/crake ./cmd/crake
	@$(GO) build -trimpath -o bin/drivespeed ./bench/drivespeed
	CRAKE_BIN=$(CURDIR)/bin/symbols/crake bin/drivespeed --perf $(BENCHFLAGS)

.PHONY: bench-drive-open
bench-drive-open: ## open a drive with ten million strips, and checkpoint it under load (3 GiB of memory)
	CRAKE_STRIPS=10000000 $(GO) test -count=1 -timeout 10m -v -run 'TestOpenMany|TestCheckpointPauses' ./drive/internal/store

.PHONY: bench-copies
bench-copies: ## count the bytes that are copied for each byte of a file, and processor time, through sockets and by shared memory (needs root)
	@CGO_ENABLED=0 $(GO) build -trimpath -tags crake_copies -o bin/copies/crake ./cmd/crake
	CRAKE_BIN=$(CURDIR)/bin/copies/crake $(GO) run ./bench/copies $(BENCHFLAGS)

.PHONY: generate
generate: ## write generated code anew
	$(GO) generate ./...

.PHONY: golden
golden: ## write the golden bytes of the current formats anew (look at the difference before you commit it)
	CRAKE_GOLDEN=write $(GO) test -run Golden -count=1 -tags crake_next ./wire
	CRAKE_GOLDEN=write $(GO) test -run Golden -count=1 $(UNIT)

.PHONY: clean
clean: ## remove what make built (not the demo's data)
	rm -rf bin
