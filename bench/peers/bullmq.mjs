import { Queue, QueueEvents, Worker } from "bullmq";
import { Redis } from "ioredis";
import { IN_FLIGHT, run, version } from "./load.mjs";

const NAME = "bench";
// BullMQ asks for it: its workers wait in one command for as long as there is nothing.
const connect = (url) => new Redis(url, { maxRetriesPerRequest: null });

async function worker([url]) {
  // One worker that waits for nothing but Redis is as fast as several on one core. Completed jobs are removed at once,
  // which its documentation recommends, and which writes the least.
  const options = { connection: connect(url), concurrency: IN_FLIGHT, removeOnComplete: { count: 0 } };
  const worker = new Worker(NAME, async () => {}, options);
  worker.on("error", (error) => console.error(error));
  await worker.waitUntilReady();
}

async function client([url], completed) {
  const redis = connect(url);
  // By default it keeps some 10,000 events: a client that reads slower than that would lose completions.
  const queue = new Queue(NAME, { connection: redis, streams: { events: { maxLen: 100_000 } } });
  await queue.waitUntilReady();
  // From the first event on, or those before it listens are missed.
  const events = new QueueEvents(NAME, { connection: connect(url), lastEventId: "0-0" });
  events.on("completed", ({ jobId }) => completed([jobId]));
  events.on("error", (error) => console.error(error));
  await events.waitUntilReady();
  const [, server] = /redis_version:(\S+)/.exec(await redis.info("server"));
  const [, fsync] = await redis.config("GET", "appendfsync");
  const job = { name: "empty", data: {} };
  return {
    about: {
      peer: "BullMQ",
      version: version("bullmq"),
      server: `Redis ${server}`,
      done: "the client has read the event `completed` (QueueEvents)",
      durability: `append-only file, appendfsync=${fsync}`,
    },
    bulk: true,
    async submit(count) {
      if (count === 1) return [(await queue.add(job.name, job.data)).id];
      return (await queue.addBulk(Array(count).fill(job))).map(({ id }) => id);
    },
    close: () => Promise.all([queue.close(), events.close()]),
  };
}

await run({ worker, client });
