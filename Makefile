# Thin: each target is one command that can be run by hand.
LAB = cargo run --quiet --package tideover-e2e --bin lab --

.PHONY: help setup demo test unit test-vm e2e bench bench-quick bench-gate bench-transfer bench-restart generate lint lab-up lab-down

help:           ## This list
	@grep -hE '^[a-z0-9-]+: .*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-14s %s\n", $$1, $$2}'
setup:          ## Install the Debian packages that the lab needs
	e2e/setup.sh
demo: setup     ## Real cluster, helm install, redis, kubectl drain: the same process on another node
	cargo run --quiet --package tideover-e2e --bin demo
test: unit e2e  ## Everything that must hold, on the real cluster
unit: lint      ## Unit and property tests
	cargo test --workspace --exclude tideover-e2e
	cargo test --package tideover-e2e --lib --bins
test-vm:        ## Tests on another kernel, with cgroup v2, in a virtual machine
	e2e/setup.sh qemu-system-x86
	cargo test --package tideover-e2e --test vm
e2e: setup      ## End-to-end tests on the lab
	e2e/run.sh
bench: setup    ## The freeze through Tideover and bare runc, all cases, and the transfer, into docs/benchmarks.md; fifty minutes
	cargo build --quiet --package tideover-e2e --bins
	cargo run --quiet --package tideover-e2e --bin bench -- measure --write-docs
bench-quick: setup ## Only what there is a goal for; twenty minutes
	cargo build --quiet --package tideover-e2e --bins
	cargo run --quiet --package tideover-e2e --bin bench -- measure --quick
bench-gate:     ## Whether the ratios measured last keep to e2e/bench-limits.json
	cargo run --quiet --package tideover-e2e --bin bench -- gate
bench-transfer: ## What a transfer moves beside the same TLS connection without it, over loopback
	cargo run --quiet --release --package tideover-transfer -- --landing /dev/shm
bench-restart: setup ## Restarts in place beside s6, runit and kubelet, and whether they keep to their limits; ten minutes
	cargo build --quiet --package tideover-e2e --bins
	cargo run --quiet --package tideover-e2e --bin bench-restart
	cargo run --quiet --package tideover-e2e --bin bench -- gate target/bench/restart.json --limits e2e/bench-restart-limits.json
lint:           ## Formatting, lints, licences, generated files
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo run --quiet --package tideover-crds --bin crdgen -- --check charts/tideover/crds
	cargo run --quiet --package tideover-e2e --bin bench -- docs --check
	cargo deny --version >/dev/null 2>&1 || cargo install cargo-deny --locked
	cargo deny check licenses bans sources
generate:       ## Write the generated files
	cargo run --quiet --package tideover-crds --bin crdgen -- charts/tideover/crds
lab-up: setup   ## Start the lab
	$(LAB) up
lab-down:       ## Remove the lab
	$(LAB) down
