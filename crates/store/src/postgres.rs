//! Postgres, with a limit on every wait. A connection whose other end is gone without a word says nothing for minutes:
//! who waits for it stands still for as long, and so does sqlx's own test of what comes back to its pool.
//!
//! What ran into the limit may have been done or not, as with every other failure of a connection. It is decided soon,
//! because the server gives up a transaction that nobody goes on with ([`IDLE_IN_TRANSACTION`]) sooner than we do, and
//! because a statement by itself stands behind a fence (ADR 0016).

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{self, BoxStream, StreamExt};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnectOptions, PgPoolOptions, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::query::QueryAs;
use sqlx::{
    Connection, Either, Error, Execute, Executor, FromRow, PgConnection, PgPool, Postgres, SqlStr, Transaction,
    query_scalar,
};
use tokio::sync::{Mutex, oneshot};

/// How long a statement may take, with the wait for a connection.
const LIMIT: Duration = Duration::from_secs(10);
/// How long one may take that reads much, which happens only after a loss.
const PATIENT: Duration = Duration::from_secs(120);
/// How long what nobody waits for may go on in the server.
const STATEMENT: &str = "120s";
/// How long the server waits for the next statement of a transaction. Shorter than [`LIMIT`]: when we say that an
/// outcome is unknown, no commit is to be on its way any more.
const IDLE_IN_TRANSACTION: &str = "5s";
/// How long the server lets a connection live that holds a lock, and nobody shows that he is there.
const IDLE_LOCK: &str = "10s";
/// How often he shows it.
const BEAT: Duration = Duration::from_secs(2);
/// What is written at once is planned once: rows are looked up one by one, however few there are when it is planned and
/// however many later. Left to itself Postgres plans for the table as it is, an empty one, and keeps to that plan.
const WRITER: &str = "SET plan_cache_mode = force_generic_plan; SET enable_seqscan = off; SET enable_hashjoin = off;
                      SET enable_mergejoin = off";
/// How long the test of a connection may take, and its end.
const TEST: Duration = Duration::from_secs(2);
/// How often it is looked whether transactions have ended.
const LOOK: Duration = Duration::from_millis(20);

/// A pool of connections. Use `&Pg` as sqlx's pools are used. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pg {
    pool: PgPool,
    limit: Duration,
    /// The connection of [`Self::write`].
    writer: Arc<Mutex<Option<PoolConnection<Postgres>>>>,
}

impl Pg {
    pub(crate) async fn connect(options: PgConnectOptions) -> Result<Self, Error> {
        // The last four: where a client's machine is gone, the server finds out within half a minute.
        let options = options.options([
            ("statement_timeout", STATEMENT),
            ("idle_in_transaction_session_timeout", IDLE_IN_TRANSACTION),
            ("tcp_keepalives_idle", "10"),
            ("tcp_keepalives_interval", "5"),
            ("tcp_keepalives_count", "3"),
            ("tcp_user_timeout", "25000"),
        ]);
        let pool = PgPoolOptions::new()
            .max_connections(8)
            .acquire_timeout(LIMIT)
            .test_before_acquire(false)
            // sqlx tests, too, right behind this, but without a limit: a connection would be missing for as long as its
            // test hangs.
            .after_release(|connection, _| {
                Box::pin(async move { within(TEST, connection.ping()).await.map(|()| true) })
            })
            .connect_with(options)
            .await?;
        Ok(Self { pool, limit: LIMIT, writer: Arc::default() })
    }

    /// For what reads much: with a limit that is longer by far.
    #[must_use]
    pub fn patient(&self) -> Self {
        Self { limit: PATIENT, ..self.clone() }
    }

    /// Begins a transaction; it is rolled back unless it is committed.
    ///
    /// # Errors
    /// Where the database is away.
    pub async fn begin(&self) -> Result<PgTx, Error> {
        let tx = within(self.limit, self.pool.begin()).await?;
        Ok(PgTx(PgStatements { tx, limit: self.limit }))
    }

    /// Runs a statement of those that come one behind the other, over a connection that they keep ([`WRITER`]): what comes
    /// back to the pool is tested there, two round trips each time.
    ///
    /// # Errors
    /// Where the database is away; then it is unknown whether it was done.
    pub async fn write<T>(&self, query: QueryAs<'_, Postgres, T, PgArguments>) -> Result<Vec<T>, Error>
    where
        T: for<'r> FromRow<'r, PgRow> + Send + Unpin,
    {
        within(self.limit, async {
            let mut writer = self.writer.lock().await;
            let mut connection = match writer.take() {
                Some(connection) => connection,
                None => self.open_writer().await?,
            };
            // Dropped where it fails.
            let rows = query.fetch_all(&mut *connection).await?;
            *writer = Some(connection);
            Ok(rows)
        })
        .await
    }

    async fn open_writer(&self) -> Result<PoolConnection<Postgres>, Error> {
        let mut connection = self.pool.acquire().await?;
        connection.close_on_drop();
        connection.execute(WRITER).await?;
        Ok(connection)
    }

    /// A connection without limits, for what happens once at start. Do not give it back to the pool: close it.
    pub(crate) async fn unlimited(&self) -> Result<PoolConnection<Postgres>, Error> {
        let mut connection = self.pool.acquire().await?;
        connection.close_on_drop();
        connection.execute("SET statement_timeout = 0").await?;
        connection.execute("SET idle_in_transaction_session_timeout = 0").await?;
        Ok(connection)
    }

    /// Takes an advisory lock, by a statement that says whether it was taken: `pg_try_advisory_lock(...)`. None where
    /// another holds it.
    ///
    /// # Errors
    /// Where the database is away.
    pub async fn try_lock(&self, sql: &'static str) -> Result<Option<PgLock>, Error> {
        let mut connection = within(self.limit, self.pool.acquire()).await?;
        if !within(self.limit, query_scalar::<_, bool>(sql).fetch_one(&mut *connection)).await? {
            return Ok(None);
        }
        // It is the connection's, which must not go back to the others.
        let mut connection = connection.detach();
        let idle = format!("SET idle_session_timeout = '{IDLE_LOCK}'");
        within(self.limit, connection.execute(sqlx::AssertSqlSafe(idle))).await?;
        Ok(Some(PgLock::hold(connection)))
    }

    /// Waits until every transaction has ended that writes now: what is read then is what they have left. Not for ever:
    /// ours are soon over, others' do not matter.
    ///
    /// # Errors
    /// Where the database is away.
    pub(crate) async fn settled(&self) -> Result<(), Error> {
        // Its number is greater than that of all that have begun to write.
        let last: String = query_scalar("SELECT pg_current_xact_id()::text").fetch_one(self).await?;
        let passed = "SELECT pg_snapshot_xmin(pg_current_snapshot()) > $1::xid8";
        let waited = tokio::time::timeout(self.limit, async {
            while !query_scalar::<_, bool>(passed).bind(&last).fetch_one(self).await? {
                tokio::time::sleep(LOOK).await;
            }
            Ok(())
        });
        waited.await.unwrap_or(Ok(()))
    }

    pub(crate) async fn close(&self) {
        // The pool waits for what is not back.
        drop(self.writer.lock().await.take());
        self.pool.close().await;
    }
}

/// Waits for an answer, but not for ever.
async fn within<T>(limit: Duration, answer: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
    tokio::time::timeout(limit, answer).await.unwrap_or_else(|_| Err(too_late()))
}

fn too_late() -> Error {
    Error::Io(std::io::Error::new(std::io::ErrorKind::TimedOut, "the database did not answer in time"))
}

/// As [`within`], for answers of many parts: all of them together.
fn all_within<'e, T: 'e>(
    limit: Duration,
    mut parts: BoxStream<'e, Result<T, Error>>,
) -> BoxStream<'e, Result<T, Error>> {
    let mut late = Box::pin(tokio::time::sleep(limit));
    let mut over = false;
    Box::pin(stream::poll_fn(move |context| {
        if over {
            return std::task::Poll::Ready(None);
        }
        let part = parts.poll_next_unpin(context);
        if part.is_pending() && late.as_mut().poll(context).is_ready() {
            over = true;
            return std::task::Poll::Ready(Some(Err(too_late())));
        }
        part
    }))
}

/// A transaction, rolled back unless it is committed. Use `&mut *tx` as sqlx's connections are used.
#[derive(Debug)]
pub struct PgTx(PgStatements);

impl PgTx {
    /// Commits.
    ///
    /// # Errors
    /// Where the database is away; then it is unknown whether it was committed.
    pub async fn commit(self) -> Result<(), Error> {
        within(self.0.limit, self.0.tx.commit()).await
    }
}

impl Deref for PgTx {
    type Target = PgStatements;

    fn deref(&self) -> &PgStatements {
        &self.0
    }
}

impl DerefMut for PgTx {
    fn deref_mut(&mut self) -> &mut PgStatements {
        &mut self.0
    }
}

/// The statements of a transaction.
#[derive(Debug)]
pub struct PgStatements {
    tx: Transaction<'static, Postgres>,
    limit: Duration,
}

/// An advisory lock, held by a connection of its own that shows that its holder lives. Given back when dropped; by the
/// server where the process dies, or is cut off.
#[derive(Debug)]
pub struct PgLock(#[expect(dead_code, reason = "its end is what is waited for")] oneshot::Sender<()>);

impl PgLock {
    fn hold(mut connection: PgConnection) -> Self {
        let (held, mut dropped) = oneshot::channel();
        tokio::spawn(async move {
            while tokio::time::timeout(BEAT, &mut dropped).await.is_err() {
                if let Err(error) = within(TEST, connection.ping()).await {
                    tracing::warn!(%error, "the connection that holds a lock is gone, and the lock with it");
                    return;
                }
            }
            let _ = within(TEST, connection.close()).await;
        });
        Self(held)
    }
}

macro_rules! limited {
    ($($lifetime:lifetime $of:ty: $inner:expr;)*) => {$(
        impl<$lifetime> Executor<$lifetime> for $of {
            type Database = Postgres;

            fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, Error>>
            where
                $lifetime: 'e,
                E: 'q + Execute<'q, Postgres>,
            {
                all_within(self.limit, $inner(self).fetch_many(query))
            }

            fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
            where
                $lifetime: 'e,
                E: 'q + Execute<'q, Postgres>,
            {
                Box::pin(within(self.limit, $inner(self).fetch_optional(query)))
            }

            fn prepare_with<'e>(
                self,
                sql: SqlStr,
                parameters: &'e [PgTypeInfo],
            ) -> BoxFuture<'e, Result<PgStatement, Error>>
            where
                $lifetime: 'e,
            {
                Box::pin(within(self.limit, $inner(self).prepare_with(sql, parameters)))
            }
        }
    )*};
}

limited! {
    'p &'p Pg: |pg: &'p Pg| &pg.pool;
    'c &'c mut PgStatements: |statements: &'c mut PgStatements| &mut *statements.tx;
}
