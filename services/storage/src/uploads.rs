//! Uploads that are under way: chunks in order, each perhaps several times, until the file is whole.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use errand_core::artifact::ArtifactKind;
use errand_core::run::LeaseToken;
use errand_core::{Error, ErrorCode, RunId, StorageId};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::artifact::{Artifact, Sha256};
use crate::holder::Holder;
use crate::keeper::{Keeper, NewFile};
use crate::staging::{Staged, Staging};

/// How long an upload may wait for its next chunk.
const PATIENCE: Duration = Duration::from_secs(10 * 60);
/// Uploads of one run at once.
const MAX_OF_RUN: usize = 16;

/// An upload as its runner begins it.
#[derive(Debug, Clone)]
pub struct Begin {
    /// Made by the runner.
    pub id: StorageId,
    /// The run that captured it.
    pub run_id: RunId,
    /// The lease that the runner holds.
    pub token: LeaseToken,
    /// File or screenshot.
    pub kind: ArtifactKind,
    /// As the source or the agent calls it.
    pub name: String,
    /// Where it is known before.
    pub size: Option<u64>,
    /// JSON that the agent has extracted.
    pub data: Option<Bytes>,
}

/// How a begun upload stands.
#[derive(Debug)]
pub enum Begun {
    /// It has been kept before.
    Done(Box<Artifact>),
    /// The task keeps no files.
    Ignored,
    /// So many bytes have arrived.
    Receiving(u64),
}

type Outcome = Option<Result<Artifact, Error>>;

enum State {
    Receiving(Box<Staged>),
    /// Whole; somebody waits for it to be kept.
    Keeping(watch::Receiver<Outcome>),
    /// Something of it was lost.
    Broken,
}

struct Upload {
    begin: Begin,
    holder: Holder,
    state: tokio::sync::Mutex<State>,
    touched: Mutex<Instant>,
}

/// See the module.
pub struct Uploads {
    table: Mutex<HashMap<StorageId, Arc<Upload>>>,
    staging: Staging,
    keeper: Arc<Keeper>,
    max_file_bytes: u64,
    max_uploads: usize,
}

impl std::fmt::Debug for Uploads {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uploads").field("count", &self.table().len()).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Uploads {
    /// None yet.
    #[must_use]
    pub fn new(staging: Staging, keeper: Arc<Keeper>, max_file_bytes: u64, max_uploads: usize) -> Self {
        Self { table: Mutex::default(), staging, keeper, max_file_bytes, max_uploads }
    }

    fn table(&self) -> std::sync::MutexGuard<'_, HashMap<StorageId, Arc<Upload>>> {
        lock(&self.table)
    }

    fn find(&self, id: StorageId, token: LeaseToken) -> Option<Arc<Upload>> {
        let upload = self.table().get(&id).filter(|upload| upload.begin.token == token).map(Arc::clone)?;
        *lock(&upload.touched) = Instant::now();
        Some(upload)
    }

    fn forget(&self, upload: &Arc<Upload>) {
        let mut table = self.table();
        if table.get(&upload.begin.id).is_some_and(|there| Arc::ptr_eq(there, upload)) {
            table.remove(&upload.begin.id);
        }
    }

    /// Begins an upload, or finds the one that is under way or done.
    ///
    /// # Errors
    /// `request`/`forbidden` where the lease is not the run's newest; `storage`/`file_too_large`; `request`/`input_invalid`
    /// where the id is another file's; `api`/`unavailable` where there is too much to do.
    pub async fn begin(&self, begin: Begin) -> Result<Begun, Error> {
        let holder = self.keeper.holder(begin.run_id, begin.token).await?;
        if let Some(artifact) = self.keeper.known(begin.id).await? {
            if artifact.run_id != begin.run_id {
                return Err(ErrorCode::INPUT_INVALID.with("the id is another file's").at("artifact_id"));
            }
            return Ok(Begun::Done(Box::new(artifact)));
        }
        if !holder.storage.enabled {
            return Ok(Begun::Ignored);
        }
        if begin.size.is_some_and(|size| size > self.max_file_bytes) {
            return Err(self.too_large());
        }
        if let Some(upload) = self.find(begin.id, begin.token) {
            let received = match &*upload.state.lock().await {
                State::Receiving(staged) => Some(staged.size()),
                // It is whole: what is left is to hear how it ends.
                State::Keeping(_) => begin.size.or(Some(0)),
                State::Broken => None,
            };
            if let Some(received) = received {
                return Ok(Begun::Receiving(received));
            }
            self.forget(&upload);
        }
        self.insert(begin, holder)?;
        Ok(Begun::Receiving(0))
    }

    fn insert(&self, begin: Begin, holder: Holder) -> Result<(), Error> {
        let mut table = self.table();
        let of_run = table.values().filter(|upload| upload.begin.run_id == begin.run_id && upload.is_open()).count();
        let open = table.values().filter(|upload| upload.is_open()).count();
        if of_run >= MAX_OF_RUN || open >= self.max_uploads {
            return Err(ErrorCode::API_UNAVAILABLE.with("too many uploads are under way; try again later"));
        }
        let id = begin.id;
        let state = tokio::sync::Mutex::new(State::Receiving(Box::new(self.staging.empty())));
        table.insert(id, Arc::new(Upload { begin, holder, state, touched: Mutex::new(Instant::now()) }));
        Ok(())
    }

    /// Takes a chunk; gives how many bytes have arrived. None: the upload is not known here.
    ///
    /// # Errors
    /// `storage`/`file_too_large`; `storage`/`storage_error` where it cannot be written.
    pub async fn put(&self, id: StorageId, token: LeaseToken, offset: u64, data: &[u8]) -> Result<Option<u64>, Error> {
        let Some(upload) = self.find(id, token) else { return Ok(None) };
        let mut state = upload.state.lock().await;
        let State::Receiving(staged) = &mut *state else {
            let whole = matches!(*state, State::Keeping(_));
            return Ok(whole.then_some(offset + data.len() as u64));
        };
        let received = staged.size();
        // Bytes that came before are passed over; behind a gap nothing can be taken.
        let fresh = received.checked_sub(offset).and_then(|known| data.get(usize::try_from(known).ok()?..));
        let Some(fresh) = fresh.filter(|fresh| !fresh.is_empty()) else { return Ok(Some(received)) };
        if received + fresh.len() as u64 > self.max_file_bytes {
            *state = State::Broken;
            drop(state);
            self.forget(&upload);
            return Err(self.too_large());
        }
        if let Err(error) = staged.append(fresh).await {
            tracing::error!(%error, artifact = %id, "a chunk could not be written");
            *state = State::Broken;
            drop(state);
            self.forget(&upload);
            return Err(ErrorCode::API_UNAVAILABLE.with("the chunk could not be written; try again"));
        }
        Ok(Some(staged.size()))
    }

    /// Keeps a file that is whole, and waits until it is durable. None: the upload is not known here, or what arrived
    /// is not what was sent.
    ///
    /// # Errors
    /// Those of [`Keeper::keep`].
    pub async fn finish(
        self: &Arc<Self>,
        id: StorageId,
        token: LeaseToken,
        size: u64,
        sha256: Sha256,
    ) -> Result<Option<Artifact>, Error> {
        let Some(upload) = self.find(id, token) else { return self.keeper.known(id).await };
        let mut state = upload.state.lock().await;
        if let State::Receiving(staged) = &*state
            && (staged.size() != size || staged.sha256() != sha256)
        {
            tracing::warn!(artifact = %id, "what arrived is not what was sent; it is to be sent again");
            *state = State::Broken;
        }
        let mut outcome = match std::mem::replace(&mut *state, State::Broken) {
            State::Broken => {
                drop(state);
                self.forget(&upload);
                return Ok(None);
            }
            State::Keeping(outcome) => outcome,
            State::Receiving(staged) => self.start_keeping(&upload, *staged),
        };
        *state = State::Keeping(outcome.clone());
        drop(state);
        let heard = outcome.wait_for(Option::is_some).await.map(|outcome| outcome.clone());
        // Kept, the store knows it; refused, it may be begun again.
        self.forget(&upload);
        match heard {
            Ok(Some(outcome)) => outcome.map(Some),
            // Its task has died.
            Ok(None) | Err(_) => Err(ErrorCode::API_UNAVAILABLE.with("the file could not be kept; try again")),
        }
    }

    /// As a task of its own: it goes on when its asker has asked again.
    fn start_keeping(&self, upload: &Arc<Upload>, staged: Staged) -> watch::Receiver<Outcome> {
        let (tell, outcome) = watch::channel(None);
        let (keeper, upload) = (Arc::clone(&self.keeper), Arc::clone(upload));
        tokio::spawn(async move {
            let Begin { id, run_id, token, kind, name, data, .. } = upload.begin.clone();
            let file = NewFile { id, run_id, token, kind, name, data, holder: upload.holder.clone() };
            let kept = keeper.keep(file, staged).await;
            tell.send_replace(Some(kept));
        });
        outcome
    }

    /// Forgets those that nobody goes on with.
    pub fn expire(&self) {
        self.table().retain(|_, upload| lock(&upload.touched).elapsed() < PATIENCE);
    }

    fn too_large(&self) -> Error {
        ErrorCode::FILE_TOO_LARGE.with(format!("a file may hold {} bytes", self.max_file_bytes))
    }
}

impl Upload {
    /// Whether it holds bytes, or soon will. One that is being worked on does.
    fn is_open(&self) -> bool {
        self.state.try_lock().map_or(true, |state| match &*state {
            State::Receiving(_) => true,
            State::Keeping(outcome) => outcome.borrow().is_none(),
            State::Broken => false,
        })
    }
}
