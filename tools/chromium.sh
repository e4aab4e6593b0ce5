#!/bin/sh
# Prints the path of a Chromium or Chrome.
#   chromium.sh find      looks in $ERRAND_CHROMIUM, PATH, and among macOS's applications, as the browser runner does
#   chromium.sh ensure    and, as root on Debian, installs it where it is missing
set -eu

find_chromium() {
    if [ -n "${ERRAND_CHROMIUM:-}" ]; then
        if [ -x "$ERRAND_CHROMIUM" ]; then echo "$ERRAND_CHROMIUM"; fi
        return 0
    fi
    for name in chromium chromium-browser google-chrome-stable google-chrome chrome; do
        if command -v "$name"; then return 0; fi
    done
    for app in "/Applications/Chromium.app/Contents/MacOS/Chromium" \
        "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"; do
        if [ -x "$app" ]; then
            echo "$app"
            return 0
        fi
    done
}

install_on_debian() {
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 0
    echo "tools: installing Debian's package chromium for the tests" >&2
    export DEBIAN_FRONTEND=noninteractive
    {
        apt-get -q -o DPkg::Lock::Timeout=300 update &&
            apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends chromium fonts-liberation
    } >&2 </dev/null || echo "tools: apt-get could not install chromium" >&2
}

found=$(find_chromium)
if [ -z "$found" ] && [ "${1:-find}" = ensure ] && [ -z "${ERRAND_CHROMIUM:-}" ]; then
    install_on_debian
    found=$(find_chromium)
fi
if [ -z "$found" ]; then
    if [ -n "${ERRAND_CHROMIUM:-}" ]; then
        echo "tools: ERRAND_CHROMIUM=$ERRAND_CHROMIUM is no program" >&2
    else
        echo "tools: the tests need Chromium: install it (Debian: apt-get install chromium; macOS: brew install --cask" \
            "chromium), or name it in ERRAND_CHROMIUM" >&2
    fi
    exit 1
fi
echo "$found"
