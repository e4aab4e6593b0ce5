#!/bin/sh
# The stack of docker-compose.yml, for real: built, started, looked at from outside, put under load while a container of
# each service and a broker of the cluster are killed, checked by the ledger, and taken down. As root on Debian it
# installs what it needs and starts a docker of its own where none answers. Everything that it starts ends with it.
#   BUILD=image   compiles within docker build, as users do (needs a registry there); else the host compiles
#   PROFILE=debug compiles on the host without optimising, which is sooner done; such an image is not measured
#   SECONDS_OF_LOAD=60 RATE=5
#   PARTS='kills rolling backup cluster'   which parts, after the demo
set -eu
cd "$(dirname "$0")/../.."
load=${SECONDS_OF_LOAD:-60}
rate=${RATE:-5}
target=${CARGO_TARGET_DIR:-target}
profile=${PROFILE:-release}
scratch=${SCRATCH:-$(mktemp -d)}
mkdir -p "$scratch"
export COMPOSE_PROJECT_NAME=errand-test SECRETS="$scratch/secrets" PROGRAM=host ERRAND_TAG=test
# BuildKit, also by docker-compose 1.29: only then does a build skip the stages that it does not need.
export DOCKER_BUILDKIT=1 COMPOSE_DOCKER_CLI_BUILD=1

say() { echo "compose-test: $(date -u +%T) $*"; }
fail() {
    say "FAILED: $*"
    exit 1
}

install_tools() {
    for tool in docker dockerd debootstrap curl; do
        command -v $tool >/dev/null || missing=yes
    done
    compose version >/dev/null 2>&1 || missing=yes
    [ "${missing:-no}" = yes ] || return 0
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || fail "needs docker, docker compose, debootstrap and curl"
    say "installing Debian's packages docker.io, docker-compose, debootstrap, curl"
    apt-get -q update >/dev/null 2>&1 || true
    DEBIAN_FRONTEND=noninteractive apt-get -q -y install --no-install-recommends \
        docker.io docker-compose debootstrap curl >"$scratch/apt.log" 2>&1 || fail "apt-get: $scratch/apt.log"
}

compose() {
    if docker compose version >/dev/null 2>&1; then docker compose "$@"; else docker-compose "$@"; fi
}

start_docker() {
    docker info >/dev/null 2>&1 && return 0
    say "starting a docker of our own"
    export DOCKER_HOST="unix://$scratch/docker.sock"
    dockerd --data-root "$scratch/docker" --exec-root "$scratch/docker-exec" --pidfile "$scratch/docker.pid" \
        -H "$DOCKER_HOST" >"$scratch/dockerd.log" 2>&1 &
    dockerd=$!
    wait_for "docker" docker info
}

# wait_for WHAT COMMAND...: two minutes at most.
wait_for() {
    what=$1
    shift
    until=$(($(date +%s) + 120))
    until "$@" >/dev/null 2>&1; do
        [ "$(date +%s)" -lt "$until" ] || fail "$what is not there after two minutes: $("$@" 2>&1 | tail -n 5)"
        sleep 0.5
    done
}

clean_up() {
    status=$?
    trap - EXIT INT TERM
    [ -n "${ledger:-}" ] && kill "$ledger" 2>/dev/null || true
    if [ $status != 0 ]; then
        compose --profile cluster ps || true
        compose --profile cluster logs --tail=15 2>/dev/null | grep -v '^Attaching' | tail -n 120 || true
    fi
    compose --profile cluster down -v --remove-orphans >/dev/null 2>&1 || true
    if [ -n "${dockerd:-}" ]; then
        kill "$dockerd"
        wait "$dockerd" 2>/dev/null || true
    fi
    rm -rf deploy/bin
    [ -n "${KEEP:-}" ] || rm -rf "$scratch"
    exit $status
}

free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

build() {
    say "compiling the load and the ledger, and the program for the images"
    cargo build --locked -q -p errand-tests --bin errand-tests-ledger
    if [ "$profile" = release ]; then
        cargo build --locked -q --release -p errand-cli
    else
        cargo build --locked -q -p errand-cli
    fi
    mkdir -p deploy/bin
    strip -o deploy/bin/errand "$target/$profile/errand"
    if [ "${BUILD:-host}" = image ]; then PROGRAM=build; fi
    sh deploy/test/base-images.sh "$scratch/images" "${NATS_SERVER:-.tools/bin/nats-server}"
    say "building the images (PROGRAM=$PROGRAM)"
    compose build >"$scratch/build.log" 2>&1 || fail "compose build: $(tail -n 20 "$scratch/build.log")"
    docker images --format '{{.Repository}}:{{.Tag}} {{.Size}}' | grep -E '^errand' | sed 's/^/compose-test:   /'
    # In bytes, as the limit is.
    size=$(docker image inspect -f '{{.Size}}' "errand:$ERRAND_TAG")
    [ "$profile" = debug ] || [ "$size" -lt 150000000 ] || fail "the image has $size bytes, more than 150 MB"
}

# The containers of a service.
containers() {
    docker ps -aq --filter "label=com.docker.compose.project=$COMPOSE_PROJECT_NAME" \
        --filter "label=com.docker.compose.service=$1"
}

healthy() {
    for service in "$@"; do
        ids=$(containers "$service")
        [ -n "$ids" ] || return 1
        for id in $ids; do
            state=$(docker inspect -f '{{.State.Health.Status}}' "$id")
            [ "$state" = healthy ] || { echo "$service is $state"; return 1; }
        done
    done
}

# SIGKILL from outside, as when memory runs out. `docker kill` would count as stopped by hand, and nothing would start it
# again.
kill9() {
    id=$(containers "$1" | head -n 1)
    pid=$(docker inspect -f '{{.State.Pid}}' "$id")
    say "kill -9 of a $1"
    kill -9 "$pid"
}

errand() { "$target/$profile/errand" --nats-credentials "$SECRETS/nats/operator.creds" "$@"; }

start() {
    say "starting: $*"
    compose "$@" up -d >"$scratch/up.log" 2>&1 || fail "compose up: $(tail -n 20 "$scratch/up.log")"
    wait_for "a healthy stack" healthy nats postgres dispatcher session-pool timeout-watcher notifier vault storage gateway exec portal
}

demo() {
    errand task apply examples/hello/hello.task.json examples/portal/bills.task.json >/dev/null
    errand run hello --input '{"name": "Ada"}' --watch || fail "hello"
    input='{"portal_url": "http://portal:8090", "email": "ada@example.com", "limit": 3}'
    run=$(errand --json run portal-bills --input "$input" | sed -n 's/.*"id":"\(trun_[a-z0-9]*\)".*/\1/p' | head -n 1)
    wait_for "the portal agent's question" asks "$run"
    code=$(curl -s "http://127.0.0.1:$PORTAL_PORT/_mailbox?email=ada@example.com" |
        python3 -c 'import json, re, sys; print(re.search(r"\b(\d{6})\b", json.dumps(json.load(sys.stdin)))[1])')
    errand interact "$run" code="$code" >/dev/null
    wait_for "the bills" status "$run" completed
    say "portal-bills $run: asked for the code, answered, completed"
    secret=$(errand --json keys create compose-test | sed -n 's/.*"secret":"\([^"]*\)".*/\1/p')
    told=$(echo "$secret" | python3 deploy/test/over_http.py "http://127.0.0.1:$HTTP_PORT" \
        "http://127.0.0.1:$PORTAL_PORT" http://portal:8090) || fail "over HTTP"
    say "over HTTP: $told"
}

status() { errand --json runs get "$1" | grep -q "\"status\":\"$2\""; }
asks() { status "$1" interaction_required; }

# under_load TENANT SERVICES...: kills one of each, one after the other, while runs are asked for.
under_load() {
    tenant=$1
    shift
    "$target/debug/errand-tests-ledger" --tenant "$tenant" --seconds "$load" --rate "$rate" \
        --nats-credentials "$SECRETS/nats/operator.creds" >"$scratch/ledger.log" 2>&1 &
    ledger=$!
    pause=$((load / ($# + 1)))
    for service in "$@"; do
        sleep $pause
        kill -0 $ledger 2>/dev/null || break
        kill9 "$service"
    done
    wait $ledger || fail "the ledger: $(cat "$scratch/ledger.log")"
    ledger=
    sed 's/^/compose-test:   /' "$scratch/ledger.log"
    wait_for "a stack that is healthy again" healthy nats postgres dispatcher session-pool timeout-watcher notifier vault storage gateway exec
}

# As in an upgrade: every container of our own is told to stop and started again, one after the other, under load. Old
# and new are the same version here; what it shows is that a service may go and come in an orderly way.
rolling() {
    "$target/debug/errand-tests-ledger" --tenant rolling --seconds "$load" --rate "$rate" \
        --nats-credentials "$SECRETS/nats/operator.creds" >"$scratch/ledger.log" 2>&1 &
    ledger=$!
    for service in dispatcher timeout-watcher notifier vault storage gateway session-pool exec; do
        for id in $(containers "$service"); do
            say "exchanging a $service"
            docker restart -t 30 "$id" >/dev/null
            wait_for "the new $service" healthy "$service"
        done
    done
    kill -0 $ledger 2>/dev/null || say "the load had ended before: raise SECONDS_OF_LOAD"
    wait $ledger || fail "the ledger: $(cat "$scratch/ledger.log")"
    ledger=
    sed 's/^/compose-test:   /' "$scratch/ledger.log"
}

# The store, dumped under load, restored into an empty database later: what the dump holds goes on to its end.
backup() {
    postgres=$(containers postgres)
    "$target/debug/errand-tests-ledger" --tenant backup --seconds 12 --rate "$rate" \
        --nats-credentials "$SECRETS/nats/operator.creds" >"$scratch/ledger.log" 2>&1 &
    ledger=$!
    sleep 6
    docker exec "$postgres" pg_dump -U errand -Fc -f /tmp/errand.dump errand
    say "dumped under load"
    wait $ledger || fail "the ledger: $(cat "$scratch/ledger.log")"
    ledger=
    (unset ERRAND_NATS_URL && compose stop exec gateway storage vault notifier timeout-watcher session-pool dispatcher) >/dev/null 2>&1
    docker exec "$postgres" dropdb -U errand errand
    docker exec "$postgres" createdb -U errand errand
    docker exec "$postgres" pg_restore -U errand -d errand /tmp/errand.dump
    (unset ERRAND_NATS_URL && compose start dispatcher session-pool timeout-watcher notifier vault storage gateway exec) >/dev/null 2>&1
    wait_for "a healthy stack after the restore" healthy dispatcher session-pool timeout-watcher notifier vault storage gateway exec
    wait_for "the end of every run of the dump" all_final backup
    say "restored: $(errand --json --tenant backup runs list --limit 1000 | grep -c trun_) runs of the dump, all final"
}

all_final() {
    for status in queued running interaction_required review_required canceling; do
        open=$(errand --json --tenant "$1" runs list --status $status) && [ -z "$open" ] || return 1
    done
}

install_tools
trap clean_up EXIT INT TERM
start_docker
compose --profile cluster down -v --remove-orphans >/dev/null 2>&1 || true
build
for port in NATS_PORT NATS_PORT_2 NATS_PORT_3 NATS_MONITOR_PORT POSTGRES_PORT HTTP_PORT PORTAL_PORT; do
    export "$port=$(free_port)"
done
export PUBLIC_URL="http://127.0.0.1:$HTTP_PORT"
sh deploy/secrets.sh "$target/$profile/errand" "$SECRETS" >/dev/null

wanted() { case " ${PARTS:-kills rolling backup cluster} " in *" $1 "*) ;; *) return 1 ;; esac }

on_one_broker() {
    export ERRAND_NATS_URL="nats://127.0.0.1:$NATS_PORT"
    # Within the stack the broker has another address than out here.
    (unset ERRAND_NATS_URL && start) || exit 1
    say "errand doctor:"
    errand doctor || fail "the doctor"
    demo
    if wanted kills; then
        under_load kills dispatcher session-pool timeout-watcher notifier vault storage gateway exec postgres nats
    fi
    if wanted rolling; then rolling; fi
    if wanted backup; then backup; fi
    errand doctor >/dev/null || fail "the doctor, afterwards"
    compose down -v >/dev/null 2>&1
}

on_three_brokers() {
    say "the same with three brokers"
    (unset ERRAND_NATS_URL && start --env-file deploy/cluster.env --profile cluster) || exit 1
    export ERRAND_NATS_URL="nats://127.0.0.1:$NATS_PORT,nats://127.0.0.1:$NATS_PORT_2,nats://127.0.0.1:$NATS_PORT_3"
    errand doctor || fail "the doctor of the cluster"
    under_load cluster nats-2 dispatcher nats
}

if wanted kills || wanted rolling || wanted backup; then on_one_broker; fi
if wanted cluster; then on_three_brokers; fi
say "passed"
