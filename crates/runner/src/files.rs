//! Files that a run captures: sent in chunks, again until they are kept.

use std::io::{self, SeekFrom};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use errand_core::artifact::ArtifactKind;
use errand_core::{Error, ErrorCode, StorageId};
use ring::digest;
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncSeek, AsyncSeekExt};
use uuid::Uuid;

use crate::backoff::Backoff;
use crate::control::Control;
use crate::transport::Begun;

/// A file to be kept.
#[derive(Debug, Clone)]
pub struct NewFile {
    /// What it is to its reader.
    pub kind: ArtifactKind,
    /// As the source calls it. It is made safe, and numbered where the run has another of that name.
    pub name: String,
    /// What was extracted from it; none: Errand does that, where the task wants it.
    pub data: Option<Value>,
}

impl NewFile {
    /// A file without data.
    #[must_use]
    pub fn new(kind: ArtifactKind, name: impl Into<String>) -> Self {
        Self { kind, name: name.into(), data: None }
    }
}

/// What became of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kept {
    /// It is kept, and stays.
    As {
        /// Its id.
        id: StorageId,
        /// The name that it has got.
        name: String,
    },
    /// The run's task keeps no files.
    Ignored,
}

/// Why a file was not kept.
#[derive(Debug, thiserror::Error)]
pub enum NotKept {
    /// It breaks a limit; trying again would not help.
    #[error(transparent)]
    Refused(Error),
    /// The run is no longer this runner's.
    #[error("the run is no longer this runner's")]
    Disowned,
    /// It cannot be read.
    #[error("the file cannot be read: {0}")]
    Unreadable(#[from] io::Error),
}

/// Why a step of an upload has no good answer.
#[derive(Debug)]
pub(crate) enum Unsent {
    /// It may have one later.
    NotNow(String),
    /// It never will.
    Refused(Error),
    Disowned,
}

/// What a whole file was answered with.
enum Step {
    Kept(Kept),
    /// Ask where it stands.
    Again,
}

impl Control {
    /// Keeps a file of the run: when this returns, it outlives everything. While Errand is away it is tried again, for
    /// as long as the run is executed: drop the future to give up. What is taken counts as a sign of life.
    ///
    /// The source is read from its start, again where something was lost on the way, so leave it as it is meanwhile.
    ///
    /// The run's secrets are taken out of the name; data that holds one is refused. The content is as it is.
    ///
    /// # Errors
    /// [`NotKept`].
    pub async fn upload<S>(&self, mut file: NewFile, mut source: S) -> Result<Kept, NotKept>
    where
        S: AsyncRead + AsyncSeek + Unpin + Send,
    {
        file.name = self.secret_filter().clean(&file.name);
        if file.data.as_ref().is_some_and(|data| self.execution.safe.stands_in(data.to_string().as_bytes())) {
            let message = "the data of a file holds a secret of the run's credential, so it is not kept";
            return Err(NotKept::Refused(ErrorCode::STORAGE_ERROR.with(message)));
        }
        let size = source.seek(SeekFrom::End(0)).await?;
        let id = StorageId::from_uuid(Uuid::now_v7());
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(5), id.uuid().as_u128());
        loop {
            let before = self.shelf.taken();
            match self.try_upload(id, &file, size, &mut source).await {
                Ok(Step::Kept(kept)) => return Ok(kept),
                Ok(Step::Again) => tracing::debug!(artifact = %id, "something was lost on the way"),
                Err(Stopped::Source(error)) => return Err(error.into()),
                Err(Stopped::Shelf(Unsent::Refused(error))) => return Err(NotKept::Refused(error)),
                Err(Stopped::Shelf(Unsent::Disowned)) => return Err(NotKept::Disowned),
                Err(Stopped::Shelf(Unsent::NotNow(error))) => {
                    tracing::warn!(artifact = %id, error, "the storage has not taken a file; trying again");
                }
            }
            if self.shelf.taken() != before {
                backoff.reset();
            }
            backoff.pause().await;
        }
    }

    /// From where it stands to its end, or to the first trouble: what became of it is asked by the next try.
    async fn try_upload<S>(&self, id: StorageId, file: &NewFile, size: u64, source: &mut S) -> Result<Step, Stopped>
    where
        S: AsyncRead + AsyncSeek + Unpin + Send,
    {
        let (shelf, execution) = (&self.shelf, &self.execution);
        let (instance, from, chunk) = match shelf.begin(id, execution, file, size).await? {
            Begun::Done(kept) => return Ok(Step::Kept(kept)),
            Begun::Ignored => return Ok(Step::Kept(Kept::Ignored)),
            Begun::Receiving { instance, received, chunk_bytes } => (instance, received, chunk_bytes),
        };
        source.seek(SeekFrom::Start(0)).await?;
        let mut digest = digest::Context::new(&digest::SHA256);
        let mut at = 0;
        loop {
            // What has arrived is read again for its digest alone, and never beyond its end.
            let rest = from.checked_sub(at).filter(|rest| *rest > 0);
            let most = rest.map_or(chunk, |rest| usize::try_from(rest).unwrap_or(chunk).min(chunk));
            let bytes = next_chunk(source, most).await?;
            if bytes.is_empty() {
                break;
            }
            digest.update(&bytes);
            let end = at + bytes.len() as u64;
            if rest.is_none() {
                if shelf.put(&instance, id, execution, at, bytes).await? != Some(end) {
                    return Ok(Step::Again);
                }
                self.alive();
            }
            at = end;
        }
        let digest = Bytes::copy_from_slice(digest.finish().as_ref());
        let kept = shelf.finish(&instance, id, execution, at, digest).await?;
        Ok(kept.map_or(Step::Again, Step::Kept))
    }
}

/// Why a try came to its end.
enum Stopped {
    Source(io::Error),
    Shelf(Unsent),
}

impl From<io::Error> for Stopped {
    fn from(error: io::Error) -> Self {
        Self::Source(error)
    }
}

impl From<Unsent> for Stopped {
    fn from(unsent: Unsent) -> Self {
        Self::Shelf(unsent)
    }
}

/// So many bytes, or less at the end.
async fn next_chunk(source: &mut (impl AsyncRead + Unpin), most: usize) -> io::Result<Bytes> {
    let mut bytes = BytesMut::with_capacity(most);
    let mut rest = source.take(most as u64);
    while rest.read_buf(&mut bytes).await? > 0 {}
    Ok(bytes.freeze())
}
