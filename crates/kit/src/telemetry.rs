//! Traces and metrics by OpenTelemetry: exported by OTLP (protobuf over HTTP) where an endpoint is given, and metrics
//! shown on `/metrics` in any case. Logs are made here too, so that they name the trace that they belong to.

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::Context;
use errand_bus::trace;
use opentelemetry::{KeyValue, global};
use opentelemetry_otlp::{MetricExporter, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::metrics::{PeriodicReader, SdkMeterProvider};
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use prometheus::{Encoder, TextEncoder};

use crate::otlp::Poster;

/// How often metrics are sent by OTLP.
const EVERY: Duration = Duration::from_secs(10);
/// How long the last of it may take at the end.
const GOODBYE: Duration = Duration::from_secs(3);

/// What `/metrics` shows.
static SHOWN: OnceLock<prometheus::Registry> = OnceLock::new();

/// Where telemetry goes.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TelemetryArgs {
    /// Where traces and metrics are sent by OTLP: http://HOST:4318; nowhere unless given.
    #[arg(long, env = "ERRAND_OTLP_ENDPOINT", global = true, hide_env_values = true, value_parser = endpoint)]
    pub otlp_endpoint: Option<String>,
    /// Which part of the traces that begin here is kept, 0 to 1. What began elsewhere is kept where it was.
    #[arg(long, env = "ERRAND_TRACE_RATIO", global = true, hide_env_values = true, default_value_t = 0.01,
          value_parser = ratio)]
    pub trace_ratio: f64,
}

fn endpoint(text: &str) -> Result<String, String> {
    // An environment where it is set to nothing means nowhere, too.
    if text.is_empty() {
        return Ok(String::new());
    }
    let rest = text.strip_prefix("http://").ok_or("must be http://HOST:PORT; for https put a collector beside")?;
    if rest.trim_matches('/').is_empty() {
        return Err("names no host".into());
    }
    Ok(text.trim_end_matches('/').to_owned())
}

fn ratio(text: &str) -> Result<f64, String> {
    text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio)).ok_or_else(|| "must be 0 to 1".to_owned())
}

impl TelemetryArgs {
    /// Where traces and metrics are sent, if anywhere.
    #[must_use]
    pub fn endpoint(&self) -> Option<&str> {
        self.otlp_endpoint.as_deref().filter(|endpoint| !endpoint.is_empty())
    }
}

/// Telemetry under way. [`Self::stop`] sends what is left.
#[derive(Debug)]
pub struct Telemetry {
    traces: Option<SdkTracerProvider>,
    metrics: SdkMeterProvider,
}

impl Telemetry {
    /// Starts it for this process; once. Within a runtime, which sends what is exported.
    ///
    /// # Errors
    /// Where an exporter cannot be made.
    pub fn start(args: &TelemetryArgs, service: &str) -> anyhow::Result<Self> {
        let resource = Resource::builder_empty()
            .with_service_name(format!("errand-{service}"))
            .with_attributes([
                KeyValue::new("service.namespace", "errand"),
                KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                KeyValue::new("service.instance.id", instance()),
            ])
            .build();
        let metrics = meter_provider(args, resource.clone())?;
        global::set_meter_provider(metrics.clone());
        let traces = match args.endpoint() {
            None => None,
            Some(endpoint) => {
                let provider = tracer_provider(endpoint, args.trace_ratio, resource)?;
                global::set_tracer_provider(provider.clone());
                trace::enable();
                Some(provider)
            }
        };
        Ok(Self { traces, metrics })
    }

    /// Sends what is left, for as long as that takes a collector that is there. Not from within the runtime.
    pub fn stop(self) {
        let traces = self.traces.map_or(Ok(()), |traces| traces.shutdown_with_timeout(GOODBYE));
        if let Err(error) = traces.and(self.metrics.shutdown_with_timeout(GOODBYE)) {
            tracing::debug!(%error, "the last of the telemetry was not sent");
        }
    }
}

/// Tells instances of a service apart: the host's name and the process.
fn instance() -> String {
    let host = std::env::var("HOSTNAME").or_else(|_| std::fs::read_to_string("/etc/hostname"));
    format!("{}-{}", host.as_deref().unwrap_or("host").trim(), std::process::id())
}

fn tracer_provider(endpoint: &str, ratio: f64, resource: Resource) -> anyhow::Result<SdkTracerProvider> {
    let exporter = SpanExporter::builder()
        .with_http()
        .with_http_client(Poster::new())
        .with_endpoint(format!("{endpoint}/v1/traces"))
        .build()
        .context("no exporter of traces")?;
    Ok(SdkTracerProvider::builder()
        .with_resource(resource)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::TraceIdRatioBased(ratio))))
        .with_batch_exporter(exporter)
        .build())
}

fn meter_provider(args: &TelemetryArgs, resource: Resource) -> anyhow::Result<SdkMeterProvider> {
    let registry = prometheus::Registry::new();
    let shown = opentelemetry_prometheus::exporter()
        .with_registry(registry.clone())
        .without_target_info()
        .scope_info_enabled(false)
        .build()
        .context("no /metrics")?;
    let mut provider = SdkMeterProvider::builder().with_resource(resource).with_reader(shown);
    if let Some(endpoint) = args.endpoint() {
        let exporter = MetricExporter::builder()
            .with_http()
            .with_http_client(Poster::new())
            .with_endpoint(format!("{endpoint}/v1/metrics"))
            .build()
            .context("no exporter of metrics")?;
        provider = provider.with_reader(PeriodicReader::builder(exporter).with_interval(EVERY).build());
    }
    anyhow::ensure!(SHOWN.set(registry).is_ok(), "telemetry was started twice");
    Ok(provider.build())
}

/// All metrics of this process in Prometheus' text format; empty where telemetry was not started.
#[must_use]
pub fn metrics_text() -> String {
    let Some(registry) = SHOWN.get() else { return String::new() };
    let mut text = Vec::new();
    if let Err(error) = TextEncoder::new().encode(&registry.gather(), &mut text) {
        tracing::warn!(%error, "metrics cannot be shown");
    }
    String::from_utf8_lossy(&text).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_is_plain_http() {
        assert_eq!(endpoint("http://collector:4318/").unwrap(), "http://collector:4318");
        assert!(endpoint("https://collector:4318").unwrap_err().contains("collector beside"));
        assert!(endpoint("http://").is_err());
        let unset = TelemetryArgs { otlp_endpoint: Some(endpoint("").unwrap()), trace_ratio: 1.0 };
        assert_eq!(unset.endpoint(), None);
        assert!(ratio("0.01").is_ok() && ratio("1.5").is_err() && ratio("x").is_err());
    }
}
