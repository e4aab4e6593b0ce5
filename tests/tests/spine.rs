//! Every transition of a run, every deadline, every rejection, over all services as processes: two dispatchers, two
//! timeout-watchers, a session-pool, and a runner whose agent does what the input says.

use std::time::Duration;

use anyhow::{Context, ensure};
use errand_client::{Client, ClientError, NewRun, RunId, Wait, v1};
use errand_core::ErrorCode;
use errand_core::run::Decision;
use errand_core::task::Definition;
use errand_tests::{Role, Service, Stack, StoreKind, eventually, ledger};
use serde_json::{Value, json};
use tokio::net::TcpListener;

const PATIENCE: Duration = Duration::from_secs(90);

macro_rules! on_both_stores {
    ($($name:ident)*) => {$(
        mod $name {
            #[tokio::test(flavor = "multi_thread")]
            async fn on_sqlite() -> anyhow::Result<()> {
                super::$name(errand_tests::StoreKind::Sqlite).await
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn on_postgres() -> anyhow::Result<()> {
                super::$name(errand_tests::StoreKind::Postgres).await
            }
        }
    )*};
}

on_both_stores! {
    runs_go_every_way_that_there_is
    a_deadline_that_passed_while_no_watcher_ran_fires_late
    a_runner_that_dies_takes_its_questions_with_it
}

/// A broker that is not there yet is no reason to hold up whoever stops everything.
#[tokio::test]
async fn a_service_that_waits_for_its_broker_ends_when_it_is_told_to() -> anyhow::Result<()> {
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("nats://{}", silent.local_addr()?);
    let folder = errand_tests::folder("store");
    let store = format!("sqlite://{}", folder.path().display());
    for role in [Role::Dispatcher, Role::SessionPool, Role::TimeoutWatcher, Role::Exec] {
        let more = if matches!(role, Role::Dispatcher | Role::SessionPool) { &["--store", &store][..] } else { &[] };
        let mut service = Service::spawn(role.binary(), &[&["--nats-url", &url], more].concat(), &[]);
        // The second knock shows that it has begun to wait.
        for _ in 0..2 {
            drop(tokio::time::timeout(PATIENCE, silent.accept()).await??);
        }
        let ended = tokio::task::spawn_blocking(move || service.process().terminate()).await?;
        ensure!(ended == Some(0), "{role:?} ended with {ended:?}");
    }
    Ok(())
}

/// A runner gets the inputs of all the runs that it is leased at once, in as many messages as they take.
#[tokio::test(flavor = "multi_thread")]
async fn inputs_that_no_message_holds_together_reach_their_runner() -> anyhow::Result<()> {
    let mut stack = Stack::new(StoreKind::Sqlite);
    stack.start(Role::Dispatcher, &["--log", "warn"]);
    stack.start(Role::SessionPool, &["--log", "warn"]);
    stack.ready().await;
    let client = Client::new(stack.bus().await, "acme".parse()?);
    let definition: Definition = serde_json::from_value(json!({"name": "a", "agent_id": "agt_scripted"}))?;
    let task = client.apply_task(&definition).await?.id;
    let input = json!({"filler": "x".repeat(200 * 1024)});
    let runs =
        (0..16).map(|_| anyhow::Ok(NewRun::of_task(&task)?.input(&input))).collect::<anyhow::Result<Vec<_>>>()?;
    let runs: Vec<v1::Run> = client.submit_many(runs).await?.into_iter().collect::<Result<_, _>>()?;
    stack.start(Role::Scripted, &["--log", "warn", "--capacity", "32"]);
    for run in runs {
        let ended = client.wait(run.id.parse()?, PATIENCE).await?;
        ensure!(matches!(&ended, Wait::Final(run) if run.status() == v1::RunStatus::Completed), "{ended:?}");
    }
    Ok(())
}

/// All services, and what a test asks of them.
struct World {
    stack: Stack,
    client: Client,
}

impl World {
    async fn start(kind: StoreKind) -> anyhow::Result<Self> {
        let mut stack = Stack::new(kind);
        for role in [Role::Dispatcher, Role::Dispatcher, Role::TimeoutWatcher, Role::TimeoutWatcher] {
            stack.start(role, &["--log", "warn"]);
        }
        stack.start(Role::SessionPool, &["--log", "warn", "--heartbeat-seconds", "1", "--runner-lost-seconds", "3"]);
        stack.start(Role::Scripted, &["--log", "warn", "--capacity", "32"]);
        stack.ready().await;
        let client = Client::new(stack.bus().await, "acme".parse()?);
        Ok(Self { stack, client })
    }

    /// A task with these settings; `more` overrides the rest of its definition.
    async fn task(&self, settings: Value, more: Value) -> anyhow::Result<String> {
        let mut definition = json!({"name": uuid::Uuid::now_v7().to_string(), "agent_id": "agt_scripted"});
        definition["settings"] = settings;
        for (key, value) in more.as_object().into_iter().flatten() {
            definition[key] = value.clone();
        }
        let definition: Definition = serde_json::from_value(definition)?;
        Ok(self.client.apply_task(&definition).await?.id)
    }

    /// A run of a new task with these settings, whose agent takes these steps.
    async fn run(&self, settings: Value, steps: Value) -> anyhow::Result<RunId> {
        let task = self.task(settings, json!({})).await?;
        self.run_of(&task, steps).await
    }

    async fn run_of(&self, task: &str, steps: Value) -> anyhow::Result<RunId> {
        let run = NewRun::of_task(task)?.input(&json!({"steps": steps}));
        let id = run.id();
        self.client.submit(run).await?;
        Ok(id)
    }

    /// Waits until the run is in a status.
    async fn reaches(&self, run: RunId, status: v1::RunStatus) -> v1::Run {
        eventually(&format!("{run} is {status:?}"), PATIENCE, async || {
            self.client.get_run(run).await.ok().filter(|run| run.status() == status)
        })
        .await
    }

    async fn ended(&self, run: RunId) -> anyhow::Result<v1::Run> {
        let run = self.client.wait(run, PATIENCE).await?.into_run();
        ensure!(run.finished_at_ms.is_some(), "{} is {:?}", run.id, run.status());
        Ok(run)
    }
}

/// What must become of a run.
struct Expected {
    run: RunId,
    statuses: &'static [&'static str],
    error: Option<ErrorCode>,
}

fn expect(run: RunId, statuses: &'static [&'static str], error: impl Into<Option<ErrorCode>>) -> Expected {
    Expected { run, statuses, error: error.into() }
}

fn refused<T: std::fmt::Debug>(answer: Result<T, ClientError>, code: ErrorCode) {
    match answer {
        Err(ClientError::Refused(error)) if error.code == code => {}
        other => panic!("{}/{} was expected, not {other:?}", code.kind, code.code),
    }
}

async fn runs_go_every_way_that_there_is(kind: StoreKind) -> anyhow::Result<()> {
    let world = World::start(kind).await?;
    let parts = tokio::try_join!(
        ends_of_an_execution(&world),
        questions(&world),
        reviews(&world),
        deadlines(&world),
        cancellations(&world),
        losses(&world),
        refusals(&world),
    )?;
    let expected: Vec<Expected> =
        [parts.0, parts.1, parts.2, parts.3, parts.4, parts.5, parts.6].into_iter().flatten().collect();
    let runs: Vec<RunId> = expected.iter().map(|one| one.run).collect();
    let entries = ledger::read_events(&world.client, &world.stack.broker.url(), &runs, PATIENCE).await?;
    for Expected { run, statuses, error } in &expected {
        assert_eq!(entries[run].statuses, *statuses, "{run}");
        let stored = world.client.get_run(*run).await?;
        let found = stored.errors.first().map(|found| (found.r#type.as_str(), found.code.as_str()));
        assert_eq!(found, error.as_ref().map(|code| (code.kind, code.code)), "{run} {statuses:?}");
    }
    ledger::check_store(&world.client, &entries, &runs).await?;
    eventually("every session is idle or has ended", PATIENCE, async || {
        ledger::busy_sessions(&world.client).await.ok().filter(Vec::is_empty).map(drop)
    })
    .await;
    Ok(())
}

async fn ends_of_an_execution(world: &World) -> anyhow::Result<Vec<Expected>> {
    let completed = world.run(json!({}), json!([{"progress": "half"}, {"output": 7}])).await?;
    let failed = world.run(json!({}), json!([{"fail": "no luck"}])).await?;
    let task = world.task(json!({}), json!({"output_schema": {"type": "integer"}})).await?;
    let misfit = world.run_of(&task, json!([{"output": "seven"}])).await?;
    let again = world.ended(failed).await?;
    assert_eq!(again.errors[0].message, "no luck");
    let retried: RunId = world.client.retry(failed).await?.id.parse()?;
    assert_eq!(world.ended(retried).await?.retry_of, failed.to_string());
    let kept = world.ended(misfit).await?;
    assert_eq!(kept.output.as_deref(), Some(&b"\"seven\""[..]), "the reader may look at it");
    assert_eq!(world.ended(completed).await?.output.as_deref(), Some(&b"7"[..]));
    Ok(vec![
        expect(completed, &["queued", "running", "completed"], None),
        expect(failed, &["queued", "running", "failed"], ErrorCode::AGENT_ERROR),
        expect(retried, &["queued", "running", "failed"], ErrorCode::AGENT_ERROR),
        expect(misfit, &["queued", "running", "failed"], ErrorCode::OUTPUT_INVALID),
    ])
}

async fn questions(world: &World) -> anyhow::Result<Vec<Expected>> {
    let ask = json!([{"ask": "code"}]);
    let answered = world.run(json!({}), ask.clone()).await?;
    let canceled = world.run(json!({}), ask.clone()).await?;
    let late = world.run(json!({"interaction_seconds": 1}), ask).await?;
    let asking = world.reaches(answered, v1::RunStatus::InteractionRequired).await;
    assert_eq!(asking.interaction.context("the question")?.message, "The script asks");
    refused(world.client.interact(answered, &json!({"pin": "1"})).await, ErrorCode::FIELD_UNKNOWN);
    refused(world.client.interact(answered, &json!({})).await, ErrorCode::INPUT_MISSING);
    world.client.interact(answered, &json!({"code": "123456"})).await?;
    assert_eq!(world.ended(answered).await?.output.as_deref(), Some(&br#"{"code":"123456"}"#[..]));
    refused(world.client.interact(answered, &json!({"code": "1"})).await, ErrorCode::INTERACTION_NOT_PENDING);
    world.reaches(canceled, v1::RunStatus::InteractionRequired).await;
    world.client.cancel(canceled).await?;
    Ok(vec![
        expect(answered, &["queued", "running", "interaction_required", "running", "completed"], None),
        expect(canceled, &["queued", "running", "interaction_required", "canceling", "canceled"], None),
        expect(late, &["queued", "running", "interaction_required", "failed"], ErrorCode::INTERACTION_TIMEOUT),
    ])
}

async fn reviews(world: &World) -> anyhow::Result<Vec<Expected>> {
    let task = world.task(json!({"review": true}), json!({})).await?;
    let output = json!([{"output": 1}]);
    let approved = world.run_of(&task, output.clone()).await?;
    let rejected = world.run_of(&task, output.clone()).await?;
    let late = world.run(json!({"review": true, "review_seconds": 1}), output).await?;
    for run in [approved, rejected] {
        world.reaches(run, v1::RunStatus::ReviewRequired).await;
    }
    refused(world.client.cancel(approved).await, ErrorCode::TASK_RUN_NOT_CANCELABLE);
    world.client.review(approved, Decision::Approve, "").await?;
    world.client.review(rejected, Decision::Reject, "the sum is wrong").await?;
    refused(world.client.review(rejected, Decision::Approve, "").await, ErrorCode::REVIEW_NOT_PENDING);
    let told = world.ended(rejected).await?;
    assert!(told.errors[0].message.contains("the sum is wrong"), "{:?}", told.errors);
    Ok(vec![
        expect(approved, &["queued", "running", "review_required", "completed"], None),
        expect(rejected, &["queued", "running", "review_required", "failed"], ErrorCode::REVIEW_REJECTED),
        expect(late, &["queued", "running", "review_required", "failed"], ErrorCode::REVIEW_TIMEOUT),
    ])
}

async fn deadlines(world: &World) -> anyhow::Result<Vec<Expected>> {
    let nobody = world.task(json!({"queue_seconds": 1}), json!({"agent_id": "agt_nobody"})).await?;
    let unserved = world.run_of(&nobody, json!([])).await?;
    // Its runner lives and says so all the time; the agent does not.
    let stuck = world.run(json!({"inactivity_seconds": 1}), json!(["stuck"])).await?;
    let busy = |rounds: usize| -> Value {
        (0..rounds).flat_map(|_| [json!({"progress": "still here"}), json!({"sleep_ms": 300})]).collect()
    };
    let endless = world.run(json!({"timeout_seconds": 2, "inactivity_seconds": 1}), busy(200)).await?;
    let active = world.run(json!({"inactivity_seconds": 1}), busy(5)).await?;
    Ok(vec![
        expect(unserved, &["queued", "failed"], ErrorCode::SESSION_TIMEOUT),
        expect(stuck, &["queued", "running", "failed"], ErrorCode::TASK_TIMEOUT),
        expect(endless, &["queued", "running", "failed"], ErrorCode::TASK_TIMEOUT),
        // Longer than the limit, but never without activity for so long.
        expect(active, &["queued", "running", "completed"], None),
    ])
}

async fn cancellations(world: &World) -> anyhow::Result<Vec<Expected>> {
    let nobody = world.task(json!({}), json!({"agent_id": "agt_nobody"})).await?;
    let waiting = world.run_of(&nobody, json!([])).await?;
    let once = world.client.cancel(waiting).await?;
    let twice = world.client.cancel(waiting).await?;
    assert_eq!((once.status(), &once), (v1::RunStatus::Canceled, &twice), "repeated, the same answer");
    let running = world.run(json!({}), json!([{"sleep_ms": 60_000}])).await?;
    world.reaches(running, v1::RunStatus::Running).await;
    world.client.cancel(running).await?;
    // It does not listen: its grace passes, and its session is torn down.
    let deaf = world.run(json!({}), json!(["deaf"])).await?;
    world.reaches(deaf, v1::RunStatus::Running).await;
    world.client.cancel(deaf).await?;
    let completed = world.run(json!({}), json!([])).await?;
    world.ended(completed).await?;
    refused(world.client.cancel(completed).await, ErrorCode::TASK_RUN_NOT_CANCELABLE);
    // To end its session is to cancel the run.
    let ended = world.run(json!({}), json!([{"sleep_ms": 60_000}])).await?;
    let session = world.reaches(ended, v1::RunStatus::Running).await.session_id;
    world.client.end_session(session.parse()?).await?;
    Ok(vec![
        expect(waiting, &["queued", "canceled"], None),
        expect(running, &["queued", "running", "canceling", "canceled"], None),
        expect(deaf, &["queued", "running", "canceling", "canceled"], None),
        expect(completed, &["queued", "running", "completed"], None),
        expect(ended, &["queued", "running", "canceled"], None),
    ])
}

async fn losses(world: &World) -> anyhow::Result<Vec<Expected>> {
    let lose = json!([{"lose": "the machine is gone"}]);
    let twice = world.run(json!({"max_attempts": 2}), lose.clone()).await?;
    let never = world.run(json!({"retry_on": []}), lose).await?;
    assert_eq!(world.ended(twice).await?.attempt, 2);
    assert_eq!(world.ended(never).await?.attempt, 1);
    Ok(vec![
        expect(twice, &["queued", "running", "queued", "running", "failed"], ErrorCode::SESSION_LOST),
        expect(never, &["queued", "running", "failed"], ErrorCode::SESSION_LOST),
    ])
}

async fn refusals(world: &World) -> anyhow::Result<Vec<Expected>> {
    let schema = json!({"type": "object", "required": ["steps", "n"]});
    let task = world.task(json!({}), json!({"input_schema": schema})).await?;
    let misfit = || anyhow::Ok(NewRun::of_task(&task)?.input(&json!({"steps": []})));
    // Over request/reply nothing is made; from the stream a failed run tells what was wrong.
    let asked = misfit()?;
    let asked_id = asked.id();
    refused(world.client.submit(asked).await, ErrorCode::INPUT_INVALID);
    refused(world.client.get_run(asked_id).await, ErrorCode::TASK_RUN_NOT_FOUND);
    let published = world.client.publish_run(misfit()?).await?;
    let again = world.client.publish_run(misfit()?.with_id(published.run_id)).await?;
    assert!(again.duplicate);
    // Published is not yet taken: the run is there when a dispatcher has committed it.
    let told = world.reaches(published.run_id, v1::RunStatus::Failed).await;
    assert!(told.errors[0].message.contains("\"n\" is a required property"), "{:?}", told.errors);
    let other = world.client.for_tenant("other".parse()?);
    refused(other.get_run(published.run_id).await, ErrorCode::TASK_RUN_NOT_FOUND);
    refused(other.cancel(published.run_id).await, ErrorCode::TASK_RUN_NOT_FOUND);
    Ok(vec![expect(published.run_id, &["failed"], ErrorCode::INPUT_INVALID)])
}

async fn a_deadline_that_passed_while_no_watcher_ran_fires_late(kind: StoreKind) -> anyhow::Result<()> {
    let mut world = World::start(kind).await?;
    for watcher in world.stack.services(Role::TimeoutWatcher) {
        watcher.process().kill9();
    }
    let stuck = world.run(json!({"inactivity_seconds": 1}), json!(["stuck"])).await?;
    let started = world.reaches(stuck, v1::RunStatus::Running).await.started_at_ms.context("it runs")?;
    // Until the deadline has passed and nothing came of it.
    let probe = world.run(json!({}), json!([{"sleep_ms": 2_000}])).await?;
    let probed = world.ended(probe).await?.finished_at_ms.context("it has ended")?;
    assert!(probed - started > 1_500, "{probed} {started}");
    assert_eq!(world.client.get_run(stuck).await?.status(), v1::RunStatus::Running);
    world.stack.service(Role::TimeoutWatcher).restart();
    let failed = world.ended(stuck).await?;
    assert_eq!((failed.errors[0].r#type.as_str(), failed.errors[0].code.as_str()), ("task", "timeout"));
    Ok(())
}

async fn a_runner_that_dies_takes_its_questions_with_it(kind: StoreKind) -> anyhow::Result<()> {
    let mut world = World::start(kind).await?;
    let asking = world.run(json!({}), json!([{"ask": "code"}])).await?;
    let running = world.run(json!({"max_attempts": 2}), json!([{"sleep_ms": 500}, {"output": 1}])).await?;
    world.reaches(asking, v1::RunStatus::InteractionRequired).await;
    world.reaches(running, v1::RunStatus::Running).await;
    world.stack.service(Role::Scripted).restart();
    // What asked cannot be asked again elsewhere; what only ran can.
    let (lost, again) = (world.ended(asking).await?, world.ended(running).await?);
    assert_eq!((lost.errors[0].r#type.as_str(), lost.errors[0].code.as_str()), ("session", "lost"));
    assert_eq!((again.status(), again.attempt), (v1::RunStatus::Completed, 2));
    let url = world.stack.broker.url();
    let entries = ledger::read_events(&world.client, &url, &[asking, running], PATIENCE).await?;
    assert_eq!(entries[&asking].statuses, ["queued", "running", "interaction_required", "failed"]);
    assert_eq!(entries[&running].statuses, ["queued", "running", "queued", "running", "completed"]);
    Ok(())
}
