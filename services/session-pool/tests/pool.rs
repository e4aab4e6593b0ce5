//! The session-pool's own process over a real broker and real databases, with a dispatcher and a runner that do what
//! the test says.

#![expect(clippy::unwrap_used, reason = "a test says what is missing by failing")]

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use errand_bus::{Bus, Service};
use errand_core::{ErrorCode, RunId, RunnerId};
use errand_proto::v1;
use errand_tests::{Role, Stack, StoreKind, eventually};
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(30);

/// What the fakes have seen.
#[derive(Debug, Default)]
struct Seen {
    grants: Vec<v1::Grant>,
    losses: Vec<v1::Lost>,
    /// Runs that still wait: grants to others are not accepted.
    waiting: HashSet<String>,
    /// Lease tokens that are held.
    held: HashSet<u64>,
    /// Sessions at the runner.
    sessions: HashSet<String>,
    torn_down: Vec<String>,
}

type Shared = Arc<Mutex<Seen>>;

struct Theatre {
    stack: Stack,
    bus: Bus,
    seen: Shared,
    runner: RunnerId,
    _services: Vec<Service>,
}

fn run_id() -> String {
    RunId::from_uuid(Uuid::now_v7()).to_string()
}

fn want(run_id: &str, tenant: &str) -> v1::Want {
    v1::Want {
        run_id: run_id.to_owned(),
        tenant: tenant.to_owned(),
        agent_id: "agt_exec".into(),
        attempt: 1,
        traceparent: String::new(),
        ..v1::Want::default()
    }
}

async fn dispatcher(bus: &Bus, seen: &Shared) -> anyhow::Result<Service> {
    let [grants, losses, leases] = std::array::from_fn(|_| Arc::clone(seen));
    let grant = move |request: v1::GrantRequest| {
        let mut seen = grants.lock().unwrap();
        let mut answers = Vec::new();
        for grant in request.grants {
            let token = grant.lease.as_ref().unwrap().token;
            let accepted = seen.held.contains(&token) || seen.waiting.remove(&grant.run_id);
            if accepted {
                seen.held.insert(token);
            }
            answers.push(v1::GrantAnswer { run_id: grant.run_id.clone(), accepted });
            seen.grants.push(grant);
        }
        std::future::ready(Ok(v1::GrantResponse { answers }))
    };
    let lost = move |request: v1::LostRequest| {
        losses.lock().unwrap().losses.extend(request.losses);
        std::future::ready(Ok(v1::LostResponse {}))
    };
    let check = move |request: v1::CheckLeasesRequest| {
        let held = leases.lock().unwrap().held.clone();
        let tokens = request.checks.iter().map(|check| check.lease.as_ref().unwrap().token);
        let released_tokens = tokens.filter(|token| !held.contains(token)).collect();
        std::future::ready(Ok(v1::CheckLeasesResponse { released_tokens }))
    };
    Ok(Service::builder(bus, "dispatcher", "a fake")
        .endpoint("grant", bus.subjects().run("grant"), 64, grant)
        .endpoint("lost", bus.subjects().run("lost"), 64, lost)
        .endpoint("leases", bus.subjects().run("leases"), 64, check)
        .start()
        .await?)
}

async fn runner(bus: &Bus, id: RunnerId, seen: &Shared) -> anyhow::Result<Service> {
    let [starts, ends] = std::array::from_fn(|_| Arc::clone(seen));
    let start = move |request: v1::StartSessionRequest| {
        starts.lock().unwrap().sessions.insert(request.session_id);
        std::future::ready(Ok(v1::StartSessionResponse { error: None }))
    };
    let end = move |request: v1::TearDownSessionRequest| {
        let mut seen = ends.lock().unwrap();
        seen.sessions.remove(&request.session_id);
        seen.torn_down.push(request.session_id);
        std::future::ready(Ok(v1::TearDownSessionResponse {}))
    };
    Ok(Service::builder(bus, "runner", "a fake")
        .endpoint("start_session", bus.subjects().runner(id, "start_session"), 256, start)
        .endpoint("tear_down_session", bus.subjects().runner(id, "tear_down_session"), 256, end)
        .start()
        .await?)
}

impl Theatre {
    async fn open(store: StoreKind) -> anyhow::Result<Self> {
        let mut stack = Stack::new(store);
        stack.start(Role::SessionPool, &["--heartbeat-seconds", "1", "--runner-lost-seconds", "3"]);
        stack.ready().await;
        let bus = stack.bus().await;
        let (seen, id) = (Shared::default(), RunnerId::from_uuid(Uuid::now_v7()));
        let services = vec![dispatcher(&bus, &seen).await?, runner(&bus, id, &seen).await?];
        Ok(Self { stack, bus, seen, runner: id, _services: services })
    }

    fn seen<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.seen.lock().unwrap())
    }

    async fn pool<Q: prost::Message, A: prost::Message + Default>(
        &self,
        method: &str,
        request: &Q,
    ) -> anyhow::Result<A> {
        Ok(self.bus.request(self.bus.subjects().pool(method), request).await?)
    }

    async fn api<Q: prost::Message, A: prost::Message + Default>(
        &self,
        method: &str,
        request: &Q,
    ) -> anyhow::Result<A> {
        Ok(self.bus.request(self.bus.subjects().api("session-pool", method), request).await?)
    }

    fn listed(&self) -> Vec<v1::RunnerSession> {
        let ids = self.seen(|seen| seen.sessions.clone());
        ids.into_iter().map(|session_id| v1::RunnerSession { session_id, ..v1::RunnerSession::default() }).collect()
    }

    async fn register(&self, capacity: u32) -> anyhow::Result<v1::RegisterResponse> {
        let request = v1::RegisterRequest {
            runner_id: self.runner.to_string(),
            agent_id: "agt_exec".into(),
            capacity,
            host: "here".into(),
            version: "1".into(),
            sessions: self.listed(),
            ..v1::RegisterRequest::default()
        };
        self.pool("register", &request).await
    }

    async fn heartbeat(&self) -> anyhow::Result<v1::HeartbeatResponse> {
        let (runner_id, sessions) = (self.runner.to_string(), self.listed());
        self.pool("heartbeat", &v1::HeartbeatRequest { runner_id, sessions, draining: false }).await
    }

    async fn acquire(&self, wants: Vec<v1::Want>) -> anyhow::Result<v1::AcquireResponse> {
        self.seen(|seen| seen.waiting.extend(wants.iter().map(|want| want.run_id.clone())));
        self.pool("acquire", &v1::AcquireRequest { wants }).await
    }

    async fn release(&self, grant: &v1::Grant) -> anyhow::Result<()> {
        let (run_id, lease) = (grant.run_id.clone(), grant.lease.clone());
        self.seen(|seen| seen.held.remove(&lease.as_ref().unwrap().token));
        let releases = vec![v1::Release { run_id, lease, discard: false }];
        let v1::ReleaseResponse {} = self.pool("release", &v1::ReleaseRequest { releases }).await?;
        Ok(())
    }

    async fn granted(&self, run_id: &str) -> v1::Grant {
        eventually("the run is granted a session", PATIENCE, async || {
            self.seen(|seen| seen.grants.iter().find(|grant| grant.run_id == run_id).cloned())
        })
        .await
    }

    async fn session(&self, tenant: &str, session_id: &str) -> anyhow::Result<v1::Session> {
        let request = v1::GetSessionRequest { tenant: tenant.to_owned(), session_id: session_id.to_owned() };
        let answer: v1::SessionResponse = self.api("get_session", &request).await?;
        Ok(answer.session.unwrap())
    }

    async fn until(&self, tenant: &str, session_id: &str, status: v1::SessionStatus) -> v1::Session {
        eventually(&format!("the session is {}", status.as_str_name()), PATIENCE, async || {
            let session = self.session(tenant, session_id).await.ok()?;
            (session.status() == status).then_some(session)
        })
        .await
    }
}

macro_rules! on_both_stores {
    ($($name:ident)*) => {$(
        mod $name {
            use super::*;

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_sqlite() -> anyhow::Result<()> {
                super::$name(StoreKind::Sqlite).await
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgres() -> anyhow::Result<()> {
                super::$name(StoreKind::Postgres).await
            }
        }
    )*};
}

on_both_stores! {
    a_session_lives_from_want_to_tear_down
    a_killed_pool_forgets_no_lease
    a_runner_that_falls_silent_is_lost
    lists_are_a_tenants_own
    many_runs_share_few_rooms
}

async fn a_session_lives_from_want_to_tear_down(store: StoreKind) -> anyhow::Result<()> {
    let theatre = Theatre::open(store).await?;
    assert_eq!(theatre.register(2).await?.heartbeat_seconds, 1);
    let run = run_id();
    assert!(!theatre.acquire(vec![want(&run, "acme")]).await?.epoch.is_empty());
    let grant = theatre.granted(&run).await;
    let lease = grant.lease.clone().unwrap();
    let session = theatre.session("acme", &lease.session_id).await?;
    assert_eq!((session.status(), session.run_id.as_str()), (v1::SessionStatus::Running, run.as_str()));
    assert_eq!(session.lease_token, lease.token);
    theatre.release(&grant).await?;
    let ended = theatre.until("acme", &lease.session_id, v1::SessionStatus::Completed).await;
    assert_eq!((ended.seq, ended.runs_served), (4, 1));
    assert_eq!(theatre.seen(|seen| seen.torn_down.clone()), [lease.session_id]);
    let refused = theatre.acquire(vec![v1::Want { session_id: ended.id, ..want(&run_id(), "acme") }]).await?;
    assert_eq!(refused.refusals[0].error.as_ref().unwrap().code, ErrorCode::SESSION_NOT_AVAILABLE.code);
    Ok(())
}

async fn a_killed_pool_forgets_no_lease(store: StoreKind) -> anyhow::Result<()> {
    let mut theatre = Theatre::open(store).await?;
    theatre.register(4).await?;
    let runs: Vec<String> = (0..6).map(|_| run_id()).collect();
    let first = theatre.acquire(runs.iter().map(|run| want(run, "acme")).collect()).await?;
    let mut grants = BTreeMap::new();
    for run in &runs[..4] {
        let grant = theatre.granted(run).await;
        grants.insert(grant.lease.clone().unwrap().token, grant);
    }
    theatre.stack.service(Role::SessionPool).process().kill9();
    theatre.stack.service(Role::SessionPool).restart();
    theatre.stack.ready().await;
    assert!(!theatre.heartbeat().await?.known);
    assert!(theatre.register(4).await?.end_sessions.is_empty());
    let again = theatre.acquire(runs[4..].iter().map(|run| want(run, "acme")).collect()).await?;
    assert_ne!(first.epoch, again.epoch);
    let (newest, oldest) = (*grants.keys().last().unwrap(), grants.values().next().unwrap().clone());
    theatre.release(&oldest).await?;
    let grant = theatre.granted(&runs[4]).await;
    assert!(grant.lease.unwrap().token > newest, "tokens only grow");
    for grant in grants.values().skip(1) {
        let session = theatre.session("acme", &grant.lease.as_ref().unwrap().session_id).await?;
        assert_eq!((session.status(), session.run_id), (v1::SessionStatus::Running, grant.run_id.clone()));
    }
    Ok(())
}

async fn a_runner_that_falls_silent_is_lost(store: StoreKind) -> anyhow::Result<()> {
    let theatre = Theatre::open(store).await?;
    theatre.register(1).await?;
    let run = run_id();
    theatre.acquire(vec![want(&run, "acme")]).await?;
    let lease = theatre.granted(&run).await.lease.unwrap();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert!(theatre.heartbeat().await?.known);
    }
    assert!(theatre.seen(|seen| seen.losses.is_empty()));
    let loss =
        eventually("the run is told", PATIENCE, async || theatre.seen(|seen| seen.losses.first().cloned())).await;
    assert_eq!((loss.run_id.as_str(), loss.reason()), (run.as_str(), v1::LostReason::RunnerLost));
    assert_eq!(theatre.session("acme", &lease.session_id).await?.status(), v1::SessionStatus::Failed);
    assert!(!theatre.heartbeat().await?.known);
    assert_eq!(theatre.register(1).await?.end_sessions, [lease.session_id]);
    Ok(())
}

async fn lists_are_a_tenants_own(store: StoreKind) -> anyhow::Result<()> {
    let theatre = Theatre::open(store).await?;
    theatre.register(5).await?;
    let runs: Vec<(String, &str)> =
        [(run_id(), "acme"), (run_id(), "acme"), (run_id(), "acme"), (run_id(), "blue")].into();
    theatre.acquire(runs.iter().map(|(run, tenant)| want(run, tenant)).collect()).await?;
    for (run, _) in &runs {
        theatre.granted(run).await;
    }
    let list = async |page: v1::Page, status: Vec<i32>| {
        let request = v1::ListSessionsRequest { tenant: "acme".into(), page: Some(page), status, agent_id: vec![] };
        theatre.api::<_, v1::ListSessionsResponse>("list_sessions", &request).await
    };
    let all = list(v1::Page::default(), vec![v1::SessionStatus::Running.into()]).await?.sessions;
    assert_eq!(all.len(), 3);
    assert!(all.is_sorted_by(|a, b| a.id > b.id), "newest first");
    let first = list(v1::Page { limit: 2, ..v1::Page::default() }, vec![]).await?;
    let (page, sessions) = (first.page.unwrap(), first.sessions);
    assert_eq!((page.has_more, &sessions[..]), (true, &all[..2]));
    let rest = list(v1::Page { cursor: page.next_cursor, ..v1::Page::default() }, vec![]).await?;
    assert_eq!(rest.sessions, all[2..]);
    let newer = list(v1::Page { limit: 1, ending_before: all[2].id.clone(), ..v1::Page::default() }, vec![]).await?;
    assert_eq!(newer.sessions, all[1..2]);
    assert!(list(v1::Page { cursor: "x".into(), ..v1::Page::default() }, vec![]).await.is_err());
    assert!(list(v1::Page::default(), vec![99]).await.is_err());
    let foreign = v1::EndSessionRequest { tenant: "blue".into(), session_id: all[0].id.clone() };
    let refused = theatre.api::<_, v1::SessionResponse>("end_session", &foreign).await;
    assert!(refused.unwrap_err().to_string().contains("session_not_found"));
    let own = v1::EndSessionRequest { tenant: "acme".into(), ..foreign };
    theatre.api::<_, v1::SessionResponse>("end_session", &own).await?;
    theatre.until("acme", &all[0].id, v1::SessionStatus::Completed).await;
    theatre.api::<_, v1::SessionResponse>("end_session", &own).await?;
    let loss =
        eventually("its run is told", PATIENCE, async || theatre.seen(|seen| seen.losses.first().cloned())).await;
    assert_eq!((loss.run_id.as_str(), loss.reason()), (all[0].run_id.as_str(), v1::LostReason::SessionEnded));
    let agents: v1::ListAgentsResponse = theatre.api("list_agents", &v1::ListAgentsRequest {}).await?;
    assert_eq!((agents.agents[0].capacity, agents.agents[0].leases), (5, 3));
    let drain = v1::DrainRunnerRequest { runner_id: theatre.runner.to_string() };
    assert!(theatre.api::<_, v1::DrainRunnerResponse>("drain_runner", &drain).await?.runner.unwrap().draining);
    assert!(theatre.heartbeat().await?.drain);
    let runners: v1::ListRunnersResponse = theatre.api("list_runners", &v1::ListRunnersRequest::default()).await?;
    assert_eq!(runners.runners.len(), 1);
    Ok(())
}

/// Fresh sessions, reused ones and two tenants; every run is served once, and every session ends as it must.
async fn many_runs_share_few_rooms(store: StoreKind) -> anyhow::Result<()> {
    let theatre = Theatre::open(store).await?;
    theatre.register(16).await?;
    let runs: Vec<String> = (0..400).map(|_| run_id()).collect();
    let wants = runs.iter().enumerate().map(|(n, run)| {
        let tenant = if n % 4 == 0 { "blue" } else { "acme" };
        v1::Want { reuse_session: n % 3 == 0, queued_at_ms: n as i64, ..want(run, tenant) }
    });
    theatre.acquire(wants.collect()).await?;
    let mut served = HashSet::new();
    let mut taken = 0;
    while served.len() < runs.len() {
        let fresh = theatre.seen(|seen| seen.grants[taken..].to_vec());
        taken += fresh.len();
        for grant in &fresh {
            assert!(served.insert(grant.run_id.clone()), "{} was granted twice", grant.run_id);
            theatre.release(grant).await?;
        }
        assert!(theatre.heartbeat().await?.known);
        assert!(theatre.seen(|seen| seen.sessions.len()) <= 16);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
