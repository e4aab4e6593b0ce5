//! What `errand bench` prints.

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::baseline::{Baseline, PARTS};
use super::load::{Measured, STAGES};
use super::memory::Peaks;
use crate::output::{Output, table};

/// How durable what was measured is: figures without it mean nothing.
#[derive(Debug, Clone)]
pub(super) struct Durability {
    pub(super) store: &'static str,
    /// When a yes of the store is on disk.
    pub(super) commit: &'static str,
    /// When a yes of the broker is.
    pub(super) broker: &'static str,
}

impl Durability {
    pub(super) fn of_store(url: &str) -> Self {
        let broker = "sync_interval=always; the event stream persists asynchronously and is rebuilt from the store";
        if url.starts_with("sqlite:") {
            Self { store: "sqlite", commit: "WAL, synchronous=FULL: fsync per commit", broker }
        } else {
            Self { store: "postgres", commit: "as the server is set (default: fsync per commit)", broker }
        }
    }

    pub(super) fn unknown() -> Self {
        let as_set = "as the running stack is set";
        Self { store: as_set, commit: as_set, broker: as_set }
    }
}

/// What the store says at the end.
#[derive(Debug, Clone, Default)]
pub(super) struct Verified {
    pub(super) submitted: usize,
    /// Completed in one attempt with three events, the final one seen.
    pub(super) completed: usize,
    pub(super) others: usize,
    /// Final events that were seen again (at least once is the promise).
    pub(super) repeated_events: u64,
    pub(super) ok: bool,
}

/// What is measured once, or several times for medians.
#[derive(Debug)]
pub(super) struct Round {
    pub(super) unloaded: Measured,
    pub(super) loaded: Measured,
    pub(super) half_rate: Option<Measured>,
}

impl Round {
    pub(super) fn runs(&self) -> usize {
        self.unloaded.runs + self.loaded.runs + self.half_rate.as_ref().map_or(0, |part| part.runs)
    }
}

#[derive(Debug)]
pub(super) struct Report {
    pub(super) rounds: Vec<Round>,
    pub(super) memory: Peaks,
    pub(super) verified: Verified,
    pub(super) durability: Durability,
    pub(super) concurrency: usize,
    pub(super) batch: usize,
    pub(super) tenants: usize,
    pub(super) sessions: u32,
    /// Runs that were in the store before.
    pub(super) stored: usize,
    pub(super) dispatchers: u8,
    pub(super) broker: String,
}

impl Report {
    pub(super) fn print(&self, baseline: Option<&Baseline>, out: Output) -> anyhow::Result<()> {
        let mut report = self.as_json();
        let ratios = baseline.map(|baseline| baseline.compare(&report));
        if !out.json {
            return out.line(self.as_text(&report, ratios.as_ref()));
        }
        if let Some(ratios) = ratios {
            report["against_baseline"] = ratios;
        }
        out.line(report.to_string())
    }

    fn as_json(&self) -> Value {
        let verified = &self.verified;
        let half_rate: Vec<Value> =
            self.rounds.iter().filter_map(|round| round.half_rate.as_ref()).map(figures_by_stage).collect();
        json!({
            "object": "bench",
            "version": env!("CARGO_PKG_VERSION"),
            "build": build(),
            "nats_server": self.broker,
            "cores": cores(),
            "concurrency": self.concurrency,
            "batch": self.batch,
            "tenants": self.tenants,
            "sessions": self.sessions,
            "stored": self.stored,
            "dispatchers": self.dispatchers,
            "durability": {
                "store": self.durability.store,
                "commit": self.durability.commit,
                "broker": self.durability.broker,
            },
            "rounds": self.rounds.len(),
            "unloaded": median(self.rounds.iter().map(|round| figures_by_stage(&round.unloaded)).collect()),
            "loaded": median(self.rounds.iter().map(|round| figures_by_stage(&round.loaded)).collect()),
            "half_rate": median(half_rate),
            "peak_memory": {
                "stack_bytes": self.memory.stack,
                "nats_server_bytes": self.memory.nats_server,
            },
            "verified": {
                "ok": verified.ok,
                "submitted": verified.submitted,
                "completed_once": verified.completed,
                "others": verified.others,
                "repeated_events": verified.repeated_events,
            },
        })
    }

    fn as_text(&self, report: &Value, ratios: Option<&Value>) -> String {
        let mut rows = table(["", "RUNS", "RUNS/S", "P50 MS", "P99 MS", "MAX MS"]);
        for (name, part) in [("one at a time", "unloaded"), ("loaded", "loaded"), ("half of that", "half_rate")] {
            let part = &report[part];
            let figure = |name: &str, digits| part[name].as_f64().map(|figure| format!("{figure:.digits$}"));
            let figures = [("runs", 0), ("runs_per_second", 0), ("p50_ms", 2), ("p99_ms", 2), ("max_ms", 2)];
            let figures: Option<Vec<String>> = figures.map(|(name, digits)| figure(name, digits)).into_iter().collect();
            if let Some(figures) = figures {
                rows.add_row(std::iter::once(name.to_owned()).chain(figures));
            }
        }
        let mebibytes = |bytes: Option<u64>| bytes.map_or("?".to_owned(), |bytes| (bytes >> 20).to_string());
        let verified = &self.verified;
        let verdict = if verified.ok {
            format!("all {} runs completed exactly once", verified.submitted)
        } else {
            format!(
                "WRONG: of {} runs {} completed once, {} are something else",
                verified.submitted, verified.completed, verified.others
            )
        };
        format!(
            "{}\n\n\
             latency   submit to the task_run.completed event, as the client sees it\n\
             loaded    {} in flight, {} a request, {} tenants, {} sessions\n\
             stack     {} dispatchers, {} runs in the store before\n\
             memory    {} MiB services, runner and client; {} MiB nats-server {} (peaks)\n\
             commit    {}: {}\n\
             broker    {}\n\
             machine   {} cores, {} build\n\
             rounds    {}{}\n\
             store     {verdict}; {} final events came twice{}",
            rows.trim_fmt(),
            self.concurrency,
            self.batch,
            self.tenants,
            self.sessions,
            self.dispatchers,
            self.stored,
            mebibytes(self.memory.stack),
            mebibytes(self.memory.nats_server),
            self.broker,
            self.durability.store,
            self.durability.commit,
            self.durability.broker,
            cores(),
            build(),
            self.rounds.len(),
            if self.rounds.len() > 1 { ": each figure is the median of its own" } else { "" },
            verified.repeated_events,
            ratios.map(against).unwrap_or_default(),
        )
    }
}

/// The ratios to a baseline, for people.
fn against(ratios: &Value) -> String {
    if ratios.is_null() {
        return "\nbaseline  none of this load is kept".to_owned();
    }
    let mut rows = table(["NOW / BASELINE", "RUNS/S", "P50", "P99"]);
    for part in PARTS {
        let ratio = |figure: &str| ratios[part][figure].as_f64().map_or("-".to_owned(), |ratio| format!("{ratio:.2}"));
        rows.add_row([part.to_owned(), ratio("runs_per_second"), ratio("p50_ms"), ratio("p99_ms")]);
    }
    let others: Vec<&str> = ratios["other"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let other = if others.is_empty() { String::new() } else { format!("\nanother   {}", others.join(", ")) };
    format!("\n\n{}{other}", rows.trim_fmt())
}

pub(super) const fn build() -> &'static str {
    if cfg!(debug_assertions) { "debug" } else { "release" }
}

pub(super) fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, std::num::NonZero::get)
}

pub(super) fn rate(measured: &Measured) -> f64 {
    let runs = u32::try_from(measured.runs).map_or(f64::INFINITY, f64::from);
    runs / measured.took.as_secs_f64().max(f64::EPSILON)
}

pub(super) fn milliseconds(latency: &Histogram<u64>, quantile: f64) -> f64 {
    let micros = u32::try_from(latency.value_at_quantile(quantile)).map_or(f64::INFINITY, f64::from);
    micros / 1000.0
}

pub(super) fn figures(measured: &Measured) -> Value {
    json!({
        "runs": measured.runs,
        "seconds": rounded(measured.took.as_secs_f64()),
        "runs_per_second": rounded(rate(measured)),
        "p50_ms": milliseconds(&measured.latency, 0.5),
        "p99_ms": milliseconds(&measured.latency, 0.99),
        "max_ms": milliseconds(&measured.latency, 1.0),
    })
}

/// A part's figures, and how long each stage of its runs took.
fn figures_by_stage(measured: &Measured) -> Value {
    let mut value = figures(measured);
    for (name, stage) in STAGES.iter().zip(&measured.stages) {
        let quantile = |quantile| stage.value_at_quantile(quantile);
        value["stages"][name] = json!({"p50_ms": quantile(0.5), "p99_ms": quantile(0.99)});
    }
    value
}

/// Of each figure of several rounds the median; of an even number the smaller one in the middle. `null` of none.
fn median(rounds: Vec<Value>) -> Value {
    match rounds.first() {
        None => Value::Null,
        Some(Value::Object(first)) => {
            let of = |name: &String| median(rounds.iter().map(|round| round[name].clone()).collect());
            first.keys().map(|name| (name.clone(), of(name))).collect()
        }
        Some(_) => {
            let mut rounds = rounds;
            rounds.sort_by(|a, b| a.as_f64().unwrap_or(0.0).total_cmp(&b.as_f64().unwrap_or(0.0)));
            rounds.swap_remove((rounds.len() - 1) / 2)
        }
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn measured(runs: usize, millis: u64) -> Measured {
        let mut latency = Histogram::new(3).unwrap();
        (1..=100).for_each(|n| latency.record(n * 100).unwrap());
        let stages = [(); STAGES.len()].map(|()| Histogram::new(3).unwrap());
        Measured { runs, took: Duration::from_millis(millis), latency, stages }
    }

    #[test]
    fn each_figure_has_its_own_median() {
        let rounds = [(3, 1.5), (1, 9.0), (2, 4.0)].map(|(rate, p50)| json!({"rate": rate, "of": {"p50": p50}}));
        assert_eq!(median(rounds[..2].to_vec()), json!({"rate": 1, "of": {"p50": 1.5}}));
        assert_eq!(median(rounds.to_vec()), json!({"rate": 2, "of": {"p50": 4.0}}));
        assert_eq!(median(Vec::new()), Value::Null);
    }

    #[test]
    fn figures_are_what_they_say() {
        let figures = figures(&measured(500, 2_000));
        assert_eq!(figures["runs_per_second"], 250.0);
        assert_eq!(figures["max_ms"].as_f64().map(f64::round), Some(10.0));
        let p50 = figures["p50_ms"].as_f64().unwrap();
        assert!((4.9..=5.1).contains(&p50), "{p50}");
    }
}
