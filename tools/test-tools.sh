#!/bin/sh
# Fetches what only the tests need into .tools/: test-venv with the packages of tools/requirements-test.txt (a server
# that stands in for Amazon's, and a verifier of webhooks), and node with those of tools/node/ (another verifier).
# Does nothing where that is done. Interrupted, it starts over: the stamp is the last thing that it writes.
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "tools: $*" >&2
    exit 1
}

pinned=$(cat tools/requirements-test.txt tools/node/package-lock.json tools/test-tools.sh tools/venv.sh | cksum)
stamp=.tools/test-stamp
venv=.tools/test-venv
node=.tools/node
command -v node >/dev/null && command -v npm >/dev/null ||
    fail "node or npm is missing: the tests need Node.js 18 or later (Debian: apt-get install nodejs npm)"
# The interpreter is asked too: a venv dies with the Python that made it.
if [ "$(cat "$stamp" 2>/dev/null)" = "$pinned" ] && [ -d "$node/node_modules" ] && "$venv/bin/python" -c '' 2>/dev/null
then
    exit 0
fi

echo "tools: fetching moto and the verifiers of webhooks into .tools/" >&2
mkdir -p .tools
rm -rf "$stamp" "$node"
sh tools/venv.sh "$venv" tools/requirements-test.txt
cp -R tools/node "$node"
(cd "$node" && npm ci --silent --ignore-scripts --no-audit --no-fund >&2) ||
    fail "npm could not install tools/node/package-lock.json: see its words above"
echo "$pinned" >"$stamp.new"
mv -f "$stamp.new" "$stamp"
