use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use sqlx::migrate::{Migrate, MigrateError, MigrationType, Migrator};
use sqlx::postgres::PgConnectOptions;
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{AssertSqlSafe, Connection, Executor, SqlSafeStr, SqlitePool};

use crate::postgres::Pg;

/// Why the store could not do it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The address is neither `sqlite://FOLDER` nor `postgres://...`.
    #[error("{0:?} is no store: use sqlite://FOLDER or postgres://USER@HOST/DATABASE")]
    Address(String),
    /// The folder of the SQLite files cannot be made.
    #[error("cannot make the store's folder {0}: {1}")]
    Folder(PathBuf, std::io::Error),
    /// The file that the address names for the password cannot be read.
    #[error("cannot read the password file {0}: {1}")]
    PasswordFile(PathBuf, std::io::Error),
    /// The server is too old.
    #[error("Postgres 15 or later is needed, the server is {0}")]
    TooOld(String),
    /// A migration failed, or the store was made by a newer Errand.
    #[error("the store cannot be brought up to date: {0}")]
    Migration(#[from] MigrateError),
    /// The database says no, or is away.
    #[error("the store failed: {0}")]
    Database(#[from] sqlx::Error),
    /// What was read is not what was written.
    #[error("the store holds what cannot be read: {0}")]
    Corrupt(String),
}

impl StoreError {
    /// Whether the same may succeed later: the database is away, busy, or broke off a conflict.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Database(error) => match error {
                sqlx::Error::Io(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::WorkerCrashed
                | sqlx::Error::Protocol(_) => true,
                sqlx::Error::Database(database) => is_transient_code(database.code().as_deref()),
                _ => false,
            },
            Self::Address(_)
            | Self::Folder(..)
            | Self::PasswordFile(..)
            | Self::TooOld(_)
            | Self::Migration(_)
            | Self::Corrupt(_) => false,
        }
    }
}

/// SQLite: busy, locked, full, I/O. Postgres: classes 08 (connection), 40 (rollback), 53 (resources), 57 (operator),
/// 58 (system), 25006 (read-only), 25P03 (idle in a transaction for too long).
fn is_transient_code(code: Option<&str>) -> bool {
    let Some(code) = code else { return false };
    if code.len() == 5 {
        return ["08", "40", "53", "57", "58"].iter().any(|class| code.starts_with(class))
            || ["25006", "25P03"].contains(&code);
    }
    matches!(code.parse::<i32>().map(|code| code & 0xff), Ok(5 | 6 | 8 | 10 | 13))
}

/// One step of a service's schema, for both databases.
#[derive(Debug, Clone, Copy)]
pub struct Migration {
    /// 1, 2, 3 ...; 1..99 are this crate's own, services begin with 100.
    pub version: i64,
    /// What it does.
    pub name: &'static str,
    /// The SQLite form.
    pub sqlite: &'static str,
    /// The Postgres form.
    pub postgres: &'static str,
}

/// Names the file of the password in an address.
const PASSWORD_FILE: &str = "password_file=";
/// What [`Db::check_write`] writes: more than the last free page takes.
const CHECK_BYTES: usize = 64 * 1024;

const CHECK: Migration = Migration {
    version: 2,
    name: "check",
    sqlite: "CREATE TABLE store_check (one INTEGER PRIMARY KEY, bytes BLOB NOT NULL);",
    postgres: "CREATE TABLE store_check (one INTEGER PRIMARY KEY, bytes BYTEA NOT NULL);",
};

/// A SQLite file with one writer and several readers.
#[derive(Debug, Clone)]
pub struct Sqlite {
    /// One connection: SQLite has one writer, and waiting for it here is fairer than being refused there. Begin with
    /// `BEGIN IMMEDIATE`.
    pub write: SqlitePool,
    /// For everything that only reads.
    pub read: SqlitePool,
    /// The file whose lock is the right to publish again.
    pub(crate) turn: PathBuf,
}

/// A service's own part of the store.
#[derive(Debug, Clone)]
pub enum Db {
    /// A file of the service's own: WAL, `synchronous=FULL`.
    Sqlite(Sqlite),
    /// A schema of the service's own, `errand_<service>`; durability as the server has it.
    Postgres(Pg),
}

impl Db {
    /// Opens the service's part of the store and brings its schema up to date. `sqlite://FOLDER` means the file
    /// `FOLDER/<service>.db`; `postgres://...` the schema `errand_<service>`, with `?password_file=PATH` where the
    /// password is not to stand in the address.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn open(url: &str, service: &'static str, migrations: &[Migration]) -> Result<Self, StoreError> {
        if let Some(folder) = url.strip_prefix("sqlite://") {
            let folder = folder.split('?').next().unwrap_or(folder);
            return Self::open_sqlite(Path::new(folder), service, migrations).await;
        }
        if url.starts_with("postgres://") || url.starts_with("postgresql://") {
            return Self::open_postgres(url, service, migrations).await;
        }
        // A wrong address may hold a password.
        Err(StoreError::Address(url.split("://").next().unwrap_or_default().to_owned()))
    }

    async fn open_sqlite(folder: &Path, service: &str, migrations: &[Migration]) -> Result<Self, StoreError> {
        std::fs::create_dir_all(folder).map_err(|error| StoreError::Folder(folder.to_owned(), error))?;
        let options = SqliteConnectOptions::new()
            .filename(folder.join(format!("{service}.db")))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .busy_timeout(Duration::from_secs(10))
            .pragma("cache_size", "-32768")
            .pragma("journal_size_limit", "67108864")
            .pragma("wal_autocheckpoint", "4000")
            // Where a statement of many rows fails, SQLite takes back those that it has written: it keeps them in a file per
            // statement otherwise.
            .pragma("temp_store", "MEMORY");
        // Two processes that start at once must not both migrate; SQLite has no advisory lock, the file system has. Nor
        // both open it: the change to WAL is refused at once while another is there, whatever the busy timeout.
        let failed = |error| StoreError::Folder(folder.to_owned(), error);
        let lock = std::fs::File::create(folder.join(format!("{service}.lock"))).map_err(failed)?;
        tokio::task::block_in_place(|| lock.lock()).map_err(failed)?;
        let write = SqlitePoolOptions::new()
            .min_connections(1)
            .max_connections(1)
            .idle_timeout(None)
            .max_lifetime(None)
            .test_before_acquire(false)
            // Where SQLite itself rolls back (a full disk), sqlx's own ROLLBACK fails, and the connection would be
            // taken for one within a transaction for good.
            .before_acquire(|connection, _| {
                let usable = !connection.is_in_transaction();
                Box::pin(async move { Ok(usable) })
            })
            .connect_with(options.clone())
            .await?;
        migrator(migrations, |migration| migration.sqlite).run(&write).await?;
        let read = SqlitePoolOptions::new()
            .max_connections(4)
            .test_before_acquire(false)
            .connect_with(options.read_only(true).create_if_missing(false))
            .await?;
        drop(lock);
        Ok(Self::Sqlite(Sqlite { write, read, turn: folder.join(format!("{service}.turn")) }))
    }

    async fn open_postgres(url: &str, service: &str, migrations: &[Migration]) -> Result<Self, StoreError> {
        let schema = format!("errand_{}", service.replace('-', "_"));
        let (url, password) = password_of(url)?;
        let mut options = PgConnectOptions::from_str(&url)?;
        if let Some(password) = password {
            options = options.password(&password);
        }
        let options =
            options.application_name(&format!("errand-{service}")).options([("search_path", schema.as_str())]);
        let pool = Pg::connect(options).await?;
        let version: (String,) = sqlx::query_as("SHOW server_version_num").fetch_one(&pool).await?;
        if version.0.parse::<i32>().is_ok_and(|number| number < 150_000) {
            return Err(StoreError::TooOld(version.0));
        }
        // A step may take long, and waits for the others that start.
        let mut connection = pool.unlimited().await?;
        create_schema(&mut connection, &schema).await?;
        migrator(migrations, |migration| migration.postgres).run(&mut *connection).await?;
        connection.close().await?;
        Ok(Self::Postgres(pool))
    }

    /// Whether the store answers.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn ping(&self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(sqlite) => sqlx::query("SELECT 1").execute(&sqlite.read).await.map(drop)?,
            Self::Postgres(pool) => sqlx::query("SELECT 1").execute(pool).await.map(drop)?,
        }
        Ok(())
    }

    /// Whether the store takes what is written, and how long a commit takes: a full disk is still read well.
    ///
    /// # Errors
    /// [`StoreError::Database`].
    pub async fn check_write(&self) -> Result<Duration, StoreError> {
        let started = std::time::Instant::now();
        let sql = "INSERT INTO store_check (one, bytes) VALUES (1, $1) ON CONFLICT (one) DO UPDATE SET bytes = excluded.bytes";
        // Other bytes than the last time: SQLite writes nothing where nothing changes.
        let byte = u8::try_from(crate::outbox::now_ms() % 251).unwrap_or_default();
        let bytes = vec![byte; CHECK_BYTES];
        match self {
            Self::Sqlite(sqlite) => sqlx::query(sql).bind(bytes).execute(&sqlite.write).await.map(drop)?,
            Self::Postgres(pool) => sqlx::query(sql).bind(bytes).execute(pool).await.map(drop)?,
        }
        Ok(started.elapsed())
    }

    /// `sqlite` or `postgres`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Sqlite(_) => "sqlite",
            Self::Postgres(_) => "postgres",
        }
    }

    /// Waits for what is under way, and closes.
    pub async fn close(&self) {
        match self {
            Self::Sqlite(sqlite) => {
                sqlite.read.close().await;
                sqlite.write.close().await;
            }
            Self::Postgres(pool) => pool.close().await,
        }
    }
}

/// Takes `password_file=PATH` out of an address, and reads it: an address stands where others can see it, in a list of
/// processes or an environment, a password should not.
fn password_of(url: &str) -> Result<(String, Option<String>), StoreError> {
    let Some((base, query)) = url.split_once('?') else { return Ok((url.to_owned(), None)) };
    let (files, others): (Vec<&str>, Vec<&str>) =
        query.split('&').partition(|parameter| parameter.starts_with(PASSWORD_FILE));
    let url = if others.is_empty() { base.to_owned() } else { format!("{base}?{}", others.join("&")) };
    let Some(file) = files.first().and_then(|parameter| parameter.strip_prefix(PASSWORD_FILE)) else {
        return Ok((url, None));
    };
    let failed = |error| StoreError::PasswordFile(file.into(), error);
    let password = std::fs::read_to_string(file).map_err(failed)?;
    Ok((url, Some(password.trim_end_matches(['\r', '\n']).to_owned())))
}

/// Two services that start at once may both create their schemas: `IF NOT EXISTS` is not safe against that, the
/// lock of the migrations is.
async fn create_schema(connection: &mut sqlx::PgConnection, schema: &str) -> Result<(), StoreError> {
    connection.lock().await?;
    let created = connection
        .transaction(|tx| {
            let sql = format!("CREATE SCHEMA IF NOT EXISTS {schema}");
            Box::pin(async move { tx.execute(AssertSqlSafe(sql)).await.map(drop) })
        })
        .await;
    connection.unlock().await?;
    Ok(created?)
}

fn migrator(migrations: &[Migration], form: impl Fn(&Migration) -> &'static str) -> Migrator {
    let steps = crate::outbox::MIGRATIONS.iter().chain([&CHECK]).chain(migrations).map(|migration| {
        sqlx::migrate::Migration::new(
            migration.version,
            Cow::Borrowed(migration.name),
            MigrationType::Simple,
            form(migration).into_sql_str(),
            false,
        )
    });
    Migrator { migrations: steps.collect(), ..Migrator::DEFAULT }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_may_stand_in_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("password");
        std::fs::write(&file, "s3:cr@t\n").unwrap();
        let url = format!("postgres://errand@db/errand?sslmode=require&password_file={}", file.display());
        let found = password_of(&url).unwrap();
        assert_eq!(found, ("postgres://errand@db/errand?sslmode=require".to_owned(), Some("s3:cr@t".to_owned())));
        assert_eq!(password_of("postgres://db/errand").unwrap(), ("postgres://db/errand".to_owned(), None));
        assert!(password_of("postgres://db/errand?password_file=/does/not/exist").is_err());
    }

    /// Writes `bytes` into the table that [`Db::check_write`] uses, in a transaction.
    async fn write(sqlite: &Sqlite, bytes: usize) -> Result<(), sqlx::Error> {
        let mut tx = sqlite.write.begin_with("BEGIN IMMEDIATE").await?;
        let sql = "INSERT INTO store_check (one, bytes) VALUES (1, $1) ON CONFLICT (one) DO UPDATE SET bytes = $1";
        sqlx::query(sql).bind(vec![7; bytes]).execute(&mut *tx).await?;
        tx.commit().await
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn after_a_full_disk_sqlite_writes_again() {
        let folder = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}", folder.path().display());
        let Db::Sqlite(sqlite) = Db::open(&url, "test", &[]).await.unwrap() else { panic!("it is SQLite") };
        write(&sqlite, 10).await.unwrap();
        let (pages,): (i64,) = sqlx::query_as("PRAGMA page_count").fetch_one(&sqlite.write).await.unwrap();
        let limit = format!("PRAGMA max_page_count = {}", pages + 1);
        sqlx::query(AssertSqlSafe(limit)).execute(&sqlite.write).await.unwrap();
        let full = write(&sqlite, 1 << 20).await.map_err(StoreError::from).unwrap_err();
        assert!(full.to_string().contains("full") && full.is_transient(), "{full}");
        write(&sqlite, 10).await.unwrap();
        write(&sqlite, 20).await.unwrap();
    }
}
