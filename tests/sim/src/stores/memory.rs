//! The stores' rules without SQL.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use errand_core::run::{LeaseToken, Run};
use errand_core::{RunId, RunnerId, SessionId, Timestamp};
use errand_dispatcher::store::{Batch, OpenKey};
use errand_session_pool::pool::{Change, Loss, Stored as StoredPool};
use errand_store::{Checkpoint, Encoded, Left, Place, Staged, StoreError, Stored};
use uuid::Uuid;

use super::{Backend, Base, SessionCommit, Tables};

#[derive(Debug, Default)]
struct Book {
    events: BTreeMap<i64, Stored>,
    by_object: BTreeMap<([u8; 16], i64), i64>,
    by_time: BTreeSet<Place>,
    /// Mark, and when it was seen last.
    writers: BTreeMap<i64, (i64, i64)>,
    checkpoints: BTreeMap<(i64, i64), Checkpoint>,
    begun: Option<i64>,
}

fn encoded(event: &Stored) -> Encoded {
    (event.position, event.payload.to_vec())
}

fn count(limit: i64) -> usize {
    usize::try_from(limit).unwrap_or(0)
}

impl Book {
    /// All, or none where one is there already.
    fn insert(&mut self, events: &Staged) -> Result<(), StoreError> {
        let taken = |event: &&Stored| {
            self.events.contains_key(&event.position) || self.by_object.contains_key(&(event.object, event.seq))
        };
        if let Some(event) = events.events().iter().find(taken) {
            return Err(StoreError::Corrupt(format!("event {} is not the first with its place", event.id)));
        }
        for event in events.events() {
            self.by_object.insert((event.object, event.seq), event.position);
            self.by_time.insert((event.created_at, event.seq, event.position));
            self.events.insert(event.position, event.clone());
        }
        Ok(())
    }
}

impl Tables for Book {
    fn register(&mut self, now: i64) -> Result<i64, StoreError> {
        let writer = self.writers.last_key_value().map_or(0, |(writer, _)| *writer) + 1;
        self.writers.insert(writer, (writer << 40, now));
        Ok(writer)
    }

    fn unmarked(&mut self, objects: &[[u8; 16]]) -> Result<Vec<Encoded>, StoreError> {
        let mut found = Vec::new();
        for object in objects {
            for position in self.by_object.range((*object, i64::MIN)..=(*object, i64::MAX)).map(|(_, at)| *at) {
                let mark = self.writers.get(&(position >> 40)).map_or(i64::MAX, |(mark, _)| *mark);
                if position > mark {
                    found.extend(self.events.get(&position).map(encoded));
                }
            }
        }
        Ok(found)
    }

    fn read(&mut self, after: i64, until: i64, limit: i64) -> Result<Vec<Encoded>, StoreError> {
        if after >= until {
            return Ok(Vec::new());
        }
        Ok(self.events.range(after + 1..=until).take(count(limit)).map(|(_, event)| encoded(event)).collect())
    }

    fn oldest(&mut self, after: i64, until: i64) -> Result<Option<i64>, StoreError> {
        let until = until.max(after);
        Ok(self
            .events
            .range(after + 1..=until.max(after + 1))
            .filter(|(at, _)| **at <= until)
            .map(|(_, event)| event.created_at)
            .min())
    }

    fn read_in_order(&mut self, behind: Place, limit: i64) -> Result<Vec<(Encoded, Place)>, StoreError> {
        let places = self.by_time.range((behind.0, behind.1, behind.2 + 1)..).take(count(limit));
        Ok(places.filter_map(|place| Some((encoded(self.events.get(&place.2)?), *place))).collect())
    }

    fn mark(&mut self, writer: i64, mark: i64, seen_at: i64) -> Result<(), StoreError> {
        self.writers.entry(writer).and_modify(|row| *row = (mark, seen_at));
        Ok(())
    }

    fn advance(&mut self, left: Left, before: i64, own: i64) -> Result<(), StoreError> {
        if let Some((mark, seen_at)) = self.writers.get_mut(&left.writer)
            && *mark < left.newest
            && *seen_at < before
            && left.writer != own
        {
            *mark = left.newest;
        }
        Ok(())
    }

    fn checkpoint(&mut self, writer: i64, checkpoint: Checkpoint, keep: i64) -> Result<(), StoreError> {
        self.checkpoints.insert((writer, checkpoint.position), checkpoint);
        let own: Vec<(i64, i64)> = self.checkpoints.range((writer, 0)..(writer + 1, 0)).map(|(key, _)| *key).collect();
        for key in own.iter().rev().skip(count(keep)) {
            self.checkpoints.remove(key);
        }
        Ok(())
    }

    fn forget_checkpoints(&mut self, writer: i64, behind: i64) -> Result<(), StoreError> {
        self.checkpoints.retain(|(of, position), _| *of != writer || *position <= behind);
        Ok(())
    }

    fn checkpoints(&mut self, writer: i64) -> Result<Vec<Checkpoint>, StoreError> {
        Ok(self.checkpoints.range((writer, 0)..(writer + 1, 0)).rev().map(|(_, one)| one.clone()).collect())
    }

    fn left(&mut self, own: i64, published: i64, before: i64) -> Result<Vec<Left>, StoreError> {
        let mut all = Vec::new();
        for (writer, (mark, seen_at)) in &self.writers {
            if *seen_at >= before && *writer != own {
                continue;
            }
            let from = if *writer == own { published } else { *mark }.max(*writer << 40);
            let behind = self.events.range(from + 1..(writer + 1) << 40);
            let since = behind.clone().map(|(_, event)| event.created_at).min();
            if let (Some(since), Some((newest, _))) = (since, behind.last()) {
                all.push(Left { writer: *writer, newest: *newest, since });
            }
        }
        Ok(all)
    }

    fn writers(&mut self) -> Result<Vec<(i64, i64)>, StoreError> {
        Ok(self.writers.iter().map(|(writer, (mark, _))| (*writer, *mark)).collect())
    }

    fn begun(&mut self) -> Result<Option<i64>, StoreError> {
        Ok(self.begun)
    }

    fn begin(&mut self, since: i64) -> Result<(), StoreError> {
        self.begun = Some(since);
        Ok(())
    }

    fn end(&mut self) -> Result<(), StoreError> {
        self.begun = None;
        Ok(())
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    runs: BTreeMap<RunId, Run>,
    sessions: BTreeMap<SessionId, Change>,
    losses: BTreeMap<LeaseToken, Loss>,
    drains: BTreeSet<RunnerId>,
    epoch: Option<Uuid>,
    token: LeaseToken,
    books: [Book; 2],
}

impl Memory {
    fn is_conflict(&self, run: &Run, version: Option<u64>) -> bool {
        self.runs.get(&run.id).map(|stored| stored.seq) != version
    }
}

impl Backend for Memory {
    fn runs(&mut self, ids: &[RunId]) -> Result<Vec<Run>, StoreError> {
        Ok(ids.iter().filter_map(|id| self.runs.get(id).cloned()).collect())
    }

    fn open_runs(&mut self, after: Option<RunId>, limit: u32) -> Result<Vec<Run>, StoreError> {
        let behind = |run: &&Run| after.is_none_or(|after| run.id > after);
        let open = self.runs.values().filter(|run| !run.status().is_final()).filter(behind);
        Ok(open.take(limit as usize).cloned().collect())
    }

    fn open_keys(&mut self, after: Option<RunId>, limit: u32) -> Result<Vec<OpenKey>, StoreError> {
        Ok(self.open_runs(after, limit)?.iter().map(Into::into).collect())
    }

    fn touch(&mut self, seen: &[(RunId, Timestamp)]) -> Result<(), StoreError> {
        for (id, at) in seen {
            if let Some(run) = self.runs.get_mut(id) {
                run.last_activity = run.last_activity.max(*at);
            }
        }
        Ok(())
    }

    fn commit_runs(&mut self, batch: &mut Batch) -> Result<HashSet<RunId>, StoreError> {
        let mut conflicts: HashSet<RunId> =
            batch.new.iter().filter(|run| self.is_conflict(run, None)).map(|run| run.id).collect();
        let changed = batch.changed.iter().filter(|(run, version)| self.is_conflict(run, Some(*version)));
        conflicts.extend(changed.map(|(run, _)| run.id));
        batch.events.retain_objects(|object| !conflicts.contains(&RunId::from_uuid(Uuid::from_bytes(*object))));
        self.books[0].insert(&batch.events)?;
        for run in batch.new.iter().chain(batch.changed.iter().map(|(run, _)| run)) {
            if !conflicts.contains(&run.id) {
                let mut run = run.clone();
                let last_activity = self.runs.get(&run.id).map_or(run.last_activity, |old| old.last_activity);
                run.last_activity = run.last_activity.max(last_activity);
                self.runs.insert(run.id, run);
            }
        }
        Ok(conflicts)
    }

    fn take_over(&mut self, epoch: Uuid) -> Result<(), StoreError> {
        self.epoch = Some(epoch);
        Ok(())
    }

    fn load(&mut self) -> Result<StoredPool, StoreError> {
        let open = |change: &&Change| !change.session.status().is_final();
        Ok(StoredPool {
            sessions: self.sessions.values().filter(open).cloned().collect(),
            losses: self.losses.values().cloned().collect(),
            drains: self.drains.iter().copied().collect(),
            token: self.token,
        })
    }

    fn commit_sessions(&mut self, epoch: Uuid, commit: &SessionCommit) -> Result<bool, StoreError> {
        if self.epoch != Some(epoch) {
            return Ok(false);
        }
        // An earlier try, whose outcome nobody learned, has done it.
        let done =
            commit.events.events().first().is_some_and(|event| self.books[1].events.contains_key(&event.position));
        if done {
            return Ok(true);
        }
        self.books[1].insert(&commit.events)?;
        self.token = commit.token;
        for change in &commit.changes {
            self.sessions.insert(change.session.id, change.clone());
        }
        for loss in &commit.new_losses {
            self.losses.entry(loss.lease.token).or_insert_with(|| loss.clone());
        }
        for token in &commit.told_losses {
            self.losses.remove(token);
        }
        for (runner, drains) in &commit.drains {
            if *drains {
                self.drains.insert(*runner)
            } else {
                self.drains.remove(runner)
            };
        }
        Ok(true)
    }

    fn book(&mut self, base: Base) -> &mut dyn Tables {
        match base {
            Base::Runs => &mut self.books[0],
            Base::Sessions => &mut self.books[1],
        }
    }
}
