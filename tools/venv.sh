#!/bin/sh
# venv.sh FOLDER REQUIREMENTS: makes a Python virtual environment with exactly what REQUIREMENTS pins.
# Called from the project's root. The folder is made anew.
set -eu
venv=$1
requirements=$2

fail() {
    echo "tools: $*" >&2
    exit 1
}

command -v python3 >/dev/null || fail "python3 is missing: install Python 3.9 or later"
python3 -c 'import sys; sys.exit(sys.version_info < (3, 9))' ||
    fail "$(python3 --version) is too old: install Python 3.9 or later"

rm -rf "$venv"
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
