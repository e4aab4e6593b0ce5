//! Between bus and engine: wire types in, wire types out.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use errand_bus::{Bus, BusError, RequestError, Service};
use errand_core::run::LeaseToken;
use errand_core::{Error, ErrorCode, RunId, RunnerId, SessionId, StorageId};
use errand_proto::{failure, id, lease, optional_id, v1};
use errand_secret::handover::PublicKey;
use futures::future::BoxFuture;
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};
use tokio::sync::watch;

use crate::activity::Progress;
use crate::config::RunnerConfig;
use crate::control::{Execution, StopReason};
use crate::credential::{Ask, Refused, Tried};
use crate::engine::{Engine, Held, Loss, Wanted};
use crate::files::{self, Kept, NewFile};
use crate::host::{Assigned, Host};
use crate::report::{Desk, Report, Unsent, What};

/// Assign, stop and input requests that are handled at once, each: they are short.
const SHORT_IN_FLIGHT: usize = 64;

/// Serves what this runner is told. It listens when this returns.
pub(crate) async fn serve<H: Host>(
    bus: &Bus,
    engine: &Arc<Engine<H>>,
    config: &RunnerConfig,
) -> Result<Service, BusError> {
    let subject = |method: &str| bus.subjects().runner(engine.id(), method);
    // Starts and ends of sessions take as long as they take: none waits for another.
    let sessions = config.capacity as usize * 2;
    let [starts, ends, assigns, stops, inputs, keys] = std::array::from_fn(|_| Arc::clone(engine));
    Service::builder(bus, "errand-runner", "hosts sessions and executes runs")
        .endpoint("start_session", subject("start_session"), sessions, move |request| {
            start_session(Arc::clone(&starts), request)
        })
        .endpoint("tear_down_session", subject("tear_down_session"), sessions, move |request| {
            tear_down_session(Arc::clone(&ends), request)
        })
        .endpoint("assign", subject("assign"), SHORT_IN_FLIGHT, move |request| {
            std::future::ready(Ok(assign(&assigns, request)))
        })
        .endpoint("stop", subject("stop"), SHORT_IN_FLIGHT, move |request| std::future::ready(stop(&stops, &request)))
        .endpoint("input", subject("input"), SHORT_IN_FLIGHT, move |request| {
            std::future::ready(input(&inputs, &request))
        })
        .endpoint("confirm_key", subject("confirm_key"), SHORT_IN_FLIGHT, move |request| {
            std::future::ready(confirm_key(&keys, &request))
        })
        .start()
        .await
}

pub(crate) async fn start_session<H: Host>(
    engine: Arc<Engine<H>>,
    request: v1::StartSessionRequest,
) -> Result<v1::StartSessionResponse, Error> {
    let wanted = Wanted {
        id: id("session_id", &request.session_id)?,
        // Warm sessions belong to `_system`, which is nobody a runner need know.
        tenant: if request.tenant.starts_with('_') { None } else { optional_id("tenant", &request.tenant)? },
        source_id: optional_id("source_id", &request.source_id)?,
        credential_id: optional_id("credential_id", &request.credential_id)?,
    };
    let error = engine.start_session(wanted).await.err();
    Ok(v1::StartSessionResponse { error: error.as_ref().map(Into::into) })
}

pub(crate) async fn tear_down_session<H: Host>(
    engine: Arc<Engine<H>>,
    request: v1::TearDownSessionRequest,
) -> Result<v1::TearDownSessionResponse, Error> {
    engine.tear_down(id("session_id", &request.session_id)?).await;
    Ok(v1::TearDownSessionResponse {})
}

pub(crate) fn assign<H: Host>(engine: &Arc<Engine<H>>, request: v1::AssignRequest) -> v1::AssignResponse {
    let mut assignments = Vec::with_capacity(request.assignments.len());
    let mut refusals = Vec::new();
    for assignment in request.assignments {
        let lease_token = assignment.lease.as_ref().map_or(0, |lease| lease.token);
        let run_id = assignment.run_id.clone();
        match assigned(assignment) {
            Ok(assigned) => assignments.push(assigned),
            Err(error) => refusals.push(v1::AssignRefusal { run_id, lease_token, message: error.message }),
        }
    }
    refusals.extend(engine.assign(assignments).into_iter().map(|refusal| v1::AssignRefusal {
        run_id: refusal.run_id.to_string(),
        lease_token: refusal.token,
        message: refusal.message.to_owned(),
    }));
    v1::AssignResponse { refusals }
}

fn assigned(wire: v1::Assignment) -> Result<Assigned, Error> {
    Ok(Assigned {
        run_id: id("run_id", &wire.run_id)?,
        tenant: id("tenant", &wire.tenant)?,
        lease: lease(wire.lease.as_ref())?,
        task_id: id("task_id", &wire.task_id)?,
        task_version: wire.task_version,
        attempt: wire.attempt,
        prompt: wire.prompt,
        program: wire.program,
        input: wire.input,
        metadata: wire.metadata,
        source_id: optional_id("source_id", &wire.source_id)?,
        credential_id: optional_id("credential_id", &wire.credential_id)?,
        traceparent: wire.traceparent,
    })
}

fn key(run_id: &str, token: LeaseToken) -> Result<(RunId, LeaseToken), Error> {
    Ok((id("run_id", run_id)?, token))
}

pub(crate) fn stop<H: Host>(engine: &Arc<Engine<H>>, request: &v1::StopRequest) -> Result<v1::StopResponse, Error> {
    let key = key(&request.run_id, request.lease_token)?;
    let grace = Duration::from_millis(request.grace_ms.into());
    Ok(v1::StopResponse { running: engine.stop(key, StopReason::parse(&request.reason), grace) })
}

pub(crate) fn input<H: Host>(engine: &Arc<Engine<H>>, request: &v1::InputRequest) -> Result<v1::InputResponse, Error> {
    let key = key(&request.run_id, request.lease_token)?;
    // What serde says could quote the answer.
    let value = serde_json::from_slice(&request.input)
        .map_err(|_| ErrorCode::INPUT_INVALID.with("input is not JSON").at("input"))?;
    Ok(v1::InputResponse { taken: engine.input(key, &request.interaction_id, value) })
}

fn confirm_key<H: Host>(
    engine: &Arc<Engine<H>>,
    request: &v1::ConfirmKeyRequest,
) -> Result<v1::ConfirmKeyResponse, Error> {
    let key = key(&request.run_id, request.lease_token)?;
    let confirmed = PublicKey::from_bytes(&request.public_key).is_ok_and(|public| engine.made_key(key, &public));
    Ok(v1::ConfirmKeyResponse { confirmed })
}

impl From<&Report> for v1::Report {
    fn from(report: &Report) -> Self {
        use v1::report::What as Wire;
        let what = match &report.what {
            What::Asks(question) => Wire::Interaction(interaction(question)),
            What::Finished(output) => Wire::Finished(v1::Finished { output: output.clone() }),
            What::Failed(errors) => Wire::Failed(v1::Failed { errors: errors.iter().map(Into::into).collect() }),
            What::Stopped => Wire::Stopped(v1::Stopped {}),
        };
        Self { run_id: report.run_id.to_string(), lease_token: report.token, what: Some(what) }
    }
}

fn interaction(question: &errand_core::run::Question) -> v1::Interaction {
    let fields = question.fields.iter().map(|field| v1::InteractionField {
        name: field.name.clone(),
        r#type: field.r#type.clone(),
        label: field.label.clone(),
        options: field.options.clone(),
    });
    v1::Interaction {
        id: question.id.clone(),
        r#type: question.r#type.clone(),
        message: question.message.clone(),
        fields: fields.collect(),
        expires_at_ms: 0,
    }
}

/// How a runner speaks to the others.
pub trait Line: Clone + Send + Sync + 'static {
    /// Reports to the dispatcher.
    fn report(
        &self,
        request: v1::ReportRequest,
    ) -> impl Future<Output = Result<v1::ReportResponse, RequestError>> + Send;
    /// Presents itself to the pool.
    fn register(
        &self,
        request: v1::RegisterRequest,
    ) -> impl Future<Output = Result<v1::RegisterResponse, RequestError>> + Send;
    /// Shows the pool that it lives.
    fn heartbeat(
        &self,
        request: v1::HeartbeatRequest,
    ) -> impl Future<Output = Result<v1::HeartbeatResponse, RequestError>> + Send;
    /// Tells the pool of a session that died.
    fn session_lost(
        &self,
        request: v1::SessionLostRequest,
    ) -> impl Future<Output = Result<v1::SessionLostResponse, RequestError>> + Send;
    /// Takes leave of the pool.
    fn deregister(
        &self,
        request: v1::DeregisterRequest,
    ) -> impl Future<Output = Result<v1::DeregisterResponse, RequestError>> + Send;
    /// Hears the pools that begin to serve.
    fn hellos(&self) -> impl Future<Output = Result<BoxStream<'static, ()>, BusError>> + Send;
    /// Changes when the broker is there again.
    fn connections(&self) -> watch::Receiver<u64>;
}

/// How long the pool may take to answer: an answer that takes longer comes too late to matter.
const PATIENCE: Duration = Duration::from_secs(5);

impl Line for Bus {
    async fn report(&self, request: v1::ReportRequest) -> Result<v1::ReportResponse, RequestError> {
        self.request(self.subjects().run("report"), &request).await
    }

    async fn register(&self, request: v1::RegisterRequest) -> Result<v1::RegisterResponse, RequestError> {
        self.request_within(self.subjects().pool("register"), &request, PATIENCE).await
    }

    async fn heartbeat(&self, request: v1::HeartbeatRequest) -> Result<v1::HeartbeatResponse, RequestError> {
        self.request_within(self.subjects().pool("heartbeat"), &request, PATIENCE).await
    }

    async fn session_lost(&self, request: v1::SessionLostRequest) -> Result<v1::SessionLostResponse, RequestError> {
        self.request_within(self.subjects().pool("session_lost"), &request, PATIENCE).await
    }

    async fn deregister(&self, request: v1::DeregisterRequest) -> Result<v1::DeregisterResponse, RequestError> {
        self.request_within(self.subjects().pool("deregister"), &request, PATIENCE).await
    }

    async fn hellos(&self) -> Result<BoxStream<'static, ()>, BusError> {
        Ok(self.subscribe(self.subjects().pool("hello")).await?.map(drop).boxed())
    }

    fn connections(&self) -> watch::Receiver<u64> {
        Self::connections(self)
    }
}

/// Sends reports to the dispatcher.
pub(crate) struct Dispatcher<H, L> {
    pub(crate) line: L,
    pub(crate) engine: Arc<Engine<H>>,
}

impl<H: Host, L: Line> Desk for Dispatcher<H, L> {
    async fn send(&self, batch: &[Report]) -> Result<Vec<bool>, Unsent> {
        let request = v1::ReportRequest { reports: batch.iter().map(Into::into).collect() };
        let answer = self.line.report(request).await;
        let answers = answer.map_err(|error| match error {
            RequestError::Service(ref refused) if refused.code.kind == "request" => Unsent::Refused(error.to_string()),
            _ => Unsent::NotNow(error.to_string()),
        })?;
        if answers.answers.len() != batch.len() {
            return Err(Unsent::NotNow("there is not one answer for each report".into()));
        }
        Ok(answers.answers.iter().map(|answer| answer.accepted).collect())
    }

    fn answered(&self, report: &Report, accepted: bool) {
        self.engine.answered(report, accepted);
    }

    fn matters(&self, report: &Report) -> bool {
        self.engine.matters(report)
    }
}

/// A sign of life on the wire.
pub(crate) fn sign_of(execution: &Execution, progress: Progress) -> v1::Activity {
    v1::Activity {
        run_id: execution.run_id.to_string(),
        lease_token: execution.token,
        at_ms: progress.at_ms,
        message: progress.message,
        step: progress.step,
        percent: progress.percent.map(Into::into),
    }
}

/// Publishes a sign of life; lossy, so nothing is kept for a broker that is away.
pub(crate) async fn publish_activity(bus: Bus, execution: Arc<Execution>, progress: Progress) {
    if !bus.is_connected() {
        return;
    }
    let activity = sign_of(&execution, progress);
    if let Err(error) = bus.publish(bus.subjects().activity(execution.run_id), &activity).await {
        tracing::debug!(%error, "a sign of life was lost");
    }
}

/// The session-pool, as a runner speaks to it.
#[derive(Clone)]
pub(crate) struct Pool<L> {
    pub(crate) line: L,
    pub(crate) id: RunnerId,
}

/// What the pool says to a registration.
pub(crate) struct Registered {
    pub(crate) heartbeat: Duration,
    pub(crate) end_sessions: Vec<SessionId>,
}

/// What the pool says to a heartbeat.
pub(crate) struct Beat {
    pub(crate) known: bool,
    pub(crate) drain: bool,
    pub(crate) end_sessions: Vec<SessionId>,
}

fn runner_sessions(held: Vec<Held>) -> Vec<v1::RunnerSession> {
    held.into_iter()
        .map(|held| v1::RunnerSession {
            session_id: held.id.to_string(),
            lease_token: held.lease.map_or(0, |(token, _)| token),
            run_id: held.lease.map(|(_, run_id)| run_id.to_string()).unwrap_or_default(),
        })
        .collect()
}

/// Ids that cannot be read name no session of ours.
fn session_ids(texts: &[String]) -> Vec<SessionId> {
    texts.iter().filter_map(|text| text.parse().ok()).collect()
}

impl<L: Line> Pool<L> {
    pub(crate) async fn register(&self, config: &RunnerConfig, held: Vec<Held>) -> Result<Registered, RequestError> {
        let request = v1::RegisterRequest {
            runner_id: self.id.to_string(),
            agent_id: config.agent_id.to_string(),
            capacity: config.capacity,
            warm: config.warm,
            host: config.host.clone(),
            version: config.version.clone(),
            tenants: config.tenants.iter().map(ToString::to_string).collect(),
            sessions: runner_sessions(held),
        };
        let answer = self.line.register(request).await?;
        Ok(Registered {
            heartbeat: Duration::from_secs(answer.heartbeat_seconds.clamp(1, 60).into()),
            end_sessions: session_ids(&answer.end_sessions),
        })
    }

    pub(crate) async fn heartbeat(&self, held: Vec<Held>, draining: bool) -> Result<Beat, RequestError> {
        let sessions = runner_sessions(held);
        let request = v1::HeartbeatRequest { runner_id: self.id.to_string(), sessions, draining };
        let answer = self.line.heartbeat(request).await?;
        Ok(Beat { known: answer.known, drain: answer.drain, end_sessions: session_ids(&answer.end_sessions) })
    }

    pub(crate) async fn session_lost(&self, loss: &Loss) -> Result<(), RequestError> {
        let request = v1::SessionLostRequest {
            runner_id: self.id.to_string(),
            session_id: loss.id.to_string(),
            message: loss.message.clone(),
        };
        self.line.session_lost(request).await.map(|_| ())
    }

    pub(crate) async fn deregister(&self) -> Result<(), RequestError> {
        let request = v1::DeregisterRequest { runner_id: self.id.to_string() };
        self.line.deregister(request).await.map(|_| ())
    }
}

/// The vault, as a runner speaks to it.
#[derive(Clone)]
pub(crate) struct Vault {
    pub(crate) bus: Bus,
    pub(crate) id: RunnerId,
}

fn refused(error: RequestError) -> Refused {
    match error {
        RequestError::Service(error) if error.code.kind != "api" => Refused::Never(error),
        error => Refused::NotNow(error.to_string()),
    }
}

impl crate::credential::Vault for Vault {
    fn open(&self, ask: Ask, key: PublicKey) -> BoxFuture<'static, Result<Vec<u8>, Refused>> {
        let (bus, runner_id) = (self.bus.clone(), self.id.to_string());
        async move {
            let request = v1::OpenCredentialRequest {
                run_id: ask.run_id.to_string(),
                lease_token: ask.token,
                runner_id,
                credential_id: ask.credential_id.to_string(),
                public_key: key.as_bytes().to_vec().into(),
            };
            let subject = bus.subjects().api("vault", "open_credential");
            let answer = bus.request::<_, v1::OpenCredentialResponse>(subject, &request).await;
            answer.map(|answer| answer.sealed.to_vec()).map_err(refused)
        }
        .boxed()
    }

    fn report(&self, ask: Ask, tried: Tried) -> BoxFuture<'static, Result<(), Refused>> {
        let (bus, runner_id) = (self.bus.clone(), self.id.to_string());
        async move {
            let request = v1::ReportAuthRequest {
                run_id: ask.run_id.to_string(),
                lease_token: ask.token,
                runner_id,
                credential_id: ask.credential_id.to_string(),
                generation: tried.generation,
                number: tried.number,
                failure: failure(tried.failure).to_owned(),
            };
            let subject = bus.subjects().api("vault", "report_auth");
            let answer = bus.request::<_, v1::ReportAuthResponse>(subject, &request).await;
            answer.map(drop).map_err(refused)
        }
        .boxed()
    }
}

/// The storage, as a runner speaks to it.
#[derive(Clone, Default)]
pub(crate) struct Shelf {
    /// None where there is no bus: in tests of what needs none.
    bus: Option<Bus>,
    /// Chunks that were taken; tells whether it goes on.
    taken: Arc<AtomicU64>,
}

/// How an upload stands.
pub(crate) enum Begun {
    Done(Kept),
    Ignored,
    Receiving { instance: String, received: u64, chunk_bytes: usize },
}

impl Shelf {
    /// The keeping of a large file, and the reading of its data, take a while.
    const PATIENCE: Duration = Duration::from_secs(60);

    pub(crate) fn new(bus: Bus) -> Self {
        Self { bus: Some(bus), taken: Arc::default() }
    }

    pub(crate) fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    async fn call<Q: prost::Message, A: prost::Message + Default>(
        &self,
        subject: impl FnOnce(&errand_bus::Subjects) -> String,
        request: &Q,
    ) -> Result<A, files::Unsent> {
        let Some(bus) = &self.bus else { return Err(files::Unsent::NotNow("there is no bus".into())) };
        bus.request_within(subject(bus.subjects()), request, Self::PATIENCE).await.map_err(|error| match error {
            RequestError::Service(error) if error.code == ErrorCode::FORBIDDEN => files::Unsent::Disowned,
            RequestError::Service(error) if error.code.kind != "api" => files::Unsent::Refused(error),
            other => files::Unsent::NotNow(other.to_string()),
        })
    }

    /// Begins an upload, or asks how it stands.
    pub(crate) async fn begin(
        &self,
        id: StorageId,
        execution: &Execution,
        file: &NewFile,
        size: u64,
    ) -> Result<Begun, files::Unsent> {
        let request = v1::BeginUploadRequest {
            artifact_id: id.to_string(),
            run_id: execution.run_id.to_string(),
            lease_token: execution.token,
            kind: v1::ArtifactKind::from(file.kind).into(),
            name: file.name.clone(),
            size_bytes: Some(size),
            data: file.data.as_ref().map(|data| data.to_string().into()),
        };
        let answer: v1::BeginUploadResponse = self.call(|subjects| subjects.storage("begin"), &request).await?;
        Ok(match answer.done {
            Some(artifact) => Begun::Done(kept(id, artifact)),
            None if answer.ignored => Begun::Ignored,
            None => Begun::Receiving {
                instance: answer.instance,
                received: answer.received,
                chunk_bytes: usize::try_from(answer.chunk_bytes.max(1)).unwrap_or(usize::MAX),
            },
        })
    }

    /// Sends a chunk; gives how many bytes have arrived, none where the upload is not known there.
    pub(crate) async fn put(
        &self,
        instance: &str,
        id: StorageId,
        execution: &Execution,
        offset: u64,
        data: Bytes,
    ) -> Result<Option<u64>, files::Unsent> {
        let (artifact_id, lease_token) = (id.to_string(), execution.token);
        let request = v1::PutChunkRequest { artifact_id, lease_token, offset, data };
        let answer: v1::PutChunkResponse =
            self.call(|subjects| subjects.storage_instance(instance, "put"), &request).await?;
        self.taken.fetch_add(1, Ordering::Relaxed);
        Ok((!answer.unknown).then_some(answer.received))
    }

    /// Has a whole file kept; none where the upload is not known there, or something of it was lost.
    pub(crate) async fn finish(
        &self,
        instance: &str,
        id: StorageId,
        execution: &Execution,
        size_bytes: u64,
        sha256: Bytes,
    ) -> Result<Option<Kept>, files::Unsent> {
        let (artifact_id, lease_token) = (id.to_string(), execution.token);
        let request = v1::FinishUploadRequest { artifact_id, lease_token, size_bytes, sha256 };
        let answer: v1::FinishUploadResponse =
            self.call(|subjects| subjects.storage_instance(instance, "finish"), &request).await?;
        Ok(answer.artifact.filter(|_| !answer.unknown).map(|artifact| kept(id, artifact)))
    }
}

fn kept(id: StorageId, artifact: v1::Artifact) -> Kept {
    Kept::As { id, name: artifact.name }
}
