use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use errand_bus::{Bus, BusError, Service};
use errand_core::session::{Session, SessionStatus};
use errand_core::{AgentId, Error, ErrorCode, SessionId, Tenant};
use errand_proto::{id, named, optional_id, page, v1};
use errand_store::StoreError;
use tokio_util::sync::CancellationToken;

use super::internal::{self, Desk};
use crate::engine::Input;
use crate::pool::{AgentView, RunnerView};
use crate::store::{Query, Store};

/// Requests of one kind that are handled at once: they wait for the engine's next commit together.
const IN_FLIGHT: usize = 1_024;
/// Reads of the store at once.
const READS: usize = 64;
/// Sessions of one runner.
pub(super) const MAX_CAPACITY: u32 = 10_000;
/// Values of one filter.
const MAX_FILTER: usize = 20;
/// How often the epoch is told: a dispatcher may have missed it, and runs wait for that.
const HELLO: Duration = Duration::from_secs(5);

/// What the handlers share.
#[derive(Debug)]
pub struct SessionPool {
    /// The broker.
    pub bus: Bus,
    /// For reading.
    pub store: Store,
    /// For everything else.
    pub desk: Desk,
}

type Shared = Arc<SessionPool>;

/// Serves what the dispatcher, runners and clients ask.
///
/// # Errors
/// [`BusError::Listen`].
pub async fn serve(shared: &Shared) -> Result<Service, BusError> {
    let subjects = shared.bus.subjects().clone();
    let mut builder =
        Service::builder(&shared.bus, "session-pool", "owns sessions: registers runners, leases, reclaims");
    macro_rules! methods {
        ($($kind:ident $name:literal $in_flight:expr => $handler:ident;)*) => {$(
            let subject = methods!(@subject $kind $name);
            builder = builder.endpoint(&format!("{}-{}", stringify!($kind), $name), subject, $in_flight, with(shared, $handler));
        )*};
        (@subject pool $name:literal) => { subjects.pool($name) };
        (@subject api $name:literal) => { subjects.api("session-pool", $name) };
    }
    methods! {
        pool "acquire" IN_FLIGHT => acquire;
        pool "release" IN_FLIGHT => release;
        pool "register" IN_FLIGHT => register;
        pool "heartbeat" IN_FLIGHT => heartbeat;
        pool "deregister" IN_FLIGHT => deregister;
        pool "session_lost" IN_FLIGHT => session_lost;
        api "list_sessions" READS => list_sessions;
        api "get_session" READS => get_session;
        api "end_session" IN_FLIGHT => end_session;
        api "list_runners" READS => list_runners;
        api "drain_runner" READS => drain_runner;
        api "list_agents" READS => list_agents;
    }
    builder.start().await
}

/// A handler with what it shares with the others.
fn with<Q, A, F, Fut>(shared: &Shared, handler: F) -> impl Fn(Q) -> Fut + Send + Sync + use<Q, A, F, Fut>
where
    F: Fn(Shared, Q) -> Fut + Send + Sync,
    Fut: Future<Output = Result<A, Error>>,
{
    let shared = Arc::clone(shared);
    move |request| handler(Arc::clone(&shared), request)
}

/// Tells everybody the epoch, at start and again and again.
///
/// # Errors
/// None at present.
pub async fn say_hello(shared: Shared, shutdown: CancellationToken) -> anyhow::Result<()> {
    let mut every = tokio::time::interval(HELLO);
    loop {
        tokio::select! {
            _ = every.tick() => {}
            () = shutdown.cancelled() => return Ok(()),
        }
        let hello = v1::PoolHello { epoch: shared.desk.epoch.clone() };
        if let Err(error) = shared.bus.publish(shared.bus.subjects().pool("hello"), &hello).await {
            tracing::debug!(%error, "the pool's hello was not sent");
        }
    }
}

pub(super) fn at_most(field: &str, count: usize, limit: usize) -> Result<(), Error> {
    if count <= limit {
        return Ok(());
    }
    Err(ErrorCode::INPUT_INVALID.with(format!("{field} has {count} entries, at most {limit} are allowed")).at(field))
}

async fn acquire(shared: Shared, request: v1::AcquireRequest) -> Result<v1::AcquireResponse, Error> {
    internal::acquire(&shared.desk, request).await
}

async fn release(shared: Shared, request: v1::ReleaseRequest) -> Result<v1::ReleaseResponse, Error> {
    internal::release(&shared.desk, request).await
}

async fn register(shared: Shared, request: v1::RegisterRequest) -> Result<v1::RegisterResponse, Error> {
    internal::register(&shared.desk, request).await
}

async fn heartbeat(shared: Shared, request: v1::HeartbeatRequest) -> Result<v1::HeartbeatResponse, Error> {
    internal::heartbeat(&shared.desk, request).await
}

async fn deregister(shared: Shared, request: v1::DeregisterRequest) -> Result<v1::DeregisterResponse, Error> {
    internal::deregister(&shared.desk, request).await
}

async fn session_lost(shared: Shared, request: v1::SessionLostRequest) -> Result<v1::SessionLostResponse, Error> {
    internal::session_lost(&shared.desk, request).await
}

fn unavailable(error: StoreError) -> Error {
    tracing::warn!(%error, "the store did not answer");
    ErrorCode::API_UNAVAILABLE.with("the store is not available")
}

async fn list_sessions(shared: Shared, request: v1::ListSessionsRequest) -> Result<v1::ListSessionsResponse, Error> {
    let page = page(request.page.as_ref())?;
    at_most("status", request.status.len(), MAX_FILTER)?;
    at_most("agent_id", request.agent_id.len(), MAX_FILTER)?;
    let status =
        |number: &i32| named("status", *number, |status: v1::SessionStatus| SessionStatus::try_from(status).ok());
    let cursor: Option<SessionId> = optional_id("cursor", &page.cursor)
        .map_err(|error| ErrorCode::CURSOR_INVALID.with(error.message).at("cursor"))?;
    let older = optional_id("starting_after", &page.starting_after)?;
    let query = Query {
        tenant: id("tenant", &request.tenant)?,
        statuses: request.status.iter().map(status).collect::<Result<_, _>>()?,
        agents: request.agent_id.iter().map(|agent| id::<AgentId>("agent_id", agent)).collect::<Result<_, _>>()?,
        before: cursor.or(older),
        after: optional_id("ending_before", &page.ending_before)?,
        // One more shows whether there is a further page.
        limit: page.limit + 1,
    };
    let mut sessions = shared.store.sessions(&query).await.map_err(unavailable)?;
    let has_more = sessions.len() > page.limit as usize;
    if has_more {
        // Newest first: what is beyond the page is the oldest, or, read backwards, the newest.
        let beyond = if query.after.is_some() { 0 } else { sessions.len() - 1 };
        sessions.remove(beyond);
    }
    let next_cursor = sessions.last().filter(|_| has_more).map(|session| session.id.to_string()).unwrap_or_default();
    let sessions = sessions.iter().map(v1::Session::from).collect();
    Ok(v1::ListSessionsResponse { sessions, page: Some(v1::PageInfo { has_more, next_cursor }) })
}

/// The tenant's session; another tenant's is not there.
async fn stored(shared: &SessionPool, tenant: &Tenant, id: SessionId) -> Result<Session, Error> {
    let found = shared.store.session(id).await.map_err(unavailable)?;
    found
        .filter(|session| session.tenant.as_ref() == Some(tenant))
        .ok_or_else(|| ErrorCode::SESSION_NOT_FOUND.with(format!("there is no session {id}")))
}

fn session_response(session: &Session) -> v1::SessionResponse {
    v1::SessionResponse { session: Some(session.into()) }
}

async fn get_session(shared: Shared, request: v1::GetSessionRequest) -> Result<v1::SessionResponse, Error> {
    let (tenant, session_id) = (id("tenant", &request.tenant)?, id("session_id", &request.session_id)?);
    Ok(session_response(&stored(&shared, &tenant, session_id).await?))
}

async fn end_session(shared: Shared, request: v1::EndSessionRequest) -> Result<v1::SessionResponse, Error> {
    let (tenant, session_id): (Tenant, _) = (id("tenant", &request.tenant)?, id("session_id", &request.session_id)?);
    let owner = tenant.clone();
    match shared.desk.engine.ask(|reply| Input::EndSession(session_id, owner, reply)).await? {
        Ok(session) => Ok(session_response(&session)),
        // It may have ended before: that is what was asked for.
        Err(_) => Ok(session_response(&stored(&shared, &tenant, session_id).await?)),
    }
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn runner(view: &RunnerView) -> v1::Runner {
    let registration = &view.registration;
    v1::Runner {
        id: registration.id.to_string(),
        agent_id: registration.agent_id.to_string(),
        capacity: count(registration.capacity),
        sessions: count(view.sessions),
        leases: count(view.leases),
        draining: view.draining,
        host: registration.host.clone(),
        version: registration.version.clone(),
        connected_at_ms: view.connected_at.0,
        last_seen_at_ms: view.last_seen.0,
    }
}

fn agent(view: &AgentView) -> v1::Agent {
    v1::Agent {
        id: view.id.to_string(),
        runners: count(view.runners),
        capacity: count(view.capacity),
        sessions: count(view.sessions),
        leases: count(view.leases),
        waiting: count(view.waiting),
    }
}

async fn list_runners(shared: Shared, request: v1::ListRunnersRequest) -> Result<v1::ListRunnersResponse, Error> {
    at_most("agent_id", request.agent_id.len(), MAX_FILTER)?;
    let agents: Vec<AgentId> = request.agent_id.iter().map(|agent| id("agent_id", agent)).collect::<Result<_, _>>()?;
    let views = shared.desk.engine.ask(Input::Runners).await?;
    let asked = views.iter().filter(|view| agents.is_empty() || agents.contains(&view.registration.agent_id));
    Ok(v1::ListRunnersResponse { runners: asked.map(runner).collect() })
}

async fn drain_runner(shared: Shared, request: v1::DrainRunnerRequest) -> Result<v1::DrainRunnerResponse, Error> {
    let runner_id = id("runner_id", &request.runner_id)?;
    let view = shared.desk.engine.ask(|reply| Input::Drain(runner_id, reply)).await??;
    Ok(v1::DrainRunnerResponse { runner: Some(runner(&view)) })
}

async fn list_agents(shared: Shared, _: v1::ListAgentsRequest) -> Result<v1::ListAgentsResponse, Error> {
    let views = shared.desk.engine.ask(Input::Agents).await?;
    Ok(v1::ListAgentsResponse { agents: views.iter().map(agent).collect() })
}
