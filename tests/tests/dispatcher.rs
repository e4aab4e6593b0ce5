//! The dispatcher as its clients, the session-pool, runners and the timeout-watcher see it: real processes, a real
//! broker, both stores. The pool and the runner are played by the test.

use std::collections::BTreeMap;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use async_nats::jetstream;
use errand_bus::{Bus, BusConfig, RequestError};
use errand_core::{RunId, RunnerId, SessionId, Tenant};
use errand_proto::v1::{self, RunStatus};
use errand_tests::{Broker, Child, Postgres, StoreKind, service};
use futures::StreamExt;
use prost::Message;
use uuid::Uuid;

/// How long anything may take before a test gives up on it.
const PATIENCE: Duration = Duration::from_secs(40);

struct Stack {
    broker: Broker,
    postgres: Option<Postgres>,
    folder: tempfile::TempDir,
    dispatchers: Vec<Child>,
    bus: Bus,
    tenant: Tenant,
    runner: RunnerId,
}

impl Stack {
    async fn start(store: StoreKind, dispatchers: usize) -> anyhow::Result<Self> {
        let broker = Broker::start();
        let postgres = (store == StoreKind::Postgres).then(Postgres::start);
        let bus = Bus::connect(BusConfig { url: broker.url(), ..BusConfig::default() }, PATIENCE).await?;
        let mut stack = Self {
            broker,
            postgres,
            folder: tempfile::tempdir()?,
            dispatchers: Vec::new(),
            bus,
            tenant: "acme".parse()?,
            runner: RunnerId::from_uuid(Uuid::now_v7()),
        };
        for _ in 0..dispatchers {
            stack.add_dispatcher();
        }
        stack.ready().await?;
        Ok(stack)
    }

    fn add_dispatcher(&mut self) {
        let store = match &self.postgres {
            Some(postgres) => postgres.url(),
            None => format!("sqlite://{}", self.folder.path().display()),
        };
        let mut command = service("errand-dispatcher");
        command.args(["--nats-url", &self.broker.url(), "--store", &store, "--log", "warn"]).stdout(Stdio::null());
        self.dispatchers.push(Child::spawn(&mut command));
    }

    /// Asks until a dispatcher answers.
    async fn ready(&self) -> anyhow::Result<()> {
        let asked = async {
            loop {
                let request = v1::ListDeadlinesRequest { limit: 1, ..v1::ListDeadlinesRequest::default() };
                match self.api::<_, v1::ListDeadlinesResponse>("list_deadlines", &request).await {
                    Ok(_) => return,
                    Err(_) => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        };
        tokio::time::timeout(PATIENCE, asked).await.context("no dispatcher serves")
    }

    async fn api<Q: Message, A: Message + Default>(&self, method: &str, request: &Q) -> Result<A, RequestError> {
        self.bus.request(self.bus.subjects().api("dispatcher", method), request).await
    }

    async fn tell<Q: Message, A: Message + Default>(&self, method: &str, request: &Q) -> Result<A, RequestError> {
        self.bus.request(self.bus.subjects().run(method), request).await
    }

    async fn task(&self, settings: v1::TaskSettings) -> anyhow::Result<String> {
        let task = v1::Task {
            name: format!("task {}", Uuid::now_v7()),
            agent_id: "agt_exec".into(),
            input_schema: r#"{"type":"object","required":["n"],"properties":{"n":{"type":"integer"}}}"#.into(),
            output_schema: r#"{"type":"integer"}"#.into(),
            settings: Some(settings),
            ..v1::Task::default()
        };
        let request = v1::CreateTaskRequest { tenant: self.tenant.to_string(), task: Some(task), upsert: false };
        let created: v1::TaskResponse = self.api("create_task", &request).await?;
        Ok(created.task.context("the task")?.id)
    }

    fn request(task_id: &str) -> v1::RunRequest {
        v1::RunRequest { task_id: task_id.into(), input: r#"{"n":1}"#.into(), ..v1::RunRequest::default() }
    }

    async fn submit(&self, request: v1::RunRequest) -> anyhow::Result<v1::Run> {
        let request = v1::SubmitRunsRequest { tenant: self.tenant.to_string(), requests: vec![request] };
        let answer: v1::SubmitRunsResponse = self.api("submit_runs", &request).await?;
        match answer.results.into_iter().next().and_then(|result| result.outcome) {
            Some(v1::submit_run_result::Outcome::Run(run)) => Ok(run),
            Some(v1::submit_run_result::Outcome::Error(error)) => bail!("{}/{}", error.r#type, error.code),
            None => bail!("no outcome"),
        }
    }

    fn lease(&self, token: u64) -> v1::Lease {
        let session_id = SessionId::from_uuid(Uuid::now_v7()).to_string();
        v1::Lease { session_id, runner_id: self.runner.to_string(), token }
    }

    /// Plays the pool: grants, asking again until answered.
    async fn grant(&self, run_id: &str, token: u64, attempt: u32) -> anyhow::Result<bool> {
        let grant = v1::Grant { run_id: run_id.into(), lease: Some(self.lease(token)), attempt };
        let request = v1::GrantRequest { grants: vec![grant], epoch: "test".into() };
        let answer: v1::GrantResponse = self.insist("grant", &request).await?;
        Ok(answer.answers.first().context("an answer")?.accepted)
    }

    /// Plays a runner: reports, asking again until answered.
    async fn report(&self, run_id: &str, token: u64, what: v1::report::What) -> anyhow::Result<bool> {
        let report = v1::Report { run_id: run_id.into(), lease_token: token, what: Some(what) };
        let answer: v1::ReportResponse = self.insist("report", &v1::ReportRequest { reports: vec![report] }).await?;
        Ok(answer.answers.first().context("an answer")?.accepted)
    }

    async fn insist<Q: Message, A: Message + Default>(&self, method: &str, request: &Q) -> anyhow::Result<A> {
        let asked = async {
            loop {
                match self.tell(method, request).await {
                    Ok(answer) => return Ok(answer),
                    Err(error) if error.is_transient() => tokio::time::sleep(Duration::from_millis(50)).await,
                    Err(error) => return Err(error),
                }
            }
        };
        Ok(tokio::time::timeout(PATIENCE, asked).await.with_context(|| format!("{method} is not answered"))??)
    }

    async fn run(&self, run_id: &str) -> anyhow::Result<v1::Run> {
        let request =
            v1::GetRunRequest { tenant: self.tenant.to_string(), run_id: run_id.into(), ..Default::default() };
        let answer: v1::GetRunResponse = self.api("get_run", &request).await?;
        answer.run.context("the run")
    }

    /// Reads the event stream from its beginning until each of these runs has a final event; checks that each run's
    /// events come in `seq` order without gaps.
    async fn events_until_final(&self, run_ids: &[String]) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
        let client = async_nats::connect(self.broker.url()).await?;
        let stream = jetstream::new(client).get_stream("ERRAND_V1_EVENT").await?;
        let consumer = stream.create_consumer(jetstream::consumer::pull::OrderedConfig::default()).await?;
        let mut messages = consumer.messages().await?;
        let mut seen: BTreeMap<String, Vec<String>> = BTreeMap::new();
        let mut ids = std::collections::HashSet::new();
        let mut missing: std::collections::HashSet<&String> = run_ids.iter().collect();
        let reading = async {
            while !missing.is_empty() {
                let message = messages.next().await.context("the stream ended")??;
                let event = v1::Event::decode(message.payload.clone())?;
                if !event.r#type.starts_with("task_run.") || !ids.insert(event.id.clone()) {
                    continue;
                }
                let types = seen.entry(event.object_id.clone()).or_default();
                types.push(event.r#type.clone());
                anyhow::ensure!(types.len() as u64 == event.seq, "{} has {types:?} at {}", event.object_id, event.seq);
                if ["task_run.completed", "task_run.failed", "task_run.canceled"].contains(&event.r#type.as_str()) {
                    missing.remove(&event.object_id);
                }
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(PATIENCE, reading).await.context("events are missing")??;
        Ok(seen)
    }
}

fn finished(json: &'static str) -> v1::report::What {
    v1::report::What::Finished(v1::Finished { output: json.into() })
}

fn question() -> v1::Interaction {
    let field = v1::InteractionField { name: "code".into(), r#type: "code".into(), ..Default::default() };
    v1::Interaction { id: "q1".into(), r#type: "mfa".into(), fields: vec![field], ..Default::default() }
}

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
    a_run_goes_through_an_interaction_and_a_review
    failures_and_cancellations_say_why
    lists_are_filtered_and_paged
    submissions_are_idempotent_and_what_cannot_be_read_is_kept
    a_killed_dispatcher_loses_nothing
    a_broker_that_comes_back_empty_costs_no_event
}

async fn a_run_goes_through_an_interaction_and_a_review(store: StoreKind) -> anyhow::Result<()> {
    let stack = Stack::start(store, 2).await?;
    let task = stack.task(v1::TaskSettings { review: true, ..Default::default() }).await?;
    let run = stack.submit(Stack::request(&task)).await?;
    assert_eq!(run.status(), RunStatus::Queued);
    assert!(stack.grant(&run.id, 5, 1).await?);
    assert!(!stack.grant(&run.id, 6, 1).await?, "a second session is refused");
    assert!(stack.report(&run.id, 5, v1::report::What::Interaction(question())).await?);
    assert_eq!(stack.run(&run.id).await?.interaction.context("the question")?.id, "q1");

    let input = stack.bus.subscribe(stack.bus.subjects().runner(stack.runner, "input")).await?;
    stack.bus.flush().await?;
    drop(input);
    let answer = |json: &'static str| v1::InteractRequest {
        tenant: stack.tenant.to_string(),
        run_id: run.id.clone(),
        input: json.into(),
    };
    let refused = stack.api::<_, v1::RunResponse>("interact", &answer(r#"{"pin":"1"}"#)).await;
    assert!(matches!(refused, Err(RequestError::Service(error)) if error.code.code == "field_unknown"));
    let runner = errand_bus::Service::builder(&stack.bus, "runner", "the test's")
        .endpoint(
            "input",
            stack.bus.subjects().runner(stack.runner, "input"),
            1,
            |input: v1::InputRequest| async move {
                Ok(v1::InputResponse { taken: input.input == r#"{"code":"123456"}"# && input.lease_token == 5 })
            },
        )
        .start()
        .await?;
    let moved: v1::RunResponse = stack.api("interact", &answer(r#"{"code":"123456"}"#)).await?;
    assert_eq!(moved.run.context("the run")?.status(), RunStatus::Running);

    assert!(!stack.report(&run.id, 4, finished("1")).await?, "a stale lease is ignored");
    assert!(stack.report(&run.id, 5, finished("1")).await?);
    let review = v1::ReviewRequest {
        tenant: stack.tenant.to_string(),
        run_id: run.id.clone(),
        decision: v1::ReviewDecision::Approve.into(),
        comment: String::new(),
    };
    let approved: v1::RunResponse = stack.api("review_run", &review).await?;
    let approved = approved.run.context("the run")?;
    assert_eq!((approved.status(), approved.output.as_deref()), (RunStatus::Completed, Some(&b"1"[..])));
    let events = stack.events_until_final(std::slice::from_ref(&run.id)).await?;
    let expected = ["queued", "running", "interaction_required", "running", "review_required", "completed"];
    assert_eq!(events[&run.id], expected.map(|action| format!("task_run.{action}")));
    runner.stop(PATIENCE).await;
    Ok(())
}

async fn lists_are_filtered_and_paged(store: StoreKind) -> anyhow::Result<()> {
    let stack = Stack::start(store, 1).await?;
    let [one, two] = [stack.task(Default::default()).await?, stack.task(Default::default()).await?];
    let mut submitted = Vec::new();
    for at in 0..5u32 {
        let metadata = [("at".to_owned(), at.to_string())].into();
        let task = if at < 3 { &one } else { &two };
        submitted.insert(0, stack.submit(v1::RunRequest { metadata, ..Stack::request(task) }).await?.id);
    }
    assert!(stack.grant(&submitted[4], 1, 1).await? && stack.report(&submitted[4], 1, finished("7")).await?);

    let tenant = stack.tenant.to_string();
    let list = async |request: v1::ListRunsRequest| -> anyhow::Result<_> {
        let request = v1::ListRunsRequest { tenant: tenant.clone(), ..request };
        let answer: v1::ListRunsResponse = stack.api("list_runs", &request).await?;
        let info = answer.page.context("a page")?;
        Ok((answer.runs.iter().map(|run| run.id.clone()).collect::<Vec<_>>(), info, answer.runs))
    };
    let all = v1::ListRunsRequest::default;
    let page = |limit, cursor: &str| Some(v1::Page { limit, cursor: cursor.into(), ..v1::Page::default() });
    let (ids, info, runs) = list(v1::ListRunsRequest { page: page(3, ""), ..all() }).await?;
    assert_eq!((&ids[..], info.has_more), (&submitted[..3], true));
    let (ids, info, _) = list(v1::ListRunsRequest { page: page(3, &info.next_cursor), ..all() }).await?;
    assert_eq!((&ids[..], info), (&submitted[3..], v1::PageInfo::default()));
    assert!(runs.iter().all(|run| run.output.is_none()));

    let completed = v1::ListRunsRequest { status: vec![RunStatus::Completed.into()], ..all() };
    let (ids, _, runs) = list(completed).await?;
    assert_eq!((&ids[..], runs[0].output.as_deref()), (&submitted[4..], Some(&b"7"[..])));
    let queued = v1::ListRunsRequest { status: vec![RunStatus::Queued.into()], task_id: vec![one.clone()], ..all() };
    assert_eq!(list(queued).await?.0, submitted[2..4]);
    let noted = v1::ListRunsRequest { metadata: [("at".to_owned(), "1".to_owned())].into(), ..all() };
    assert_eq!(list(noted).await?.0, submitted[3..4]);
    let of_a_session = v1::ListRunsRequest { session_id: vec![runs[0].session_id.clone()], ..all() };
    assert_eq!(list(of_a_session).await?.0, submitted[4..]);
    let early = v1::ListRunsRequest { created_before_ms: Some(1), ..all() };
    assert!(list(early).await?.0.is_empty());
    let others = v1::ListRunsRequest { tenant: "other".into(), ..all() };
    let others: v1::ListRunsResponse = stack.api("list_runs", &others).await?;
    assert!(others.runs.is_empty(), "of another tenant");
    let unspecified = list(v1::ListRunsRequest { status: vec![0], ..all() }).await.expect_err("no status");
    assert!(unspecified.to_string().contains("status is unspecified"), "{unspecified}");

    let tasks = v1::ListTasksRequest { tenant: tenant.clone(), ..Default::default() };
    let tasks: v1::ListTasksResponse = stack.api("list_tasks", &tasks).await?;
    assert_eq!(tasks.tasks.iter().map(|task| &task.id).collect::<Vec<_>>(), [&two, &one]);
    let browsers = v1::ListTasksRequest { tenant, agent_id: vec!["agt_browser".into()], ..Default::default() };
    let browsers: v1::ListTasksResponse = stack.api("list_tasks", &browsers).await?;
    assert!(browsers.tasks.is_empty());
    Ok(())
}

async fn failures_and_cancellations_say_why(store: StoreKind) -> anyhow::Result<()> {
    let stack = Stack::start(store, 1).await?;
    let task = stack.task(v1::TaskSettings { max_attempts: Some(2), ..Default::default() }).await?;
    let misfit = v1::RunRequest { input: "{}".into(), ..Stack::request(&task) };
    assert_eq!(stack.submit(misfit).await.expect_err("the schema wants more").to_string(), "request/input_invalid");

    let wrong_output = stack.submit(Stack::request(&task)).await?.id;
    assert!(stack.grant(&wrong_output, 1, 1).await? && stack.report(&wrong_output, 1, finished("\"x\"")).await?);
    let run = stack.run(&wrong_output).await?;
    assert_eq!((run.errors[0].code.as_str(), run.output.as_deref()), ("output_invalid", Some(&b"\"x\""[..])));

    let lost = stack.submit(Stack::request(&task)).await?.id;
    for (token, attempt, status) in [(2, 1, RunStatus::Queued), (3, 2, RunStatus::Failed)] {
        assert!(stack.grant(&lost, token, attempt).await?);
        let reason = v1::LostReason::RunnerLost.into();
        let loss = v1::Lost { run_id: lost.clone(), lease: Some(stack.lease(token)), reason, message: "gone".into() };
        let _: v1::LostResponse = stack.insist("lost", &v1::LostRequest { losses: vec![loss] }).await?;
        assert_eq!(stack.run(&lost).await?.status(), status);
    }

    let canceled = stack.submit(Stack::request(&task)).await?.id;
    let cancel = |run_id: &str| v1::CancelRunRequest { tenant: stack.tenant.to_string(), run_id: run_id.into() };
    for _ in 0..2 {
        let answer: v1::RunResponse = stack.api("cancel_run", &cancel(&canceled)).await?;
        assert_eq!(answer.run.context("the run")?.status(), RunStatus::Canceled);
    }
    let refused = stack.api::<_, v1::RunResponse>("cancel_run", &cancel(&lost)).await;
    assert!(matches!(refused, Err(RequestError::Service(error)) if error.code.code == "task_run_not_cancelable"));
    let foreign = v1::CancelRunRequest { tenant: "other".into(), run_id: canceled.clone() };
    let refused = stack.api::<_, v1::RunResponse>("cancel_run", &foreign).await;
    assert!(matches!(refused, Err(RequestError::Service(error)) if error.code.code == "task_run_not_found"));
    stack.events_until_final(&[wrong_output, lost, canceled]).await?;
    Ok(())
}

async fn submissions_are_idempotent_and_what_cannot_be_read_is_kept(store: StoreKind) -> anyhow::Result<()> {
    let stack = Stack::start(store, 2).await?;
    let task = stack.task(v1::TaskSettings::default()).await?;
    let run_id = RunId::from_uuid(Uuid::now_v7()).to_string();
    let named = v1::RunRequest { run_id: run_id.clone(), ..Stack::request(&task) };
    let subject = stack.bus.subjects().submit(&stack.tenant);
    for message_id in ["a", "a", "b"] {
        let payload = named.encode_to_vec().into();
        stack.bus.publish_stream(subject.clone(), message_id, None, payload).await?.await?;
    }
    assert_eq!(stack.submit(named).await?.id, run_id, "the same run, whichever way it comes");
    let misfit = RunId::from_uuid(Uuid::now_v7()).to_string();
    let bad = v1::RunRequest { run_id: misfit.clone(), input: "[]".into(), ..Stack::request(&task) };
    stack.bus.publish_stream(subject.clone(), "c", None, bad.encode_to_vec().into()).await?.await?;
    stack.bus.publish_stream(subject, "d", None, "\u{7f}not a request".into()).await?.await?;

    assert!(stack.grant(&run_id, 1, 1).await? && stack.report(&run_id, 1, finished("7")).await?);
    let events = stack.events_until_final(&[run_id.clone(), misfit.clone()]).await?;
    assert_eq!(events.len(), 2, "one run of the named request, one that failed: {events:?}");
    assert_eq!(events[&misfit], ["task_run.failed"]);

    let stream = jetstream::new(async_nats::connect(stack.broker.url()).await?).get_stream("ERRAND_V1_DLQ").await?;
    let consumer = stream.create_consumer(jetstream::consumer::pull::OrderedConfig::default()).await?;
    let letter = tokio::time::timeout(PATIENCE, consumer.messages().await?.next()).await?.context("a letter")??;
    let reason = letter.headers.as_ref().and_then(|headers| headers.get("Errand-Reason")).context("a reason")?;
    assert!(reason.as_str().contains("cannot be read"), "{reason}");
    Ok(())
}

async fn a_killed_dispatcher_loses_nothing(store: StoreKind) -> anyhow::Result<()> {
    let mut stack = Stack::start(store, 1).await?;
    let task = stack.task(v1::TaskSettings::default()).await?;
    let subject = stack.bus.subjects().submit(&stack.tenant);
    let mut run_ids = Vec::new();
    for at in 0..200u64 {
        let run_id = RunId::from_uuid(Uuid::now_v7()).to_string();
        let request = v1::RunRequest { run_id: run_id.clone(), ..Stack::request(&task) };
        stack.bus.publish_stream(subject.clone(), &run_id, None, request.encode_to_vec().into()).await?.await?;
        run_ids.push(run_id);
        if at % 60 == 59 {
            stack.dispatchers.remove(0).kill9();
            stack.add_dispatcher();
        }
    }
    stack.ready().await?;
    for (token, run_id) in (1..).zip(&run_ids) {
        while !stack.grant(run_id, token, 1).await.unwrap_or(false) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        if token % 70 == 0 {
            stack.dispatchers.remove(0).kill9();
            stack.add_dispatcher();
        }
        assert!(
            stack.report(run_id, token, finished("1")).await?
                || stack.run(run_id).await?.status() == RunStatus::Completed
        );
    }
    let events = stack.events_until_final(&run_ids).await?;
    for run_id in &run_ids {
        assert_eq!(events[run_id], ["task_run.queued", "task_run.running", "task_run.completed"]);
    }
    Ok(())
}

async fn a_broker_that_comes_back_empty_costs_no_event(store: StoreKind) -> anyhow::Result<()> {
    let mut stack = Stack::start(store, 2).await?;
    let task = stack.task(v1::TaskSettings::default()).await?;
    let mut run_ids = Vec::new();
    for token in 1..=20u64 {
        let run_id = stack.submit(Stack::request(&task)).await?.id;
        assert!(stack.grant(&run_id, token, 1).await? && stack.report(&run_id, token, finished("1")).await?);
        run_ids.push(run_id);
    }
    stack.events_until_final(&run_ids).await?;
    stack.broker.kill9();
    stack.broker.restart_empty();
    stack.ready().await?;
    let seen = tokio::time::timeout(PATIENCE, async {
        // The stream is made anew by whoever is there first.
        loop {
            match stack.events_until_final(&run_ids).await {
                Ok(seen) => return seen,
                Err(error) if error.to_string().contains("stream not found") => {}
                Err(error) => panic!("{error:#}"),
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    assert_eq!(seen.await?.len(), 20);
    Ok(())
}
