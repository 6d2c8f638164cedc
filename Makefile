# `make` alone lists the targets.
#
# All work is done by scripts in tools/, so that each can be run without make as well.

# What systemd/install takes, if it was given on make's command line.
export PREFIX DESTDIR PYTHON PURGE

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
PYTHON_IN_VENV := .venv/bin/python

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-16s %s\n", $$1, $$2}' Makefile

.PHONY: setup
setup: ## install what the project needs; a second run does nothing
	@tools/setup

.PHONY: setup-emulator
setup-emulator: ## besides, what it takes to boot a kernel with WireGuard for tests
	@tools/setup --emulator

.PHONY: liboqs
liboqs: setup ## the library liboqs for tests and benchmarks of it, below .setup (needs cargo, cmake)
	@tools/liboqs

.PHONY: liboqs-if-possible
liboqs-if-possible: setup
	@tools/liboqs --if-possible

.PHONY: wireguard-go
wireguard-go: ## a current wireguard-go below .setup, for benchmarks (needs go)
	@tools/wireguard-go

.PHONY: wireguard-go-if-possible
wireguard-go-if-possible:
	@tools/wireguard-go --if-possible

.PHONY: setup-long
setup-long: ## besides, what it takes to boot a Debian with systemd, for tests marked long
	@tools/setup --emulator --guest

.PHONY: demo
demo: setup ## two sites, a router, a tunnel: watch a link live through renewal and SIGKILL
	@$(PYTHON_IN_VENV) -m vpnd_lab.demo

.PHONY: demo-qkd
demo-qkd: setup ## data centres with QKD key managers, and a branch: one is cut off under traffic
	@$(PYTHON_IN_VENV) -m vpnd_lab.demo_qkd

.PHONY: test
test: setup-emulator liboqs-if-possible ## everything but the tests marked long; what CI runs
	@$(PYTHON_IN_VENV) tools/run_checks.py full

.PHONY: test-fast
test-fast: setup ## static checks and the quicker tests that need no namespaces; under a minute
	@$(PYTHON_IN_VENV) tools/run_checks.py fast

.PHONY: test-long
test-long: setup-long liboqs-if-possible ## everything, the tests marked long included
	@$(PYTHON_IN_VENV) tools/run_checks.py long

.PHONY: prove
prove: ## run the proofs of the key exchange (needs ProVerif); docs/formal/README.md
	@python3 -B docs/formal/prove.py

# What comes first on PATH is what daemons, labs and tunnels configured by hand start.
bench bench-peers: export PATH := $(CURDIR)/.setup/wireguard-go:$(PATH)

.PHONY: bench
bench: setup-emulator liboqs-if-possible wireguard-go-if-possible ## measure; docs/benchmarks.md
	@$(PYTHON_IN_VENV) -m bench

.PHONY: bench-peers
bench-peers: setup wireguard-go-if-possible ## vpnd beside Rosenpass (needs cargo); docs/benchmarks-peers.md
	@tools/rosenpass
	@$(PYTHON_IN_VENV) -m bench.peers

.PHONY: install
install: ## into PREFIX (/opt/vpnd) with units and completions, as root; or below DESTDIR
	@systemd/install

.PHONY: uninstall
uninstall: ## all but configuration and identity; with PURGE=1 those, too
	@systemd/install --remove

.PHONY: format
format: setup ## let ruff format the code and mend what it can
	@.venv/bin/ruff format .
	@.venv/bin/ruff check --fix .

.PHONY: pins
pins: ## write requirements.txt anew from pyproject.toml (needs uv)
	@tools/pin

.PHONY: clean
clean: ## remove what set-up and tests made in this folder (packages stay installed)
	@rm -rf .venv .setup .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
