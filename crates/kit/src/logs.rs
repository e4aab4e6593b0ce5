//! Logs on stderr, as text or JSON, with the trace that a line belongs to.

use std::fmt;

use anyhow::Context;
use errand_bus::trace;
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Json, JsonFields, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// Starts to log.
///
/// # Errors
/// Where the filter cannot be read, or logging was started before.
pub fn start(filter: &str, json: bool) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).with_context(|| format!("--log {filter}"))?;
    // The bus tells itself what becomes of its connections, of those that are to end with their broker too.
    let filter = filter.add_directive("async_nats::connector=off".parse()?);
    // What telemetry has to say of itself at its start is no news.
    let filter = filter.add_directive("opentelemetry=warn".parse()?);
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let started = if json {
        let lines =
            JsonLines(Format::default().json().flatten_event(true).with_current_span(false).with_span_list(false));
        logs.fmt_fields(JsonFields::new()).event_format(lines).try_init()
    } else {
        logs.try_init()
    };
    started.map_err(|error| anyhow::anyhow!("cannot start logging: {error}"))
}

/// JSON lines that begin with the trace's id where there is one: what logs and traces are brought together by.
struct JsonLines(Format<Json>);

impl<S, N> FormatEvent<S, N> for JsonLines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let current = trace::current();
        let Some(id) = current.as_deref().and_then(trace::trace_id) else {
            return self.0.format_event(context, writer, event);
        };
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        match line.strip_prefix('{') {
            Some(rest) => write!(writer, "{{\"trace_id\":\"{id}\",{rest}"),
            None => writer.write_str(&line),
        }
    }
}
