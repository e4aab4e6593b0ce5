#!/bin/sh
# The tests run on Postgres too, from the system's packages. As root on Debian it is installed; elsewhere one line
# says what is missing.
set -eu
for folder in "${ERRAND_PG_BIN:-}" /usr/lib/postgresql/*/bin /opt/homebrew/opt/postgresql@*/bin /usr/local/opt/postgresql@*/bin; do
	[ -n "$folder" ] && [ -x "$folder/initdb" ] && exit 0
done
command -v initdb >/dev/null && exit 0
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
	echo "installing Postgres for the tests"
	apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq postgresql >/dev/null
	exit 0
fi
echo "Postgres 15 or later is missing: install it (Debian: apt-get install postgresql; macOS: brew install postgresql@17)" >&2
exit 1
