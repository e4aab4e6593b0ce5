//! Makes a file that has arrived an artifact: bytes first, durable, then the row with its event.

use std::time::Duration;

use bytes::Bytes;
use errand_bus::Bus;
use errand_core::artifact::ArtifactKind;
use errand_core::limits::MAX_VALUE_BYTES;
use errand_core::run::LeaseToken;
use errand_core::task::Storage;
use errand_core::{Error, ErrorCode, EventId, RunId, StorageId, Timestamp};
use errand_proto::event::of_artifact;
use errand_proto::v1;
use errand_store::{Outbox, StoreError};
use tokio::sync::Mutex;
use uuid::Uuid;

use crate::artifact::{Artifact, now};
use crate::blobs::Blobs;
use crate::extraction::{Extractor, Format};
use crate::holder::{self, Holder};
use crate::staging::Staged;
use crate::store::{Keep, Kept, RunLimits, Store};
use crate::{content, names};

/// How often a commit is tried again after another upload's came first.
const TRIES: usize = 4;

/// A file that has arrived.
#[derive(Debug, Clone)]
pub struct NewFile {
    /// Made by the runner.
    pub id: StorageId,
    /// The run that captured it.
    pub run_id: RunId,
    /// The lease that its runner held.
    pub token: LeaseToken,
    /// File or screenshot.
    pub kind: ArtifactKind,
    /// As the source or the agent calls it.
    pub name: String,
    /// JSON that the agent has extracted.
    pub data: Option<Bytes>,
    /// Whose it is.
    pub holder: Holder,
}

/// See the module.
#[derive(Debug)]
pub struct Keeper {
    bus: Bus,
    store: Store,
    blobs: Blobs,
    /// Its commits must come one after another.
    outbox: Mutex<Outbox>,
    extractor: Extractor,
    limits: RunLimits,
    retention: Option<Duration>,
}

/// What a user is told when the store fails: its words stay in the log.
pub fn unavailable(error: StoreError) -> Error {
    tracing::error!(%error, "the store failed");
    ErrorCode::API_UNAVAILABLE.with("the store does not answer; try again")
}

impl Keeper {
    /// The outbox must be nobody else's.
    #[must_use]
    pub fn new(
        bus: Bus,
        store: Store,
        blobs: Blobs,
        outbox: Outbox,
        extractor: Extractor,
        limits: RunLimits,
        retention: Option<Duration>,
    ) -> Self {
        Self { bus, store, blobs, outbox: Mutex::new(outbox), extractor, limits, retention }
    }

    /// Whose run it is, where this lease holds it.
    ///
    /// # Errors
    /// Those of [`holder::ask`].
    pub async fn holder(&self, run_id: RunId, token: LeaseToken) -> Result<Holder, Error> {
        holder::ask(&self.bus, run_id, token).await
    }

    /// An artifact that has been kept.
    ///
    /// # Errors
    /// `api`/`unavailable` where the store fails.
    pub async fn known(&self, id: StorageId) -> Result<Option<Artifact>, Error> {
        self.store.artifact(id).await.map_err(unavailable)
    }

    /// Keeps a file. What it returns is durable.
    ///
    /// # Errors
    /// `request`/`forbidden` where the lease is not the run's newest any more; `storage`/`storage_error` where the run
    /// may have no more; `api`/`unavailable` where bytes or row could not be written.
    pub async fn keep(&self, file: NewFile, mut staged: Staged) -> Result<Artifact, Error> {
        let artifact = self.describe(&file, &mut staged).await;
        let shared = file.holder.storage.deduplication;
        let mut blob = None;
        for _ in 0..TRIES {
            let has_equal = shared && {
                let (tenant, task) = (&artifact.tenant, artifact.task_id);
                self.store.has_equal(tenant, task, &artifact.sha256).await.map_err(unavailable)?
            };
            if blob.is_none() && !has_equal {
                blob = Some(self.put(&artifact, &mut staged).await?);
            }
            // Last of all: who has lost the run while the bytes were put keeps nothing.
            if let Err(error) = self.holder(file.run_id, file.token).await {
                self.discard(blob).await;
                return Err(error);
            }
            let keep = Keep { artifact: &artifact, shared, blob, limits: self.limits };
            match self.commit(&keep, &file.holder.traceparent).await {
                Ok(Kept::New(artifact)) => return Ok(artifact),
                Ok(Kept::Already(artifact)) => {
                    self.discard(blob).await;
                    return Ok(artifact);
                }
                Ok(Kept::NoRoom) => {
                    self.discard(blob).await;
                    return Err(self.no_room());
                }
                Ok(Kept::NoBytes) => blob = None,
                // The other one has committed: now it can be shared.
                Err(error) if is_unique_violation(&error) => {}
                // Perhaps committed: the runner asks again and is told; a blob that was not is swept.
                Err(error) => return Err(unavailable(error)),
            }
        }
        self.discard(blob).await;
        Err(ErrorCode::API_UNAVAILABLE.with("equal files come and go too fast; try again"))
    }

    async fn commit(&self, keep: &Keep<'_>, traceparent: &str) -> Result<Kept, StoreError> {
        let outbox = self.outbox.lock().await;
        let event = |artifact: &Artifact| {
            of_artifact(EventId::from_uuid(Uuid::now_v7()), &v1::Artifact::from(artifact), traceparent.to_owned())
        };
        self.store.keep(keep, &outbox, event).await
    }

    async fn describe(&self, file: &NewFile, staged: &mut Staged) -> Artifact {
        let name = names::safe(&file.name);
        let (head, is_whole) = staged.head();
        let mime_type = content::mime_type(head, is_whole, &name);
        let created_at = now();
        let expires = self.retention.map(|kept| i64::try_from(kept.as_millis()).unwrap_or(i64::MAX));
        let mut artifact = Artifact {
            id: file.id,
            tenant: file.holder.tenant.clone(),
            run_id: file.run_id,
            task_id: file.holder.task_id,
            attempt: file.holder.attempt,
            kind: file.kind,
            name,
            mime_type: mime_type.to_owned(),
            size: staged.size(),
            sha256: staged.sha256(),
            errors: Vec::new(),
            created_at,
            expires_at: expires.map(|kept| Timestamp(created_at.0.saturating_add(kept))),
            data: None,
        };
        match self.data(file, mime_type, staged).await {
            Ok(data) => artifact.data = data,
            Err(why) => artifact.errors.push(ErrorCode::EXTRACTION_FAILED.with(why)),
        }
        artifact
    }

    /// The agent's data, or what an extractor makes of the file where the task wants that; fitting the task's schema.
    async fn data(&self, file: &NewFile, mime_type: &str, staged: &mut Staged) -> Result<Option<Bytes>, String> {
        let settings = &file.holder.storage;
        let wanted = settings.extraction && file.kind == ArtifactKind::File;
        let data = match (&file.data, Format::of(mime_type)) {
            (Some(data), _) => data.clone(),
            (None, Some(format)) if wanted => self.extractor.extract(format, staged).await?,
            (None, _) => return Ok(None),
        };
        check(&data, settings)?;
        Ok(Some(data))
    }

    async fn put(&self, artifact: &Artifact, staged: &mut Staged) -> Result<Uuid, Error> {
        let blob = Uuid::now_v7();
        self.store.pending(blob, artifact).await.map_err(unavailable)?;
        if let Err(error) = self.blobs.put(blob, staged).await {
            tracing::error!(error = format!("{error:#}"), artifact = %artifact.id, "a file's bytes could not be put");
            self.discard(Some(blob)).await;
            return Err(ErrorCode::API_UNAVAILABLE.with("the file could not be written; try again"));
        }
        Ok(blob)
    }

    /// Where that fails, the blob stays pending and is swept as such.
    async fn discard(&self, blob: Option<Uuid>) {
        if let Some(blob) = blob
            && let Err(error) = self.store.discard(blob, now()).await
        {
            tracing::warn!(%error, "a blob that nobody needs could not be given up yet");
        }
    }

    fn no_room(&self) -> Error {
        let RunLimits { files, bytes } = self.limits;
        ErrorCode::STORAGE_ERROR.with(format!("a run may keep {files} files of {bytes} bytes together"))
    }
}

fn check(data: &[u8], settings: &Storage) -> Result<(), String> {
    if data.len() > MAX_VALUE_BYTES {
        return Err(format!("the data is larger than {MAX_VALUE_BYTES} bytes"));
    }
    let compiled = settings
        .extraction_schema
        .as_ref()
        .map(|schema| errand_schema::compile("storage.extraction_schema", schema).map_err(|error| error.message));
    let validator = compiled.transpose()?;
    errand_schema::check(data, validator.as_ref()).map_err(|misfit| format!("the data does not fit: {misfit}"))
}

fn is_unique_violation(error: &StoreError) -> bool {
    matches!(error, StoreError::Database(sqlx::Error::Database(error)) if error.is_unique_violation())
}
