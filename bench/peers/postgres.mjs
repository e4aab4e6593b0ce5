// What the two peers on Postgres share.

import pg from "pg";

// How durable a commit of this server is, by its own words.
export async function describe(url) {
  const client = new pg.Client(url);
  await client.connect();
  const { rows } = await client.query(
    `select current_setting('server_version') as version, current_setting('fsync') as fsync,
       current_setting('synchronous_commit') as commit`,
  );
  await client.end();
  const [{ version, fsync, commit }] = rows;
  return { server: `Postgres ${version.split(" ")[0]}`, durability: `fsync=${fsync}, synchronous_commit=${commit}` };
}

// Calls `tell(ids)` when the database has answered a statement that completes jobs: `completes` gives their ids.
// Neither peer says so by itself: pg-boss has no event for it, and graphile-worker's `job:complete` comes before the
// statement is sent.
export function onCompletion(completes, tell) {
  const query = pg.Client.prototype.query;
  pg.Client.prototype.query = function (...words) {
    const [statement, values, callback] = words;
    const ids = completes(statement, values ?? statement.values);
    if (!ids) return query.apply(this, words);
    // A pool gives a callback, others take the promise.
    if (typeof callback === "function") {
      return query.call(this, statement, values, (error, result) => {
        if (!error) tell(ids);
        callback(error, result);
      });
    }
    return query.apply(this, words).then((result) => {
      tell(ids);
      return result;
    });
  };
}
