import { Logger, makeWorkerUtils, run as work } from "graphile-worker";
import { run, version } from "./load.mjs";
import { describe, onCompletion } from "./postgres.mjs";

const TASK = "empty";
// It tells of each job otherwise.
const logger = new Logger(() => (level, message) => level === "error" && console.error(message));

async function worker([connectionString], tell) {
  // complete_job and complete_jobs, with one id or a list of them.
  onCompletion(({ name }, values) => name?.startsWith("complete_job") && [values[0]].flat(), tell);
  // What its documentation measures with (https://worker.graphile.org/docs/performance): a local queue that fetches
  // many jobs at once, and completions in batches of whatever has come in one turn. LISTEN/NOTIFY is always on.
  const options = {
    connectionString,
    concurrentJobs: 24,
    maxPoolSize: 25,
    localQueue: { size: 500 },
    completeJobBatchDelay: 0,
    failJobBatchDelay: 0,
    logger,
  };
  await work({ preset: { worker: options }, taskList: { [TASK]: async () => {} } });
}

async function client([connectionString]) {
  const utils = await makeWorkerUtils({ preset: { worker: { connectionString, maxPoolSize: 25, logger } } });
  const job = { identifier: TASK, payload: {} };
  return {
    about: {
      peer: "graphile-worker",
      version: version("graphile-worker"),
      ...(await describe(connectionString)),
      done: "its worker tells the client once the database has answered the completion",
    },
    bulk: true,
    async submit(count) {
      if (count === 1) return [(await utils.addJob(TASK, {})).id];
      return (await utils.addJobs(Array(count).fill(job))).map(({ id }) => id);
    },
    close: () => utils.release(),
  };
}

await run({ worker, client });
