#!/bin/sh
# Puts the peers that package-lock.json pins into .tools/peers, with the scripts that run them, and prints the Node.js
# for them: the one that comes with them, or that of this machine where there is none for it.
set -eu
cd "$(dirname "$0")/../.."
folder=.tools/peers

fail() {
    echo "tools: $*" >&2
    exit 1
}

install() {
    pinned=$(cat bench/peers/package-lock.json bench/peers/setup.sh | cksum)
    if [ "$(cat "$folder.stamp" 2>/dev/null)" = "$pinned" ] && [ -d "$folder/node_modules" ]; then
        return
    fi
    echo "tools: fetching bench/peers/package-lock.json into $folder" >&2
    rm -rf "$folder.stamp" "$folder"
    mkdir -p "$folder"
    cp bench/peers/package.json bench/peers/package-lock.json "$folder"
    (cd "$folder" && npm ci --silent --ignore-scripts --no-audit --no-fund >&2) ||
        fail "npm could not install bench/peers/package-lock.json: see its words above"
    echo "$pinned" >"$folder.stamp"
}

command -v node >/dev/null && command -v npm >/dev/null ||
    fail "node or npm is missing: the peers need Node.js 18 or later to be fetched (Debian: apt-get install nodejs npm)"
install
# Beside the packages, or they would not be found.
cp bench/peers/*.mjs "$folder"
node=$folder/node_modules/.bin/node
[ -x "$node" ] || node=$(command -v node)
"$node" -e 'const [a, b] = process.versions.node.split("."); process.exit(a * 1000 + b * 1 < 22018 ? 1 : 0)' ||
    fail "$("$node" --version) is too old: the peers need Node.js 22.18 or later"
case $node in
/*) echo "$node" ;;
*) echo "$PWD/$node" ;;
esac
