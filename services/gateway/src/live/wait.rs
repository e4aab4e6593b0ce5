//! Waiting for a run's end.

use std::sync::Arc;
use std::time::Duration;

use errand_core::run::RunStatus;
use errand_core::{Error, RunId, Tenant};
use errand_proto::v1;
use tokio::time::Instant;

use super::hub::Topic;
use crate::backend::present;
use crate::service::Gateway;

/// How long a silent run is taken to be silent before the store is asked.
const SILENCE: Duration = Duration::from_secs(5);

fn is_final(status: v1::RunStatus) -> bool {
    RunStatus::try_from(status).is_ok_and(RunStatus::is_final)
}

/// The run once it is final, or as it stands when the time is over.
///
/// # Errors
/// `request`/`task_run_not_found`; `api`/`unavailable`.
pub async fn final_run(
    gateway: &Arc<Gateway>,
    tenant: &Tenant,
    run: RunId,
    timeout: Duration,
) -> Result<v1::Run, Error> {
    let until = Instant::now() + timeout;
    let found = read(gateway, tenant, run).await?;
    if is_final(found.status()) || timeout.is_zero() {
        return Ok(found);
    }
    let mut listener = gateway.hub.listen(Topic::Run(tenant.clone(), run)).await?;
    // What happened between the look and the listening would not be heard.
    let mut found = read(gateway, tenant, run).await?;
    while !is_final(found.status()) && Instant::now() < until {
        let look_at = until.min(Instant::now() + SILENCE);
        loop {
            let heard = tokio::select! {
                heard = listener.next() => heard,
                () = tokio::time::sleep_until(look_at) => break,
                () = gateway.draining.cancelled() => return Ok(found),
            };
            let Some(heard) = heard else { return Ok(found) };
            let Some(v1::event::Data::Run(summary)) = &heard.event.data else { continue };
            if is_final(summary.status()) {
                break;
            }
        }
        found = read(gateway, tenant, run).await?;
    }
    Ok(found)
}

async fn read(gateway: &Gateway, tenant: &Tenant, run: RunId) -> Result<v1::Run, Error> {
    let request =
        v1::GetRunRequest { tenant: tenant.to_string(), run_id: run.to_string(), ..v1::GetRunRequest::default() };
    let answer: v1::GetRunResponse = gateway.backend.dispatcher("get_run", &request).await?;
    present(answer.run, "run")
}
