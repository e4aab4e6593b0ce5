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

/// Does the work of a process, and serves beside it where an address is given. The end of the work is the process's; a
/// server that cannot serve ends it, too.
///
/// # Errors
/// Those of the work, and of [`serve`].
pub async fn beside<E>(
    listen: Option<SocketAddr>,
    bus: Bus,
    shutdown: CancellationToken,
    work: impl Future<Output = Result<(), E>>,
) -> anyhow::Result<()>
where
    anyhow::Error: From<E>,
{
    let Some(listen) = listen else { return Ok(work.await?) };
    let failed = async {
        match serve(listen, bus, shutdown).await {
            // It has been shut down, and the work drains.
            Ok(()) => std::future::pending().await,
            Err(error) => error.context("health"),
        }
    };
    tokio::select! {
        ended = work => Ok(ended?),
        failed = failed => Err(failed),
    }
}

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
