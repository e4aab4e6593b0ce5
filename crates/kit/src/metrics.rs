//! Every instrument of Errand, in one place: a service says what happened, here it gets its name. OpenTelemetry's names
//! stand here; on `/metrics` dots become underscores, counters end in `_total` and times in `_seconds`, which is how
//! the dashboard and the alerts in `deploy/` name them.

use std::sync::LazyLock;
use std::time::Duration;

use errand_bus::{Bus, StreamKind};
use opentelemetry::metrics::{Counter, Gauge, Histogram, Meter};
use opentelemetry::{KeyValue, global};
use tokio_util::sync::CancellationToken;

/// Bounds of times in seconds: from what a local stack takes to what people wait.
const SECONDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0, 300.0, 1800.0, 7200.0];
const SIZES: [f64; 10] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0];
/// How often an outbox is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the broker is asked how much waits.
const ASK_EVERY: Duration = Duration::from_secs(5);

/// The instruments of this process. Make telemetry start before the first use.
pub fn metrics() -> &'static Metrics {
    static METRICS: LazyLock<Metrics> = LazyLock::new(|| Metrics::new(&global::meter("errand")));
    &METRICS
}

/// See [`metrics`].
#[derive(Debug)]
pub struct Metrics {
    run_changes: Counter<u64>,
    run_queue_time: Histogram<f64>,
    run_time: Histogram<f64>,
    commit_size: Histogram<u64>,
    commit_time: Histogram<f64>,
    outbox_lag: Gauge<f64>,
    pool_waiting: Gauge<u64>,
    pool_sessions: Gauge<u64>,
    pool_capacity: Gauge<u64>,
    lease_wait: Histogram<f64>,
    deadlines_armed: Gauge<u64>,
    deadline_lateness: Histogram<f64>,
    delivery_lag: Histogram<f64>,
    deliveries: Counter<u64>,
    consumer_pending: Gauge<u64>,
    broker_connected: Gauge<u64>,
}

impl Metrics {
    fn new(meter: &Meter) -> Self {
        let seconds = |name, description| {
            let histogram = meter.f64_histogram(name).with_unit("s").with_description(description);
            histogram.with_boundaries(SECONDS.to_vec()).build()
        };
        let number = |name, description| meter.u64_gauge(name).with_description(description).build();
        let count = |name, description| meter.u64_counter(name).with_description(description).build();
        Self {
            run_changes: count("errand.run.changes", "Changes of runs, by the status that they led to"),
            run_queue_time: seconds("errand.run.queue_time", "From a run's creation to its first session"),
            run_time: seconds("errand.run.time", "From a run's first session to its end"),
            commit_size: meter
                .u64_histogram("errand.commit.size")
                .with_description("Runs that change in one commit")
                .with_boundaries(SIZES.to_vec())
                .build(),
            commit_time: seconds("errand.commit.time", "How long a commit takes"),
            outbox_lag: meter
                .f64_gauge("errand.outbox.lag")
                .with_unit("s")
                .with_description("How old the oldest committed event is that the stream has not yet")
                .build(),
            pool_waiting: number("errand.pool.waiting", "Runs that wait for a session"),
            pool_sessions: number("errand.pool.sessions", "Sessions that runners have"),
            pool_capacity: number("errand.pool.capacity", "Sessions that connected runners can have"),
            lease_wait: seconds("errand.lease.wait", "From the wish for a session to its lease"),
            deadlines_armed: number("errand.deadline.armed", "Runs with a deadline that a watcher holds"),
            deadline_lateness: seconds("errand.deadline.lateness", "How late a passed deadline was acted on"),
            delivery_lag: seconds("errand.delivery.lag", "From an event to its delivery"),
            deliveries: count("errand.deliveries", "Deliveries of events, by what became of them"),
            consumer_pending: number("errand.consumer.pending", "Messages that a durable consumer has before it"),
            broker_connected: number("errand.broker.connected", "1 while the broker is there, else 0"),
        }
    }

    /// A run has changed. `result` is empty for one that goes on; `error` is the type of what failed it.
    pub fn run_changed(&self, agent: &str, status: &'static str, result: &'static str, error: &'static str) {
        let agent = KeyValue::new("agent", agent.to_owned());
        let (status, result) = (KeyValue::new("status", status), KeyValue::new("result", result));
        self.run_changes.add(1, &[agent, status, result, KeyValue::new("error", error)]);
    }

    /// A run got its first session.
    pub fn run_started(&self, agent: &str, waited: Duration) {
        self.run_queue_time.record(waited.as_secs_f64(), &[KeyValue::new("agent", agent.to_owned())]);
    }

    /// A run that had a session has ended.
    pub fn run_finished(&self, agent: &str, status: &'static str, took: Duration) {
        let agent = KeyValue::new("agent", agent.to_owned());
        self.run_time.record(took.as_secs_f64(), &[agent, KeyValue::new("status", status)]);
    }

    /// A batch was committed.
    pub fn committed(&self, runs: usize, took: Duration) {
        self.commit_size.record(runs as u64, &[]);
        self.commit_time.record(took.as_secs_f64(), &[]);
    }

    /// How far publishing is behind the store. `what` tells outboxes of one process apart.
    pub fn outbox(&self, what: &'static str, lag: Duration) {
        self.outbox_lag.record(lag.as_secs_f64(), &[KeyValue::new("outbox", what)]);
    }

    /// What the session-pool sees of an agent.
    pub fn pool(&self, agent: &str, waiting: u64, sessions: u64, capacity: u64) {
        let agent = [KeyValue::new("agent", agent.to_owned())];
        self.pool_waiting.record(waiting, &agent);
        self.pool_sessions.record(sessions, &agent);
        self.pool_capacity.record(capacity, &agent);
    }

    /// A run got its lease.
    pub fn leased(&self, waited: Duration) {
        self.lease_wait.record(waited.as_secs_f64(), &[]);
    }

    /// A deadline that has passed was told to the dispatcher.
    pub fn expired(&self, late: Duration) {
        self.deadline_lateness.record(late.as_secs_f64(), &[]);
    }

    /// How many runs a watcher holds.
    pub fn armed(&self, runs: u64) {
        self.deadlines_armed.record(runs, &[]);
    }

    /// Events went out: over which channel, and what became of them.
    pub fn delivered(&self, channel: &'static str, outcome: &'static str, events: u64) {
        self.deliveries.add(events, &[KeyValue::new("channel", channel), KeyValue::new("outcome", outcome)]);
    }

    /// How old an event was when it went out.
    pub fn delivery_lag(&self, channel: &'static str, lag: Duration) {
        self.delivery_lag.record(lag.as_secs_f64(), &[KeyValue::new("channel", channel)]);
    }
}

/// Shows again and again how far the publishing of an outbox is behind, until shutdown.
///
/// # Errors
/// None at present.
pub async fn watch_outbox(
    what: &'static str,
    lag: impl Fn() -> Duration + Send,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    loop {
        metrics().outbox(what, lag());
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}

/// Asks the broker again and again how much a durable consumer has before it, until shutdown.
///
/// # Errors
/// None at present: a broker that is away is asked again.
pub async fn watch_consumer(
    bus: Bus,
    stream: StreamKind,
    durable: &'static str,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let labels = [KeyValue::new("consumer", durable)];
    loop {
        match bus.consumer_pending(stream, durable).await {
            Ok(pending) => metrics().consumer_pending.record(pending, &labels),
            Err(error) => tracing::debug!(%error, durable, "the broker does not say how much waits"),
        }
        metrics().broker_connected.record(u64::from(bus.is_connected()), &[]);
        tokio::select! {
            () = tokio::time::sleep(ASK_EVERY) => {}
            () = shutdown.cancelled() => return Ok(()),
        }
    }
}
