//! The only importer of the bus's services and of request types: decode, convert, handle, reply.

use std::sync::Arc;
use std::time::Duration;

use errand_bus::{Bus, BusError, ConsumerConfig, Delivery, Service, StreamKind, Verdict};
use errand_core::run::{Command, Run, State};
use errand_core::task::{Definition, Task};
use errand_core::{AgentId, Error, ErrorCode, RunId, TaskId, Tenant, Timestamp, limits};
use errand_proto::event::TaskRef;
use errand_proto::{id, named, optional_id, v1};
use errand_store::Outbox;
use errand_store::paging::{Page, Paging, within_a_message};
use futures::future::join_all;
use futures::{Stream, StreamExt};
use prost::Message;
use tokio_util::sync::CancellationToken;

use crate::catalog::{Catalog, unavailable};
use crate::effects::Effects;
use crate::engine::{Done, Handle};
use crate::internal::{self, armed_run, found, verdict};
use crate::references::References;
use crate::run_filter::{RunFilter, ids};
use crate::store::Store;
use crate::submissions::{Prepared, new_run_id, prepare, run_id_of_message};
use crate::tasks::Tasks;
use crate::world::Live;

/// Requests of one method that are handled at once.
const IN_FLIGHT: usize = 2048;
/// Most runs in one page of deadlines.
const MAX_DEADLINES: u32 = 10_000;

/// What every handler reaches.
#[derive(Debug)]
pub struct Dispatcher {
    /// The broker.
    pub bus: Bus,
    /// Runs and tasks, to read.
    pub store: Store,
    /// Events, to read.
    pub outbox: Outbox,
    /// Task versions.
    pub catalog: Arc<Catalog>,
    /// Sources and credentials, as the vault knows them.
    pub references: References,
    /// Task definitions.
    pub tasks: Tasks,
    /// The one writer.
    pub engine: Handle,
    /// Who was told what.
    pub effects: Effects<Live>,
    /// What is around the engine.
    pub world: Live,
}

type Shared = Arc<Dispatcher>;

/// Offers all methods.
///
/// # Errors
/// [`BusError::Listen`].
pub async fn serve(shared: &Shared) -> Result<Service, BusError> {
    let subjects = shared.bus.subjects();
    let mut service = Service::builder(&shared.bus, "dispatcher", "owns runs and tasks");
    macro_rules! offer {
        ($($subject:ident $method:literal => $handler:ident),* $(,)?) => {$(
            let handling = Arc::clone(shared);
            let subject = offer!(@$subject $method);
            service = service.endpoint($method, subject, IN_FLIGHT, move |request| {
                let shared = Arc::clone(&handling);
                async move { $handler(&shared, request).await }
            });
        )*};
        (@api $method:literal) => { subjects.api("dispatcher", $method) };
        (@run $method:literal) => { subjects.run($method) };
    }
    offer! {
        api "submit_runs" => submit_runs,
        api "get_run" => get_run,
        api "list_runs" => list_runs,
        api "cancel_run" => cancel_run,
        api "interact" => interact,
        api "review_run" => review_run,
        api "retry_run" => retry_run,
        api "list_events" => list_events,
        api "list_deadlines" => list_deadlines,
        api "check_store" => check_store,
        api "create_task" => create_task,
        api "update_task" => update_task,
        api "get_task" => get_task,
        api "list_tasks" => list_tasks,
        api "delete_task" => delete_task,
        run "grant" => grant,
        run "lost" => lost,
        run "report" => report,
        run "expire" => expire,
        run "leases" => check_leases,
        run "lease_holder" => lease_holder,
        run "holder" => get_holder,
    }
    service.start().await
}

/// Takes the run requests of the submit stream until shutdown.
///
/// # Errors
/// What [`errand_bus::consume`] says.
pub async fn take_submissions(shared: Shared, shutdown: CancellationToken) -> anyhow::Result<()> {
    let config = ConsumerConfig {
        durable: "dispatcher",
        stream: StreamKind::Submit,
        // What one that died held comes again after that. Behind a slow store it comes again for nothing, which costs a look.
        ack_wait: Duration::from_secs(10),
        // Only a store that is away asks for another delivery, a second later: half a day of that costs no accepted run.
        max_deliver: 50_000,
        in_flight: 1024,
        dead_letter: "submit",
    };
    let bus = shared.bus.clone();
    let handler = move |delivery| {
        let shared = Arc::clone(&shared);
        async move { take_submission(&shared, delivery).await }
    };
    Ok(errand_bus::consume(&bus, config, shutdown, handler).await?)
}

async fn take_submission(shared: &Dispatcher, delivery: Delivery) -> Verdict {
    let Some(tenant) = shared.bus.subjects().tenant_of_submit(&delivery.subject) else {
        return Verdict::DeadLetter("the subject names no tenant".into());
    };
    let request = match v1::RunRequest::decode(delivery.payload) {
        Ok(request) => request,
        Err(error) => return Verdict::DeadLetter(format!("the run request cannot be read: {error}")),
    };
    let (message_id, sequence, at) = (delivery.message_id, delivery.stream_sequence, delivery.published_at_ms);
    let name = || run_id_of_message(&tenant, message_id.as_deref(), sequence, at);
    let submitted = match prepare(&shared.catalog, &shared.references, &tenant, request, None, name).await {
        Ok(Prepared { run, validity }) => shared.engine.submit(run, validity).await,
        Err(error) => Err(error),
    };
    verdict(&submitted)
}

/// Takes note of the agents' signs of life, and of a pool that has restarted, until shutdown.
///
/// # Errors
/// Where a subscription cannot be made, or ends.
pub async fn listen(shared: Shared, shutdown: CancellationToken) -> anyhow::Result<()> {
    let subjects = shared.bus.subjects();
    let activity = shared.bus.subscribe(subjects.activity_all()).await?;
    let hello = shared.bus.subscribe(subjects.pool("hello")).await?;
    tokio::select! {
        () = note_activity(&shared, activity) => anyhow::bail!("the subscription to activity ended"),
        () = note_hello(&shared, hello) => anyhow::bail!("the subscription to the pool's hello ended"),
        () = shutdown.cancelled() => Ok(()),
    }
}

async fn note_activity(shared: &Dispatcher, mut activity: impl Stream<Item = errand_bus::Incoming> + Unpin) {
    while let Some(message) = activity.next().await {
        let Ok(activity) = v1::Activity::decode(message.payload) else { continue };
        if let Ok(run_id) = id("run_id", &activity.run_id) {
            shared.engine.activity(run_id, activity.lease_token, Timestamp(activity.at_ms));
        }
    }
}

async fn note_hello(shared: &Dispatcher, mut hello: impl Stream<Item = errand_bus::Incoming> + Unpin) {
    while let Some(message) = hello.next().await {
        if let Ok(hello) = v1::PoolHello::decode(message.payload) {
            shared.effects.pool_epoch(&hello.epoch);
        }
    }
}

fn tenant(text: &str) -> Result<Tenant, Error> {
    id("tenant", text)
}

async fn read_run(shared: &Dispatcher, tenant: &Tenant, run_id: RunId) -> Result<Run, Error> {
    let run = shared.store.runs(&[run_id]).await.map_err(unavailable)?.pop();
    found(run, tenant, run_id)
}

fn answered(done: &Done) -> v1::RunResponse {
    v1::RunResponse { run: Some((&done.run).into()) }
}

async fn submit_runs(shared: &Dispatcher, request: v1::SubmitRunsRequest) -> Result<v1::SubmitRunsResponse, Error> {
    let tenant = tenant(&request.tenant)?;
    let count = request.requests.len();
    if !(1..=limits::MAX_SUBMIT_BATCH).contains(&count) {
        let message = format!("there must be 1..{} requests, not {count}", limits::MAX_SUBMIT_BATCH);
        return Err(ErrorCode::INPUT_INVALID.with(message).at("requests"));
    }
    let each = request.requests.into_iter().map(|request| submit_one(shared, &tenant, request, None));
    let results = join_all(each).await.into_iter().map(|result| v1::SubmitRunResult {
        outcome: Some(match result {
            Ok(done) => v1::submit_run_result::Outcome::Run((&done.run).into()),
            Err(error) => v1::submit_run_result::Outcome::Error((&error).into()),
        }),
    });
    Ok(v1::SubmitRunsResponse { results: results.collect() })
}

/// Over request/reply an input that does not fit makes no run: the asker is there to be told.
async fn submit_one(
    shared: &Dispatcher,
    tenant: &Tenant,
    request: v1::RunRequest,
    retry_of: Option<RunId>,
) -> Result<Done, Error> {
    let Prepared { run, validity } =
        prepare(&shared.catalog, &shared.references, tenant, request, retry_of, new_run_id).await?;
    validity?;
    shared.engine.submit(run, Ok(())).await
}

async fn get_run(shared: &Dispatcher, request: v1::GetRunRequest) -> Result<v1::GetRunResponse, Error> {
    let (tenant, run_id) = (tenant(&request.tenant)?, id("run_id", &request.run_id)?);
    let run = read_run(shared, &tenant, run_id).await?;
    let mut view = v1::Run::from(&run);
    if request.include_input {
        view.input = Some(run.input.clone());
    }
    let events = if request.include_events {
        let object = *run_id.uuid().as_bytes();
        shared.outbox.events_of(object, 0, 1_000).await.map_err(unavailable)?
    } else {
        Vec::new()
    };
    Ok(v1::GetRunResponse { run: Some(view), events })
}

async fn list_runs(shared: &Dispatcher, request: v1::ListRunsRequest) -> Result<v1::ListRunsResponse, Error> {
    let mut paging = Paging::new(request.page.as_ref(), |id: RunId| id.uuid())?;
    let filter = RunFilter::try_from(request)?;
    while let Some(place) = paging.next_place() {
        paging.take(shared.store.scan_runs(&filter, place).await.map_err(unavailable)?);
    }
    let Page { mut items, has_more, next } = paging.finish();
    shared.store.add_outputs(&mut items).await.map_err(unavailable)?;
    let (runs, all) = within_a_message(items.iter().map(v1::Run::from).collect());
    let next_cursor = match runs.last() {
        Some(last) if !all => last.id.clone(),
        _ => next.map(|uuid| RunId::from_uuid(uuid).to_string()).unwrap_or_default(),
    };
    Ok(v1::ListRunsResponse { runs, page: Some(v1::PageInfo { has_more: has_more || !all, next_cursor }) })
}

async fn cancel_run(shared: &Dispatcher, request: v1::CancelRunRequest) -> Result<v1::RunResponse, Error> {
    let (tenant, run_id) = (tenant(&request.tenant)?, id("run_id", &request.run_id)?);
    shared.engine.apply(run_id, Some(tenant), Command::Cancel).await.map(|done| answered(&done))
}

async fn interact(shared: &Dispatcher, request: v1::InteractRequest) -> Result<v1::RunResponse, Error> {
    let (tenant, run_id) = (tenant(&request.tenant)?, id("run_id", &request.run_id)?);
    let done = internal::interact(&shared.world, &shared.engine, tenant, run_id, request.input).await;
    done.map(|done| answered(&done))
}

async fn review_run(shared: &Dispatcher, request: v1::ReviewRequest) -> Result<v1::RunResponse, Error> {
    let (tenant, run_id) = (tenant(&request.tenant)?, id("run_id", &request.run_id)?);
    let decision = named("decision", request.decision, |wire: v1::ReviewDecision| wire.try_into().ok())?;
    let command = Command::Review { decision, comment: request.comment };
    shared.engine.apply(run_id, Some(tenant), command).await.map(|done| answered(&done))
}

async fn retry_run(shared: &Dispatcher, request: v1::RetryRunRequest) -> Result<v1::RunResponse, Error> {
    let (tenant, run_id) = (tenant(&request.tenant)?, id("run_id", &request.run_id)?);
    optional_id::<RunId>("new_run_id", &request.new_run_id)?;
    let run = read_run(shared, &tenant, run_id).await?;
    let spec = &run.spec;
    let again = v1::RunRequest {
        run_id: request.new_run_id,
        task_id: spec.task_id.to_string(),
        input: run.input.clone(),
        credential_id: spec.credential_id.map(|id| id.to_string()).unwrap_or_default(),
        source_id: spec.source_id.map(|id| id.to_string()).unwrap_or_default(),
        session_id: String::new(),
        priority: Some(spec.settings.priority),
        metadata: spec.metadata.clone(),
        timeout_seconds: spec.settings.timeout_seconds,
        review: Some(spec.settings.review),
        traceparent: String::new(),
    };
    submit_one(shared, &tenant, again, Some(run_id)).await.map(|done| answered(&done))
}

async fn list_events(shared: &Dispatcher, request: v1::ListEventsRequest) -> Result<v1::ListEventsResponse, Error> {
    let tenant = tenant(&request.tenant)?;
    let run_id: RunId = id("object_id", &request.object_id)?;
    read_run(shared, &tenant, run_id).await?;
    let page = errand_proto::page(Some(&v1::Page { limit: request.limit, ..v1::Page::default() }))?;
    let object = *run_id.uuid().as_bytes();
    let mut events = shared.outbox.events_of(object, 0, 1_000).await.map_err(unavailable)?;
    if !request.after_id.is_empty() {
        let at = events.iter().position(|event| event.id == request.after_id);
        let at = at.ok_or_else(|| ErrorCode::EVENT_NOT_FOUND.with("the run has no such event").at("after_id"))?;
        events.drain(..=at);
    }
    let has_more = events.len() > page.limit as usize;
    events.truncate(page.limit as usize);
    Ok(v1::ListEventsResponse { events, has_more })
}

async fn check_store(shared: &Dispatcher, _: v1::CheckStoreRequest) -> Result<v1::CheckStoreResponse, Error> {
    let db = shared.store.db();
    let took = db.check_write().await.map_err(|error| ErrorCode::API_UNAVAILABLE.with(error.to_string()))?;
    Ok(v1::CheckStoreResponse {
        kind: db.kind().to_owned(),
        commit_us: took.as_micros().try_into().unwrap_or(u32::MAX),
    })
}

async fn list_deadlines(
    shared: &Dispatcher,
    request: v1::ListDeadlinesRequest,
) -> Result<v1::ListDeadlinesResponse, Error> {
    let after = optional_id("after_run_id", &request.after_run_id)?;
    let limit = request.limit.clamp(1, MAX_DEADLINES);
    let runs = shared.store.open_runs(after, limit).await.map_err(unavailable)?;
    Ok(v1::ListDeadlinesResponse { has_more: runs.len() == limit as usize, runs: runs.iter().map(armed_run).collect() })
}

fn task_of(task: Option<v1::Task>) -> Result<v1::Task, Error> {
    task.ok_or_else(|| ErrorCode::INPUT_MISSING.with("task is missing").at("task"))
}

fn task_response(task: &errand_core::task::Task) -> v1::TaskResponse {
    v1::TaskResponse { task: Some(task.into()) }
}

async fn create_task(shared: &Dispatcher, request: v1::CreateTaskRequest) -> Result<v1::TaskResponse, Error> {
    let (tenant, definition) = (tenant(&request.tenant)?, Definition::try_from(task_of(request.task)?)?);
    shared.tasks.create(&tenant, definition, request.upsert).await.map(|task| task_response(&task))
}

async fn update_task(shared: &Dispatcher, request: v1::UpdateTaskRequest) -> Result<v1::TaskResponse, Error> {
    let (tenant, task) = (tenant(&request.tenant)?, task_of(request.task)?);
    let task_id: TaskId = id("task.id", &task.id)?;
    let definition = Definition::try_from(task)?;
    shared.tasks.update(&tenant, task_id, definition, request.if_version).await.map(|task| task_response(&task))
}

async fn get_task(shared: &Dispatcher, request: v1::GetTaskRequest) -> Result<v1::TaskResponse, Error> {
    let (tenant, task) = (tenant(&request.tenant)?, TaskRef::parse("task_id", &request.task_id)?);
    shared.tasks.get(&tenant, &task, request.version).await.map(|task| task_response(&task))
}

async fn list_tasks(shared: &Dispatcher, request: v1::ListTasksRequest) -> Result<v1::ListTasksResponse, Error> {
    let mut paging = Paging::new(request.page.as_ref(), |id: TaskId| id.uuid())?;
    let tenant = tenant(&request.tenant)?;
    let agents: Vec<AgentId> = ids("agent_id", &request.agent_id)?;
    let fits = |task: &Task| agents.is_empty() || agents.contains(&task.definition.agent_id);
    while let Some(place) = paging.next_place() {
        paging.take(shared.store.scan_tasks(&tenant, fits, place).await.map_err(unavailable)?);
    }
    let Page { items, has_more, next } = paging.finish();
    let (tasks, all) = within_a_message(items.iter().map(v1::Task::from).collect());
    let next_cursor = match tasks.last() {
        Some(last) if !all => last.id.clone(),
        _ => next.map(|uuid| TaskId::from_uuid(uuid).to_string()).unwrap_or_default(),
    };
    Ok(v1::ListTasksResponse { tasks, page: Some(v1::PageInfo { has_more: has_more || !all, next_cursor }) })
}

async fn delete_task(shared: &Dispatcher, request: v1::DeleteTaskRequest) -> Result<v1::TaskResponse, Error> {
    let (tenant, task) = (tenant(&request.tenant)?, TaskRef::parse("task_id", &request.task_id)?);
    shared.tasks.delete(&tenant, &task).await.map(|task| task_response(&task))
}

async fn grant(shared: &Dispatcher, request: v1::GrantRequest) -> Result<v1::GrantResponse, Error> {
    internal::grant(&shared.engine, &shared.effects, request).await
}

async fn lost(shared: &Dispatcher, request: v1::LostRequest) -> Result<v1::LostResponse, Error> {
    internal::lost(&shared.engine, request).await
}

async fn report(shared: &Dispatcher, request: v1::ReportRequest) -> Result<v1::ReportResponse, Error> {
    internal::report(&shared.engine, request).await
}

async fn expire(shared: &Dispatcher, request: v1::ExpireRequest) -> Result<v1::ExpireResponse, Error> {
    internal::expire(&shared.engine, request).await
}

async fn check_leases(shared: &Dispatcher, request: v1::CheckLeasesRequest) -> Result<v1::CheckLeasesResponse, Error> {
    let asked = internal::leases_of(request)?;
    let ids: Vec<RunId> = asked.iter().map(|(run_id, _)| *run_id).collect();
    let runs = shared.store.runs(&ids).await.map_err(unavailable)?;
    Ok(internal::released(&asked, &runs))
}

/// For the vault, which hands a credential to this one only: read from the store, since another dispatcher may have
/// moved the run. One that is to stop gets nothing any more.
async fn lease_holder(shared: &Dispatcher, request: v1::LeaseHolderRequest) -> Result<v1::LeaseHolderResponse, Error> {
    let run_id: RunId = id("run_id", &request.run_id)?;
    let run = shared.store.runs(&[run_id]).await.map_err(unavailable)?.pop();
    let executes = |run: &Run| {
        matches!(run.state, State::Running(_) | State::InteractionRequired { .. })
            && run.lease().is_some_and(|lease| lease.token == request.lease_token)
    };
    let run = run
        .filter(executes)
        .ok_or_else(|| ErrorCode::TASK_RUN_NOT_FOUND.with(format!("no task run {run_id} executes under this lease")))?;
    Ok(v1::LeaseHolderResponse {
        tenant: run.tenant.to_string(),
        lease: run.lease().map(Into::into),
        source_id: run.spec.source_id.map(|id| id.to_string()).unwrap_or_default(),
        credential_id: run.spec.credential_id.map(|id| id.to_string()).unwrap_or_default(),
    })
}

/// For who keeps a run's files: whose it is, and whether it is the lease's that asks.
async fn get_holder(shared: &Dispatcher, request: v1::GetHolderRequest) -> Result<v1::GetHolderResponse, Error> {
    let run_id: RunId = id("run_id", &request.run_id)?;
    let run = shared.store.runs(&[run_id]).await.map_err(unavailable)?.pop();
    let held = run.filter(|run| run.lease().is_some_and(|lease| lease.token == request.lease_token));
    let Some(run) = held else { return Ok(v1::GetHolderResponse::default()) };
    let (task_id, version) = (run.spec.task_id, run.spec.task_version);
    let task = shared.catalog.version(task_id, version).await?;
    let storage = task.map(|compiled| (&compiled.task.definition.storage).into());
    Ok(v1::GetHolderResponse {
        holds: true,
        tenant: run.tenant.to_string(),
        task_id: task_id.to_string(),
        task_version: version,
        attempt: run.attempt,
        storage,
        traceparent: run.spec.traceparent.clone().unwrap_or_default(),
    })
}
