//! Sessions out.

use errand_core::session::{Session, SessionStatus};

use crate::run::same_names;
use crate::v1;

same_names!(SessionStatus, v1::SessionStatus, Queued, Running, Idle, Completing, Completed, Failed);

impl From<&Session> for v1::Session {
    fn from(session: &Session) -> Self {
        let (run_id, lease_token) =
            session.holder().map_or_else(Default::default, |(id, token)| (id.to_string(), token));
        Self {
            id: session.id.to_string(),
            tenant: session.tenant.as_ref().map(ToString::to_string).unwrap_or_default(),
            status: v1::SessionStatus::from(session.status()).into(),
            agent_id: session.agent_id.to_string(),
            runner_id: session.runner_id.to_string(),
            source_id: session.source_id.map(|id| id.to_string()).unwrap_or_default(),
            credential_id: session.credential_id.map(|id| id.to_string()).unwrap_or_default(),
            run_id,
            lease_token,
            runs_served: session.runs_served,
            reason: session.reason.clone().unwrap_or_default(),
            created_at_ms: session.created_at.0,
            updated_at_ms: session.updated_at.0,
            ended_at_ms: session.ended_at.map(|at| at.0),
            seq: session.seq,
        }
    }
}
