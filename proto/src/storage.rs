//! Artifacts: their kinds, and the event of a new one.

use errand_core::EventId;
use errand_core::artifact::ArtifactKind;

use crate::run::same_names;
use crate::v1;

same_names!(ArtifactKind, v1::ArtifactKind, File, Screenshot);

impl From<&v1::Artifact> for v1::StorageSummary {
    fn from(artifact: &v1::Artifact) -> Self {
        Self {
            id: artifact.id.clone(),
            run_id: artifact.run_id.clone(),
            task_id: artifact.task_id.clone(),
            kind: artifact.kind,
            name: artifact.name.clone(),
            mime_type: artifact.mime_type.clone(),
            size_bytes: artifact.size_bytes,
            sha256: artifact.sha256.clone(),
            created_at_ms: artifact.created_at_ms,
        }
    }
}

/// The event of a new artifact.
pub(crate) fn created(event_id: EventId, artifact: &v1::Artifact, traceparent: String) -> v1::Event {
    v1::Event {
        id: event_id.to_string(),
        r#type: "storage.created".to_owned(),
        tenant: artifact.tenant.clone(),
        object_id: artifact.id.clone(),
        seq: 1,
        created_at_ms: artifact.created_at_ms,
        traceparent,
        data: Some(v1::event::Data::Storage(artifact.into())),
    }
}
