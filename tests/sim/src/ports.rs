//! The services' ports, each over a [`Line`].

use std::collections::HashSet;
use std::future::Future;
use std::sync::Arc;

use errand_bus::{BusError, RequestError};
use errand_core::run::{LeaseToken, Run};
use errand_core::{Error, EventId, RunId, RunnerId, TaskId, Timestamp};
use errand_dispatcher::catalog::Compiled;
use errand_dispatcher::store::{Batch, OpenKey};
use errand_dispatcher::world::World;
use errand_proto::v1;
use errand_runner::simulated;
use errand_session_pool::engine::Keep;
use errand_session_pool::pool::Decisions;
use errand_session_pool::store::CommitError;
use errand_session_pool::transport::Others;
use errand_store::{Checkpoint, Encoded, EventStream, Extent, Ledger, Left, Outbox, Place, Staged, StoreError, Stored};
use errand_timeout_watcher::asks::Asks;
use errand_timeout_watcher::timers::{ArmedRun, Expiry};
use errand_timeout_watcher::transport::{armed_run, wire_expiry};
use errand_timeout_watcher::watch::Answer;
use futures::StreamExt;
use futures::stream::BoxStream;
use tokio::sync::{oneshot, watch};
use uuid::Uuid;

use crate::line::{Call, Line, Note, Request, StreamAsk, To};
use crate::stores::{Base, SessionCommit};
use crate::tasks;

/// How long others may take, as the services have it.
const ANSWER: i64 = 5_000;
const LONG: i64 = 10_000;

/// One of the two stores' outboxes.
#[derive(Debug, Clone)]
pub(crate) struct Book {
    pub(crate) line: Line,
    pub(crate) base: Base,
}

/// The right to publish again.
#[derive(Debug)]
pub(crate) struct Turn(Line, Base);

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.push(Call::GiveTurn(self.1));
    }
}

macro_rules! book {
    ($self:ident, $what:literal, $tables:ident => $work:expr) => {{
        let base = $self.base;
        $self.line.store(format!("{}: {}", base.name(), $what), move |stores| {
            let $tables = stores.book(base);
            $work
        })
    }};
}

impl Ledger for Book {
    type Turn = Turn;

    fn now_ms(&self) -> i64 {
        self.line.now().0
    }

    fn register(&self, now: i64) -> impl Future<Output = Result<i64, StoreError>> + Send {
        book!(self, "register", tables => tables.register(now))
    }

    fn unmarked(&self, objects: &[[u8; 16]]) -> impl Future<Output = Result<Vec<Encoded>, StoreError>> + Send {
        let objects = objects.to_vec();
        book!(self, "unmarked", tables => tables.unmarked(&objects))
    }

    fn read(
        &self,
        after: i64,
        until: i64,
        limit: i64,
    ) -> impl Future<Output = Result<Vec<Encoded>, StoreError>> + Send {
        book!(self, "read", tables => tables.read(after, until, limit))
    }

    fn oldest(&self, after: i64, until: i64) -> impl Future<Output = Result<Option<i64>, StoreError>> + Send {
        book!(self, "oldest", tables => tables.oldest(after, until))
    }

    fn read_in_order(
        &self,
        behind: Place,
        limit: i64,
    ) -> impl Future<Output = Result<Vec<(Encoded, Place)>, StoreError>> + Send {
        book!(self, "read in order", tables => tables.read_in_order(behind, limit))
    }

    fn mark(&self, writer: i64, mark: i64, seen_at: i64) -> impl Future<Output = Result<(), StoreError>> + Send {
        book!(self, "mark", tables => tables.mark(writer, mark, seen_at))
    }

    fn advance(&self, left: Left, before: i64, own: i64) -> impl Future<Output = Result<(), StoreError>> + Send {
        book!(self, "advance", tables => tables.advance(left, before, own))
    }

    fn checkpoint(
        &self,
        writer: i64,
        checkpoint: Checkpoint,
        keep: i64,
    ) -> impl Future<Output = Result<(), StoreError>> + Send {
        book!(self, "checkpoint", tables => tables.checkpoint(writer, checkpoint, keep))
    }

    fn forget_checkpoints(&self, writer: i64, behind: i64) -> impl Future<Output = Result<(), StoreError>> + Send {
        book!(self, "forget checkpoints", tables => tables.forget_checkpoints(writer, behind))
    }

    fn checkpoints(&self, writer: i64) -> impl Future<Output = Result<Vec<Checkpoint>, StoreError>> + Send {
        book!(self, "checkpoints", tables => tables.checkpoints(writer))
    }

    fn left(
        &self,
        own: i64,
        published: i64,
        before: i64,
    ) -> impl Future<Output = Result<Vec<Left>, StoreError>> + Send {
        book!(self, "left", tables => tables.left(own, published, before))
    }

    fn writers(&self) -> impl Future<Output = Result<Vec<(i64, i64)>, StoreError>> + Send {
        book!(self, "writers", tables => tables.writers())
    }

    fn begun(&self) -> impl Future<Output = Result<Option<i64>, StoreError>> + Send {
        book!(self, "begun", tables => tables.begun())
    }

    fn begin(&self, since: i64) -> impl Future<Output = Result<(), StoreError>> + Send {
        book!(self, "begin", tables => tables.begin(since))
    }

    fn end(&self) -> impl Future<Output = Result<(), StoreError>> + Send {
        book!(self, "end", tables => tables.end())
    }

    async fn turn(&self) -> Result<Turn, StoreError> {
        loop {
            let (sender, taken) = oneshot::channel();
            self.line.push(Call::TakeTurn(self.base, sender));
            if taken.await.unwrap_or(false) {
                return Ok(Turn(self.line.clone(), self.base));
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }
}

/// A connection to the broker, for events.
#[derive(Debug, Clone)]
pub(crate) struct Link {
    pub(crate) line: Line,
    /// The broker that it was made to.
    pub(crate) broker: u64,
}

fn lost(what: &str) -> BusError {
    BusError::Stream { name: "EVENT".into(), what: what.into() }
}

impl Link {
    async fn ask<T>(&self, ask: impl FnOnce(oneshot::Sender<Result<T, BusError>>) -> StreamAsk) -> Result<T, BusError> {
        let (sender, answer) = oneshot::channel();
        self.line.push(Call::Stream { link: self.broker, ask: ask(sender) });
        answer.await.unwrap_or_else(|_| Err(lost("no answer")))
    }
}

impl EventStream for Link {
    async fn connect_once(&self) -> Result<Self, BusError> {
        let broker = self.ask(StreamAsk::Connect).await?;
        Ok(Self { line: self.line.clone(), broker })
    }

    fn is_connected(&self) -> bool {
        self.line.broker() == Some(self.broker)
    }

    async fn publish(
        &self,
        event: &Stored,
    ) -> Result<impl Future<Output = Result<u64, BusError>> + Send + use<>, BusError> {
        let (ack, acked) = oneshot::channel();
        self.line.push(Call::Event { link: self.broker, event: event.clone(), ack });
        Ok(async move { acked.await.unwrap_or_else(|_| Err(lost("no ack"))) })
    }

    async fn extent(&self) -> Result<Extent, BusError> {
        self.ask(StreamAsk::Extent).await
    }

    async fn id_at(&self, sequence: u64) -> Result<Option<String>, BusError> {
        self.ask(|sender| StreamAsk::IdAt(sequence, sender)).await
    }
}

/// What is around a dispatcher.
#[derive(Debug, Clone)]
pub(crate) struct Around {
    pub(crate) line: Line,
    pub(crate) outbox: Outbox<Book>,
}

impl Around {
    /// Whole, for who asks for deadlines.
    pub(crate) fn open_runs(
        &self,
        after: Option<RunId>,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<Run>, StoreError>> + Send {
        self.line.store("open runs".into(), move |stores| stores.open_runs(after, limit))
    }
}

impl World for Around {
    type Ledger = Book;

    fn now(&self) -> Timestamp {
        self.line.now()
    }

    fn event_id(&self) -> EventId {
        EventId::from_uuid(self.line.uuid())
    }

    fn outbox(&self) -> &Outbox<Book> {
        &self.outbox
    }

    fn runs(&self, ids: &[RunId]) -> impl Future<Output = Result<Vec<Run>, StoreError>> + Send {
        let mut ids = ids.to_vec();
        ids.sort_unstable();
        let read = (!ids.is_empty()).then(|| self.line.store(format!("runs {}", ids.len()), move |s| s.runs(&ids)));
        async move {
            match read {
                Some(read) => read.await,
                None => Ok(Vec::new()),
            }
        }
    }

    fn open_keys(
        &self,
        after: Option<RunId>,
        limit: u32,
    ) -> impl Future<Output = Result<Vec<OpenKey>, StoreError>> + Send {
        self.line.store("open keys".into(), move |stores| stores.open_keys(after, limit))
    }

    async fn commit(&self, batch: &mut Batch) -> Result<HashSet<RunId>, StoreError> {
        let copy = Batch { new: batch.new.clone(), changed: batch.changed.clone(), events: batch.events.clone() };
        let what = format!("commit {} new, {} changed", copy.new.len(), copy.changed.len());
        let (conflicts, events) = self.line.store(what, move |stores| stores.commit_runs(copy)).await?;
        batch.events = events;
        Ok(conflicts)
    }

    fn touch(&self, seen: &[(RunId, Timestamp)]) -> impl Future<Output = Result<(), StoreError>> + Send {
        let mut seen = seen.to_vec();
        seen.sort_unstable();
        let write = (!seen.is_empty()).then(|| self.line.store("touch".into(), move |stores| stores.touch(&seen)));
        async move {
            match write {
                Some(write) => write.await,
                None => Ok(()),
            }
        }
    }

    async fn task(&self, id: TaskId, _: u32) -> Result<Option<Arc<Compiled>>, Error> {
        Ok(tasks::find(id))
    }

    fn acquire(
        &self,
        request: v1::AcquireRequest,
    ) -> impl Future<Output = Result<v1::AcquireResponse, RequestError>> + Send {
        self.line.request(To::Pool, Request::Acquire(request), ANSWER)
    }

    fn release(
        &self,
        request: v1::ReleaseRequest,
    ) -> impl Future<Output = Result<v1::ReleaseResponse, RequestError>> + Send {
        self.line.request(To::Pool, Request::Release(request), ANSWER)
    }

    fn assign(
        &self,
        runner: RunnerId,
        request: v1::AssignRequest,
    ) -> impl Future<Output = Result<v1::AssignResponse, RequestError>> + Send {
        self.line.request(To::Runner(runner), Request::Assign(request), ANSWER)
    }

    fn stop(
        &self,
        runner: RunnerId,
        request: v1::StopRequest,
    ) -> impl Future<Output = Result<v1::StopResponse, RequestError>> + Send {
        self.line.request(To::Runner(runner), Request::Stop(request), ANSWER)
    }

    fn input(
        &self,
        runner: RunnerId,
        request: v1::InputRequest,
    ) -> impl Future<Output = Result<v1::InputResponse, RequestError>> + Send {
        self.line.request(To::Runner(runner), Request::Input(request), LONG)
    }
}

/// The store of a pool.
#[derive(Debug)]
pub(crate) struct Shelf {
    pub(crate) line: Line,
    pub(crate) outbox: Outbox<Book>,
    pub(crate) epoch: Uuid,
}

impl Keep for Shelf {
    type Ledger = Book;

    fn now(&self) -> Timestamp {
        self.line.now()
    }

    fn uuid(&self) -> Uuid {
        self.line.uuid()
    }

    fn outbox(&self) -> &Outbox<Book> {
        &self.outbox
    }

    async fn commit(&mut self, decisions: &Decisions, token: LeaseToken, events: &Staged) -> Result<(), CommitError> {
        let epoch = self.epoch;
        let commit = SessionCommit::of(decisions, token, events);
        let what = format!("commit {} changes of sessions", commit.changes.len());
        let done = self.line.store(what, move |stores| stores.commit_sessions(epoch, commit)).await?;
        if done { Ok(()) } else { Err(CommitError::TakenOver) }
    }
}

/// Those whom a pool speaks to.
#[derive(Debug, Clone)]
pub(crate) struct Abroad(pub(crate) Line);

impl Others for Abroad {
    fn grant(&self, request: v1::GrantRequest) -> impl Future<Output = Result<v1::GrantResponse, RequestError>> + Send {
        self.0.request(To::Dispatcher, Request::Grant(request), LONG)
    }

    fn lost(&self, request: v1::LostRequest) -> impl Future<Output = Result<v1::LostResponse, RequestError>> + Send {
        self.0.request(To::Dispatcher, Request::Lost(request), LONG)
    }

    fn leases(
        &self,
        request: v1::CheckLeasesRequest,
    ) -> impl Future<Output = Result<v1::CheckLeasesResponse, RequestError>> + Send {
        self.0.request(To::Dispatcher, Request::Leases(request), LONG)
    }

    fn start(
        &self,
        runner_id: RunnerId,
        request: v1::StartSessionRequest,
    ) -> impl Future<Output = Result<v1::StartSessionResponse, RequestError>> + Send {
        self.0.request(To::Runner(runner_id), Request::Start(request), 20_000)
    }

    fn tear_down(
        &self,
        runner_id: RunnerId,
        request: v1::TearDownSessionRequest,
    ) -> impl Future<Output = Result<v1::TearDownSessionResponse, RequestError>> + Send {
        self.0.request(To::Runner(runner_id), Request::TearDown(request), 20_000)
    }

    fn reachable(&self) -> bool {
        self.0.broker().is_some()
    }
}

/// The dispatcher, as a watcher speaks to it.
#[derive(Debug, Clone)]
pub(crate) struct Desk(pub(crate) Line);

fn armed(runs: &[v1::ArmedRun]) -> Vec<ArmedRun> {
    runs.iter().filter_map(|run| armed_run(&run.run_id, run.version, &run.deadlines).ok()).collect()
}

impl Asks for Desk {
    type Error = RequestError;

    async fn page(&self, after: String) -> Result<(Vec<ArmedRun>, Option<String>), RequestError> {
        let request = self.0.request(To::Dispatcher, Request::Deadlines(after), 20_000);
        let page: v1::ListDeadlinesResponse = request.await?;
        let next = page.runs.last().filter(|_| page.has_more).map(|last| last.run_id.clone());
        Ok((armed(&page.runs), next))
    }

    async fn expire(&self, expiries: &[Expiry]) -> Answer {
        let request = v1::ExpireRequest { expiries: expiries.iter().map(wire_expiry).collect() };
        let answer = self.0.request::<v1::ExpireResponse>(To::Dispatcher, Request::Expire(request), ANSWER).await;
        match answer {
            Ok(answer) => Answer::Answered(armed(&answer.armed)),
            Err(RequestError::NobodyServes(_) | RequestError::Broker(..)) => Answer::Away,
            Err(_) => Answer::Failed,
        }
    }
}

impl simulated::Line for Line {
    fn report(
        &self,
        request: v1::ReportRequest,
    ) -> impl Future<Output = Result<v1::ReportResponse, RequestError>> + Send {
        self.request(To::Dispatcher, Request::Report(request), LONG)
    }

    fn register(
        &self,
        request: v1::RegisterRequest,
    ) -> impl Future<Output = Result<v1::RegisterResponse, RequestError>> + Send {
        self.request(To::Pool, Request::Register(request), ANSWER)
    }

    fn heartbeat(
        &self,
        request: v1::HeartbeatRequest,
    ) -> impl Future<Output = Result<v1::HeartbeatResponse, RequestError>> + Send {
        self.request(To::Pool, Request::Heartbeat(request), ANSWER)
    }

    fn session_lost(
        &self,
        request: v1::SessionLostRequest,
    ) -> impl Future<Output = Result<v1::SessionLostResponse, RequestError>> + Send {
        self.request(To::Pool, Request::SessionLost(request), ANSWER)
    }

    fn deregister(
        &self,
        request: v1::DeregisterRequest,
    ) -> impl Future<Output = Result<v1::DeregisterResponse, RequestError>> + Send {
        self.request(To::Pool, Request::Deregister(request), ANSWER)
    }

    async fn hellos(&self) -> Result<BoxStream<'static, ()>, BusError> {
        let heard = self.listen_to_hellos();
        let stream =
            futures::stream::unfold(heard, |mut heard| async move { heard.recv().await.map(|()| ((), heard)) });
        Ok(stream.boxed())
    }

    fn connections(&self) -> watch::Receiver<u64> {
        self.connections()
    }
}

/// Tells whoever listens.
pub(crate) fn tell(line: &Line, note: Note) {
    line.push(Call::Note(note));
}
