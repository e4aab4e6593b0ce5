use std::time::Duration;

use errand_bus::{Bus, RequestError};
use errand_core::run::LeaseToken;
use errand_core::{Error, ErrorCode, RunId};
use errand_proto::{id, lease, optional_id, v1};
use errand_secret::handover::PublicKey;

use crate::handover::{Asker, Holder};

/// How long a witness may take: the runner that asks tries again.
const ANSWER: Duration = Duration::from_secs(3);

/// Dispatcher and runners, over the bus.
#[derive(Debug)]
pub struct Witnesses {
    bus: Bus,
}

impl Witnesses {
    /// Over this bus.
    #[must_use]
    pub const fn new(bus: Bus) -> Self {
        Self { bus }
    }
}

fn silent(who: &str, error: &RequestError) -> Error {
    tracing::warn!(%error, "the {who} was not heard");
    ErrorCode::API_UNAVAILABLE.with(format!("the {who} does not answer; try again"))
}

impl crate::handover::Witnesses for Witnesses {
    async fn holder(&self, run_id: RunId, token: LeaseToken) -> Result<Option<Holder>, Error> {
        let request = v1::LeaseHolderRequest { run_id: run_id.to_string(), lease_token: token };
        let subject = self.bus.subjects().run("lease_holder");
        let answer = self.bus.request_within::<_, v1::LeaseHolderResponse>(subject, &request, ANSWER).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(RequestError::Service(error)) if error.code == ErrorCode::TASK_RUN_NOT_FOUND => return Ok(None),
            Err(error) => return Err(silent("dispatcher", &error)),
        };
        let lease = lease(answer.lease.as_ref())?;
        Ok(Some(Holder {
            tenant: id("tenant", &answer.tenant)?,
            runner_id: lease.runner_id,
            token: lease.token,
            source_id: optional_id("source_id", &answer.source_id)?,
            credential_id: optional_id("credential_id", &answer.credential_id)?,
        }))
    }

    async fn confirms(&self, asker: &Asker, key: &PublicKey) -> Result<bool, Error> {
        let request = v1::ConfirmKeyRequest {
            run_id: asker.run_id.to_string(),
            lease_token: asker.token,
            public_key: key.as_bytes().to_vec().into(),
        };
        let subject = self.bus.subjects().runner(asker.runner_id, "confirm_key");
        let answer = self.bus.request_within::<_, v1::ConfirmKeyResponse>(subject, &request, ANSWER).await;
        answer.map(|answer| answer.confirmed).map_err(|error| silent("runner", &error))
    }
}
