//! The real stores on SQLite, in a folder of their own. A runtime of its own executes them, while the simulated world
//! stands still.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use errand_core::run::Run;
use errand_core::{RunId, Timestamp};
use errand_dispatcher::store::{Batch, OpenKey, Store as RunStore};
use errand_session_pool::pool::Stored as StoredPool;
use errand_session_pool::store::{CommitError, Ownership, Store as SessionStore};
use errand_store::{Checkpoint, Db, Encoded, Ledger, Left, Place, StoreError};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use uuid::Uuid;

use super::{Backend, Base, SessionCommit, Tables};

struct Book {
    runtime: Arc<Runtime>,
    db: Db,
}

impl Tables for Book {
    fn register(&mut self, now: i64) -> Result<i64, StoreError> {
        self.runtime.block_on(self.db.register(now))
    }

    fn unmarked(&mut self, objects: &[[u8; 16]]) -> Result<Vec<Encoded>, StoreError> {
        self.runtime.block_on(self.db.unmarked(objects))
    }

    fn read(&mut self, after: i64, until: i64, limit: i64) -> Result<Vec<Encoded>, StoreError> {
        self.runtime.block_on(self.db.read(after, until, limit))
    }

    fn oldest(&mut self, after: i64, until: i64) -> Result<Option<i64>, StoreError> {
        self.runtime.block_on(self.db.oldest(after, until))
    }

    fn read_in_order(&mut self, behind: Place, limit: i64) -> Result<Vec<(Encoded, Place)>, StoreError> {
        self.runtime.block_on(self.db.read_in_order(behind, limit))
    }

    fn mark(&mut self, writer: i64, mark: i64, seen_at: i64) -> Result<(), StoreError> {
        self.runtime.block_on(self.db.mark(writer, mark, seen_at))
    }

    fn advance(&mut self, left: Left, before: i64, own: i64) -> Result<(), StoreError> {
        self.runtime.block_on(self.db.advance(left, before, own))
    }

    fn checkpoint(&mut self, writer: i64, checkpoint: Checkpoint, keep: i64) -> Result<(), StoreError> {
        self.runtime.block_on(self.db.checkpoint(writer, checkpoint, keep))
    }

    fn forget_checkpoints(&mut self, writer: i64, behind: i64) -> Result<(), StoreError> {
        self.runtime.block_on(self.db.forget_checkpoints(writer, behind))
    }

    fn checkpoints(&mut self, writer: i64) -> Result<Vec<Checkpoint>, StoreError> {
        self.runtime.block_on(self.db.checkpoints(writer))
    }

    fn left(&mut self, own: i64, published: i64, before: i64) -> Result<Vec<Left>, StoreError> {
        self.runtime.block_on(self.db.left(own, published, before))
    }

    fn writers(&mut self) -> Result<Vec<(i64, i64)>, StoreError> {
        self.runtime.block_on(self.db.writers())
    }

    fn begun(&mut self) -> Result<Option<i64>, StoreError> {
        self.runtime.block_on(self.db.begun())
    }

    fn begin(&mut self, since: i64) -> Result<(), StoreError> {
        self.runtime.block_on(self.db.begin(since))
    }

    fn end(&mut self) -> Result<(), StoreError> {
        self.runtime.block_on(self.db.end())
    }
}

/// See the module.
pub(crate) struct Sqlite {
    runs: RunStore,
    sessions: SessionStore,
    /// With the position of the first event that each has committed last: a process that never learned of its commit
    /// tries the same again.
    owners: BTreeMap<Uuid, (Ownership, Option<i64>)>,
    books: [Book; 2],
    runtime: Arc<Runtime>,
    _folder: TempDir,
}

impl Sqlite {
    pub(crate) fn open() -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let runtime = Arc::new(runtime);
        let folder = tempfile::tempdir()?;
        let url = format!("sqlite://{}", folder.path().display());
        let (runs, sessions) =
            runtime.block_on(async { anyhow::Ok((RunStore::open(&url).await?, SessionStore::open(&url).await?)) })?;
        let book = |db: &Db| Book { runtime: Arc::clone(&runtime), db: db.clone() };
        let books = [book(runs.db()), book(sessions.db())];
        Ok(Self { runs, sessions, owners: BTreeMap::new(), books, runtime, _folder: folder })
    }
}

impl Backend for Sqlite {
    fn runs(&mut self, ids: &[RunId]) -> Result<Vec<Run>, StoreError> {
        let mut runs = self.runtime.block_on(self.runs.runs(ids))?;
        // SQL promises no order here.
        runs.sort_unstable_by_key(|run| run.id);
        Ok(runs)
    }

    fn open_runs(&mut self, after: Option<RunId>, limit: u32) -> Result<Vec<Run>, StoreError> {
        self.runtime.block_on(self.runs.open_runs(after, limit))
    }

    fn open_keys(&mut self, after: Option<RunId>, limit: u32) -> Result<Vec<OpenKey>, StoreError> {
        self.runtime.block_on(self.runs.open_keys(after, limit))
    }

    fn touch(&mut self, seen: &[(RunId, Timestamp)]) -> Result<(), StoreError> {
        self.runtime.block_on(self.runs.touch(seen))
    }

    fn commit_runs(&mut self, batch: &mut Batch) -> Result<HashSet<RunId>, StoreError> {
        self.runtime.block_on(self.runs.commit(batch))
    }

    fn take_over(&mut self, epoch: Uuid) -> Result<(), StoreError> {
        if let Some(owner) = self.runtime.block_on(self.sessions.take_over(epoch))? {
            self.owners.insert(epoch, (owner, None));
        }
        Ok(())
    }

    fn load(&mut self) -> Result<StoredPool, StoreError> {
        self.runtime.block_on(self.sessions.load())
    }

    fn commit_sessions(&mut self, epoch: Uuid, commit: &SessionCommit) -> Result<bool, StoreError> {
        let Some((owner, last)) = self.owners.get_mut(&epoch) else { return Ok(false) };
        let decisions = commit.decisions();
        let first = commit.events.events().first().map(|event| event.position);
        if first.is_some() && first == *last {
            owner.forget_last();
        }
        match self.runtime.block_on(self.sessions.commit(owner, &decisions, commit.token, &commit.events)) {
            Ok(()) => {
                *last = first;
                Ok(true)
            }
            Err(CommitError::TakenOver) => Ok(false),
            Err(CommitError::Store(error)) => Err(error),
        }
    }

    fn book(&mut self, base: Base) -> &mut dyn Tables {
        match base {
            Base::Runs => &mut self.books[0],
            Base::Sessions => &mut self.books[1],
        }
    }
}
