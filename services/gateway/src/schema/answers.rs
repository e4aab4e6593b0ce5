//! What is answered, for the document: the values themselves are made by `errand_proto::json`. The tests hold them
//! against each other (schemathesis checks every answer against these shapes).

use std::collections::HashMap;

use serde_json::Value;
use utoipa::ToSchema;

/// One thing that is wrong.
#[derive(ToSchema)]
#[schema(example = json!({"type": "request", "code": "input_invalid", "message": "limit must be 1..100", "field": "limit"}))]
pub struct ErrorEntry {
    /// Who is at fault, broadly.
    pub r#type: String,
    /// What is wrong; branch on this.
    pub code: String,
    /// For people.
    pub message: String,
    /// The request field at fault.
    pub field: Option<String>,
}

/// An answer that says no.
#[derive(ToSchema)]
#[schema(example = json!({"errors": [{"type": "request", "code": "api_key_missing", "message": "an API key is missing: Authorization: Bearer sk_..."}], "request_id": "req_01h455vb4pex5vsknk084sn02q"}))]
pub struct Errors {
    #[schema(min_items = 1)]
    pub errors: Vec<ErrorEntry>,
    pub request_id: String,
}

/// Where a run is.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum TaskRunStatus {
    Queued,
    Running,
    InteractionRequired,
    ReviewRequired,
    Completed,
    Failed,
    Canceling,
    Canceled,
}

/// What came of a run.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum TaskRunResult {
    Success,
    Failure,
    Unknown,
}

/// Where a session is.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum SessionStatus {
    Queued,
    Running,
    Idle,
    Completing,
    Completed,
    Failed,
}

/// A field of a question.
#[derive(ToSchema)]
pub struct InteractionField {
    pub name: String,
    /// text, password, code, select
    pub r#type: String,
    pub label: String,
    pub options: Option<Vec<String>>,
}

/// A question to the user in the middle of a run.
#[derive(ToSchema)]
pub struct Interaction {
    pub id: String,
    /// mfa, security_question, account_selection, ...
    pub r#type: String,
    pub message: String,
    pub fields: Vec<InteractionField>,
    #[schema(format = DateTime)]
    pub expires_at: String,
}

/// Images captured during a run.
#[derive(ToSchema)]
pub struct Artifacts {
    pub screenshots: Vec<Storage>,
}

/// One execution of a task.
#[derive(ToSchema)]
#[schema(example = json!({
    "id": "trun_01h455vb4pex5vsknk084sn02q", "object": "task_run", "status": "completed", "result": "success",
    "task_id": "task_01h455vb4pex5vsknk084sn02q", "task_version": 1,
    "session_id": "sess_01h455vb4pex5vsknk084sn02q", "agent_id": "agt_exec", "source_id": null, "credential_id": null,
    "attempt": 1, "priority": 0, "runtime_ms": 412, "output": {"greeting": "Hello, Ada!"}, "errors": [],
    "interaction": null, "metadata": {"order": "4711"}, "retry_of": null,
    "created_at": "2026-05-01T12:00:00.000Z", "started_at": "2026-05-01T12:00:00.020Z",
    "finished_at": "2026-05-01T12:00:00.432Z", "canceled_at": null, "updated_at": "2026-05-01T12:00:00.432Z",
    "request_id": "req_01h455vb4pex5vsknk084sn02q"
}))]
pub struct TaskRun {
    pub id: String,
    /// `task_run`
    pub object: String,
    pub status: TaskRunStatus,
    #[schema(required)]
    pub result: Option<TaskRunResult>,
    pub task_id: String,
    pub task_version: u32,
    #[schema(required)]
    pub session_id: Option<String>,
    #[schema(required)]
    pub agent_id: Option<String>,
    #[schema(required)]
    pub source_id: Option<String>,
    #[schema(required)]
    pub credential_id: Option<String>,
    pub attempt: u32,
    pub priority: i32,
    #[schema(required)]
    pub runtime_ms: Option<u64>,
    /// Fits the task's output schema, where the run completed.
    pub output: Value,
    pub errors: Vec<ErrorEntry>,
    #[schema(required)]
    pub interaction: Option<Interaction>,
    pub metadata: HashMap<String, String>,
    #[schema(required)]
    pub retry_of: Option<String>,
    #[schema(format = DateTime)]
    pub created_at: String,
    #[schema(required, format = DateTime)]
    pub started_at: Option<String>,
    #[schema(required, format = DateTime)]
    pub finished_at: Option<String>,
    #[schema(required, format = DateTime)]
    pub canceled_at: Option<String>,
    #[schema(format = DateTime)]
    pub updated_at: String,
    /// With `include=input`.
    pub input: Option<Value>,
    /// With `include=storage`: files captured.
    pub storage: Option<Vec<Storage>>,
    /// With `include=screenshots`.
    pub artifacts: Option<Artifacts>,
    /// With `include=events`: the run's timeline, oldest first.
    pub events: Option<Vec<Event>>,
    /// Of the answer; runs in a list have none.
    pub request_id: Option<String>,
}

macro_rules! lists {
    ($($(#[$doc:meta])* $name:ident of $item:ty;)*) => {$(
        $(#[$doc])*
        #[derive(ToSchema)]
        pub struct $name {
            pub data: Vec<$item>,
            pub has_more: bool,
            /// For `cursor`, to get the next page.
            #[schema(required)]
            pub next_cursor: Option<String>,
            pub request_id: String,
        }
    )*};
}

lists! {
    /// A page of runs, newest first.
    TaskRunList of TaskRun;
    /// A page of tasks, newest first.
    TaskList of Task;
    /// A page of artifacts, newest first.
    StorageList of Storage;
    /// A page of sessions, newest first.
    SessionList of Session;
    /// A page of runners, newest first.
    RunnerList of Runner;
    /// A page of agents, by name.
    AgentList of Agent;
    /// A page of events, newest first.
    EventList of Event;
    /// Every type of event.
    EventTypeList of EventType;
    /// A page of destinations, newest first.
    EventDestinationList of EventDestination;
    /// A page of deliveries, newest first.
    EventDeliveryList of EventDelivery;
    /// A page of sources, newest first.
    SourceList of Source;
    /// A page of credentials, newest first.
    CredentialList of Credential;
}

/// What becomes of the files that a task's runs capture.
#[derive(ToSchema)]
pub struct TaskStorage {
    pub enabled: bool,
    pub extraction: bool,
    /// JSON Schema; null: anything fits.
    pub extraction_schema: Value,
    pub deduplication: bool,
}

/// What an artifact is to its reader.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum ArtifactKind {
    File,
    Screenshot,
}

/// A file or screenshot that a run has captured.
#[derive(ToSchema)]
pub struct Storage {
    pub id: String,
    /// `storage`
    pub object: String,
    pub kind: ArtifactKind,
    pub name: String,
    pub mime_type: String,
    pub size_bytes: u64,
    pub sha256: String,
    pub task_run_id: String,
    pub task_id: String,
    pub attempt: u32,
    /// What was extracted from it.
    pub data: Value,
    /// Why nothing was, although it was asked for.
    pub errors: Vec<ErrorEntry>,
    #[schema(format = DateTime)]
    pub created_at: String,
    /// When it is deleted; null: never.
    #[schema(required, format = DateTime)]
    pub expires_at: Option<String>,
    /// Its content, for anybody who has this link.
    pub url: String,
    #[schema(format = DateTime)]
    pub url_expires_at: String,
    /// Of the answer; those in a list have none.
    pub request_id: Option<String>,
}

/// How runs of a task are bounded and treated.
#[derive(ToSchema)]
pub struct TaskSettings {
    #[schema(required)]
    pub timeout_seconds: Option<u32>,
    pub inactivity_seconds: u32,
    pub interaction_seconds: u32,
    pub queue_seconds: u32,
    pub max_attempts: u32,
    pub retry_on: Vec<String>,
    pub review: bool,
    #[schema(required)]
    pub review_seconds: Option<u32>,
    pub reuse_session: bool,
    pub priority: i32,
}

/// A definition of what can be run.
#[derive(ToSchema)]
#[schema(example = json!({
    "id": "task_01h455vb4pex5vsknk084sn02q", "object": "task", "version": 1, "name": "hello", "agent_id": "agt_exec",
    "prompt": "Greet somebody.", "program": {"command": ["python3", "examples/hello/agent.py"]},
    "input_schema": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}},
    "output_schema": {"type": "object", "required": ["greeting"]},
    "settings": {"timeout_seconds": 30, "inactivity_seconds": 10, "interaction_seconds": 600, "queue_seconds": 600,
        "max_attempts": 2, "retry_on": ["session_lost"], "review": false, "review_seconds": null,
        "reuse_session": false, "priority": 0},
    "storage": {"enabled": true, "extraction": false, "extraction_schema": null, "deduplication": false},
    "created_at": "2026-05-01T12:00:00.000Z", "updated_at": "2026-05-01T12:00:00.000Z",
    "request_id": "req_01h455vb4pex5vsknk084sn02q"
}))]
pub struct Task {
    pub id: String,
    /// `task`
    pub object: String,
    /// 1, 2, 3 ...; a run keeps the one it began with.
    pub version: u32,
    pub name: String,
    pub agent_id: String,
    pub prompt: String,
    /// For the agent, in a form of the agent's own.
    pub program: Value,
    /// JSON Schema; null: anything fits.
    pub input_schema: Value,
    /// JSON Schema; null: anything fits.
    pub output_schema: Value,
    pub settings: TaskSettings,
    pub storage: TaskStorage,
    #[schema(format = DateTime)]
    pub created_at: String,
    #[schema(format = DateTime)]
    pub updated_at: String,
    /// Of the answer; tasks in a list have none.
    pub request_id: Option<String>,
}

/// What was deleted.
#[derive(ToSchema)]
#[schema(example = json!({"id": "task_01h455vb4pex5vsknk084sn02q", "object": "task", "deleted": true, "request_id": "req_01h455vb4pex5vsknk084sn02q"}))]
pub struct Deleted {
    pub id: String,
    pub object: String,
    pub deleted: bool,
    pub request_id: String,
}

/// An isolated compute environment in which runs execute, one at a time.
#[derive(ToSchema)]
#[schema(example = json!({
    "id": "sess_01h455vb4pex5vsknk084sn02q", "object": "session", "status": "running", "agent_id": "agt_exec",
    "runner_id": "rnr_01h455vb4pex5vsknk084sn02q", "source_id": null, "credential_id": null,
    "task_run_id": "trun_01h455vb4pex5vsknk084sn02q", "runs_served": 1, "reason": null,
    "created_at": "2026-05-01T12:00:00.000Z", "updated_at": "2026-05-01T12:00:00.000Z", "ended_at": null,
    "request_id": "req_01h455vb4pex5vsknk084sn02q"
}))]
pub struct Session {
    pub id: String,
    /// `session`
    pub object: String,
    pub status: SessionStatus,
    pub agent_id: String,
    #[schema(required)]
    pub runner_id: Option<String>,
    #[schema(required)]
    pub source_id: Option<String>,
    #[schema(required)]
    pub credential_id: Option<String>,
    #[schema(required)]
    pub task_run_id: Option<String>,
    pub runs_served: u32,
    #[schema(required)]
    pub reason: Option<String>,
    #[schema(format = DateTime)]
    pub created_at: String,
    #[schema(format = DateTime)]
    pub updated_at: String,
    #[schema(required, format = DateTime)]
    pub ended_at: Option<String>,
    /// Of the answer; sessions in a list have none.
    pub request_id: Option<String>,
}

/// A process that hosts sessions.
#[derive(ToSchema)]
#[schema(example = json!({
    "id": "rnr_01h455vb4pex5vsknk084sn02q", "object": "runner", "agent_id": "agt_exec", "capacity": 4, "sessions": 1,
    "leases": 1, "draining": false, "host": "vm-1", "version": "0.1.0", "connected_at": "2026-05-01T12:00:00.000Z",
    "last_seen_at": "2026-05-01T12:00:05.000Z", "request_id": "req_01h455vb4pex5vsknk084sn02q"
}))]
pub struct Runner {
    pub id: String,
    /// `runner`
    pub object: String,
    pub agent_id: String,
    pub capacity: u32,
    pub sessions: u32,
    pub leases: u32,
    pub draining: bool,
    pub host: String,
    pub version: String,
    #[schema(format = DateTime)]
    pub connected_at: String,
    #[schema(format = DateTime)]
    pub last_seen_at: String,
    /// Of the answer; runners in a list have none.
    pub request_id: Option<String>,
}

/// A kind of runner.
#[derive(ToSchema)]
#[schema(example = json!({
    "id": "agt_exec", "object": "agent", "runners": 1, "capacity": 4, "sessions": 1, "leases": 1, "waiting": 0,
    "request_id": "req_01h455vb4pex5vsknk084sn02q"
}))]
pub struct Agent {
    pub id: String,
    /// `agent`
    pub object: String,
    pub runners: u32,
    pub capacity: u32,
    pub sessions: u32,
    pub leases: u32,
    /// Runs that wait for a session.
    pub waiting: u32,
    /// Of the answer; agents in a list have none.
    pub request_id: Option<String>,
}

/// A fact about an object.
#[derive(ToSchema)]
#[schema(example = json!({
    "id": "evt_01h455vb4pex5vsknk084sn02q", "object": "event", "type": "task_run.completed", "seq": 3,
    "data": {"id": "trun_01h455vb4pex5vsknk084sn02q", "object": "task_run", "status": "completed"},
    "created_at": "2026-05-01T12:00:00.432Z"
}))]
pub struct Event {
    pub id: String,
    /// `event`
    pub object: String,
    /// `object.action`
    pub r#type: String,
    /// 1, 2, 3 ... per object, no gaps.
    pub seq: u64,
    /// A summary of the object; never input, output or secrets.
    pub data: HashMap<String, Value>,
    #[schema(format = DateTime)]
    pub created_at: String,
}

/// A type of event.
#[derive(ToSchema)]
#[schema(example = json!({"name": "task_run.completed", "object": "event_type", "description": "A run has completed."}))]
pub struct EventType {
    pub name: String,
    /// `event_type`
    pub object: String,
    pub description: String,
}

/// Which events a destination gets, besides their type.
#[derive(ToSchema)]
pub struct EventDestinationFilter {
    pub task_id: Vec<String>,
    pub agent_id: Vec<String>,
    pub metadata: HashMap<String, String>,
}

/// Where events are pushed. What its type needs stands under the type's name; secrets are masked.
#[derive(ToSchema)]
#[schema(example = json!({
    "id": "evtd_01h455vb4pex5vsknk084sn02q", "object": "event_destination", "name": "billing", "type": "webhook",
    "webhook": {"url": "https://example.com/hook"}, "events": ["task_run.completed", "task_run.failed"],
    "filter": {"task_id": [], "agent_id": [], "metadata": {}}, "ordered": true, "status": "active",
    "inactive_reason": null, "failing_since": null, "old_secret_expires_at": null,
    "created_at": "2026-05-01T12:00:00.000Z", "updated_at": "2026-05-01T12:00:00.000Z",
    "request_id": "req_01h455vb4pex5vsknk084sn02q"
}))]
pub struct EventDestination {
    pub id: String,
    /// `event_destination`
    pub object: String,
    pub name: String,
    pub r#type: String,
    pub webhook: Option<HashMap<String, Value>>,
    pub nats: Option<HashMap<String, Value>>,
    pub rabbitmq: Option<HashMap<String, Value>>,
    pub aws_sqs: Option<HashMap<String, Value>>,
    pub aws_kinesis: Option<HashMap<String, Value>>,
    pub aws_s3: Option<HashMap<String, Value>>,
    pub gcp_pubsub: Option<HashMap<String, Value>>,
    pub azure_servicebus: Option<HashMap<String, Value>>,
    pub events: Vec<String>,
    pub filter: EventDestinationFilter,
    pub ordered: bool,
    /// active, inactive
    pub status: String,
    #[schema(required)]
    pub inactive_reason: Option<String>,
    #[schema(required, format = DateTime)]
    pub failing_since: Option<String>,
    #[schema(required, format = DateTime)]
    pub old_secret_expires_at: Option<String>,
    #[schema(format = DateTime)]
    pub created_at: String,
    #[schema(format = DateTime)]
    pub updated_at: String,
    /// The signing secret: only when it is made.
    pub secret: Option<String>,
    /// Of the answer; destinations in a list have none.
    pub request_id: Option<String>,
}

/// One try to deliver.
#[derive(ToSchema)]
pub struct EventDeliveryAttempt {
    pub number: u32,
    #[schema(format = DateTime)]
    pub at: String,
    pub duration_ms: u32,
    #[schema(required)]
    pub status_code: Option<u32>,
    #[schema(required)]
    pub error: Option<String>,
    #[schema(required)]
    pub response: Option<String>,
}

/// One event's way to one destination.
#[derive(ToSchema)]
#[schema(example = json!({
    "id": "edlv_01h455vb4pex5vsknk084sn02q", "object": "event_delivery",
    "destination_id": "evtd_01h455vb4pex5vsknk084sn02q", "event_id": "evt_01h455vb4pex5vsknk084sn02q",
    "event_type": "task_run.completed", "object_id": "trun_01h455vb4pex5vsknk084sn02q", "status": "delivered",
    "origin": "event", "attempt_count": 1, "next_attempt_at": null, "last_status_code": 200, "last_error": null,
    "created_at": "2026-05-01T12:00:00.432Z", "finished_at": "2026-05-01T12:00:00.500Z",
    "request_id": "req_01h455vb4pex5vsknk084sn02q"
}))]
pub struct EventDelivery {
    pub id: String,
    /// `event_delivery`
    pub object: String,
    pub destination_id: String,
    pub event_id: String,
    pub event_type: String,
    pub object_id: String,
    /// pending, delivered, failed
    pub status: String,
    /// event, replay, test
    pub origin: String,
    pub attempt_count: u32,
    #[schema(required, format = DateTime)]
    pub next_attempt_at: Option<String>,
    #[schema(required)]
    pub last_status_code: Option<u32>,
    #[schema(required)]
    pub last_error: Option<String>,
    #[schema(format = DateTime)]
    pub created_at: String,
    #[schema(required, format = DateTime)]
    pub finished_at: Option<String>,
    pub attempts: Option<Vec<EventDeliveryAttempt>>,
    /// Of the answer; deliveries in a list have none.
    pub request_id: Option<String>,
}

/// Events that will be sent again.
#[derive(ToSchema)]
#[schema(example = json!({"object": "event_replay", "destination_id": "evtd_01h455vb4pex5vsknk084sn02q", "since": "2026-05-01T12:00:00.000Z", "until": "2026-05-02T12:00:00.000Z", "request_id": "req_01h455vb4pex5vsknk084sn02q"}))]
pub struct EventReplay {
    /// `event_replay`
    pub object: String,
    pub destination_id: String,
    #[schema(format = DateTime)]
    pub since: String,
    /// What was published up to here is sent again.
    #[schema(format = DateTime)]
    pub until: String,
    pub request_id: String,
}

/// The system that runs work on.
#[derive(ToSchema)]
#[schema(example = json!({
    "id": "src_01h455vb4pex5vsknk084sn02q", "object": "source", "type": "website", "name": "Brightwater",
    "url": "https://portal.example.com", "created_at": "2026-05-01T12:00:00.000Z",
    "updated_at": "2026-05-01T12:00:00.000Z", "request_id": "req_01h455vb4pex5vsknk084sn02q"
}))]
pub struct Source {
    pub id: String,
    /// `source`
    pub object: String,
    pub r#type: super::requests::SourceType,
    pub name: String,
    #[schema(required)]
    pub url: Option<String>,
    #[schema(format = DateTime)]
    pub created_at: String,
    #[schema(format = DateTime)]
    pub updated_at: String,
    /// Of the answer; sources in a list have none.
    pub request_id: Option<String>,
}

/// Whether the source takes a credential, as far as agents have told.
#[derive(ToSchema)]
#[schema(rename_all = "snake_case")]
pub enum CredentialStatus {
    Unverified,
    Verified,
    Invalid,
}

/// A credential, without its secrets.
#[derive(ToSchema)]
#[schema(example = json!({
    "id": "cred_01h455vb4pex5vsknk084sn02q", "object": "credential", "name": "Eve's account",
    "auth_method": "username_password", "has_totp": true, "source_id": "src_01h455vb4pex5vsknk084sn02q",
    "status": "verified", "failure": null, "checked_at": "2026-05-01T12:00:05.000Z",
    "created_at": "2026-05-01T12:00:00.000Z", "updated_at": "2026-05-01T12:00:05.000Z",
    "request_id": "req_01h455vb4pex5vsknk084sn02q"
}))]
pub struct Credential {
    pub id: String,
    /// `credential`
    pub object: String,
    pub name: String,
    pub auth_method: super::requests::AuthMethod,
    /// Whether one-time codes can be made.
    pub has_totp: bool,
    #[schema(required)]
    pub source_id: Option<String>,
    pub status: CredentialStatus,
    /// auth_invalid or auth_locked where it is invalid
    #[schema(required)]
    pub failure: Option<String>,
    /// When an agent has tried it last.
    #[schema(required, format = DateTime)]
    pub checked_at: Option<String>,
    #[schema(format = DateTime)]
    pub created_at: String,
    #[schema(format = DateTime)]
    pub updated_at: String,
    /// Of the answer; credentials in a list have none.
    pub request_id: Option<String>,
}
