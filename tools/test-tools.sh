#!/bin/sh
# Fetches what only the tests need into .tools/: test-venv with the packages of tools/requirements-test.txt (a server
# that stands in for Amazon's, and a verifier of webhooks), api-venv with those of tools/requirements-api.txt (what
# checks the HTTP API against its description, and makes a client of it), playwright-venv with those of
# tools/requirements-playwright.txt (what attaches to browsers), and node with those of tools/node/ (another verifier).
# Does nothing where that is done. Interrupted, it starts over: each stamp is the last thing that is written.
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "tools: $*" >&2
    exit 1
}

# venv FOLDER REQUIREMENTS
venv() {
    pinned=$(cat "$2" tools/test-tools.sh tools/venv.sh | cksum)
    # The interpreter is asked too: a venv dies with the Python that made it.
    if [ "$(cat "$1.stamp" 2>/dev/null)" = "$pinned" ] && "$1/bin/python" -c '' 2>/dev/null; then
        return
    fi
    echo "tools: fetching $2 into $1" >&2
    rm -f "$1.stamp"
    sh tools/venv.sh "$1" "$2"
    echo "$pinned" >"$1.stamp"
}

node() {
    pinned=$(cat tools/node/package-lock.json tools/test-tools.sh | cksum)
    folder=.tools/node
    if [ "$(cat "$folder.stamp" 2>/dev/null)" = "$pinned" ] && [ -d "$folder/node_modules" ]; then
        return
    fi
    echo "tools: fetching tools/node into $folder" >&2
    rm -rf "$folder.stamp" "$folder"
    cp -R tools/node "$folder"
    (cd "$folder" && npm ci --silent --ignore-scripts --no-audit --no-fund >&2) ||
        fail "npm could not install tools/node/package-lock.json: see its words above"
    echo "$pinned" >"$folder.stamp"
}

python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    fail "$(python3 --version) is too old: the tests need Python 3.11 or later"
command -v node >/dev/null && command -v npm >/dev/null ||
    fail "node or npm is missing: the tests need Node.js 18 or later (Debian: apt-get install nodejs npm)"
mkdir -p .tools
venv .tools/test-venv tools/requirements-test.txt
venv .tools/api-venv tools/requirements-api.txt
venv .tools/playwright-venv tools/requirements-playwright.txt
node
