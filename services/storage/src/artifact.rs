//! An artifact as it is kept.

use bytes::Bytes;
use errand_core::artifact::ArtifactKind;
use errand_core::{Error, RunId, StorageId, TaskId, Tenant, Timestamp};
use errand_proto::v1;
use serde::{Deserialize, Serialize};

/// SHA-256 of a file's bytes.
pub type Sha256 = [u8; 32];

/// A file that a run has captured. All but the data is kept as one document.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// Made by the runner.
    pub id: StorageId,
    /// Its owner.
    pub tenant: Tenant,
    /// What has captured it.
    pub run_id: RunId,
    /// What that is a run of.
    pub task_id: TaskId,
    /// The run's attempt.
    pub attempt: u32,
    /// File or screenshot.
    pub kind: ArtifactKind,
    /// Safe, and unique within the run.
    pub name: String,
    /// By content.
    pub mime_type: String,
    /// How many bytes.
    pub size: u64,
    /// Of its bytes.
    pub sha256: Sha256,
    /// Why there is no data.
    pub errors: Vec<Error>,
    /// When it was kept.
    pub created_at: Timestamp,
    /// When it is deleted; none: never.
    pub expires_at: Option<Timestamp>,
    /// JSON: what was extracted from it.
    #[serde(skip)]
    pub data: Option<Bytes>,
}

impl From<&Artifact> for v1::Artifact {
    fn from(artifact: &Artifact) -> Self {
        Self {
            id: artifact.id.to_string(),
            tenant: artifact.tenant.to_string(),
            run_id: artifact.run_id.to_string(),
            task_id: artifact.task_id.to_string(),
            kind: v1::ArtifactKind::from(artifact.kind).into(),
            name: artifact.name.clone(),
            mime_type: artifact.mime_type.clone(),
            size_bytes: artifact.size,
            sha256: Bytes::copy_from_slice(&artifact.sha256),
            attempt: artifact.attempt,
            data: artifact.data.clone(),
            errors: artifact.errors.iter().map(Into::into).collect(),
            created_at_ms: artifact.created_at.0,
            expires_at_ms: artifact.expires_at.map(|at| at.0),
        }
    }
}

/// Now, as events and artifacts have it.
#[must_use]
pub fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Timestamp(i64::try_from(since.as_millis()).unwrap_or(i64::MAX))
}
