//! Runs as a store is given them.

use bytes::Bytes;
use errand_core::run::{Run, Spec, State, submit};
use errand_core::task::Settings;
use errand_core::{RunId, TaskId, Tenant, Timestamp};
use uuid::Uuid;

/// When they are made.
pub const NOW: Timestamp = Timestamp(1_700_000_000_000);

/// The tenant of [`queued`].
///
/// # Panics
/// Never: it is one.
#[must_use]
pub fn tenant() -> Tenant {
    "acme".parse().expect("a tenant")
}

/// A run that was accepted at [`NOW`], with this input.
#[must_use]
pub fn queued(input: &'static str) -> Run {
    let spec = Spec {
        task_id: TaskId::from_uuid(Uuid::now_v7()),
        task_version: 1,
        agent_id: "agt_exec".parse().ok(),
        source_id: None,
        credential_id: None,
        wanted_session: None,
        metadata: [("k".to_owned(), "v".to_owned())].into(),
        settings: Settings::default(),
        retry_of: None,
        traceparent: None,
    };
    let run = Run {
        id: RunId::from_uuid(Uuid::now_v7()),
        tenant: tenant(),
        spec: spec.into(),
        seq: 0,
        attempt: 1,
        state: State::Queued { since: NOW },
        session_id: None,
        errors: Vec::new(),
        created_at: NOW,
        started_at: None,
        finished_at: None,
        canceled_at: None,
        updated_at: NOW,
        last_activity: NOW,
        input: Bytes::from_static(input.as_bytes()),
        output: None,
    };
    submit(run, Ok(()), NOW).next
}
