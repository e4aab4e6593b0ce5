#!/bin/sh
# Installs what tools/requirements-test.txt pins into the .tools/venv that tools/setup.sh made. Does nothing where that
# is done: the stamp stands in the venv, and goes with it.
set -eu
cd "$(dirname "$0")/.."
venv=.tools/venv
stamp=$venv/test-stamp
pinned=$(cat tools/requirements-test.txt tools/test-packages.sh | cksum)
[ "$(cat "$stamp" 2>/dev/null)" = "$pinned" ] && exit 0

"$venv/bin/python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
    echo "tools: the tests with Playwright need Python 3.10 or later; this is $("$venv/bin/python" --version)" >&2
    exit 1
}
echo "tools: fetching Playwright for the tests into $venv" >&2
install="install --quiet --no-input --disable-pip-version-check --no-deps --require-hashes -r tools/requirements-test.txt"
# shellcheck disable=SC2086 # words on purpose
if "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    "$venv/bin/python" -m pip $install
else
    python3 -m pip --python "$venv/bin/python" $install
fi || {
    echo "tools: pip could not install tools/requirements-test.txt: see its words above" >&2
    exit 1
}
echo "$pinned" >"$stamp"
