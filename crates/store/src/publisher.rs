//! Brings committed events into the event stream: in order per object, again until the stream has them, and once
//! more where a broker came back without them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use errand_bus::Bus;
use errand_core::mutated;
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::db::{Db, StoreError};
use crate::ledger::{Checkpoint, EventStream, Ledger, Left, Place};
use crate::outbox::{Backlog, Order, Staged, Stored, WRITER_SHIFT, decode_rows, first_position};

/// Events that go to the broker at once.
const WAVE: usize = 1024;
/// How often a writer shows that it lives, and how far it is.
const BEAT: Duration = Duration::from_millis(500);
/// A writer that has not shown up for so long is gone; the others publish what it left.
const GONE_MS: i64 = 5_000;
/// Checkpoints kept per writer.
const CHECKPOINTS: i64 = 64;
/// What a page of events read again holds.
const PAGE: i64 = 512;

/// By writer: the greatest place in the stream that an event of its got, and the event's id.
type Acked = HashMap<i64, (u64, String)>;

/// The task that publishes; run it until shutdown.
#[derive(Debug)]
pub struct Publisher<L = Db, S = Bus> {
    ledger: L,
    stream: S,
    /// What is published over, and was compared over: it ends with its broker, so that nothing which waits in it can
    /// reach the next one before that was compared.
    link: S,
    writer: i64,
    orders: mpsc::Receiver<Order>,
    behind: Arc<AtomicBool>,
    backlog: Arc<Backlog>,
    /// The last of our events that the stream has, with all before it.
    published: i64,
    acked: Acked,
    /// What was to be published again was: while the last event of this writer is where it was, all before it are.
    whole: bool,
    flushed: i64,
}

impl<L: Ledger, S: EventStream> Publisher<L, S> {
    pub(crate) fn new(
        ledger: L,
        stream: S,
        writer: i64,
        orders: mpsc::Receiver<Order>,
        behind: Arc<AtomicBool>,
        backlog: Arc<Backlog>,
    ) -> Self {
        let published = first_position(writer) - 1;
        let link = stream.clone();
        let acked = HashMap::new();
        Self {
            ledger,
            stream,
            link,
            writer,
            orders,
            behind,
            backlog,
            published,
            acked,
            whole: true,
            flushed: published,
        }
    }

    /// Publishes until shutdown, and then what still waits, as long as the broker takes it.
    ///
    /// # Errors
    /// None at present: what fails is tried again.
    pub async fn run(mut self, shutdown: CancellationToken) -> Result<(), StoreError> {
        let mut beat = tokio::time::interval(BEAT);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut unpublished = Staged::default();
        let mut compared = false;
        while !shutdown.is_cancelled() {
            // Before anything new: what the stream has lost comes first, or an object's events lose their order.
            if !compared || !self.link.is_connected() {
                compared = self.recover().await;
                continue;
            }
            let rest = std::mem::take(&mut unpublished);
            if let Err(rest) = self.publish(rest).await {
                (unpublished, compared) = (rest, false);
                continue;
            }
            let mut orders = Vec::new();
            tokio::select! {
                biased;
                _ = beat.tick() => compared = self.beat().await,
                count = self.orders.recv_many(&mut orders, WAVE) => {
                    if count == 0 {
                        break;
                    }
                    unpublished = self.ordered(orders).await;
                }
                () = shutdown.cancelled() => {}
            }
        }
        if compared {
            self.drain(unpublished).await;
        }
        Ok(())
    }

    /// What still waits goes out, as long as the broker takes it; the rest stays in the store for the next writer.
    async fn drain(&mut self, unpublished: Staged) {
        let mut orders = vec![Order::Publish(unpublished)];
        while let Ok(order) = self.orders.try_recv() {
            orders.push(order);
        }
        let rest = self.ordered(orders).await;
        let _in_time = tokio::time::timeout(Duration::from_secs(5), self.publish(rest)).await;
        self.flush().await;
    }

    async fn ordered(&self, orders: Vec<Order>) -> Staged {
        let mut batch = Staged::default();
        for order in orders {
            match order {
                Order::Publish(staged) => batch.rows.extend(staged.rows),
                Order::Look(staged) => batch.rows.extend(self.committed_of(staged).await.rows),
            }
        }
        batch
    }

    /// What of these is in the store. Asks until the store answers: to guess either way would break a promise.
    async fn committed_of(&self, staged: Staged) -> Staged {
        let (Some(first), Some(last)) = (staged.rows.first(), staged.rows.last()) else { return staged };
        loop {
            let look = async {
                self.ledger.settled(last.position).await?;
                self.read(first.position - 1, last.position).await
            };
            match look.await {
                Ok(found) => return found,
                Err(error) => {
                    tracing::warn!(%error, "cannot tell whether events were committed; asking again");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        }
    }

    /// Publishes all of these, or gives back what the stream did not take, in order.
    async fn publish(&mut self, batch: Staged) -> Result<(), Staged> {
        let newest = batch.rows.iter().map(|row| row.position).filter(|at| at >> WRITER_SHIFT == self.writer).max();
        if mutated!(MarkBeforePublish) {
            self.published = self.published.max(newest.unwrap_or(0));
        }
        let mut waves = batch.waves().into_iter();
        while let Some(wave) = waves.next() {
            let rows: Vec<&Stored> = wave.iter().collect();
            let failed: Vec<Stored> = self.try_publish(&rows).await.into_iter().cloned().collect();
            if !failed.is_empty() {
                tracing::warn!(events = failed.len(), "the event stream does not take events; trying again");
                tokio::time::sleep(Duration::from_millis(100)).await;
                return Err(Staged { rows: failed.into_iter().chain(waves.flatten()).collect() });
            }
        }
        self.published = self.published.max(newest.unwrap_or(0));
        self.backlog.end(self.published);
        Ok(())
    }

    /// Publishes once; gives back those without an ack.
    async fn try_publish<'a>(&mut self, wave: &[&'a Stored]) -> Vec<&'a Stored> {
        let mut sent = Vec::with_capacity(wave.len());
        let mut failed = Vec::new();
        for row in wave {
            match self.link.publish(row).await {
                Ok(ack) => sent.push((*row, ack)),
                Err(_) => failed.push(*row),
            }
        }
        for (row, ack) in sent {
            match ack.await {
                Ok(sequence) => {
                    let newest = self.acked.entry(row.position >> WRITER_SHIFT).or_default();
                    if sequence > newest.0 {
                        *newest = (sequence, row.id.to_string());
                    }
                }
                Err(error) => {
                    tracing::debug!(%error, "an event was not acknowledged");
                    failed.push(row);
                }
            }
        }
        failed
    }

    /// Shows that this writer lives and how far it is; reads again what memory did not hold; publishes what writers
    /// that are gone have left. False where the stream failed.
    async fn beat(&mut self) -> bool {
        let worked = async {
            self.flush().await;
            let before = self.ledger.now_ms() - GONE_MS;
            let behind = self.behind.swap(false, Ordering::AcqRel);
            if behind || self.left(before).await?.iter().any(|one| one.writer != self.writer) {
                self.publish_again(before).await?;
            }
            Ok::<_, RecoverError>(())
        };
        match worked.await {
            Ok(()) => true,
            Err(error) => {
                self.behind.store(true, Ordering::Release);
                tracing::warn!(%error, "events that memory does not hold could not be published");
                false
            }
        }
    }

    /// Publishes everything since a time, of all writers, each up to a position: in the order in which objects changed.
    async fn publish_since(&mut self, since: i64, until: &HashMap<i64, i64>) -> Result<(), RecoverError> {
        let mut place: Place = (since, -1, -1);
        loop {
            let rows = self.ledger.read_in_order(place, PAGE).await?;
            let Some((_, last)) = rows.last() else { return Ok(()) };
            place = *last;
            let rows = rows.into_iter().map(|(encoded, _)| encoded);
            let known = |position: i64| until.get(&(position >> WRITER_SHIFT)).is_some_and(|until| position <= *until);
            let page = decode_rows(rows.filter(|(position, _)| known(*position)).collect())?;
            self.publish(page).await.map_err(|_| RecoverError::NotTaken)?;
        }
    }

    async fn read(&self, after: i64, until: i64) -> Result<Staged, StoreError> {
        decode_rows(self.ledger.read(after, until, PAGE).await?)
    }

    /// Writes down how far this writer is, and a checkpoint by which a gap in the stream is found.
    async fn flush(&mut self) {
        match self.try_flush().await {
            Ok(()) => self.flushed = self.published,
            Err(error) => tracing::warn!(%error, "cannot write down how far events are published"),
        }
    }

    async fn try_flush(&self) -> Result<(), StoreError> {
        // The checkpoint first: a mark without one looks like a gap.
        if self.published != self.flushed {
            self.checkpoint(self.writer, self.published).await?;
        }
        self.ledger.mark(self.writer, self.published, self.ledger.now_ms()).await
    }

    /// Writes down where in the stream a writer's events are up to a position.
    async fn checkpoint(&self, writer: i64, position: i64) -> Result<(), StoreError> {
        let Some((sequence, id)) = self.acked.get(&writer) else { return Ok(()) };
        let checkpoint = Checkpoint { position, stream_sequence: *sequence, message_id: id.clone() };
        self.ledger.checkpoint(writer, checkpoint, CHECKPOINTS).await
    }

    async fn left(&self, before: i64) -> Result<Vec<Left>, StoreError> {
        let mut left = self.ledger.left(self.writer, self.published, before).await?;
        if mutated!(ForgetTheDeadWriter) {
            left.retain(|one| one.writer == self.writer);
        }
        Ok(left)
    }

    /// Publishes what the stream lacks and what is not marked as published, of all writers at once and in the order in
    /// which objects changed: one object's events may be of several writers, and what one writer has not marked may be
    /// older than what another has lost. Advances the marks of writers not seen since `before`.
    async fn publish_again(&mut self, before: i64) -> Result<(), RecoverError> {
        let _turn = self.ledger.turn().await?;
        // In this order: what another writer marks meanwhile is in what was left before, and what was marked before is
        // looked for in the stream.
        let left = self.left(i64::MAX).await?;
        let mut until: HashMap<i64, i64> = self.ledger.writers().await?.into_iter().collect();
        // How far this writer is stands in the store only from time to time. What it had published since then is nobody
        // else's to publish again. (The simulator found it, seed 865353046071.)
        until.insert(self.writer, self.published);
        let (gaps, found) = self.gaps().await?;
        let begun = self.ledger.begun().await?;
        let since = gaps.iter().map(|gap| gap.since).chain(left.iter().map(|one| one.since)).chain(begun).min();
        // Where the stream counts anew, what it said before means nothing. Where it holds what it did, an event that is
        // published again may stand before one that was not: a checkpoint names the last of both. (The simulator found
        // it, seed 868347009678.)
        (self.acked, self.whole) = (found, since.is_none());
        let Some(since) = since else { return Ok(()) };
        // What was committed since then is its writer's to publish: what it follows may have been made, by its writer's
        // clock, before `since`, and would be overtaken. (The simulator found it, seed 597031000269, and a storm.)
        let known =
            left.iter().map(|one| (one.writer, one.newest)).chain(gaps.iter().map(|gap| (gap.writer, gap.mark)));
        for (writer, position) in known {
            until.entry(writer).and_modify(|until| *until = position.max(*until)).or_insert(position);
        }
        if !gaps.is_empty() {
            tracing::warn!(since, writers = gaps.len(), "the event stream has a gap; publishing again from the store");
        }
        self.ledger.begin(since).await?;
        // What is published again gets other places. A checkpoint of before may fit one of them by chance, and would then
        // vouch for events that came to stand behind it.
        for gap in &gaps {
            self.ledger.forget_checkpoints(gap.writer, gap.from).await?;
        }
        self.publish_since(since, &until).await?;
        for gap in gaps {
            self.checkpoint(gap.writer, gap.mark).await?;
        }
        self.advance(left, before).await?;
        self.ledger.end().await?;
        self.whole = true;
        Ok(())
    }

    /// Writes down that what was left behind has been published.
    async fn advance(&self, left: Vec<Left>, before: i64) -> Result<(), StoreError> {
        for one in left {
            self.checkpoint(one.writer, one.newest).await?;
            self.ledger.advance(one, before, self.writer).await?;
        }
        Ok(())
    }

    /// At start, after each reconnect and after each failure: what the stream should hold and does not, and what
    /// others have left, is published again under the same ids. False where the stream or the store failed.
    async fn recover(&mut self) -> bool {
        match self.try_recover().await {
            Ok(()) => true,
            Err(error) => {
                tracing::warn!(%error, "cannot compare the event stream with the store yet");
                tokio::time::sleep(Duration::from_millis(300)).await;
                false
            }
        }
    }

    async fn try_recover(&mut self) -> Result<(), RecoverError> {
        self.link = self.stream.connect_once().await?;
        if mutated!(SkipTheRecovery) {
            return Ok(());
        }
        self.publish_again(i64::MAX).await
    }

    /// By writer, from when on the stream lacks events that were marked as published; and the place that is known to hold
    /// the last of those that it has.
    async fn gaps(&self) -> Result<(Vec<Gap>, Acked), RecoverError> {
        let (mut gaps, mut found) = (Vec::new(), Acked::new());
        for (writer, mark) in self.ledger.writers().await? {
            let mark = if writer == self.writer { self.published } else { mark };
            if mark < first_position(writer) {
                continue;
            }
            let (lost_from, last) = self.compare(writer, mark).await?;
            found.extend(last.map(|last| (writer, last)));
            if let Some(from) = lost_from
                && let Some(since) = self.ledger.oldest(from, mark).await?
            {
                gaps.push(Gap { writer, from, mark, since });
            }
        }
        Ok((gaps, found))
    }

    /// The position behind which the stream lacks events of this writer, none where it has all up to its mark; and where
    /// the last of those is that it has.
    async fn compare(&self, writer: i64, mark: i64) -> Result<(Option<i64>, Option<(u64, String)>), RecoverError> {
        let stream = self.link.extent().await?;
        let mut newest = true;
        if let (true, Some((sequence, id))) = (writer == self.writer && self.whole, self.acked.get(&writer)) {
            if self.stream_has(*sequence, id).await? {
                return Ok((None, Some((*sequence, id.clone()))));
            }
            newest = false;
        }
        for Checkpoint { position, stream_sequence, message_id } in self.ledger.checkpoints(writer).await? {
            // What is older than the stream's first message has had its 30 days.
            let expired = stream_sequence < stream.first && stream_sequence <= stream.last;
            if expired || self.stream_has(stream_sequence, &message_id).await? {
                let complete = newest && position >= mark;
                return Ok(((!complete).then_some(position), Some((stream_sequence, message_id))));
            }
            newest = false;
        }
        Ok((Some(first_position(writer) - 1), None))
    }

    async fn stream_has(&self, sequence: u64, id: &str) -> Result<bool, RecoverError> {
        Ok(self.link.id_at(sequence).await?.is_some_and(|found| found == id))
    }
}

/// What the stream should have of a writer and has not.
struct Gap {
    writer: i64,
    /// The position behind which it lacks them.
    from: i64,
    mark: i64,
    /// When the oldest of it was made; milliseconds since 1970.
    since: i64,
}

#[derive(Debug, thiserror::Error)]
enum RecoverError {
    #[error("the event stream did not take events")]
    NotTaken,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Bus(#[from] errand_bus::BusError),
}
