//! The two stores, the dispatcher's and the pool's: in memory, with the rules that the SQL has, or the real ones on
//! SQLite. What they do is done at once; when it is done, and whether the answer arrives, the world decides.

mod memory;
mod sqlite;

use std::collections::HashSet;

use errand_core::run::{LeaseToken, Run};
use errand_core::{RunId, RunnerId, Timestamp};
use errand_dispatcher::store::{Batch, OpenKey};
use errand_session_pool::pool::{Change, Decisions, Loss, Stored as StoredPool};
use errand_store::{Checkpoint, Encoded, Left, Place, Staged, StoreError, Stored};
use uuid::Uuid;

pub(crate) use memory::Memory;
pub(crate) use sqlite::Sqlite;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Base {
    Runs,
    Sessions,
}

impl Base {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Runs => "runs",
            Self::Sessions => "sessions",
        }
    }
}

/// What a pool commits.
#[derive(Debug, Clone)]
pub(crate) struct SessionCommit {
    pub(crate) changes: Vec<Change>,
    pub(crate) new_losses: Vec<Loss>,
    pub(crate) told_losses: Vec<LeaseToken>,
    pub(crate) drains: Vec<(RunnerId, bool)>,
    pub(crate) token: LeaseToken,
    pub(crate) events: Staged,
}

impl SessionCommit {
    pub(crate) fn of(decisions: &Decisions, token: LeaseToken, events: &Staged) -> Self {
        Self {
            changes: decisions.changes.clone(),
            new_losses: decisions.new_losses.clone(),
            told_losses: decisions.told_losses.clone(),
            drains: decisions.drains.clone(),
            token,
            events: events.clone(),
        }
    }

    fn decisions(&self) -> Decisions {
        Decisions {
            changes: self.changes.clone(),
            new_losses: self.new_losses.clone(),
            told_losses: self.told_losses.clone(),
            drains: self.drains.clone(),
            ..Decisions::default()
        }
    }
}

/// What was committed, for the checks.
#[derive(Debug)]
pub(crate) enum Committed {
    Runs(Vec<Run>, Vec<Stored>),
    Sessions(Vec<Change>, Vec<Stored>),
}

/// An outbox's tables.
pub(crate) trait Tables {
    fn register(&mut self, now: i64) -> Result<i64, StoreError>;
    fn unmarked(&mut self, objects: &[[u8; 16]]) -> Result<Vec<Encoded>, StoreError>;
    fn read(&mut self, after: i64, until: i64, limit: i64) -> Result<Vec<Encoded>, StoreError>;
    fn oldest(&mut self, after: i64, until: i64) -> Result<Option<i64>, StoreError>;
    fn read_in_order(&mut self, behind: Place, limit: i64) -> Result<Vec<(Encoded, Place)>, StoreError>;
    fn mark(&mut self, writer: i64, mark: i64, seen_at: i64) -> Result<(), StoreError>;
    fn advance(&mut self, left: Left, before: i64, own: i64) -> Result<(), StoreError>;
    fn checkpoint(&mut self, writer: i64, checkpoint: Checkpoint, keep: i64) -> Result<(), StoreError>;
    fn forget_checkpoints(&mut self, writer: i64, behind: i64) -> Result<(), StoreError>;
    fn checkpoints(&mut self, writer: i64) -> Result<Vec<Checkpoint>, StoreError>;
    fn left(&mut self, own: i64, published: i64, before: i64) -> Result<Vec<Left>, StoreError>;
    fn writers(&mut self) -> Result<Vec<(i64, i64)>, StoreError>;
    fn begun(&mut self) -> Result<Option<i64>, StoreError>;
    fn begin(&mut self, since: i64) -> Result<(), StoreError>;
    fn end(&mut self) -> Result<(), StoreError>;
}

/// A store that can be asked at once.
pub(crate) trait Backend {
    fn runs(&mut self, ids: &[RunId]) -> Result<Vec<Run>, StoreError>;
    fn open_runs(&mut self, after: Option<RunId>, limit: u32) -> Result<Vec<Run>, StoreError>;
    fn open_keys(&mut self, after: Option<RunId>, limit: u32) -> Result<Vec<OpenKey>, StoreError>;
    fn touch(&mut self, seen: &[(RunId, Timestamp)]) -> Result<(), StoreError>;
    /// As the dispatcher's store: the conflicts, and the batch without what met one.
    fn commit_runs(&mut self, batch: &mut Batch) -> Result<HashSet<RunId>, StoreError>;
    fn take_over(&mut self, epoch: Uuid) -> Result<(), StoreError>;
    fn load(&mut self) -> Result<StoredPool, StoreError>;
    /// False: another pool has taken over.
    fn commit_sessions(&mut self, epoch: Uuid, commit: &SessionCommit) -> Result<bool, StoreError>;
    fn book(&mut self, base: Base) -> &mut dyn Tables;
}

/// See the module.
pub(crate) struct Stores {
    backend: Box<dyn Backend>,
    pub(crate) log: Vec<Committed>,
}

impl Stores {
    pub(crate) fn new(backend: Box<dyn Backend>) -> Self {
        Self { backend, log: Vec::new() }
    }

    pub(crate) fn runs(&mut self, ids: &[RunId]) -> Result<Vec<Run>, StoreError> {
        self.backend.runs(ids)
    }

    pub(crate) fn open_runs(&mut self, after: Option<RunId>, limit: u32) -> Result<Vec<Run>, StoreError> {
        self.backend.open_runs(after, limit)
    }

    pub(crate) fn open_keys(&mut self, after: Option<RunId>, limit: u32) -> Result<Vec<OpenKey>, StoreError> {
        self.backend.open_keys(after, limit)
    }

    pub(crate) fn touch(&mut self, seen: &[(RunId, Timestamp)]) -> Result<(), StoreError> {
        self.backend.touch(seen)
    }

    pub(crate) fn commit_runs(&mut self, mut batch: Batch) -> Result<(HashSet<RunId>, Staged), StoreError> {
        let conflicts = self.backend.commit_runs(&mut batch)?;
        let changed = batch.changed.into_iter().map(|(run, _)| run);
        let committed: Vec<Run> =
            batch.new.into_iter().chain(changed).filter(|run| !conflicts.contains(&run.id)).collect();
        if !committed.is_empty() {
            self.log.push(Committed::Runs(committed, batch.events.events().to_vec()));
        }
        Ok((conflicts, batch.events))
    }

    pub(crate) fn take_over(&mut self, epoch: Uuid) -> Result<(), StoreError> {
        self.backend.take_over(epoch)
    }

    pub(crate) fn load(&mut self) -> Result<StoredPool, StoreError> {
        self.backend.load()
    }

    pub(crate) fn commit_sessions(&mut self, epoch: Uuid, commit: SessionCommit) -> Result<bool, StoreError> {
        let done = self.backend.commit_sessions(epoch, &commit)?;
        if done && !commit.changes.is_empty() {
            self.log.push(Committed::Sessions(commit.changes, commit.events.events().to_vec()));
        }
        Ok(done)
    }

    pub(crate) fn book(&mut self, base: Base) -> &mut dyn Tables {
        self.backend.book(base)
    }
}
