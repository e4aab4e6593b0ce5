"""Runs Errand and its peers one after the other on this machine, in rounds, and prints one table with ratios.

`make bench-peers` builds Errand and calls this; ROUNDS and RUNS are taken from the environment.
"""

import argparse
import contextlib
import functools
import json
import os
import platform
import pwd
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PEERS = ROOT / ".tools" / "peers"
# The load of the peers stands in load.mjs.
SINGLE = ("--concurrency", "256")
BATCH = ("--concurrency", "2000", "--batch", "500")
FIGURES = ("single", "batch", "p50_ms", "p99_ms", "runs")
# How long a server may take to be there, and a measurement, in seconds.
STARTS_IN, MEASURED_IN = 60, 900


class Failed(Exception):
    """Why there are no figures."""


# --- processes ---------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def scratch():
    # Not one within another: whom Postgres runs as must be able to go there.
    with tempfile.TemporaryDirectory(prefix="errand-peers-") as folder:
        yield Path(folder)


@contextlib.contextmanager
def started(command, folder, stop=signal.SIGTERM, **options):
    """A process in a group of its own, which has gone behind it, whatever happens."""
    with open(folder / "said", "wb") as said, open(folder / "log", "wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=said, stderr=log, start_new_session=True, **options
        )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.send_signal(stop)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(20)
        # Itself, where it did not stop, and what it has left behind.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def last_words(folder):
    lines = [line for name in ("said", "log") for line in (folder / name).read_text(errors="replace").splitlines()]
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def until(ready, process, folder, name):
    deadline = time.monotonic() + STARTS_IN
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise Failed(f"{name} did not start: {last_words(folder)}")
        time.sleep(0.05)


def said(command, seconds=MEASURED_IN, **options):
    """The last line that a command prints, read as JSON."""
    with scratch() as folder, started(command, folder, **options) as process:
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Failed(f"not done after {seconds} s") from None
        if process.returncode != 0:
            raise Failed(reason((folder / "log").read_text(errors="replace")) or f"it ended with {process.returncode}")
        lines = (folder / "said").read_text().splitlines()
        if not lines:
            raise Failed("it printed no figures")
        return json.loads(lines[-1])


def reason(log):
    """The line of a log that says most: the error above a stack, or the last one."""
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"(\w*Error|error)\b", line)]
    return (errors or lines or [""])[-1]


def tool(*command):
    """What a script of the project prints; it has said by itself what is missing."""
    found = subprocess.run(["sh", *command], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    if found.returncode != 0:
        sys.exit(1)
    return found.stdout.strip()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# --- servers: each gives the words that its peer's script takes --------------------------------------------------


@contextlib.contextmanager
def redis(tools, fsync):
    port = free_port()
    command = [tools["redis"], "--bind", "127.0.0.1", "--port", str(port), "--save", ""]
    command += ["--appendonly", "yes", "--appendfsync", fsync]

    def ready():
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")

    with scratch() as folder, started(command, folder) as process:
        until(ready, process, folder, "Redis")
        yield [f"redis://127.0.0.1:{port}"]


def unprivileged():
    """Whom Postgres runs as where we are root, which it refuses."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            user = pwd.getpwnam(name)
            return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}
    raise Failed("Postgres refuses to run as root, and there is no user postgres or nobody")


@contextlib.contextmanager
def postgres(tools):
    account, port, programs = unprivileged(), free_port(), Path(tools["postgres"])
    with scratch() as folder:
        if account:
            os.chown(folder, account["user"], account["group"])
        initdb = [programs / "initdb", "-D", folder / "data", "--username=errand", "--auth=trust", "--encoding=UTF8"]
        made = subprocess.run([*initdb, "--locale=C"], cwd=folder, capture_output=True, **account)
        if made.returncode != 0:
            raise Failed(f"initdb failed: {reason(made.stderr.decode(errors='replace'))}")
        command = [programs / "postgres", "-D", folder / "data", "-h", "127.0.0.1", "-p", str(port), "-k", folder]

        def ready():
            return "ready to accept connections" in (folder / "log").read_text(errors="replace")

        # SIGINT ends its connections; SIGTERM would wait for them.
        with started(command, folder, stop=signal.SIGINT, **account) as process:
            until(ready, process, folder, "Postgres")
            yield [f"postgres://errand@127.0.0.1:{port}/postgres"]


@contextlib.contextmanager
def restate(tools):
    node, ingress, admin = free_port(), free_port(), free_port()
    program = [tools["node"], PEERS / "node_modules" / ".bin" / "restate-server", "--no-logo"]
    options = ["--listen-mode", "tcp", "--bind-ip", "127.0.0.1", "--bind-port", str(node)]
    environment = {
        **os.environ,
        "RESTATE_INGRESS__BIND_PORT": str(ingress),
        "RESTATE_ADMIN__BIND_PORT": str(admin),
        # It would call home otherwise.
        "RESTATE_DISABLE_TELEMETRY": "true",
    }

    def ready():
        with contextlib.suppress(OSError):
            for port, path in ((admin, "health"), (ingress, "restate/health")):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}", timeout=5).close()
            return True

    with scratch() as folder:
        command = [*program, "--base-dir", folder / "data", *options]
        settings = subprocess.run([*command, "--dump-config"], env=environment, stdout=subprocess.PIPE, text=True)
        with started(command, folder, env=environment) as process:
            until(ready, process, folder, "restate-server")
            yield [f"http://127.0.0.1:{ingress}", f"http://127.0.0.1:{admin}", restate_durability(settings.stdout)]


def restate_durability(settings):
    """What its own configuration says of the log that it acknowledges from."""
    section = settings.partition("[log-server]")[2].partition("\n[")[0]
    found = re.search(r"^rocksdb-disable-wal-fsync = (\w+)$", section, re.MULTILINE)
    return f"log server: rocksdb-disable-wal-fsync={found[1] if found else '?'}"


# --- measurements ------------------------------------------------------------------------------------------------


def peer(script, server, *words):
    """What measures a peer: its script, over a new server."""

    def measured(tools, runs):
        with server(tools) as addresses:
            environment = {**os.environ, "NODE_ENV": "production"}
            return said([tools["node"], PEERS / script, str(runs), *addresses, *words], env=environment)

    return measured


def errand(store, tools, runs):
    # Where it looks for Postgres.
    environment = {**os.environ, "PATH": f"{tools['postgres']}:{os.environ['PATH']}"}
    command = [tools["errand"], "bench", "--json", "--store", store, "--runs", str(runs)]
    single = said([*command, "--unloaded", str(max(100, runs // 40)), *SINGLE], env=environment)
    batch = said([*command, "--unloaded", "1", *BATCH], env=environment)
    return errand_figures(single, batch)


def errand_figures(single, batch):
    durable = single["durability"]
    return {
        "peer": "Errand",
        "version": single["version"],
        "server": f"nats-server {single['nats_server']}",
        "done": "the client has read the event `task_run.completed`",
        "durability": f"store: {durable['commit']}; broker: {durable['broker']}",
        "single": single["loaded"]["runs_per_second"],
        "batch": batch["loaded"]["runs_per_second"],
        "p50_ms": single["unloaded"]["p50_ms"],
        "p99_ms": single["unloaded"]["p99_ms"],
        "runs": single["loaded"]["runs"],
    }


SQLITE, POSTGRES = "Errand on SQLite", "Errand on Postgres"
SUBJECTS = {
    SQLITE: functools.partial(errand, "sqlite"),
    POSTGRES: functools.partial(errand, "postgres"),
    "BullMQ, fsync always": peer("bullmq.mjs", functools.partial(redis, fsync="always")),
    "BullMQ, fsync every second": peer("bullmq.mjs", functools.partial(redis, fsync="everysec")),
    "graphile-worker": peer("graphile-worker.mjs", postgres),
    "pg-boss, notified": peer("pg-boss.mjs", postgres, "notified"),
    "pg-boss, polling": peer("pg-boss.mjs", postgres, "polling"),
    "Restate": peer("restate.mjs", restate),
}


def measure(names, tools, rounds, runs):
    """Each round has all of them, and begins with another, so that none has the better part of the machine's day."""
    results, failed = {name: [] for name in names}, {}
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            if name in failed:
                continue
            print(f"round {number + 1} of {rounds}: {name}", file=sys.stderr)
            try:
                results[name].append(SUBJECTS[name](tools, runs))
            except (Failed, OSError, ValueError, KeyError) as error:
                failed[name] = str(error) or repr(error)
                print(f"failed: {failed[name]}", file=sys.stderr)
    return results, failed


# --- what is printed ---------------------------------------------------------------------------------------------


def medians(rounds):
    """One line of several rounds: each figure's median, and the words of the last one."""
    line = dict(rounds[-1])
    for figure in FIGURES:
        values = [one[figure] for one in rounds if one[figure] is not None]
        line[figure] = statistics.median(values) if values else None
    return line


def ratios(ours, theirs):
    """Errand's figures divided by a peer's: single, batch, p50."""
    pairs = [(ours[figure], theirs[figure]) for figure in ("single", "batch", "p50_ms")]
    return " / ".join("-" if a is None or not b else f"{a / b:.2f}" for a, b in pairs)


def number(value, digits=0):
    return "-" if value is None else f"{value:,.{digits}f}"


FIRST = ["", "runs/s", "in batches", "p50 ms", "p99 ms", "runs"]
HEADER = [*FIRST, "SQLite / it", "Postgres / it", "done when", "durability"]


def row(name, line, lines):
    cells = [number(line["single"]), number(line["batch"]), number(line["p50_ms"], 2), number(line["p99_ms"], 2)]
    ours = name in (SQLITE, POSTGRES)
    against = ["" if ours or one not in lines else ratios(lines[one], line) for one in (SQLITE, POSTGRES)]
    title = f"{name} ({line['version']}, {line['server']})"
    return [title, *cells, number(line["runs"]), *against, line["done"], line["durability"]]


def table(lines, failed):
    """Markdown, in the order of SUBJECTS."""
    rows = [HEADER]
    for name in SUBJECTS:
        if name in failed:
            rows.append([name, f"failed: {failed[name]}", *[""] * (len(HEADER) - 2)])
        elif name in lines:
            rows.append(row(name, lines[name], lines))
    rows = [[cell.replace("|", "\\|") for cell in one] for one in rows]
    rows.insert(1, ["---", *["---:"] * (len(HEADER) - 3), "---", "---"])
    return "\n".join(f"| {' | '.join(one)} |" for one in rows)


def about(here):
    return (
        f"Medians of {here['rounds']} round(s). Ratios, Errand's figure / the peer's: runs/s / in batches / p50.\n"
        f"{here['cores']} cores, {here['system']}, load {here['load']:.1f} before it began; Node.js {here['node']}, "
        f"{here['postgres']}."
    )


def machine(tools, rounds):
    def version(program):
        return subprocess.run([program, "--version"], stdout=subprocess.PIPE, text=True).stdout.strip()

    return {
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        # What others do on it meanwhile is in the figures, too.
        "load": os.getloadavg()[0],
        "node": version(tools["node"]).lstrip("v"),
        "postgres": version(Path(tools["postgres"]) / "postgres"),
        "rounds": rounds,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--errand", type=Path, required=True, help="the program `errand`, a release build")
    parser.add_argument("--json", action="store_true", help="everything that was measured, as JSON")
    parser.add_argument("--only", action="append", choices=SUBJECTS, help="only this one, and others named so")
    options = parser.parse_args()
    rounds, runs = int(os.environ.get("ROUNDS") or 3), int(os.environ.get("RUNS") or 20_000)
    names = options.only or list(SUBJECTS)
    tools = {"errand": options.errand.resolve(), "node": tool("bench/peers/setup.sh")}
    tools.update({name: tool(f"tools/{name}.sh", "ensure") for name in ("postgres", "redis")})
    # Whoever ends us has what we started ended, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    here = machine(tools, rounds)
    results, failed = measure(names, tools, rounds, runs)
    lines = {name: medians(results[name]) for name in names if name not in failed}
    if options.json:
        print(json.dumps({"machine": here, "medians": lines, "failed": failed, "rounds": results}))
    else:
        print(table(lines, failed))
        print(f"\n{about(here)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
