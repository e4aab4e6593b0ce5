#!/bin/sh
# Prints the path of a Redis server.
#   redis.sh find      looks in $ERRAND_REDIS, and in PATH
#   redis.sh ensure    and, as root on Debian, installs it where it is missing
set -eu

find_redis() {
    if [ -n "${ERRAND_REDIS:-}" ]; then
        if [ -x "$ERRAND_REDIS" ]; then echo "$ERRAND_REDIS"; fi
        return 0
    fi
    command -v redis-server || true
}

install_on_debian() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 0
    echo "tools: installing Debian's package redis-server for the benchmark" >&2
    export DEBIAN_FRONTEND=noninteractive
    {
        apt-get -q -o DPkg::Lock::Timeout=300 update &&
            apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends redis-server
    } >&2 </dev/null || echo "tools: apt-get could not install redis-server" >&2
}

found=$(find_redis)
if [ -z "$found" ] && [ "${1:-find}" = ensure ] && [ -z "${ERRAND_REDIS:-}" ]; then
    install_on_debian
    found=$(find_redis)
fi
if [ -z "$found" ]; then
    if [ -n "${ERRAND_REDIS:-}" ]; then
        echo "tools: ERRAND_REDIS=$ERRAND_REDIS is no program" >&2
    else
        echo "tools: the benchmark of peers needs a Redis server: install it (Debian: apt-get install redis-server;" \
            "macOS: brew install redis), or name it in ERRAND_REDIS" >&2
    fi
    exit 1
fi
echo "$found"
