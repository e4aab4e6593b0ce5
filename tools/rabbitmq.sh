#!/bin/sh
# Prints the folder of a RabbitMQ server's own scripts: the one with `rabbitmq-server` in it. (Debian's command of that
# name in PATH is another: it changes to a user of its own.)
#   rabbitmq.sh find      looks in $ERRAND_RABBITMQ_SBIN, and where Debian and Homebrew put it (the newest first)
#   rabbitmq.sh ensure    and, as root on Debian, installs it where it is missing
set -eu

suits() {
    [ -x "$1/rabbitmq-server" ] && command -v erl >/dev/null
}

find_rabbitmq() {
    if [ -n "${ERRAND_RABBITMQ_SBIN:-}" ]; then
        if suits "$ERRAND_RABBITMQ_SBIN"; then echo "$ERRAND_RABBITMQ_SBIN"; fi
        return 0
    fi
    for folder in /usr/lib/rabbitmq/lib/rabbitmq_server-*/sbin /opt/homebrew/opt/rabbitmq/sbin \
        /usr/local/opt/rabbitmq/sbin; do
        if suits "$folder"; then echo "$folder"; fi
    done | sort -r | sed -n 1p
}

install_on_debian() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 0
    echo "tools: installing Debian's package rabbitmq-server for the tests" >&2
    export DEBIAN_FRONTEND=noninteractive
    {
        apt-get -q -o DPkg::Lock::Timeout=300 update &&
            apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends rabbitmq-server
    } >&2 </dev/null || echo "tools: apt-get could not install rabbitmq-server" >&2
}

folder=$(find_rabbitmq)
if [ -z "$folder" ] && [ "${1:-find}" = ensure ] && [ -z "${ERRAND_RABBITMQ_SBIN:-}" ]; then
    install_on_debian
    folder=$(find_rabbitmq)
fi
if [ -z "$folder" ]; then
    if [ -n "${ERRAND_RABBITMQ_SBIN:-}" ]; then
        echo "tools: ERRAND_RABBITMQ_SBIN=$ERRAND_RABBITMQ_SBIN holds no rabbitmq-server, or there is no erl in PATH" >&2
    else
        echo "tools: the tests need a RabbitMQ server: install it (Debian: apt-get install rabbitmq-server;" \
            "macOS: brew install rabbitmq), or name the folder of its scripts in ERRAND_RABBITMQ_SBIN" >&2
    fi
    exit 1
fi
echo "$folder"
