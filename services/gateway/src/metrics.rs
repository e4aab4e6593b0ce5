//! What is counted: requests by route and status, how long they took, open streams.

use std::time::Duration;

use axum::http::{Method, StatusCode};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    method: &'static str,
    route: String,
    status: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabels {
    route: String,
}

/// See the module.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    requests: Family<RequestLabels, Counter>,
    latency: Family<RouteLabels, Histogram>,
    /// Live streams and waits that are open.
    pub streams: Gauge,
    /// Live streams that were ended because their client was too slow.
    pub dropped: Counter,
    /// Connections that are open.
    pub connections: Gauge,
}

fn histogram() -> Histogram {
    Histogram::new([0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0])
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("errand_gateway");
        let requests = Family::<RequestLabels, Counter>::default();
        let latency = Family::<RouteLabels, Histogram>::new_with_constructor(histogram);
        let (streams, connections, dropped) = (Gauge::default(), Gauge::default(), Counter::default());
        registry.register("requests", "Requests that were answered", requests.clone());
        registry.register("request_seconds", "From a request to the head of its answer", latency.clone());
        registry.register("streams", "Live streams and waits that are open", streams.clone());
        registry.register("streams_dropped", "Live streams whose client was too slow", dropped.clone());
        registry.register("connections", "Connections that are open", connections.clone());
        Self { registry, requests, latency, streams, dropped, connections }
    }
}

impl Metrics {
    /// Counts a request.
    pub fn request(&self, method: &Method, route: &str, status: StatusCode, took: Duration) {
        // What clients may choose freely must not make new rows.
        let method = match *method {
            Method::GET => "GET",
            Method::POST => "POST",
            Method::PATCH => "PATCH",
            Method::DELETE => "DELETE",
            _ => "other",
        };
        let labels = RequestLabels { method, route: route.to_owned(), status: status.as_u16() };
        self.requests.get_or_create(&labels).inc();
        let RequestLabels { route, .. } = labels;
        self.latency.get_or_create(&RouteLabels { route }).observe(took.as_secs_f64());
    }

    /// In the text form of Prometheus.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        if let Err(error) = encode(&mut text, &self.registry) {
            tracing::error!(%error, "the metrics cannot be written");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_shows_in_the_text() {
        let metrics = Metrics::default();
        metrics.request(&Method::GET, "/v2/tasks", StatusCode::OK, Duration::from_millis(3));
        metrics.request(&Method::from_bytes(b"BREW").unwrap(), "none", StatusCode::NOT_FOUND, Duration::ZERO);
        let text = metrics.text();
        assert!(
            text.contains(r#"errand_gateway_requests_total{method="GET",route="/v2/tasks",status="200"} 1"#),
            "{text}"
        );
        assert!(text.contains(r#"method="other""#) && text.contains("errand_gateway_request_seconds_bucket"), "{text}");
    }
}
