//! The ledger: what was accepted against what the event stream and the store say, run by run (DESIGN section 5).

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use async_nats::jetstream::{self, consumer::pull::OrderedConfig};
use errand_client::{Client, RunFilter, RunId, run_status, v1};
use errand_core::run::RunStatus;
use futures::{StreamExt, TryStreamExt};
use prost::Message;

/// What is known of one run from its events.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The statuses that it went through, by its events in `seq` order.
    pub statuses: Vec<String>,
    /// When they were made, in milliseconds since the Unix epoch.
    pub times: Vec<i64>,
    /// Events that came again under the same id.
    pub repeated: usize,
}

impl Entry {
    /// Whether its last event is a final one.
    #[must_use]
    pub fn is_final(&self) -> bool {
        self.statuses.last().is_some_and(|status| is_final(status))
    }
}

fn is_final(status: &str) -> bool {
    ["completed", "failed", "canceled"].contains(&status)
}

/// Reads the event stream from its beginning until each of these runs has its final event and nothing is left to
/// read, and checks as it goes: `seq` counts 1, 2, 3 ... per run once repetitions are dropped by `id`, and nothing
/// follows a final event.
///
/// # Errors
/// The first thing that is wrong, by run; or what is missing when the patience is over.
pub async fn read_events(
    client: &Client,
    url: &str,
    accepted: &[RunId],
    patience: Duration,
) -> anyhow::Result<BTreeMap<RunId, Entry>> {
    read_events_over(crate::broker::connect(url).await?, client, accepted, patience).await
}

/// As [`read_events`], over a connection that is there.
///
/// # Errors
/// As [`read_events`].
pub async fn read_events_over(
    nats: async_nats::Client,
    client: &Client,
    accepted: &[RunId],
    patience: Duration,
) -> anyhow::Result<BTreeMap<RunId, Entry>> {
    let name = errand_bus::StreamKind::Event.name(client.bus().subjects().prefix());
    let stream = jetstream::new(nats).get_stream(name).await?;
    let mut messages = stream.create_consumer(OrderedConfig::default()).await?.messages().await?;
    let mut entries: BTreeMap<RunId, Entry> = BTreeMap::new();
    let mut ids = HashSet::new();
    let mut open: HashSet<RunId> = accepted.iter().copied().collect();
    let reading = async {
        loop {
            let message = messages.next().await.context("the stream ended")??;
            let pending = message.info().map_err(|error| anyhow::anyhow!("{error}"))?.pending;
            let event = v1::Event::decode(message.payload.clone())?;
            if event.r#type.starts_with("task_run.")
                && let Err(wrong) = note(&mut entries, &mut ids, &mut open, &event)
            {
                let places = places(&stream, &event.object_id).await;
                return Err(wrong.context(format!("in the stream at {places:?}")));
            }
            if pending == 0 && open.is_empty() {
                return anyhow::Ok(());
            }
        }
    };
    let done = tokio::time::timeout(patience, reading).await;
    match done {
        Ok(read) => read?,
        Err(_) => {
            let shown: Vec<_> = open.iter().take(5).map(|run| (run, entries.get(run))).collect();
            bail!("{} of {} runs have no final event, such as {shown:?}", open.len(), accepted.len());
        }
    }
    Ok(entries)
}

/// Where in the stream an object's events are: tells what is lost from what is out of order.
async fn places(stream: &jetstream::stream::Stream, object_id: &str) -> anyhow::Result<Vec<(u64, u64)>> {
    let config = OrderedConfig { filter_subject: format!("*.*.event.*.*.*.{object_id}"), ..OrderedConfig::default() };
    let consumer = stream.create_consumer(config).await?;
    let mut left = consumer.cached_info().num_pending;
    let mut messages = consumer.messages().await?;
    let mut places = Vec::new();
    while left > 0 {
        let message = messages.next().await.context("the stream ended")??;
        let info = message.info().map_err(|error| anyhow::anyhow!("{error}"))?;
        left = info.pending;
        places.push((info.stream_sequence, v1::Event::decode(message.payload.clone())?.seq));
    }
    Ok(places)
}

fn note(
    entries: &mut BTreeMap<RunId, Entry>,
    ids: &mut HashSet<String>,
    open: &mut HashSet<RunId>,
    event: &v1::Event,
) -> anyhow::Result<()> {
    let run: RunId = event.object_id.parse().context("an event of a run")?;
    let entry = entries.entry(run).or_default();
    if !ids.insert(event.id.clone()) {
        entry.repeated += 1;
        return Ok(());
    }
    let status = event.r#type.trim_start_matches("task_run.").to_owned();
    ensure!(!entry.is_final(), "{run} is {:?}, and then {status}", entry.statuses);
    entry.statuses.push(status);
    entry.times.push(event.created_at_ms);
    let seen = entry.statuses.len() as u64;
    ensure!(seen == event.seq, "{run}: event {} is the {seen}th to come: {:?}", event.seq, entry.statuses);
    if entry.is_final() {
        open.remove(&run);
    }
    Ok(())
}

/// Checks the store against the events: every accepted run is there once, final, with as many events as its `seq`
/// says; there is no other run; and no session is left that serves one.
///
/// # Errors
/// The first thing that is wrong.
pub async fn check_store(client: &Client, entries: &BTreeMap<RunId, Entry>, accepted: &[RunId]) -> anyhow::Result<()> {
    let runs: Vec<v1::Run> = client.runs(RunFilter::default()).try_collect().await?;
    let mut missing: HashSet<RunId> = accepted.iter().copied().collect();
    for run in &runs {
        let id: RunId = run.id.parse()?;
        ensure!(missing.remove(&id), "{id} is in the store without having been accepted, or twice");
        let status = run_status(run)?;
        ensure!(status.is_final(), "{id} is {}", status.as_str());
        let entry = entries.get(&id).with_context(|| format!("{id} has no event"))?;
        let last = entry.statuses.last().map(String::as_str);
        ensure!(last == Some(status.as_str()), "{id} is {} and its events say {last:?}", status.as_str());
        ensure!(entry.statuses.len() as u64 == run.seq, "{id} has seq {} and events {:?}", run.seq, entry.statuses);
        ensure!(run.finished_at_ms.is_some() == status.is_final(), "{id} has no time of its end");
    }
    ensure!(missing.is_empty(), "{} accepted runs are not in the store: {:?}", missing.len(), missing.iter().next());
    Ok(())
}

/// The sessions that still serve a run, or are in the making or the ending.
///
/// # Errors
/// Where the session-pool does not answer.
pub async fn busy_sessions(client: &Client) -> anyhow::Result<Vec<v1::Session>> {
    let sessions: Vec<v1::Session> = client.sessions(Vec::new(), Vec::new()).try_collect().await?;
    let settled = [v1::SessionStatus::Idle, v1::SessionStatus::Completed, v1::SessionStatus::Failed];
    Ok(sessions.into_iter().filter(|session| !settled.contains(&session.status())).collect())
}

/// How many runs ended in which status.
#[must_use]
pub fn outcomes(entries: &BTreeMap<RunId, Entry>) -> BTreeMap<RunStatus, usize> {
    let mut counts = BTreeMap::new();
    for entry in entries.values() {
        let status = match entry.statuses.last().map(String::as_str) {
            Some("completed") => RunStatus::Completed,
            Some("failed") => RunStatus::Failed,
            Some("canceled") => RunStatus::Canceled,
            _ => continue,
        };
        *counts.entry(status).or_default() += 1;
    }
    counts
}
