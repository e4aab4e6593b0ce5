//! The engine with a host that does what a test says, without a bus.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use errand_core::run::Lease;
use errand_core::{TaskId, Tenant};
use tokio::sync::oneshot;
use tokio::time::sleep;
use uuid::Uuid;

use super::*;
use crate::report::Waiting;

/// What the host was asked to do.
#[derive(Default)]
struct Log {
    sessions: HashSet<SessionId>,
    /// Executions under way, by session.
    executing: HashMap<SessionId, u32>,
    /// How each may end.
    ends: HashMap<LeaseToken, oneshot::Sender<Ending>>,
    dropped: Vec<LeaseToken>,
    ended_sessions: Vec<SessionId>,
    handles: HashMap<SessionId, SessionHandle>,
}

#[derive(Clone, Default)]
struct Fake {
    log: Arc<Mutex<Log>>,
    start_takes: Option<Duration>,
    start_fails: Arc<AtomicBool>,
}

/// Notes that an execution is over, and whether it was dropped.
struct Guard(Arc<Mutex<Log>>, SessionId, LeaseToken, bool);

impl Drop for Guard {
    fn drop(&mut self) {
        let mut log = self.0.lock().unwrap();
        *log.executing.get_mut(&self.1).unwrap() -= 1;
        if !self.3 {
            log.dropped.push(self.2);
        }
    }
}

impl Host for Fake {
    async fn start_session(&self, session: SessionStart) -> Result<(), Error> {
        if let Some(takes) = self.start_takes {
            sleep(takes).await;
        }
        if self.start_fails.load(Ordering::Relaxed) {
            return Err(ErrorCode::PROVISION_FAILED.with("no"));
        }
        let mut log = self.log.lock().unwrap();
        assert!(log.sessions.insert(session.id), "started twice");
        log.handles.insert(session.id, session.handle);
        Ok(())
    }

    async fn end_session(&self, id: SessionId) {
        let mut log = self.log.lock().unwrap();
        assert_eq!(log.executing.get(&id).copied().unwrap_or(0), 0, "something executes in a session that ends");
        log.sessions.remove(&id);
        log.ended_sessions.push(id);
    }

    async fn execute(&self, run: Assigned, control: Control) -> Ending {
        let (session, token) = (run.lease.session_id, run.lease.token);
        let (end, ended) = oneshot::channel();
        {
            let mut log = self.log.lock().unwrap();
            assert!(log.sessions.contains(&session), "executes where no session is");
            let executing = log.executing.entry(session).or_default();
            *executing += 1;
            assert_eq!(*executing, 1, "two runs in one session");
            log.ends.insert(token, end);
        }
        let mut guard = Guard(Arc::clone(&self.log), session, token, false);
        if run.prompt == "panic" {
            panic!("as asked");
        }
        // In the middle of its work, again and again: it cannot be dropped there.
        if run.prompt == "busy" {
            loop {
                std::thread::sleep(Duration::from_millis(100));
                tokio::task::yield_now().await;
            }
        }
        let obeys = run.prompt == "obeys";
        let ending = tokio::select! {
            ending = ended => ending.unwrap(),
            _ = control.stop(), if obeys => Ending::Stopped,
        };
        guard.3 = true;
        ending
    }
}

struct Bench {
    engine: Arc<Engine<Fake>>,
    log: Arc<Mutex<Log>>,
    reports: Waiting,
    losses: mpsc::UnboundedReceiver<Loss>,
}

fn bench(fake: Fake, capacity: usize) -> Bench {
    let (reports, waiting) = Reports::new();
    let (losses, lost) = mpsc::unbounded_channel();
    let log = Arc::clone(&fake.log);
    let id = RunnerId::from_uuid(Uuid::now_v7());
    let (activities, shelf) = (Activities::new().0, Shelf::default());
    let engine = Engine::new(fake, id, capacity, Outward { reports, activities, shelf, losses, vault: None });
    Bench { engine, log, reports: waiting, losses: lost }
}

fn session() -> SessionId {
    SessionId::from_uuid(Uuid::now_v7())
}

impl Bench {
    async fn start(&self, id: SessionId) -> Result<(), Error> {
        self.engine.start_session(Wanted { id, tenant: None, source_id: None, credential_id: None }).await
    }

    fn assigned(&self, session_id: SessionId, token: LeaseToken, prompt: &str) -> Assigned {
        Assigned {
            run_id: RunId::from_uuid(Uuid::now_v7()),
            tenant: "acme".parse::<Tenant>().unwrap(),
            lease: Lease { session_id, runner_id: self.engine.id, token },
            task_id: TaskId::from_uuid(Uuid::now_v7()),
            task_version: 1,
            attempt: 1,
            prompt: prompt.into(),
            program: Bytes::new(),
            input: Bytes::new(),
            metadata: BTreeMap::new(),
            source_id: None,
            credential_id: None,
            traceparent: String::new(),
        }
    }

    fn assign(&self, assigned: &Assigned) -> Option<&'static str> {
        self.engine.assign(vec![assigned.clone()]).pop().map(|refusal| refusal.message)
    }

    /// Lets everything happen that can without time passing.
    async fn settle(&self) {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    async fn end(&self, token: LeaseToken, ending: Ending) {
        self.settle().await;
        let end = self.log.lock().unwrap().ends.remove(&token).unwrap();
        let _ = end.send(ending);
        self.settle().await;
    }

    fn report(&mut self) -> Option<Report> {
        self.reports.try_next()
    }
}

#[tokio::test(start_paused = true)]
async fn a_run_is_executed_once_and_reported() {
    let mut bench = bench(Fake::default(), 1);
    let id = session();
    bench.start(id).await.unwrap();
    bench.start(id).await.unwrap();
    let run = bench.assigned(id, 5, "");
    assert_eq!(bench.assign(&run), None);
    assert_eq!(bench.assign(&run), None, "a repetition is taken");
    assert_eq!(bench.engine.sessions(), [Held { id, lease: Some((5, run.run_id)) }]);
    bench.end(5, Ending::Finished("1".into())).await;
    assert_eq!(bench.assign(&run), None, "also when it is over");
    bench.settle().await;
    let report = bench.report().unwrap();
    assert!(matches!(&report.what, What::Finished(output) if output == "1"));
    assert!(bench.report().is_none() && bench.log.lock().unwrap().ends.is_empty(), "executed again");
    assert_eq!(bench.engine.sessions()[0].lease, Some((5, run.run_id)), "ours until the report is answered");
    bench.engine.answered(&report, true);
    assert_eq!(bench.engine.sessions()[0].lease, None);
}

#[tokio::test(start_paused = true)]
async fn a_newer_lease_drops_the_older_and_an_older_is_refused() {
    let mut bench = bench(Fake::default(), 1);
    let id = session();
    bench.start(id).await.unwrap();
    let (old, new) = (bench.assigned(id, 5, ""), bench.assigned(id, 6, ""));
    assert_eq!(bench.assign(&old), None);
    bench.settle().await;
    assert_eq!(bench.assign(&new), None);
    bench.settle().await;
    assert_eq!(bench.log.lock().unwrap().dropped, [5]);
    assert_eq!(bench.assign(&old), Some("a newer lease holds the session"));
    assert!(!bench.engine.stop(old.key(), StopReason::Canceled, Duration::ZERO));
    bench.end(6, Ending::Finished(Bytes::new())).await;
    assert_eq!(bench.report().unwrap().token, 6);
    assert!(bench.report().is_none(), "the dropped one is not reported");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 3)]
async fn a_newer_lease_waits_until_the_older_is_gone() {
    let bench = bench(Fake::default(), 1);
    let id = session();
    bench.start(id).await.unwrap();
    let executes = async |token: LeaseToken| {
        while !bench.log.lock().unwrap().ends.contains_key(&token) {
            sleep(Duration::from_millis(1)).await;
        }
    };
    assert_eq!(bench.assign(&bench.assigned(id, 5, "busy")), None);
    executes(5).await;
    assert_eq!(bench.assign(&bench.assigned(id, 6, "")), None);
    // The host would not have two in one session.
    timeout(Duration::from_secs(20), executes(6)).await.unwrap();
    assert_eq!(bench.log.lock().unwrap().dropped, [5]);
}

#[tokio::test(start_paused = true)]
async fn what_is_not_here_is_refused() {
    let bench = bench(Fake::default(), 1);
    let id = session();
    let run = bench.assigned(id, 5, "");
    assert_eq!(bench.assign(&run), Some("the session is not here"));
    bench.start(id).await.unwrap();
    assert!(bench.start(session()).await.is_err(), "no room");
    let mut foreign = run.clone();
    foreign.lease.runner_id = RunnerId::from_uuid(Uuid::now_v7());
    assert_eq!(bench.assign(&foreign), Some("the lease is another runner's"));
    bench.engine.tear_down(id).await;
    bench.engine.tear_down(id).await;
    assert_eq!(bench.assign(&run), Some("the session is not here"));
    let late = bench.start(id).await.unwrap_err();
    assert!(late.message.contains("has ended"), "a late repetition starts nothing: {late}");
    assert_eq!(bench.log.lock().unwrap().ended_sessions, [id]);
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_obeys_reports_and_keeps_its_session() {
    let mut bench = bench(Fake::default(), 1);
    let id = session();
    bench.start(id).await.unwrap();
    let run = bench.assigned(id, 5, "obeys");
    bench.assign(&run);
    bench.settle().await;
    for _ in 0..2 {
        assert!(bench.engine.stop(run.key(), StopReason::Canceled, Duration::from_secs(5)));
    }
    bench.settle().await;
    assert!(matches!(bench.report().unwrap().what, What::Stopped));
    sleep(Duration::from_secs(10)).await;
    assert_eq!(bench.engine.sessions().len(), 1);
    assert!(bench.log.lock().unwrap().dropped.is_empty());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_does_not_stop_loses_its_session() {
    let mut bench = bench(Fake::default(), 1);
    let id = session();
    bench.start(id).await.unwrap();
    let run = bench.assigned(id, 5, "");
    bench.assign(&run);
    bench.settle().await;
    assert!(bench.engine.stop(run.key(), StopReason::Timeout, Duration::from_secs(5)));
    sleep(Duration::from_millis(4_900)).await;
    assert!(bench.report().is_none());
    sleep(Duration::from_millis(200)).await;
    assert!(matches!(bench.report().unwrap().what, What::Stopped));
    assert_eq!(bench.log.lock().unwrap().dropped, [5]);
    assert_eq!(bench.losses.recv().await.unwrap().id, id);
    assert_eq!(bench.engine.sessions(), []);
}

#[tokio::test(start_paused = true)]
async fn a_stop_that_overtakes_its_assignment_stops_it() {
    let mut bench = bench(Fake::default(), 1);
    let id = session();
    bench.start(id).await.unwrap();
    let run = bench.assigned(id, 5, "");
    assert!(!bench.engine.stop(run.key(), StopReason::Canceled, Duration::ZERO));
    assert_eq!(bench.assign(&run), None);
    bench.settle().await;
    assert!(matches!(bench.report().unwrap().what, What::Stopped));
    assert!(bench.log.lock().unwrap().ends.is_empty(), "it never began");
}

#[tokio::test(start_paused = true)]
async fn a_session_that_ends_takes_its_run_with_it_in_silence() {
    let mut bench = bench(Fake::default(), 1);
    let id = session();
    bench.start(id).await.unwrap();
    bench.assign(&bench.assigned(id, 5, ""));
    bench.settle().await;
    bench.engine.tear_down(id).await;
    assert_eq!(bench.log.lock().unwrap().dropped, [5]);
    assert!(bench.report().is_none() && bench.losses.try_recv().is_err());
    assert!(bench.engine.is_idle());
}

#[tokio::test(start_paused = true)]
async fn a_lost_session_is_told_to_the_pool_once() {
    let mut bench = bench(Fake::default(), 3);
    let [by_run, by_handle, by_panic] = std::array::from_fn(|_| session());
    for id in [by_run, by_handle, by_panic] {
        bench.start(id).await.unwrap();
    }
    bench.assign(&bench.assigned(by_run, 5, ""));
    bench.assign(&bench.assigned(by_handle, 6, ""));
    bench.end(5, Ending::SessionLost("gone".into())).await;
    assert_eq!(bench.losses.recv().await.unwrap(), Loss { id: by_run, message: "gone".into() });
    let handle = bench.log.lock().unwrap().handles[&by_handle].clone();
    handle.lost("crashed");
    handle.lost("crashed again");
    assert_eq!(bench.losses.recv().await.unwrap(), Loss { id: by_handle, message: "crashed".into() });
    bench.assign(&bench.assigned(by_panic, 7, "panic"));
    assert_eq!(bench.losses.recv().await.unwrap().id, by_panic);
    bench.settle().await;
    assert_eq!(bench.engine.sessions(), []);
    assert!(bench.report().is_none() && bench.losses.try_recv().is_err());
}

#[tokio::test(start_paused = true)]
async fn a_report_that_is_not_accepted_drops_the_run() {
    let mut bench = bench(Fake::default(), 1);
    let id = session();
    bench.start(id).await.unwrap();
    let run = bench.assigned(id, 5, "");
    bench.assign(&run);
    bench.settle().await;
    let report = Report { run_id: run.run_id, token: 5, session_id: id, what: What::Stopped };
    bench.engine.answered(&report, false);
    bench.settle().await;
    assert_eq!(bench.log.lock().unwrap().dropped, [5]);
    assert_eq!(bench.engine.sessions(), [Held { id, lease: None }]);
    assert!(bench.report().is_none());
}

#[tokio::test(start_paused = true)]
async fn an_output_beyond_the_limit_fails_the_run() {
    let mut bench = bench(Fake::default(), 1);
    let id = session();
    bench.start(id).await.unwrap();
    bench.assign(&bench.assigned(id, 5, ""));
    bench.end(5, Ending::Finished(vec![b'1'; limits::MAX_VALUE_BYTES + 1].into())).await;
    let What::Failed(errors) = bench.report().unwrap().what else { panic!("not failed") };
    assert_eq!(errors[0].code, ErrorCode::OUTPUT_INVALID);
}

#[tokio::test(start_paused = true)]
async fn a_start_can_fail_be_repeated_and_be_ended_midway() {
    let fake = Fake { start_takes: Some(Duration::from_secs(1)), ..Fake::default() };
    let fails = Arc::clone(&fake.start_fails);
    let bench = bench(fake, 1);
    let (id, other) = (session(), session());
    let ended = async {
        sleep(Duration::from_millis(500)).await;
        bench.engine.tear_down(id).await;
    };
    let (first, second, ()) = tokio::join!(bench.start(id), bench.start(id), ended);
    assert!(first.is_err() && second.is_err());
    assert_eq!(bench.log.lock().unwrap().ended_sessions, [id]);
    fails.store(true, Ordering::Relaxed);
    assert_eq!(bench.start(other).await.unwrap_err().message, "no");
    bench.settle().await;
    assert_eq!(bench.log.lock().unwrap().ended_sessions, [id, other]);
    assert_eq!(bench.engine.sessions(), [], "the room is free again");
}

#[tokio::test(start_paused = true)]
async fn closing_drops_and_ends_everything() {
    let mut bench = bench(Fake { start_takes: Some(Duration::from_secs(1)), ..Fake::default() }, 3);
    let (idle, busy, starting) = (session(), session(), session());
    tokio::try_join!(bench.start(idle), bench.start(busy)).unwrap();
    bench.assign(&bench.assigned(busy, 5, ""));
    bench.settle().await;
    let engine = Arc::clone(&bench.engine);
    let close = async {
        sleep(Duration::from_millis(100)).await;
        engine.close_all().await;
    };
    let (started, ()) = tokio::join!(bench.start(starting), close);
    assert!(started.is_err());
    assert_eq!(bench.engine.sessions(), []);
    assert!(bench.engine.is_idle() && bench.report().is_none());
    assert!(bench.start(session()).await.is_err());
    let log = bench.log.lock().unwrap();
    assert!(log.dropped == [5] && log.ended_sessions.len() == 3);
}

/// Found by the simulator, seed 630: the session was made, and nobody ever ended it.
#[tokio::test(start_paused = true)]
async fn a_start_that_arrives_behind_its_tear_down_starts_nothing() {
    let bench = bench(Fake::default(), 1);
    let id = session();
    bench.engine.tear_down(id).await;
    assert!(bench.start(id).await.is_err());
    assert_eq!(bench.engine.sessions(), []);
}
