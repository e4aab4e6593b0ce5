//! The broker and its streams, as an operator sees them: straight from the server, and by what must hold of them rather
//! than by what Errand once asked for.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_nats::jetstream::stream::{Config, DiscardPolicy, PersistenceMode, RetentionPolicy, State, StorageType};
use async_nats::jetstream::{self, Context};
use errand_bus::{Bus, BusConfig, BusError, StreamKind, connect_options};
use serde::Deserialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Finding;

/// Clocks that differ by more move deadlines by as much.
const CLOCK_LIMIT: Duration = Duration::from_secs(2);

pub(super) fn unreachable(error: &BusError) -> Finding {
    let mend = match error {
        BusError::BrokerTooOld { .. } => "install a newer nats-server: `make tools` brings one to .tools/bin",
        BusError::Credentials(..) => "name a file that can be read with --nats-credentials",
        _ => "start one, with `errand dev` for a try; or say where it is with --nats-url",
    };
    Finding::wrong("broker", error.to_string(), mend)
}

/// A connection of our own: the bus hides what is looked at here.
pub(super) struct Broker {
    pub(super) client: async_nats::Client,
    jetstream: Context,
}

impl Broker {
    pub(super) async fn connect(config: &BusConfig) -> anyhow::Result<Self> {
        let options = connect_options(config).await?.connection_timeout(Duration::from_secs(2));
        let client = options.connect(config.servers()).await?;
        let jetstream = jetstream::ContextBuilder::new().timeout(Duration::from_secs(2)).build(client.clone());
        Ok(Self { client, jetstream })
    }

    pub(super) async fn look(&self, bus: &Bus) -> Vec<Finding> {
        let prefix = bus.subjects().prefix();
        let round_trip = match bus.round_trip().await {
            Ok(took) => format!(", {:.1} ms there and back", took.as_secs_f64() * 1000.0),
            Err(_) => String::new(),
        };
        let seen = format!("nats-server {}{round_trip}", bus.broker_version());
        let mut findings = vec![Finding::well("broker", seen)];
        match self.jetstream.query_account().await {
            Ok(account) => {
                let seen = format!("on, {} streams, {} MiB of files", account.streams, account.storage >> 20);
                findings.push(Finding::well("JetStream", seen));
            }
            Err(error) => {
                let mend = "turn it on: `jetstream { store_dir: ..., sync_interval: always }` in nats.conf";
                findings.push(Finding::wrong("JetStream", error.to_string(), mend));
                return findings;
            }
        }
        for kind in StreamKind::ALL {
            findings.push(self.stream(kind, prefix).await);
        }
        findings.extend(self.clock(prefix).await);
        findings
    }

    async fn stream(&self, kind: StreamKind, prefix: &str) -> Finding {
        let name = kind.name(prefix);
        let what = format!("stream {name}");
        let info = match self.jetstream.get_stream(&name).await {
            Ok(stream) => stream.cached_info().clone(),
            Err(error) => {
                return Finding::wrong(what, error.to_string(), "start a dispatcher: it makes the streams");
            }
        };
        let wrongs = deviations(kind, &info.config, prefix);
        if !wrongs.is_empty() {
            let mend = format!(
                "start a dispatcher again: it sets what can be set. What stays (the broker's word is in its log) needs a \
                 new stream: stop the services, `nats stream rm {name}`, start them"
            );
            return Finding::wrong(what, wrongs.join("; "), mend);
        }
        held(kind, what, &name, &info.state)
    }

    /// The difference between our clock and the broker's, which stamps what is published.
    async fn clock(&self, prefix: &str) -> Option<Finding> {
        #[derive(Deserialize)]
        struct Stamped {
            ts: String,
        }
        let subject = format!("$JS.API.STREAM.INFO.{}", StreamKind::Event.name(prefix));
        let before = now_ms();
        let answer = self.client.request(subject, Vec::new().into()).await.ok()?;
        let after = now_ms();
        let stamped: Stamped = serde_json::from_slice(&answer.payload).ok()?;
        let at = OffsetDateTime::parse(&stamped.ts, &Rfc3339).ok()?.unix_timestamp_nanos() / 1_000_000;
        // Within the round trip, nobody can tell.
        let apart = if at < before { before - at } else { (at - after).max(0) };
        let seen = format!("the broker's is {apart} ms from this machine's");
        Some(if apart > i128::try_from(CLOCK_LIMIT.as_millis()).unwrap_or(i128::MAX) {
            Finding::wrong("clocks", seen, "synchronise the machines' clocks (chrony, systemd-timesyncd)")
        } else {
            Finding::well("clocks", seen)
        })
    }
}

fn now_ms() -> i128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| i128::try_from(since.as_millis()).unwrap_or(0))
}

/// What must hold of a stream, and does not.
fn deviations(kind: StreamKind, config: &Config, prefix: &str) -> Vec<String> {
    let (subject, retention, discard) = match kind {
        StreamKind::Submit => (format!("{prefix}.submit.*"), RetentionPolicy::WorkQueue, DiscardPolicy::New),
        StreamKind::Event => (format!("{prefix}.event.>"), RetentionPolicy::Limits, DiscardPolicy::Old),
        StreamKind::DeadLetter => (format!("{prefix}.dlq.>"), RetentionPolicy::Limits, DiscardPolicy::Old),
    };
    let persists_later = config.persist_mode == Some(PersistenceMode::Async);
    let checks = [
        (config.storage == StorageType::File, "it is kept in memory: a restart of the broker loses it".to_owned()),
        (config.subjects == [subject.clone()], format!("it listens to {:?}, not to {subject}", config.subjects)),
        (config.retention == retention, format!("its retention is {:?}, not {retention:?}", config.retention)),
        (config.discard == discard, format!("when full it discards {:?}, not {discard:?}", config.discard)),
        (
            !persists_later || kind == StreamKind::Event,
            "it persists asynchronously: what was accepted may be lost".to_owned(),
        ),
        (config.duplicate_window >= kind.duplicate_window(), "its window for duplicates is too short".to_owned()),
        (!config.no_ack, "it acknowledges nothing".to_owned()),
    ];
    checks.into_iter().filter(|(holds, _)| !holds).map(|(_, what)| what).collect()
}

fn held(kind: StreamKind, what: String, name: &str, state: &State) -> Finding {
    let seen = format!("{} messages, {} MiB", state.messages, state.bytes >> 20);
    if kind == StreamKind::DeadLetter && state.messages > 0 {
        let mend = format!("read them, with the reasons in their headers: nats stream view {name}");
        return Finding::notable(what, seen, mend);
    }
    Finding::well(what, seen)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_is_judged_by_what_must_hold() {
        let good = Config {
            subjects: vec!["errand.v1.submit.*".into()],
            retention: RetentionPolicy::WorkQueue,
            discard: DiscardPolicy::New,
            storage: StorageType::File,
            duplicate_window: Duration::from_secs(120),
            ..Config::default()
        };
        assert_eq!(deviations(StreamKind::Submit, &good, "errand.v1"), Vec::<String>::new());
        let bad = Config {
            storage: StorageType::Memory,
            discard: DiscardPolicy::Old,
            persist_mode: Some(PersistenceMode::Async),
            ..good.clone()
        };
        assert_eq!(deviations(StreamKind::Submit, &bad, "errand.v1").len(), 3);
        assert_eq!(deviations(StreamKind::Submit, &good, "other").len(), 1);
        let event = Config {
            subjects: vec!["errand.v1.event.>".into()],
            retention: RetentionPolicy::Limits,
            discard: DiscardPolicy::Old,
            persist_mode: Some(PersistenceMode::Async),
            ..good
        };
        assert_eq!(deviations(StreamKind::Event, &event, "errand.v1"), Vec::<String>::new());
    }
}
