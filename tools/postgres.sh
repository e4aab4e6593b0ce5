#!/bin/sh
# Prints the folder of a Postgres 15 or later: the one with `initdb`, `postgres` and `createdb` in it.
#   postgres.sh find      looks in $ERRAND_PG_BIN, PATH, and where Debian and Homebrew put it (the newest first)
#   postgres.sh ensure    and, as root on Debian, installs it where it is missing
set -eu
oldest=15

# The major version of the Postgres in folder $1; nothing where there is none, or only some of its programs.
major() {
    [ -x "$1/initdb" ] && [ -x "$1/postgres" ] && [ -x "$1/createdb" ] || return 0
    "$1/postgres" --version 2>/dev/null | sed -n 's/^[^0-9]*\([0-9][0-9]*\).*/\1/p'
}

suits() {
    found=$(major "$1")
    [ -n "$found" ] && [ "$found" -ge "$oldest" ]
}

installed() {
    for folder in /usr/lib/postgresql/*/bin /opt/homebrew/opt/postgresql@*/bin /usr/local/opt/postgresql@*/bin \
        /opt/homebrew/opt/postgresql/bin /usr/local/opt/postgresql/bin /usr/pgsql-*/bin; do
        if suits "$folder"; then echo "$found $folder"; fi
    done | sort -rn | sed -n '1s/^[0-9]* //p'
}

find_postgres() {
    if [ -n "${ERRAND_PG_BIN:-}" ]; then
        if suits "$ERRAND_PG_BIN"; then echo "$ERRAND_PG_BIN"; fi
        return 0
    fi
    in_path=$(command -v initdb || true)
    if [ -n "$in_path" ] && suits "$(dirname "$in_path")"; then
        dirname "$in_path"
    else
        installed
    fi
}

install_on_debian() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 0
    echo "tools: installing Debian's package postgresql for the tests" >&2
    export DEBIAN_FRONTEND=noninteractive
    {
        apt-get -q -o DPkg::Lock::Timeout=300 update &&
            apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends postgresql
    } >&2 </dev/null || echo "tools: apt-get could not install postgresql" >&2
}

folder=$(find_postgres)
if [ -z "$folder" ] && [ "${1:-find}" = ensure ] && [ -z "${ERRAND_PG_BIN:-}" ]; then
    install_on_debian
    folder=$(find_postgres)
fi
if [ -z "$folder" ]; then
    if [ -n "${ERRAND_PG_BIN:-}" ]; then
        echo "tools: ERRAND_PG_BIN=$ERRAND_PG_BIN holds no Postgres $oldest or later (initdb, postgres, createdb)" >&2
    else
        echo "tools: the tests need Postgres $oldest or later: install it (Debian: apt-get install postgresql;" \
            "macOS: brew install postgresql@17), or name its bin folder in ERRAND_PG_BIN" >&2
    fi
    exit 1
fi
echo "$folder"
