import { PgBoss } from "pg-boss";
import { run, version } from "./load.mjs";
import { describe, onCompletion } from "./postgres.mjs";

const QUEUE = "empty";

// A job that notifies is fetched at once, but Postgres commits what notifies one after the other, each with an fsync of
// its own. Polling is twice a second at the most. Which is better depends on what is asked: both are measured.
async function start(connectionString, mode, options) {
  const boss = new PgBoss({ connectionString, max: 25, ...options });
  boss.on("error", (error) => console.error(error));
  await boss.start();
  await boss.createQueue(QUEUE, { notify: mode === "notified" });
  return boss;
}

async function worker([connectionString, mode], tell) {
  const completes = (statement, values) => /SET completed_on = .*\s+state = 'completed'/.test(statement) && values[1];
  onCompletion(completes, tell);
  const boss = await start(connectionString, mode, { useListenNotify: mode === "notified" });
  // Many jobs in one fetch and one completion, again at once while there are as many as that. Each notification wakes
  // every one of the workers of a queue, so a few that take much are faster than many that take little.
  const options = { localConcurrency: 4, batchSize: 256, burstWhenBatchFull: true, pollingIntervalSeconds: 0.5 };
  await boss.work(QUEUE, options, async () => {});
}

async function client([connectionString, mode]) {
  const boss = await start(connectionString, mode, { supervise: false, schedule: false });
  return {
    about: {
      peer: "pg-boss",
      version: version("pg-boss"),
      ...(await describe(connectionString)),
      done: "its worker tells the client once the database has answered the completion",
    },
    bulk: true,
    async submit(count) {
      if (count === 1) return [await boss.send(QUEUE, {})];
      return boss.insert(QUEUE, Array(count).fill({ data: {} }), { returnId: true });
    },
    close: () => boss.stop({ graceful: false }),
  };
}

await run({ worker, client });
