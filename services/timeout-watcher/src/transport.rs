//! The only place that knows the bus and the wire types: decode, convert, hand on.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use errand_bus::{Bus, BusError, Delivery, FollowFrom, RequestError, Service, follow};
use errand_core::run::Deadline;
use errand_core::{Error, RunId, Timestamp};
use errand_proto::{id, v1};
use futures::stream::BoxStream;
use futures::{Stream, StreamExt};
use prost::Message;

use crate::asks::Asks;
use crate::timers::{ArmedRun, Expiry};
use crate::watch::{Answer, Watch};

/// Runs in one page of a snapshot: about 350 KiB, well below the broker's limit.
const PAGE: u32 = 5_000;

/// How long the dispatcher may take for a request of expiries: longer than a commit ever should.
const ASK_TIMEOUT: Duration = Duration::from_secs(5);

/// A page may be read from a store that is busy.
const PAGE_TIMEOUT: Duration = Duration::from_secs(20);

/// What is armed of a run, from the wire.
///
/// # Errors
/// Where it cannot be read.
pub fn armed_run(run_id: &str, version: u64, deadlines: &[v1::Deadline]) -> Result<ArmedRun, Error> {
    let deadlines = deadlines.iter().map(Deadline::try_from).collect::<Result<_, _>>()?;
    Ok(ArmedRun { run_id: id("run_id", run_id)?, version, deadlines })
}

/// Those that can be read; the others are logged, and left to the next snapshot.
fn armed_runs(watch: &Watch, runs: &[v1::ArmedRun]) -> Vec<ArmedRun> {
    let convert = |run: &v1::ArmedRun| match armed_run(&run.run_id, run.version, &run.deadlines) {
        Ok(armed) => Some(armed),
        Err(error) => {
            tracing::error!(run_id = run.run_id, %error, "what the dispatcher has armed cannot be read");
            watch.note_unreadable();
            None
        }
    };
    runs.iter().filter_map(convert).collect()
}

/// The events of runs from now on, out of a stream that is there. "Now" is settled when this returns.
pub(crate) async fn events(bus: &Bus) -> Result<BoxStream<'static, Result<Delivery, BusError>>, BusError> {
    let of_runs = format!("{}.event.*.task_run.>", bus.subjects().prefix());
    follow(bus, of_runs, FollowFrom::New).await
}

/// What a run's event arms is armed. Of what cannot be read the notifier keeps a dead letter; what it would have
/// armed, the snapshot tells.
pub(crate) fn take_event(watch: &Watch, delivery: Delivery) {
    match armed_by_event(delivery.payload) {
        Ok(Some(armed)) => watch.arm(&[armed]),
        Ok(None) => {}
        Err(error) => {
            tracing::warn!(error, subject = delivery.subject, "an event cannot be read");
            watch.note_unreadable();
            watch.note_stale();
        }
    }
}

/// What a run's event arms; none where the event is another object's.
///
/// # Errors
/// Where it cannot be read.
pub fn armed_by_event(payload: Bytes) -> Result<Option<ArmedRun>, String> {
    let event = v1::Event::decode(payload).map_err(|error| error.to_string())?;
    match event.data {
        Some(v1::event::Data::Run(run)) => {
            armed_run(&event.object_id, event.seq, &run.deadlines).map(Some).map_err(|error| error.to_string())
        }
        None if event.r#type.starts_with("task_run.") => Err("it says nothing of its run".into()),
        _ => Ok(None),
    }
}

/// A page of the dispatcher's snapshot, and where the next one begins.
async fn list_deadlines(
    bus: &Bus,
    watch: &Watch,
    after_run_id: String,
) -> Result<(Vec<ArmedRun>, Option<String>), RequestError> {
    let subject = bus.subjects().api("dispatcher", "list_deadlines");
    let request = v1::ListDeadlinesRequest { after_run_id, limit: PAGE };
    let page: v1::ListDeadlinesResponse = bus.request_within(subject, &request, PAGE_TIMEOUT).await?;
    let next = page.runs.last().filter(|_| page.has_more).map(|last| last.run_id.clone());
    Ok((armed_runs(watch, &page.runs), next))
}

/// What has passed, on the wire.
#[must_use]
pub fn wire_expiry(expiry: &Expiry) -> v1::Expiry {
    v1::Expiry {
        run_id: expiry.run_id.to_string(),
        kind: v1::DeadlineKind::from(expiry.kind).into(),
        version: expiry.version,
        last_activity_ms: expiry.last_activity.unwrap_or_default().0,
    }
}

/// Asks the dispatcher to act on what has passed.
async fn expire(bus: &Bus, watch: &Watch, expiries: &[Expiry]) -> Answer {
    let request = v1::ExpireRequest { expiries: expiries.iter().map(wire_expiry).collect() };
    let subject = bus.subjects().run("expire");
    let answer: Result<v1::ExpireResponse, _> = bus.request_within(subject, &request, ASK_TIMEOUT).await;
    match answer {
        Ok(answer) => Answer::Answered(armed_runs(watch, &answer.armed)),
        Err(error @ (RequestError::NobodyServes(_) | RequestError::Broker(..))) => {
            tracing::debug!(%error, expiries = expiries.len(), "the dispatcher is away; it is asked again");
            Answer::Away
        }
        Err(error) => {
            tracing::warn!(%error, expiries = expiries.len(), "the dispatcher failed on expiries; it is asked again");
            Answer::Failed
        }
    }
}

/// The dispatcher over the bus.
#[derive(Debug, Clone)]
pub(crate) struct Desk {
    pub(crate) bus: Bus,
    pub(crate) watch: Arc<Watch>,
}

impl Asks for Desk {
    type Error = RequestError;

    async fn page(&self, after: String) -> Result<(Vec<ArmedRun>, Option<String>), RequestError> {
        list_deadlines(&self.bus, &self.watch, after).await
    }

    async fn expire(&self, expiries: &[Expiry]) -> Answer {
        expire(&self.bus, &self.watch, expiries).await
    }
}

/// A sign of life: whose, and when by the runner's clock.
pub(crate) type Sign = (RunId, Timestamp);

/// Signs of life of all agents.
pub(crate) async fn activity(
    bus: &Bus,
    watch: Arc<Watch>,
) -> Result<impl Stream<Item = Sign> + Send + Unpin + use<>, BusError> {
    let messages = bus.subscribe(bus.subjects().activity_all()).await?;
    Ok(Box::pin(messages.filter_map(move |message| {
        let read = v1::Activity::decode(message.payload).ok();
        let read = read.and_then(|sign| Some((sign.run_id.parse().ok()?, Timestamp(sign.at_ms))));
        if read.is_none() {
            tracing::warn!(subject = message.subject, "a sign of life cannot be read");
            watch.note_unreadable();
        }
        std::future::ready(read)
    })))
}

/// Answers what people ask of the watcher.
pub(crate) async fn serve(bus: &Bus, watch: Arc<Watch>) -> Result<Service, BusError> {
    let subject = bus.subjects().api("timeout-watcher", "status");
    let status = move |_: v1::WatcherStatusRequest| std::future::ready(Ok::<_, Error>(status(&watch)));
    Service::builder(bus, "timeout-watcher", "Tells the dispatcher which deadlines of runs have passed")
        .endpoint("status", subject, 16, status)
        .start()
        .await
}

fn status(watch: &Watch) -> v1::WatcherStatusResponse {
    let status = watch.status();
    let [count, p50_ms, p99_ms, max_ms] = status.lateness;
    v1::WatcherStatusResponse {
        armed: status.armed as u64,
        asked: status.asked as u64,
        next_at_ms: status.next.map(|at| at.0),
        answered: status.counts.answered,
        disagreed: status.counts.disagreed,
        unanswered: status.counts.unanswered,
        lateness: Some(v1::Lateness { count, p50_ms, p99_ms, max_ms }),
        snapshots: status.counts.snapshots,
        last_snapshot_at_ms: status.counts.last_snapshot.map(|at| at.0),
        unreadable: status.counts.unreadable,
    }
}
