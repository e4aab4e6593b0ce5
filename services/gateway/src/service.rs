//! Owns the tasks and clients of a gateway.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::middleware::{from_fn, from_fn_with_state};
use bytes::Bytes;
use errand_kit::Tasks;
use futures::future::LocalBoxFuture;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::auth::Keys;
use crate::backend::Backend;
use crate::config::Config;
use crate::cors::Cors;
use crate::idempotency::Idempotency;
use crate::live::{Hub, Limits};
use crate::metrics::Metrics;
use crate::rate::Rate;
use crate::server::Server;
use crate::store::Store;
use crate::{docs, envelope, guard, health, openapi, routes, tls, transport};

/// How long requests may take to end when the gateway does.
const DRAIN: Duration = Duration::from_secs(10);

/// What every handler reaches.
#[derive(Debug)]
pub struct Gateway {
    /// The services.
    pub backend: Backend,
    /// The gateway's own store.
    pub store: Store,
    /// Whether all that it needs is there.
    pub readiness: health::Readiness,
    /// Who asks.
    pub keys: Keys,
    /// How often.
    pub rate: Rate,
    /// What was answered.
    pub idempotency: Arc<Idempotency>,
    /// What happens now.
    pub hub: Arc<Hub>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Which pages may call.
    pub cors: Cors,
    /// What links to files begin with; known when it listens.
    pub public_url: std::sync::OnceLock<String>,
    /// Whether it is served over TLS.
    pub serves_tls: bool,
    /// How long a client may take.
    pub client_timeout: Duration,
    /// After how long a silent stream says that it is there.
    pub keep_alive: Duration,
    /// Requests that go on without their asker.
    pub tracker: TaskTracker,
    /// Ends live streams and waits.
    pub draining: CancellationToken,
    /// The OpenAPI document.
    pub document: Bytes,
}

/// Runs a gateway until shutdown.
///
/// # Errors
/// Where the broker, the store or the address is not there at start, or a task fails for good.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    run_telling(config, shutdown, Box::new(|_| {})).await
}

/// Runs a gateway until shutdown, and tells where it listens once it does. Boxed, so that all of it is compiled here and
/// not once more in each of its callers.
///
/// # Errors
/// As [`run`].
pub fn run_telling(
    config: Config,
    shutdown: CancellationToken,
    listens: Box<dyn FnOnce(SocketAddr)>,
) -> LocalBoxFuture<'static, anyhow::Result<()>> {
    Box::pin(serve(config, shutdown, listens))
}

async fn serve(
    config: Config,
    shutdown: CancellationToken,
    listens: Box<dyn FnOnce(SocketAddr)>,
) -> anyhow::Result<()> {
    let tls = match (&config.tls_certificate, &config.tls_key) {
        (Some(certificate), Some(key)) => Some(tls::acceptor(certificate, key)?),
        _ => None,
    };
    let Some(bus) = config.kit.connect("gateway", &shutdown).await? else { return Ok(()) };
    let store = Store::open(&config.store).await?;
    let (router, document) = routes::all();
    let gateway = Arc::new(gateway(&config, bus.clone(), store.clone(), openapi::finish(document)?, tls.is_some()));
    let listener = TcpListener::bind(config.listen).await.with_context(|| format!("--listen {}", config.listen))?;
    let address = listener.local_addr()?;
    gateway.public_url.get_or_init(|| match &config.public_url {
        Some(url) => url.trim_end_matches('/').to_owned(),
        None => format!("{}://{address}", if gateway.serves_tls { "https" } else { "http" }),
    });
    let service = transport::serve(&bus, &gateway).await?;
    let server = Server {
        listener,
        tls,
        max_connections: config.max_connections,
        client_timeout: gateway.client_timeout,
        metrics: Arc::clone(&gateway.metrics),
    };
    let mut running = Tasks::new(shutdown.clone());
    running.spawn("http", server.serve(app(router, &gateway), shutdown.clone()));
    running.spawn("live", Arc::clone(&gateway.hub).run(shutdown.clone()));
    running.spawn("keys", transport::hear_of_keys(Arc::clone(&gateway), shutdown.clone()));
    running.spawn("use of keys", transport::note_used(Arc::clone(&gateway), shutdown.clone()));
    let (forgetting, ends) = (Arc::clone(&gateway.idempotency), shutdown.clone());
    running.spawn("old answers", async move {
        tokio::select! {
            () = forgetting.forget() => {}
            () = ends.cancelled() => {}
        }
        Ok(())
    });
    if let Some(listen) = config.kit.health_listen {
        running.spawn("health", errand_kit::health::serve(listen, bus.clone(), shutdown.clone()));
    }
    tracing::info!(%address, tls = gateway.serves_tls, store = store.db().kind(), "the gateway serves");
    listens(address);
    let draining = Arc::clone(&gateway);
    running.spawn("service", async move {
        shutdown.cancelled().await;
        draining.draining.cancel();
        service.stop(DRAIN).await;
        Ok(())
    });
    let ended = running.join().await;
    gateway.tracker.close();
    drop(tokio::time::timeout(DRAIN, gateway.tracker.wait()).await);
    store.db().close().await;
    ended
}

fn gateway(config: &Config, bus: errand_bus::Bus, store: Store, document: Bytes, serves_tls: bool) -> Gateway {
    let metrics = Arc::new(Metrics::default());
    let limits = Limits { streams: config.max_streams as usize, of_tenant: config.max_tenant_streams as usize };
    Gateway {
        backend: Backend::new(bus.clone(), Duration::from_millis(config.deadline_ms)),
        readiness: health::Readiness::default(),
        keys: Keys::new(store.clone()),
        rate: Rate::new(config.rate_limit, Duration::from_secs(config.rate_window_seconds)),
        idempotency: Arc::new(Idempotency::new(store.clone())),
        hub: Arc::new(Hub::new(bus, limits, Arc::clone(&metrics))),
        metrics,
        cors: Cors::new(&config.cors_origins),
        public_url: std::sync::OnceLock::new(),
        serves_tls,
        client_timeout: Duration::from_millis(config.client_timeout_ms),
        keep_alive: Duration::from_millis(config.keep_alive_ms),
        tracker: TaskTracker::new(),
        draining: CancellationToken::new(),
        document,
        store,
    }
}

/// Everything that is served.
fn app(api: Router<Arc<Gateway>>, gateway: &Arc<Gateway>) -> Router {
    // Only where a route fits: what is not there needs no key to be not there.
    let api = api.route_layer(from_fn_with_state(Arc::clone(gateway), guard::check));
    Router::new()
        .merge(api)
        .merge(docs::routes())
        .merge(health::routes())
        .fallback(envelope::no_route)
        .method_not_allowed_fallback(envelope::no_method)
        .layer(from_fn(catch_panic))
        .layer(from_fn_with_state(Arc::clone(gateway), envelope::seal))
        .with_state(Arc::clone(gateway))
}

/// A handler that panics must not leave its asker without an answer.
async fn catch_panic(request: axum::extract::Request, next: axum::middleware::Next) -> axum::response::Response {
    use axum::response::IntoResponse;
    use futures::FutureExt;
    match std::panic::AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(_) => {
            crate::answer::Failure::from(errand_core::ErrorCode::API_ERROR.with("the gateway failed at this request"))
                .into_response()
        }
    }
}
