// What the scripts of the peers share. Each runs as two processes, as it would in production: a client, which is the
// process that was started, and a worker, which the client starts. `node PEER.mjs RUNS WORD...` prints a line of JSON;
// the words say where its server is.

import { fork } from "node:child_process";
import { once } from "node:events";
import { readFileSync } from "node:fs";

// The same load as `errand bench` makes with --concurrency 256, and with --batch 500 --concurrency 2000.
export const IN_FLIGHT = 256;
const BATCH = 500;
const BATCHED_IN_FLIGHT = 2000;
// A peer that would take longer than this for its runs gets fewer of them.
const SECONDS = 15;
const PATIENCE_MS = 60_000;

// The version of an installed package.
export function version(name) {
  return JSON.parse(readFileSync(new URL(`node_modules/${name}/package.json`, import.meta.url))).version;
}

// When the client has seen that a job is completed. It may hear that before it has heard the job's id.
class Seen {
  #waiting = new Map();
  #early = new Map();
  #last = performance.now();

  constructor() {
    const watch = () => {
      if (this.#waiting.size > 0 && performance.now() - this.#last > PATIENCE_MS) {
        fail(`${this.#waiting.size} jobs are not completed, and none was in ${PATIENCE_MS / 1000} s`);
      }
    };
    setInterval(watch, 1000).unref();
  }

  completed(ids) {
    const now = performance.now();
    this.#last = now;
    for (const id of ids) {
      const waiting = this.#waiting.get(id);
      if (waiting) {
        this.#waiting.delete(id);
        waiting(now);
      } else {
        this.#early.set(id, now);
      }
    }
  }

  // The time at which this job's completion was seen.
  end(id) {
    const end = this.#early.get(id);
    if (end !== undefined) {
      this.#early.delete(id);
      return end;
    }
    this.#last = Math.max(this.#last, performance.now());
    return new Promise((resolve) => this.#waiting.set(id, resolve));
  }
}

// Makes `runs` runs with `inFlight` of them under way: each place submits `batch` at once, waits until each of them is
// seen to be completed, and goes on.
async function closedLoop(submit, seen, runs, inFlight, batch) {
  const latencies = [];
  const started = performance.now();
  let left = runs;
  let last = started;
  const place = async () => {
    while (left > 0) {
      const count = Math.min(batch, left);
      left -= count;
      const submitted = performance.now();
      const ids = await submit(count);
      if (ids.length !== count) throw new Error(`${count} jobs were submitted, ${ids.length} ids came back`);
      for (const end of await Promise.all(ids.map((id) => seen.end(id)))) {
        latencies.push(end - submitted);
        last = Math.max(last, end);
      }
    }
  };
  await Promise.all(Array.from({ length: Math.ceil(inFlight / batch) }, place));
  return { perSecond: (runs * 1000) / (last - started), latencies: latencies.sort((a, b) => a - b) };
}

const rounded = (number) => Math.round(number * 100) / 100;
const quantile = (sorted, q) => rounded(sorted[Math.max(0, Math.ceil(sorted.length * q) - 1)]);

async function measure(client, seen, most) {
  const { submit } = client;
  // The compiler of JavaScript warms up as well. The second part says how many runs fit into the time.
  await closedLoop(submit, seen, 2 * IN_FLIGHT, IN_FLIGHT, 1);
  const { perSecond } = await closedLoop(submit, seen, 4 * IN_FLIGHT, IN_FLIGHT, 1);
  const runs = Math.min(most, Math.max(1000, Math.round(perSecond * SECONDS)));
  const unloaded = await closedLoop(submit, seen, Math.max(100, Math.round(runs / 40)), 1, 1);
  const single = await closedLoop(submit, seen, runs, IN_FLIGHT, 1);
  const batch = client.bulk ? await closedLoop(submit, seen, runs, BATCHED_IN_FLIGHT, BATCH) : null;
  return {
    single: rounded(single.perSecond),
    batch: batch && rounded(batch.perSecond),
    p50_ms: quantile(unloaded.latencies, 0.5),
    p99_ms: quantile(unloaded.latencies, 0.99),
    runs,
  };
}

function fail(reason) {
  console.error(reason);
  process.exit(1);
}

// Runs a peer. `worker(words, tell)` does the jobs; what it returns is given to the client, and with `tell(ids)` it
// tells it of completed jobs. `client(words, completed, worker)` calls `completed(ids)` where it sees that by itself,
// and gives `about`, `submit(count)` for the ids of new jobs, `bulk` where that is one request for many, and `close()`.
export async function run({ worker, client }) {
  process.on("unhandledRejection", (error) => fail(error?.stack ?? String(error)));
  const [first, ...words] = process.argv.slice(2);
  if (first === "worker") {
    // It ends with its client, however that ends.
    process.on("disconnect", () => process.exit());
    process.send({ ready: await worker(words, (ids) => process.send({ completed: ids })) });
    return;
  }
  const seen = new Seen();
  const other = fork(process.argv[1], ["worker", ...words], { stdio: ["ignore", "ignore", "inherit", "ipc"] });
  other.once("exit", (code, signal) => fail(`the worker has ended: ${signal ?? code}`));
  const [{ ready }] = await once(other, "message");
  other.on("message", ({ completed }) => seen.completed(completed));
  const side = await client(words, (ids) => seen.completed(ids), ready);
  const measured = await measure(side, seen, Number(first));
  other.removeAllListeners("exit");
  const ended = once(other, "exit");
  other.disconnect();
  await Promise.all([ended, side.close()]);
  console.log(JSON.stringify({ ...side.about, ...measured }));
  // Whatever a library keeps open.
  process.exit();
}
