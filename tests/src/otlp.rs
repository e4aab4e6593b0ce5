//! A small collector: takes what is exported by OTLP and keeps it for the test.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::post;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::{KeyValue, any_value};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message;
use tokio_util::task::AbortOnDropHandle;

/// A span that came.
#[derive(Debug, Clone)]
pub struct Span {
    /// `service.name` of the process that made it.
    pub service: String,
    /// Its name.
    pub name: String,
    /// Its trace, in hexadecimal.
    pub trace: String,
    /// Its id.
    pub id: Vec<u8>,
    /// The span above it; empty for the first.
    pub parent: Vec<u8>,
    /// `errand.run.id`, where it has one.
    pub run: Option<String>,
}

#[derive(Debug, Default)]
struct Kept {
    spans: Vec<Span>,
    metrics: BTreeSet<(String, String)>,
    raw: Vec<u8>,
}

/// Serves until it is dropped.
#[derive(Debug)]
pub struct Collector {
    url: String,
    kept: Arc<Mutex<Kept>>,
    _server: AbortOnDropHandle<()>,
}

impl Collector {
    /// Starts one on a free port.
    ///
    /// # Panics
    /// Where there is none.
    pub async fn start() -> Self {
        let kept = Arc::new(Mutex::new(Kept::default()));
        let router = Router::new()
            .route("/v1/traces", post(take_traces))
            .route("/v1/metrics", post(take_metrics))
            .with_state(Arc::clone(&kept));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("it is bound"));
        let serving = async move { drop(axum::serve(listener, router).await) };
        Self { url, kept, _server: AbortOnDropHandle::new(tokio::spawn(serving)) }
    }

    /// What `--otlp-endpoint` is given.
    #[must_use]
    pub fn url(&self) -> &str {
        &self.url
    }

    /// All spans so far.
    #[must_use]
    pub fn spans(&self) -> Vec<Span> {
        lock(&self.kept).spans.clone()
    }

    /// All that came so far, as it came.
    #[must_use]
    pub fn raw(&self) -> Vec<u8> {
        lock(&self.kept).raw.clone()
    }

    /// All metrics so far: service and name.
    #[must_use]
    pub fn metrics(&self) -> BTreeSet<(String, String)> {
        lock(&self.kept).metrics.clone()
    }
}

fn lock(kept: &Mutex<Kept>) -> MutexGuard<'_, Kept> {
    kept.lock().unwrap_or_else(PoisonError::into_inner)
}

fn text(attributes: &[KeyValue], key: &str) -> Option<String> {
    let attribute = attributes.iter().find(|attribute| attribute.key == key)?;
    match attribute.value.as_ref()?.value.as_ref()? {
        any_value::Value::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

fn service(resource: Option<Resource>) -> String {
    resource.and_then(|resource| text(&resource.attributes, "service.name")).unwrap_or_default()
}

async fn take_traces(State(kept): State<Arc<Mutex<Kept>>>, body: Bytes) -> StatusCode {
    lock(&kept).raw.extend_from_slice(&body);
    let Ok(request) = ExportTraceServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST };
    for of_process in request.resource_spans {
        let service = service(of_process.resource);
        for span in of_process.scope_spans.into_iter().flat_map(|scope| scope.spans) {
            let trace = span.trace_id.iter().map(|byte| format!("{byte:02x}")).collect();
            let run = text(&span.attributes, "errand.run.id");
            let (id, parent, name) = (span.span_id, span.parent_span_id, span.name);
            lock(&kept).spans.push(Span { service: service.clone(), name, trace, id, parent, run });
        }
    }
    StatusCode::OK
}

async fn take_metrics(State(kept): State<Arc<Mutex<Kept>>>, body: Bytes) -> StatusCode {
    lock(&kept).raw.extend_from_slice(&body);
    let Ok(request) = ExportMetricsServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST };
    for of_process in request.resource_metrics {
        let service = service(of_process.resource);
        for metric in of_process.scope_metrics.into_iter().flat_map(|scope| scope.metrics) {
            lock(&kept).metrics.insert((service.clone(), metric.name));
        }
    }
    StatusCode::OK
}
