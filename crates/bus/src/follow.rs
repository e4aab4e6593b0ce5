//! Following the event stream without acks: for watchers, tails and SSE.

use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::stream::LastRawMessageErrorKind;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use time::OffsetDateTime;
use tokio::sync::watch;

use crate::connection::{Bus, BusError};
use crate::delivery::Delivery;
use crate::streams::StreamKind;

/// How often a broker shows that a silent consumer lives.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Messages that are asked for at once.
const BATCH: usize = 256;
/// How long the broker keeps the place of a follower that has fallen silent. Losing it costs a question, no event.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);

/// Where to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FollowFrom {
    /// With what is published from now on.
    New,
    /// With the oldest event that the stream holds.
    Beginning,
    /// With the first event published at or after this time, in milliseconds since the Unix epoch.
    Time(i64),
    /// With this place in the stream, or the next that is taken.
    Sequence(u64),
}

/// Follows the events on `filter`, a subject with wildcards, in the order of the stream. When this returns, "now" is
/// settled: what is published later is seen.
///
/// It goes on by itself after the broker was away. Where the broker came back without the stream, or without its end,
/// it goes on with what is published anew, so that an event may be seen twice (drop duplicates by id), but none is
/// missed. It yields an error, and ends, only where the broker refuses for good.
///
/// # Errors
/// [`BusError::Stream`] if the broker is away, [`BusError::Refused`] for a filter that it does not take.
pub async fn follow(
    bus: &Bus,
    filter: String,
    from: FollowFrom,
) -> Result<BoxStream<'static, Result<Delivery, BusError>>, BusError> {
    let mut connections = bus.connections();
    connections.mark_unchanged();
    let name = StreamKind::Event.name(bus.subjects().prefix());
    let mut follower =
        Follower { bus: bus.clone(), name, filter, at: At::Start(from), created: None, open: None, connections };
    follower.open().await?;
    let deliveries = futures::stream::unfold(Some(follower), |follower| async {
        let mut follower = follower?;
        match follower.next().await {
            Ok(delivery) => Some((Ok(delivery), Some(follower))),
            Err(error) => Some((Err(error), None)),
        }
    });
    Ok(deliveries.boxed())
}

/// How many messages wait there for a follower that begins now: 0 says that it would have nothing to read.
///
/// # Errors
/// As [`follow`].
pub async fn waiting(bus: &Bus, filter: String, from: FollowFrom) -> Result<u64, BusError> {
    let mut follower = Follower {
        bus: bus.clone(),
        name: StreamKind::Event.name(bus.subjects().prefix()),
        filter,
        at: At::Start(from),
        created: None,
        open: None,
        connections: bus.connections(),
    };
    follower.open().await?;
    Ok(follower.open.as_ref().map_or(0, |open| open.waiting))
}

/// How far a follower is.
#[derive(Debug, Clone, Copy)]
enum At {
    /// It has seen nothing yet.
    Start(FollowFrom),
    /// It has seen this message, and all that its filter lets through before.
    Seen { sequence: u64, time: OffsetDateTime },
}

struct Open {
    messages: pull::Stream,
    consumer: String,
    /// Of the last message: the broker numbers what it sends, so a gap shows.
    number: u64,
    /// What was there to read when it was opened.
    waiting: u64,
}

struct Follower {
    bus: Bus,
    name: String,
    filter: String,
    at: At,
    /// When the stream was created: another time, another stream.
    created: Option<OffsetDateTime>,
    open: Option<Open>,
    connections: watch::Receiver<u64>,
}

impl Follower {
    async fn next(&mut self) -> Result<Delivery, BusError> {
        loop {
            let Some(open) = &mut self.open else {
                self.open_again().await?;
                continue;
            };
            let message = tokio::select! {
                // What has arrived first, then the news that the connection is another one.
                biased;
                message = open.messages.next() => message,
                _ = self.connections.changed() => None,
            };
            match message {
                Some(Ok(message)) => {
                    if let Some(delivery) = self.accept(&message) {
                        return Ok(delivery);
                    }
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, filter = self.filter, "following is interrupted");
                    self.close();
                }
                None => self.close(),
            }
        }
    }

    /// The message as a delivery, unless one before it is missing.
    fn accept(&mut self, message: &jetstream::Message) -> Option<Delivery> {
        let open = self.open.as_mut()?;
        let info = message.info().ok()?;
        if info.consumer_sequence != open.number + 1 {
            tracing::debug!(filter = self.filter, "a message was lost on its way; it is asked for again");
            self.close();
            return None;
        }
        open.number = info.consumer_sequence;
        self.at = At::Seen { sequence: info.stream_sequence, time: info.published };
        Delivery::of(message)
    }

    /// Opens until it is done, or can never be.
    async fn open_again(&mut self) -> Result<(), BusError> {
        let mut pause = Duration::from_millis(50);
        loop {
            match self.open().await {
                Err(error @ BusError::Refused { .. }) => return Err(error),
                Err(error) => tracing::debug!(%error, filter = self.filter, "cannot follow yet"),
                Ok(()) => return Ok(()),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(Duration::from_secs(1));
        }
    }

    async fn open(&mut self) -> Result<(), BusError> {
        let failed = |what: String| BusError::Stream { name: self.name.clone(), what };
        self.connections.mark_unchanged();
        let stream = self.bus.stream(StreamKind::Event).await?;
        let info = stream.get_info().await.map_err(|error| failed(error.to_string()))?;
        let deliver_policy = if self.created.is_some_and(|created| created != info.created) {
            tracing::info!(stream = self.name, "the stream was made anew; following it from its start");
            DeliverPolicy::All
        } else {
            self.policy(&stream, &info.state).await?
        };
        if matches!(self.at, At::Start(FollowFrom::New)) {
            // "New" is settled once, not at each connection.
            self.at = match info.state.last_sequence {
                0 => At::Start(FollowFrom::Beginning),
                sequence => At::Seen { sequence, time: info.state.last_timestamp },
            };
        }
        self.created = Some(info.created);
        let wanted = pull::Config {
            ack_policy: AckPolicy::None,
            deliver_policy,
            filter_subject: self.filter.clone(),
            inactive_threshold: FORGOTTEN_AFTER,
            memory_storage: true,
            num_replicas: 1,
            ..pull::Config::default()
        };
        let consumer = stream.create_consumer(wanted).await.map_err(|error| BusError::consumer(&self.name, &error))?;
        let messages = consumer.stream().max_messages_per_batch(BATCH).heartbeat(HEARTBEAT).expires(HEARTBEAT * 6);
        let messages = messages.messages().await.map_err(|error| failed(error.to_string()))?;
        let info = consumer.cached_info();
        self.open = Some(Open { messages, consumer: info.name.clone(), number: 0, waiting: info.num_pending });
        Ok(())
    }

    /// With what to go on in a stream that goes by the same name.
    async fn policy(
        &self,
        stream: &jetstream::stream::Stream<()>,
        state: &jetstream::stream::State,
    ) -> Result<DeliverPolicy, BusError> {
        let (sequence, time) = match self.at {
            At::Start(FollowFrom::Beginning) => return Ok(DeliverPolicy::All),
            At::Start(FollowFrom::Sequence(sequence)) => {
                return Ok(DeliverPolicy::ByStartSequence { start_sequence: sequence.max(1) });
            }
            At::Start(FollowFrom::Time(ms)) => {
                let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000);
                return Ok(time.map_or(DeliverPolicy::All, |start_time| DeliverPolicy::ByStartTime { start_time }));
            }
            At::Start(FollowFrom::New) => {
                return Ok(DeliverPolicy::ByStartSequence { start_sequence: state.last_sequence + 1 });
            }
            At::Seen { sequence, time } => (sequence, time),
        };
        // A broker that crashed may have lost the end of the stream, and given its numbers to other messages since.
        // Those are younger than what was seen.
        let same = if state.last_sequence < sequence {
            false
        } else {
            match stream.get_raw_message(sequence).await {
                Ok(message) => message.time == time,
                Err(error) if error.kind() == LastRawMessageErrorKind::NoMessageFound => true,
                Err(error) => return Err(BusError::Stream { name: self.name.clone(), what: error.to_string() }),
            }
        };
        if same {
            return Ok(DeliverPolicy::ByStartSequence { start_sequence: sequence + 1 });
        }
        tracing::info!(stream = self.name, sequence, "the stream has lost its end; following what came since");
        Ok(DeliverPolicy::ByStartTime { start_time: time })
    }

    /// Lets the consumer go, at the broker too: there may be many followers, each with one.
    fn close(&mut self) {
        let Some(open) = self.open.take() else { return };
        let subject = format!("$JS.API.CONSUMER.DELETE.{}.{}", self.name, open.consumer);
        let client = self.bus.client().clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { client.publish(subject, "".into()).map(drop).await });
        }
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.close();
    }
}
