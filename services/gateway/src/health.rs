//! `/healthz` (the process lives), `/readyz` (broker, services and store answer), `/metrics`.

use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use errand_core::ErrorCode;
use errand_proto::v1;
use tokio::sync::Mutex;

use crate::service::Gateway;

/// How long the last answer is given again.
const FRESH: Duration = Duration::from_millis(250);
/// How long each part may take to say that it is there.
const PATIENCE: Duration = Duration::from_secs(2);

/// The routes.
pub fn routes() -> Router<Arc<Gateway>> {
    Router::new()
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
}

async fn metrics(State(gateway): State<Arc<Gateway>>) -> Response {
    ([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], gateway.metrics.text())
        .into_response()
}

async fn ready(State(gateway): State<Arc<Gateway>>) -> Response {
    let missing = gateway.readiness.missing(&gateway).await;
    if missing.is_empty() {
        return (StatusCode::OK, "ready\n").into_response();
    }
    (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", missing.join(", "))).into_response()
}

/// What was found out last. Whoever asks meanwhile waits for it: anybody may ask, and asking costs the services little.
#[derive(Debug, Default)]
pub struct Readiness(Mutex<Option<(Instant, Vec<&'static str>)>>);

impl Readiness {
    async fn missing(&self, gateway: &Gateway) -> Vec<&'static str> {
        let mut last = self.0.lock().await;
        if let Some((at, missing)) = &*last
            && at.elapsed() < FRESH
        {
            return missing.clone();
        }
        let found = missing(gateway).await;
        *last = Some((Instant::now(), found.clone()));
        found
    }
}

/// What does not answer.
async fn missing(gateway: &Gateway) -> Vec<&'static str> {
    if !gateway.backend.bus().is_connected() {
        return vec!["the broker"];
    }
    // A question that each can answer at once, whatever the answer is.
    let nobody = "trun_00000000000000000000000000";
    let run = v1::GetRunRequest { tenant: "health".into(), run_id: nobody.into(), ..v1::GetRunRequest::default() };
    let dispatcher = gateway.backend.dispatcher::<_, v1::GetRunResponse>("get_run", &run);
    let pool = gateway.backend.pool::<_, v1::ListAgentsResponse>("list_agents", &v1::ListAgentsRequest {});
    let notifier = gateway.backend.notifier::<_, v1::NotifierStatusResponse>("status", &v1::NotifierStatusRequest {});
    let (dispatcher, pool, notifier, store) = tokio::join!(
        tokio::time::timeout(PATIENCE, dispatcher),
        tokio::time::timeout(PATIENCE, pool),
        tokio::time::timeout(PATIENCE, notifier),
        tokio::time::timeout(PATIENCE, gateway.store.db().ping()),
    );
    let answers = |error: &errand_core::Error| {
        !matches!(error.code, ErrorCode::API_UNAVAILABLE | ErrorCode::API_TIMEOUT | ErrorCode::API_ERROR)
    };
    let there = [
        ("the dispatcher", dispatcher.is_ok_and(|answer| answer.as_ref().err().is_none_or(answers))),
        ("the session-pool", pool.is_ok_and(|answer| answer.as_ref().err().is_none_or(answers))),
        ("the notifier", notifier.is_ok_and(|answer| answer.as_ref().err().is_none_or(answers))),
        ("the store", store.is_ok_and(|answer| answer.is_ok())),
    ];
    there.into_iter().filter(|(_, there)| !there).map(|(name, _)| name).collect()
}
