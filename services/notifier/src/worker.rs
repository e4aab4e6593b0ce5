//! Serves one destination: takes what is due, sends it within the destination's own limits, says what became of it.
//! It waits for no other destination, and no other for it.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use errand_core::{Error, Timestamp};
use errand_kit::metrics;
use errand_proto::v1;
use errand_store::StoreError;
use futures::FutureExt;
use prost::Message as _;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::catalog::Catalog;
use crate::channel::{Channel, EXCERPT_CHARS, Failure, Message, Receipt};
use crate::channels::Channels;
use crate::claim::ClaimEnd;
use crate::clock::now;
use crate::delivery::{Due, Health, Next, Probing, Schedule, Status as Stands, Window, exhausts, left_alone};
use crate::destination::{Destination, Status, Vault};
use crate::events::{Events, weight};
use crate::figures::Figures;
use crate::recorder::{Outcome, Outcomes, Settled};
use crate::store::{Choice, Record, Store};
use crate::switching::Switching;

/// Deliveries of one destination in memory: waiting ones, beside those at work.
const WINDOW: usize = 512;
/// With those that are at work, and not yet written down.
const MAX_KNOWN: usize = 2 * WINDOW;
/// What these may take, in bytes.
const WINDOW_BYTES: usize = 4 * 1024 * 1024;
/// What is read at once of a destination that is probed.
const PROBE: usize = 8;
/// How often the store is looked at though nobody says that there is something new.
const LOOK: Duration = Duration::from_secs(5);
/// Pause after the store, or the opening of the channel, has failed.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Attempts that are kept of one delivery.
const KEPT_ATTEMPTS: usize = 50;
/// An error's text that is kept of an attempt, in characters.
const ERROR_CHARS: usize = 512;

/// How destinations are served.
#[derive(Debug, Clone)]
pub struct Settings {
    /// When attempts are made.
    pub schedule: Schedule,
    /// How a failing destination is sought out.
    pub probing: Probing,
    /// How long an attempt may take.
    pub attempt_timeout: Duration,
    /// Attempts of one destination that are under way at once.
    pub concurrency: usize,
}

/// What all workers share.
#[derive(Debug)]
pub struct Shared {
    /// The store.
    pub store: Store,
    /// Destinations.
    pub catalog: Arc<Catalog>,
    /// Events.
    pub events: Events,
    /// The types of destinations.
    pub channels: Arc<dyn Channels>,
    /// Opens what is sealed.
    pub vault: Vault,
    /// Counts.
    pub figures: Figures,
    /// How long this process may send.
    pub claim_end: ClaimEnd,
    /// Deactivates what is dead.
    pub switching: Switching,
    /// How destinations are served.
    pub settings: Settings,
}

/// What one worker is told.
#[derive(Debug)]
pub struct Orders {
    /// The destination as it is.
    pub destination: watch::Receiver<Arc<Destination>>,
    /// There may be something new.
    pub bell: Arc<Notify>,
    /// Enough.
    pub stop: CancellationToken,
}

/// An attempt that was made.
struct Done {
    due: Due,
    probe: bool,
    at: Timestamp,
    took: Duration,
    result: Result<Receipt, Failure>,
}

struct Worker {
    shared: Arc<Shared>,
    orders: Orders,
    outcomes: Outcomes,
    destination: Arc<Destination>,
    channel: Option<Arc<dyn Channel>>,
    /// When the old secret ends, so that the channel is opened anew.
    reopen_at: Option<Timestamp>,
    window: Window,
    health: Health,
    attempts: JoinSet<Done>,
    settled: (mpsc::UnboundedSender<Settled>, mpsc::UnboundedReceiver<Settled>),
    /// There may be something in the store that is not here.
    more: bool,
    look_at: Instant,
    /// Nothing is sent before.
    resume_at: Option<Instant>,
    /// Why the destination is to be deactivated.
    dead: Option<String>,
}

/// Serves until it is told to stop, or the destination is dead. What is under way then is waited for.
pub async fn serve(shared: Arc<Shared>, orders: Orders, outcomes: Outcomes) {
    let destination = Arc::clone(&orders.destination.borrow());
    let ordered = destination.definition.ordered;
    let mut worker = Worker {
        health: Health::default(),
        shared,
        orders,
        outcomes,
        destination,
        channel: None,
        reopen_at: None,
        window: Window::new(ordered),
        attempts: JoinSet::new(),
        settled: mpsc::unbounded_channel(),
        more: true,
        look_at: Instant::now(),
        resume_at: None,
        dead: None,
    };
    worker.run().await;
    worker.finish().await;
}

enum Event {
    Stop,
    Changed,
    Settled(Settled),
    Done(Done),
    Bell,
    Time,
}

impl Worker {
    async fn run(&mut self) {
        if !self.look_up_health().await {
            return;
        }
        while self.dead.is_none() {
            if self.wants_more() {
                match self.load().await {
                    Ok(true) => continue,
                    Ok(false) if self.orders.stop.is_cancelled() => return,
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(%error, destination = %self.destination.id, "the queue cannot be read");
                        self.pause(AFTER_FAILURE);
                    }
                }
            }
            self.start();
            match self.next_event().await {
                Event::Stop => return,
                Event::Changed => self.change(),
                Event::Settled(settled) => self.settle(settled),
                Event::Done(done) => self.done(done).await,
                Event::Bell => self.more = true,
                Event::Time => {
                    self.more |= self.look_at <= Instant::now();
                    self.resume_at = self.resume_at.filter(|at| *at > Instant::now());
                }
            }
        }
    }

    /// Since when it has been failing, as whoever served it before wrote it down. False: it is not to be served.
    async fn look_up_health(&mut self) -> bool {
        loop {
            match self.shared.store.destination(self.destination.id).await {
                Ok(Some(destination)) => {
                    self.health.failing_since = destination.failing_since;
                    return true;
                }
                Ok(None) => return false,
                Err(error) => tracing::warn!(%error, destination = %self.destination.id, "it cannot be read yet"),
            }
            tokio::select! {
                () = tokio::time::sleep(AFTER_FAILURE) => {}
                () = self.orders.stop.cancelled() => return false,
            }
        }
    }

    async fn next_event(&mut self) -> Event {
        // Where there is more than the window takes, what is under way makes room for it.
        let wake_at = self.resume_at.or_else(|| (!self.more).then_some(self.look_at));
        let time = async {
            match wake_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = self.orders.stop.cancelled() => Event::Stop,
            Ok(()) = self.orders.destination.changed() => Event::Changed,
            Some(settled) = self.settled.1.recv() => Event::Settled(settled),
            Some(Ok(done)) = self.attempts.join_next() => Event::Done(done),
            () = self.orders.bell.notified() => Event::Bell,
            () = time => Event::Time,
        }
    }

    /// What is under way is waited for and written down; a dead destination is deactivated.
    async fn finish(mut self) {
        self.window.clear();
        while let Some(done) = self.attempts.join_next().await {
            if let Ok(done) = done {
                self.done(done).await;
            }
        }
        let Some(reason) = self.dead.take() else { return };
        while self.window.known() > 0 {
            tokio::select! {
                Some(settled) = self.settled.1.recv() => self.window.settled(settled.position, settled.object),
                () = self.orders.stop.cancelled() => return,
            }
        }
        tracing::warn!(destination = %self.destination.id, reason, "a destination is deactivated");
        while let Err(error) = self.shared.switching.deactivate(self.destination.id, &reason).await {
            tracing::warn!(%error, destination = %self.destination.id, "a destination cannot be deactivated yet");
            tokio::select! {
                () = tokio::time::sleep(AFTER_FAILURE) => {}
                () = self.orders.stop.cancelled() => return,
            }
        }
    }

    fn change(&mut self) {
        let destination = Arc::clone(&self.orders.destination.borrow_and_update());
        self.adopt(&destination);
    }

    fn adopt(&mut self, destination: &Arc<Destination>) {
        if destination.version <= self.destination.version {
            return;
        }
        let (before, after) = (&self.destination.definition, &destination.definition);
        if before.ordered != after.ordered || destination.status != Status::Active {
            // Rows of the other order must not meet these: the supervisor starts anew, if there is to be another.
            self.orders.stop.cancel();
        }
        self.destination = Arc::clone(destination);
        self.channel = None;
        // Perhaps it is mended.
        (self.health.streak, self.health.probes) = (0, 0);
        self.resume_at = None;
        self.more = true;
    }

    /// Whoever was told of a change may publish at once: what is read from here on is sent as it says now. True: it is
    /// to be served no more in this form.
    async fn is_superseded(&mut self) -> Result<bool, StoreError> {
        let picture = self.shared.catalog.refreshed().await?;
        match picture.get(self.destination.number) {
            Some(destination) => self.adopt(destination),
            None => self.orders.stop.cancel(),
        }
        Ok(self.orders.stop.is_cancelled())
    }

    fn is_probed(&self) -> bool {
        self.shared.settings.probing.pause(&self.health).is_some()
    }

    fn pause(&mut self, pause: Duration) {
        self.resume_at = Some(Instant::now() + pause);
    }

    fn wants_more(&self) -> bool {
        let low = if self.is_probed() { 1 } else { WINDOW / 2 };
        // What is sent and not written down is read again and again, so there may not be much of it.
        let few = self.window.known() < MAX_KNOWN;
        self.more && few && self.resume_at.is_none() && self.window.waiting() < low
    }

    /// Reads what is due. True: again, at once.
    async fn load(&mut self) -> Result<bool, StoreError> {
        if self.is_superseded().await? {
            return Ok(false);
        }
        let (number, shared, time) = (self.destination.number, Arc::clone(&self.shared), now());
        let (choice, size) = match (self.is_probed(), self.destination.definition.ordered) {
            (true, _) => (Choice::Oldest, PROBE),
            (false, true) => (Choice::Ordered, WINDOW),
            (false, false) => (Choice::Unordered, WINDOW),
        };
        // Those that are known here are still due there, as far as the store knows.
        let limit = size + self.window.known();
        let mut rows = shared.store.due(number, time.0, choice, limit).await?;
        self.more = rows.len() == limit;
        rows.retain(|due| !self.window.knows(due.position));
        let numbers: Vec<i64> = rows.iter().map(|due| due.event).collect();
        let messages = shared.events.get(&numbers).await?;
        let mut bytes = 0;
        let fitting = rows.iter().position(|due| {
            bytes += messages.get(&due.event).map_or(0, |message| weight(message));
            bytes > WINDOW_BYTES
        });
        if let Some(fitting) = fitting {
            // One at least, however large.
            rows.truncate(fitting.max(1));
            self.more = true;
        }
        for due in &mut rows {
            due.message = messages.get(&due.event).cloned();
        }
        let put_off = self.window.add(rows);
        if !put_off.is_empty() {
            shared.store.put_off(&put_off).await?;
            self.more = true;
            return Ok(self.window.waiting() == 0);
        }
        if !self.more {
            let next = shared.store.next_due(number, time.0).await?;
            let pause = next.and_then(|at| u64::try_from(at - now().0).ok()).map(Duration::from_millis);
            self.look_at = Instant::now() + pause.unwrap_or(LOOK).min(LOOK);
        }
        Ok(false)
    }

    /// Starts as many attempts as may be under way.
    fn start(&mut self) {
        if self.resume_at.is_some() || self.window.waiting() == 0 {
            return;
        }
        let probe = self.is_probed();
        let limit = if probe { 1 } else { self.shared.settings.concurrency };
        while self.attempts.len() < limit && self.shared.claim_end.lasts() {
            let time = now();
            let channel = match self.opened(time) {
                Ok(channel) => channel,
                Err(error) => {
                    tracing::error!(%error, destination = %self.destination.id, "a destination cannot be opened");
                    return self.pause(LOOK);
                }
            };
            let Some(due) = self.window.take_next() else { return };
            self.attempts.spawn(attempt(channel, due, probe, time, self.shared.settings.attempt_timeout));
        }
        if !self.shared.claim_end.lasts() {
            // The claims may have gone to another one. The supervisor knows more.
            self.pause(AFTER_FAILURE);
        }
    }

    fn opened(&mut self, time: Timestamp) -> Result<Arc<dyn Channel>, Error> {
        if self.reopen_at.is_some_and(|at| at <= time) {
            self.channel = None;
        }
        if let Some(channel) = &self.channel {
            return Ok(Arc::clone(channel));
        }
        let destination = &self.destination;
        let private = self.shared.vault.open(destination.id, &destination.sealed).map_err(crate::desk::cannot_open)?;
        let secrets = private.secrets(destination.old_secret_expires_at, time);
        let kind = &destination.definition.kind;
        let channel = self.shared.channels.open(kind, private.config.as_bytes(), &secrets)?;
        self.reopen_at = destination.old_secret_expires_at.filter(|at| *at > time);
        self.channel = Some(Arc::clone(&channel));
        Ok(channel)
    }

    fn settle(&mut self, settled: Settled) {
        let mut next = Some(settled);
        while let Some(settled) = next {
            self.window.settled(settled.position, settled.object);
            self.more |= settled.again;
            next = self.settled.1.try_recv().ok();
        }
    }

    /// Decides what becomes of a delivery, and has it written down.
    async fn done(&mut self, done: Done) {
        let (outcome, due, finished) = self.judge(done);
        if finished {
            self.window.finished(&due);
        } else {
            self.window.failed(&due);
        }
        if self.is_probed() {
            // The next probe is the oldest that is due then.
            self.window.clear();
            self.more = true;
        }
        if self.outcomes.send(outcome).await.is_err() {
            // The recorder has failed, and with it the process. What is not written down is delivered again.
            self.orders.stop.cancel();
        }
    }

    fn judge(&mut self, done: Done) -> (Outcome, Due, bool) {
        let Done { due, probe, at, took, result } = done;
        let finished_at = now();
        let (taken, was_probed) = (result.is_ok(), self.is_probed());
        let health_changed = self.health.note(taken, at, probe);
        let log = log_of(&due, at, took, &result);
        let (mut status, mut due_at) = (Stands::Delivered, due.due_at);
        if let Err(failure) = &result {
            let attempt = due.attempts + 1 - due.base;
            let next = self.shared.settings.schedule.after_failure(attempt, failure, finished_at, rand::random());
            let next = if due.message.is_none() { Next::Exhausted } else { next };
            (status, due_at) = match next {
                Next::Again(at) => (Stands::Pending, at.0),
                Next::Gone => (Stands::Pending, finished_at.0),
                Next::Exhausted => (Stands::Failed, due.due_at),
            };
            self.dead = self.dead.take().or_else(|| self.death(next, attempt, &log, failure));
            self.leave_alone(failure);
        } else if was_probed {
            self.resume_at = None;
        }
        self.count(&due, finished_at, status, taken);
        let finished = status != Stands::Pending;
        let record = Record {
            position: due.position,
            destination: self.destination.number,
            object: due.object,
            attempts_before: due.attempts,
            status,
            due_at,
            finished_at: finished.then_some(finished_at.0),
            log: v1::Delivery { attempts: log, ..v1::Delivery::default() }.encode_to_vec(),
            holds: !finished && self.destination.definition.ordered,
        };
        let failing_since = health_changed.then(|| self.health.failing_since.map(|since| since.0));
        (Outcome { record, failing_since, settled: self.settled.0.clone() }, due, finished)
    }

    /// Why the destination is to be deactivated, if it is.
    fn death(&self, next: Next, attempt: u32, log: &[v1::DeliveryAttempt], failure: &Failure) -> Option<String> {
        match next {
            Next::Again(_) => None,
            Next::Gone => Some("it says that it is gone for good".to_owned()),
            Next::Exhausted => {
                let first = log.len().checked_sub(attempt as usize).and_then(|at| log.get(at));
                let first = Timestamp(first?.at_ms);
                let dead = exhausts(first, self.health.failing_since);
                dead.then(|| format!("{attempt} attempts failed, and nothing was taken since: {}", failure.message))
            }
        }
    }

    fn leave_alone(&mut self, failure: &Failure) {
        let probing = self.shared.settings.probing.pause(&self.health);
        if let Some(pause) = probing.max(left_alone(failure)) {
            let until = Instant::now() + pause;
            self.resume_at = Some(self.resume_at.map_or(until, |at| at.max(until)));
        }
    }

    fn count(&self, due: &Due, finished_at: Timestamp, status: Stands, taken: bool) {
        let created_at = due.message.as_ref().map_or(finished_at, |message| message.created_at);
        let outcome = match (taken, status) {
            (true, _) => "delivered",
            (false, Stands::Failed) => "given_up",
            (false, _) => "tried",
        };
        metrics().delivered("destination", outcome, 1);
        if taken {
            metrics().delivery_lag("destination", Duration::from_millis(finished_at.millis_since(created_at)));
        }
        self.shared.figures.note(self.destination.number, |counts| {
            counts.attempts += 1;
            counts.failed_attempts += u64::from(!taken);
            counts.failed += u64::from(status == Stands::Failed);
            if taken {
                counts.delivered += 1;
                counts.lag_ms = finished_at.millis_since(created_at);
            }
        });
    }
}

/// One attempt, which takes no longer than it may, whatever the channel does.
async fn attempt(channel: Arc<dyn Channel>, due: Due, probe: bool, at: Timestamp, timeout: Duration) -> Done {
    let started = Instant::now();
    let result = match due.message.as_deref() {
        Some(message) => send(channel.as_ref(), &Message { now: at, ..message.clone() }, timeout).await,
        None => Err(Failure::new("the event cannot be read any more")),
    };
    Done { due, probe, at, took: started.elapsed(), result }
}

/// Sends one message within a time.
pub(crate) async fn send(channel: &dyn Channel, message: &Message, timeout: Duration) -> Result<Receipt, Failure> {
    let sending = AssertUnwindSafe(channel.send(message)).catch_unwind();
    match tokio::time::timeout(timeout, sending).await {
        Ok(Ok(result)) => result,
        Ok(Err(_panic)) => Err(Failure::new("the notifier failed at this attempt")),
        Err(_elapsed) => Err(Failure::new(format!("no answer within {} ms", timeout.as_millis()))),
    }
}

/// The attempts of a delivery, with this one.
fn log_of(due: &Due, at: Timestamp, took: Duration, result: &Result<Receipt, Failure>) -> Vec<v1::DeliveryAttempt> {
    let mut attempts = v1::Delivery::decode(due.log.as_slice()).map(|kept| kept.attempts).unwrap_or_default();
    attempts.push(attempt_view(due.attempts + 1, at, took, result));
    let surplus = attempts.len().saturating_sub(KEPT_ATTEMPTS);
    attempts.drain(..surplus);
    attempts
}

/// The wire form of an attempt.
pub(crate) fn attempt_view(
    number: u32,
    at: Timestamp,
    took: Duration,
    result: &Result<Receipt, Failure>,
) -> v1::DeliveryAttempt {
    let (status_code, error, response) = match result {
        Ok(receipt) => (receipt.status_code, "", &receipt.response),
        Err(failure) => (failure.status_code, failure.message.as_str(), &failure.response),
    };
    v1::DeliveryAttempt {
        number,
        at_ms: at.0,
        duration_ms: u32::try_from(took.as_millis()).unwrap_or(u32::MAX),
        status_code: status_code.map(u32::from),
        error: error.chars().take(ERROR_CHARS).collect(),
        response: response.chars().take(EXCERPT_CHARS).collect(),
    }
}
