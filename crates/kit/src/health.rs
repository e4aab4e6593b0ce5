//! `/healthz` (the process lives), `/readyz` (it can work: the broker is there) and `/metrics` (for Prometheus).

use std::net::SocketAddr;

use anyhow::Context;
use axum::Router;
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderName};
use axum::routing::get;
use errand_bus::Bus;
use tokio_util::sync::CancellationToken;

use crate::telemetry;

/// Serves until shutdown.
///
/// # Errors
/// Where the address cannot be listened on.
pub async fn serve(listen: SocketAddr, bus: Bus, shutdown: CancellationToken) -> anyhow::Result<()> {
    let ready = move || {
        let connected = bus.is_connected();
        async move {
            if connected {
                (StatusCode::OK, "ready\n")
            } else {
                (StatusCode::SERVICE_UNAVAILABLE, "the broker is away\n")
            }
        }
    };
    let router = Router::new()
        .route("/healthz", get(|| async { "alive\n" }))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics));
    let listener = tokio::net::TcpListener::bind(listen).await.with_context(|| format!("--health-listen {listen}"))?;
    axum::serve(listener, router).with_graceful_shutdown(shutdown.cancelled_owned()).await?;
    Ok(())
}

async fn metrics() -> ([(HeaderName, &'static str); 1], String) {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], telemetry::metrics_text())
}
