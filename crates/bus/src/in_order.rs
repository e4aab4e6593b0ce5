//! A durable consumer that hands over batches, one after another, in the order of the stream.

use std::collections::VecDeque;
use std::future::Future;
use std::time::Duration;

use async_nats::jetstream::consumer::{self, AckPolicy, Consumer, PriorityPolicy, pull};
use async_nats::jetstream::{self, AckKind};
use futures::StreamExt;
use tokio::task::{JoinError, JoinHandle};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::connection::{Bus, BusError};
use crate::delivery::{Delivery, LETTER_AGAIN, Verdict, hand_over};
use crate::durable::Durable;
use crate::streams::StreamKind;

/// A durable consumer of which one instance at a time is served; the others stand by.
#[derive(Debug, Clone)]
pub struct InOrderConfig {
    /// Its name.
    pub durable: &'static str,
    /// Of which stream.
    pub stream: StreamKind,
    /// Subjects with wildcards; none for all of the stream.
    pub filters: Vec<String>,
    /// How long the broker waits for a sign of life before it delivers again what this instance holds.
    pub ack_wait: Duration,
    /// Messages that are handed over together at most.
    pub max_batch: usize,
    /// How often a batch is tried before its messages are tried one by one, and then one of them before it is a dead
    /// letter; 0 for no limit.
    pub max_attempts: u32,
    /// What its dead letters are: `dlq.<what>`.
    pub dead_letter: &'static str,
}

/// The broker's name for those of whom it serves one.
const GROUP: &str = "in-order";
/// An instance that has not asked for so long has died; another one is served.
const PIN: Duration = Duration::from_secs(6);
/// How often it asks, at least.
const EXPIRES: Duration = Duration::from_secs(2);
const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long the batch under way may take at the end.
const DRAIN: Duration = Duration::from_secs(10);
/// How long a batch waits whose handler panicked.
const AFTER_PANIC: Duration = Duration::from_secs(1);

/// Hands all messages to `handler` in the order of the stream, until shutdown: one batch at a time, each with all that
/// has arrived by then. The verdict is for the whole batch. [`Verdict::RetryAfter`] holds everything behind it up;
/// [`Verdict::DeadLetter`] for a batch of several means that each is tried by itself, so that one bad message takes no
/// others with it.
///
/// Of several instances one is served. What it held when it died comes again, after [`InOrderConfig::ack_wait`] and
/// before what is newer; drop duplicates by id.
///
/// # Errors
/// [`BusError::Refused`], where the broker will never have such a consumer. What else fails is tried again.
pub async fn consume_in_order<F, Fut>(
    bus: &Bus,
    config: InOrderConfig,
    shutdown: CancellationToken,
    handler: F,
) -> Result<(), BusError>
where
    F: Fn(Vec<Delivery>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Verdict> + Send + 'static,
{
    let max_batch = config.max_batch.max(1);
    let wanted = pull::Config {
        durable_name: Some(config.durable.to_owned()),
        // One ack for a batch. It acks what is before it as well, so nothing may be handed over ahead of what is missing.
        ack_policy: AckPolicy::All,
        ack_wait: config.ack_wait,
        // Counted here: the broker would skip a message that it gives up, untold.
        max_deliver: -1,
        max_ack_pending: i64::try_from(max_batch * 4).unwrap_or(i64::MAX),
        filter_subjects: config.filters.clone(),
        priority_policy: PriorityPolicy::PinnedClient,
        priority_groups: vec![GROUP.to_owned()],
        priority_timeout: PIN,
        ..pull::Config::default()
    };
    let durable = Durable::new(bus, config.stream, wanted);
    let line = Line {
        bus: bus.clone(),
        config: InOrderConfig { max_batch, ..config },
        handler,
        arrived: VecDeque::new(),
        singly: 0,
        work: Work::Nothing,
        delivered: 0,
        missing: None,
        served: false,
    };
    line.run(durable, shutdown).await
}

/// A message that has arrived, and what it says of itself: reading that costs more than all that is done with it here.
struct Arrived {
    message: jetstream::Message,
    delivery: Delivery,
}

/// The batch that is handed over.
struct Batch {
    messages: Vec<Arrived>,
    failures: u32,
}

enum Work {
    Nothing,
    UnderWay(Batch, JoinHandle<Verdict>),
    Again(Batch, Instant),
}

/// What the broker has delivered, to an instance that died or that was lost on its way here: it comes again.
struct Missing {
    messages: usize,
    /// Up to here.
    sequence: u64,
    /// When it is counted again. From the first message on: until then nobody was served, or somebody else.
    until: Option<Instant>,
}

struct Line<F> {
    bus: Bus,
    config: InOrderConfig,
    handler: F,
    arrived: VecDeque<Arrived>,
    /// So many of those that have arrived are handed over one by one.
    singly: usize,
    work: Work,
    /// How many deliveries the broker has counted. One that is not the next shows that others went elsewhere.
    delivered: u64,
    missing: Option<Missing>,
    /// Whether the broker has this instance down as the one that is served.
    served: bool,
}

enum Event {
    Arrived(Option<Result<Box<jetstream::Message>, pull::MessagesError>>),
    Handled(Result<Verdict, JoinError>),
    Due,
    Alive,
    Reconnected,
    Stop,
}

impl<F, Fut> Line<F>
where
    F: Fn(Vec<Delivery>) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Verdict> + Send + 'static,
{
    async fn run(mut self, mut durable: Durable, shutdown: CancellationToken) -> Result<(), BusError> {
        let ended = loop {
            match self.run_until_broken(&mut durable, &shutdown).await {
                Ok(()) if shutdown.is_cancelled() => break Ok(()),
                Ok(()) => {}
                Err(error @ BusError::Refused { .. }) => break Err(error),
                Err(error) => {
                    tracing::warn!(%error, durable = self.config.durable, "the consumer is made anew");
                    tokio::time::sleep(Duration::from_millis(200)).await;
                }
            }
        };
        self.finish(&durable).await;
        ended
    }

    async fn run_until_broken(&mut self, durable: &mut Durable, shutdown: &CancellationToken) -> Result<(), BusError> {
        let generations = durable.generation();
        let before = *generations.borrow();
        let opened = tokio::select! {
            opened = self.open(durable) => opened,
            () = shutdown.cancelled() => return Ok(()),
        };
        let (consumer, mut messages) = opened?;
        if before != *generations.borrow() {
            self.forget();
        }
        let mut alive = tokio::time::interval((self.config.ack_wait / 3).max(Duration::from_millis(100)));
        loop {
            self.start();
            let next_due = self.next_due();
            let event = tokio::select! {
                biased;
                () = shutdown.cancelled() => Event::Stop,
                handled = handled(&mut self.work) => Event::Handled(handled),
                () = sleep_until(next_due) => Event::Due,
                _ = alive.tick() => Event::Alive,
                message = messages.next() => Event::Arrived(message.map(|message| message.map(Box::new))),
                () = durable.reconnected() => Event::Reconnected,
            };
            let failed = |what: String| BusError::Stream { name: self.config.durable.to_owned(), what };
            match event {
                Event::Arrived(Some(Ok(message))) => {
                    if self.arrive(*message) {
                        self.count_missing(&consumer).await.map_err(failed)?;
                    }
                }
                Event::Arrived(Some(Err(error))) => return Err(failed(error.to_string())),
                Event::Arrived(None) => return Err(failed("its messages ended".into())),
                Event::Handled(verdict) => self.judge(verdict).await,
                Event::Due if self.missing.as_ref().is_some_and(Missing::is_over) => {
                    self.count_missing(&consumer).await.map_err(failed)?;
                }
                Event::Due => {}
                Event::Alive => self.stay_alive().await,
                Event::Reconnected | Event::Stop => return Ok(()),
            }
        }
    }

    async fn open(&mut self, durable: &mut Durable) -> Result<(Consumer<pull::Config>, pull::Stream), BusError> {
        if std::mem::take(&mut self.served) {
            self.step_down(durable).await;
        }
        let consumer = durable.open().await?;
        let asking = consumer.stream().max_messages_per_batch(self.config.max_batch).group(GROUP);
        let messages = asking.heartbeat(HEARTBEAT).expires(EXPIRES).messages().await;
        let messages = messages.map_err(|error| durable.failed(error.to_string()))?;
        self.take_stock(consumer.cached_info());
        Ok((consumer, messages))
    }

    /// Asks the broker what it has delivered that is not here.
    async fn count_missing(&mut self, consumer: &Consumer<pull::Config>) -> Result<(), String> {
        let info = consumer.get_info().await.map_err(|error| error.to_string())?;
        self.take_stock(&info);
        if let Some(missing) = &mut self.missing {
            missing.until = Some(Instant::now() + self.config.ack_wait);
        }
        Ok(())
    }

    fn take_stock(&mut self, info: &consumer::Info) {
        let held = self.work.messages().iter().chain(&self.arrived);
        let held = held.filter(|held| held.delivery.stream_sequence > info.ack_floor.stream_sequence).count();
        let missing = info.num_ack_pending.saturating_sub(held);
        let sequence = info.delivered.stream_sequence;
        self.delivered = info.delivered.consumer_sequence;
        self.missing = (missing > 0).then_some(Missing { messages: missing, sequence, until: None });
    }

    /// Lets the broker serve another instance, or this one under its new connection, without waiting for [`PIN`].
    async fn step_down(&self, durable: &Durable) {
        if let Ok(stream) = durable.stream().await
            && let Err(error) = stream.unpin_consumer(self.config.durable, GROUP).await
        {
            tracing::debug!(%error, durable = self.config.durable, "the broker frees the place by itself in time");
        }
    }

    /// The stream is another one: what the former delivered comes again, and must not be acked.
    fn forget(&mut self) {
        self.arrived.clear();
        self.singly = 0;
        if let Work::UnderWay(_, task) = std::mem::replace(&mut self.work, Work::Nothing) {
            task.abort();
        }
    }

    /// Puts a message in its place. True where it is to be counted what is missing: it can tell, but not how many.
    fn arrive(&mut self, message: jetstream::Message) -> bool {
        self.served = true;
        let Some((delivery, place)) = Delivery::with_place(&message) else { return false };
        let sequence = delivery.stream_sequence;
        // What was on its way here when it was counted what is missing was counted, too.
        let skipped = place > self.delivered + 1;
        self.delivered = self.delivered.max(place);
        if self.work.messages().iter().any(|other| other.delivery.stream_sequence == sequence) {
            return skipped;
        }
        let arrived = Arrived { message, delivery };
        // A message that is delivered again is older than what has arrived since, or is among it.
        match self.arrived.iter().rposition(|other| other.delivery.stream_sequence <= sequence) {
            Some(at) if self.arrived[at].delivery.stream_sequence == sequence => self.arrived[at] = arrived,
            Some(at) => self.arrived.insert((at + 1).max(self.singly), arrived),
            None => self.arrived.insert(self.singly, arrived),
        }
        let Some(missing) = &mut self.missing else { return skipped };
        missing.until.get_or_insert(Instant::now() + self.config.ack_wait);
        if sequence <= missing.sequence {
            missing.messages = missing.messages.saturating_sub(1);
        }
        skipped || missing.messages == 0
    }

    fn next_due(&self) -> Option<Instant> {
        let again = match &self.work {
            Work::Again(_, at) => Some(*at),
            Work::Nothing | Work::UnderWay(..) => None,
        };
        let missing = self.missing.as_ref().and_then(|missing| missing.until);
        again.into_iter().chain(missing).min()
    }

    /// Hands the next batch over, if nothing is under way.
    fn start(&mut self) {
        match &self.work {
            Work::UnderWay(..) => {}
            Work::Again(_, at) if *at > Instant::now() => {}
            Work::Again(..) => {
                if let Work::Again(batch, _) = std::mem::replace(&mut self.work, Work::Nothing) {
                    self.hand_over(batch);
                }
            }
            Work::Nothing => {
                let count = match (self.singly, &self.missing) {
                    (0, None) => self.arrived.len().min(self.config.max_batch),
                    // The broker delivers again in no particular order.
                    (0, Some(_)) => 0,
                    (_, _) => 1,
                };
                if count > 0 {
                    let messages = self.arrived.drain(..count).collect();
                    self.singly = self.singly.saturating_sub(1);
                    self.hand_over(Batch { messages, failures: 0 });
                }
            }
        }
    }

    fn hand_over(&mut self, batch: Batch) {
        let deliveries = batch.messages.iter().map(|arrived| arrived.delivery.clone()).collect();
        let task = tokio::spawn((self.handler)(deliveries));
        self.work = Work::UnderWay(batch, task);
    }

    async fn judge(&mut self, verdict: Result<Verdict, JoinError>) {
        let Work::UnderWay(mut batch, _) = std::mem::replace(&mut self.work, Work::Nothing) else { return };
        let verdict = verdict.unwrap_or_else(|error| {
            tracing::error!(%error, durable = self.config.durable, "a handler panicked");
            Verdict::RetryAfter(AFTER_PANIC)
        });
        batch.failures += 1;
        let exhausted = self.config.max_attempts > 0 && batch.failures >= self.config.max_attempts;
        let verdict = match verdict {
            Verdict::RetryAfter(delay) if !exhausted => {
                self.work = Work::Again(batch, Instant::now() + delay);
                return;
            }
            Verdict::RetryAfter(_) => Verdict::DeadLetter(format!("not handled in {} attempts", batch.failures)),
            verdict => verdict,
        };
        if batch.messages.len() > 1 && matches!(verdict, Verdict::DeadLetter(_)) {
            self.singly += batch.messages.len();
            for message in batch.messages.into_iter().rev() {
                self.arrived.push_front(message);
            }
            return;
        }
        let Some(Arrived { message: last, .. }) = batch.messages.last() else { return };
        if let Verdict::DeadLetter(reason) = verdict {
            let what = self.config.dead_letter;
            let kept = self.bus.dead_letter(what, &reason, &last.subject, last.payload.clone()).await;
            if let Err(error) = kept {
                tracing::error!(%error, reason, "a dead letter could not be kept; it will be tried again");
                self.work = Work::Again(batch, Instant::now() + LETTER_AGAIN);
                return;
            }
        }
        ack(last).await;
    }

    /// Keeps the broker from delivering to another what waits here.
    async fn stay_alive(&self) {
        for Arrived { message, .. } in self.work.messages().iter().chain(&self.arrived) {
            if message.ack_with(AckKind::Progress).await.is_err() {
                return;
            }
        }
    }

    /// Waits for the batch under way, and gives back the rest.
    async fn finish(mut self, durable: &Durable) {
        let mut left = Vec::new();
        match std::mem::replace(&mut self.work, Work::Nothing) {
            Work::Nothing => {}
            Work::Again(batch, _) => left.extend(batch.messages),
            Work::UnderWay(batch, mut task) => match tokio::time::timeout(DRAIN, &mut task).await {
                Ok(Ok(Verdict::Ack)) => {
                    if let Some(last) = batch.messages.last() {
                        ack(&last.message).await;
                    }
                }
                Ok(_) => left.extend(batch.messages),
                Err(_) => {
                    task.abort();
                    left.extend(batch.messages);
                }
            },
        }
        left.extend(self.arrived.drain(..));
        hand_over(left.into_iter().map(|arrived| arrived.message)).await;
        if self.served {
            self.step_down(durable).await;
        }
    }
}

impl Work {
    fn messages(&self) -> &[Arrived] {
        match self {
            Self::Nothing => &[],
            Self::UnderWay(batch, _) | Self::Again(batch, _) => &batch.messages,
        }
    }
}

impl Missing {
    fn is_over(&self) -> bool {
        self.until.is_some_and(|until| until <= Instant::now())
    }
}

/// Acks a message, and all before it. It is not waited for: what is not acked comes again.
async fn ack(last: &jetstream::Message) {
    if let Err(error) = last.ack().await {
        tracing::debug!(%error, "an ack was lost");
    }
}

async fn handled(work: &mut Work) -> Result<Verdict, JoinError> {
    match work {
        Work::UnderWay(_, task) => task.await,
        Work::Nothing | Work::Again(..) => std::future::pending().await,
    }
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}
