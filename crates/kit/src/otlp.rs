//! Posts what the exporters have made. They work on threads of their own, where there is no runtime; so the request is
//! made on the process's runtime, over the HTTP client that axum brings along.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use axum::body::Bytes;
use axum::http::{Request, Response};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry_http::{HttpClient, HttpError};
use tokio::runtime::Handle;

/// How long a collector may take.
const PATIENCE: Duration = Duration::from_secs(5);
/// What a collector may answer.
const MOST: usize = 64 * 1024;

/// See the module.
#[derive(Debug, Clone)]
pub(crate) struct Poster {
    runtime: Handle,
    /// The last did not get through: told once, not each few seconds.
    failing: Arc<AtomicBool>,
    client: Client<HttpConnector, Full<Bytes>>,
}

impl Poster {
    /// Over the runtime that this is called in.
    pub(crate) fn new() -> Self {
        Self {
            runtime: Handle::current(),
            failing: Arc::default(),
            client: Client::builder(TokioExecutor::new()).build_http(),
        }
    }
}

#[async_trait]
impl HttpClient for Poster {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let client = self.client.clone();
        let post = async move {
            let (parts, body) = client.request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, MOST).collect().await?.to_bytes();
            Ok::<_, HttpError>(Response::from_parts(parts, body))
        };
        // The clock, too, is the runtime's: it is asked for in there.
        let posted = self.runtime.spawn(async move { tokio::time::timeout(PATIENCE, post).await? }).await?;
        let failed = posted.as_ref().map_or(true, |response| !response.status().is_success());
        if failed != self.failing.swap(failed, Ordering::Relaxed) {
            match &posted {
                Ok(response) if failed => {
                    tracing::warn!(status = %response.status(), "the collector refuses telemetry")
                }
                Err(error) => tracing::warn!(%error, "the collector does not take telemetry"),
                Ok(_) => tracing::info!("the collector takes telemetry again"),
            }
        }
        posted
    }
}
