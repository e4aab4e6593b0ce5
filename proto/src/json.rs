//! The JSON form of runs, tasks, sessions and events: CONTRACT sections 2 to 4.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use crate::v1;

const RFC3339_MILLIS: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// A time as RFC 3339 in UTC with milliseconds; null where it is out of range.
#[must_use]
pub fn time(ms: i64) -> Value {
    rfc3339(ms).map_or(Value::Null, Value::String)
}

fn rfc3339(ms: i64) -> Option<String> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ms) * 1_000_000).ok()?.format(RFC3339_MILLIS).ok()
}

fn optional_time(ms: Option<i64>) -> Value {
    ms.map_or(Value::Null, time)
}

fn or_null(text: &str) -> Value {
    if text.is_empty() { Value::Null } else { Value::String(text.to_owned()) }
}

/// Stored JSON as a value. What is not JSON is shown as text, rather than lost.
#[must_use]
pub fn stored(bytes: &[u8]) -> Value {
    if bytes.is_empty() {
        return Value::Null;
    }
    serde_json::from_slice(bytes).unwrap_or_else(|_| Value::String(String::from_utf8_lossy(bytes).into_owned()))
}

fn run_status(number: i32) -> &'static str {
    v1::RunStatus::try_from(number)
        .ok()
        .and_then(|status| errand_core::run::RunStatus::try_from(status).ok())
        .map_or("unspecified", errand_core::run::RunStatus::as_str)
}

fn run_result(number: Option<i32>) -> Option<&'static str> {
    let result = v1::RunResult::try_from(number?).ok()?;
    errand_core::run::RunResult::try_from(result).ok().map(errand_core::run::RunResult::as_str)
}

fn session_status(number: i32) -> &'static str {
    v1::SessionStatus::try_from(number)
        .ok()
        .and_then(|status| errand_core::session::SessionStatus::try_from(status).ok())
        .map_or("unspecified", errand_core::session::SessionStatus::as_str)
}

/// An entry of an `errors` list.
#[must_use]
pub fn error(error: &v1::Error) -> Value {
    let mut value = json!({"type": error.r#type, "code": error.code, "message": error.message});
    if !error.field.is_empty() {
        value["field"] = error.field.clone().into();
    }
    value
}

fn errors(list: &[v1::Error]) -> Value {
    list.iter().map(error).collect()
}

/// An open question; null where there is none.
#[must_use]
pub fn interaction(interaction: Option<&v1::Interaction>) -> Value {
    let Some(interaction) = interaction else { return Value::Null };
    let fields = interaction.fields.iter().map(|field| {
        let mut value = json!({"name": field.name, "type": field.r#type, "label": field.label});
        if !field.options.is_empty() {
            value["options"] = field.options.clone().into();
        }
        value
    });
    json!({
        "id": interaction.id,
        "type": interaction.r#type,
        "message": interaction.message,
        "fields": fields.collect::<Vec<_>>(),
        "expires_at": time(interaction.expires_at_ms),
    })
}

/// A run; `input` only where it came along.
#[must_use]
pub fn run(run: &v1::Run) -> Value {
    let mut value = json!({
        "id": run.id,
        "object": "task_run",
        "status": run_status(run.status),
        "result": run_result(run.result),
        "task_id": run.task_id,
        "task_version": run.task_version,
        "session_id": or_null(&run.session_id),
        "agent_id": or_null(&run.agent_id),
        "source_id": or_null(&run.source_id),
        "credential_id": or_null(&run.credential_id),
        "attempt": run.attempt,
        "priority": run.priority,
        "runtime_ms": run.runtime_ms,
        "output": run.output.as_deref().map_or(Value::Null, stored),
        "errors": errors(&run.errors),
        "interaction": interaction(run.interaction.as_ref()),
        "metadata": run.metadata,
        "retry_of": or_null(&run.retry_of),
        "created_at": time(run.created_at_ms),
        "started_at": optional_time(run.started_at_ms),
        "finished_at": optional_time(run.finished_at_ms),
        "canceled_at": optional_time(run.canceled_at_ms),
        "updated_at": time(run.updated_at_ms),
    });
    if let Some(input) = &run.input {
        value["input"] = stored(input);
    }
    value
}

/// A task.
#[must_use]
pub fn task(task: &v1::Task) -> Value {
    json!({
        "id": task.id,
        "object": "task",
        "version": task.version,
        "name": task.name,
        "agent_id": task.agent_id,
        "prompt": task.prompt,
        "program": stored(&task.program),
        "input_schema": stored(&task.input_schema),
        "output_schema": stored(&task.output_schema),
        "settings": task.settings.as_ref().map_or(Value::Null, settings),
        "storage": storage_settings(task.storage.as_ref()),
        "created_at": time(task.created_at_ms),
        "updated_at": time(task.updated_at_ms),
    })
}

fn settings(settings: &v1::TaskSettings) -> Value {
    json!({
        "timeout_seconds": settings.timeout_seconds,
        "inactivity_seconds": settings.inactivity_seconds,
        "interaction_seconds": settings.interaction_seconds,
        "queue_seconds": settings.queue_seconds,
        "max_attempts": settings.max_attempts,
        "retry_on": settings.retry_on,
        "review": settings.review,
        "review_seconds": settings.review_seconds,
        "reuse_session": settings.reuse_session,
        "priority": settings.priority,
    })
}

/// Those of a task from before there were any are the defaults.
fn storage_settings(storage: Option<&v1::TaskStorage>) -> Value {
    let storage = storage.cloned().unwrap_or_default();
    json!({
        "enabled": storage.enabled.unwrap_or(true),
        "extraction": storage.extraction,
        "extraction_schema": stored(&storage.extraction_schema),
        "deduplication": storage.deduplication,
    })
}

/// An artifact: CONTRACT section 2. Its `url` is for whoever knows where it is served.
#[must_use]
pub fn artifact(artifact: &v1::Artifact) -> Value {
    json!({
        "id": artifact.id,
        "object": "storage",
        "kind": artifact_kind(artifact.kind),
        "name": artifact.name,
        "mime_type": artifact.mime_type,
        "size_bytes": artifact.size_bytes,
        "sha256": hex(&artifact.sha256),
        "task_run_id": artifact.run_id,
        "task_id": artifact.task_id,
        "attempt": artifact.attempt,
        "data": artifact.data.as_deref().map_or(Value::Null, stored),
        "errors": errors(&artifact.errors),
        "created_at": time(artifact.created_at_ms),
        "expires_at": optional_time(artifact.expires_at_ms),
    })
}

fn artifact_kind(number: i32) -> &'static str {
    v1::ArtifactKind::try_from(number)
        .ok()
        .and_then(|kind| errand_core::artifact::ArtifactKind::try_from(kind).ok())
        .map_or("unspecified", errand_core::artifact::ArtifactKind::as_str)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A session.
#[must_use]
pub fn session(session: &v1::Session) -> Value {
    json!({
        "id": session.id,
        "object": "session",
        "status": session_status(session.status),
        "agent_id": session.agent_id,
        "runner_id": or_null(&session.runner_id),
        "source_id": or_null(&session.source_id),
        "credential_id": or_null(&session.credential_id),
        "task_run_id": or_null(&session.run_id),
        "runs_served": session.runs_served,
        "reason": or_null(&session.reason),
        "created_at": time(session.created_at_ms),
        "updated_at": time(session.updated_at_ms),
        "ended_at": optional_time(session.ended_at_ms),
    })
}

/// A runner.
#[must_use]
pub fn runner(runner: &v1::Runner) -> Value {
    json!({
        "id": runner.id,
        "object": "runner",
        "agent_id": runner.agent_id,
        "capacity": runner.capacity,
        "sessions": runner.sessions,
        "leases": runner.leases,
        "draining": runner.draining,
        "host": runner.host,
        "version": runner.version,
        "connected_at": time(runner.connected_at_ms),
        "last_seen_at": time(runner.last_seen_at_ms),
    })
}

/// An agent.
#[must_use]
pub fn agent(agent: &v1::Agent) -> Value {
    json!({
        "id": agent.id,
        "object": "agent",
        "runners": agent.runners,
        "capacity": agent.capacity,
        "sessions": agent.sessions,
        "leases": agent.leases,
        "waiting": agent.waiting,
    })
}

/// An API key: what is known of it, which is not its secret.
#[must_use]
pub fn api_key(key: &v1::ApiKey) -> Value {
    json!({
        "id": key.id,
        "object": "api_key",
        "name": key.name,
        "scopes": key.scopes,
        "hint": key.hint,
        "created_at": time(key.created_at_ms),
        "expires_at": optional_time(key.expires_at_ms),
        "revoked_at": optional_time(key.revoked_at_ms),
        "last_used_at": optional_time(key.last_used_at_ms),
    })
}

/// An event destination: CONTRACT section 3. What its type needs stands under the type's name.
#[must_use]
pub fn destination(destination: &v1::Destination) -> Value {
    let filter = destination.filter.clone().unwrap_or_default();
    let mut value = json!({
        "id": destination.id,
        "object": "event_destination",
        "name": destination.name,
        "type": destination.r#type,
        "events": destination.events,
        "filter": {"task_id": filter.task_id, "agent_id": filter.agent_id, "metadata": filter.metadata},
        "ordered": destination.ordered,
        "status": destination_status(destination.status),
        "inactive_reason": or_null(&destination.inactive_reason),
        "failing_since": optional_time(destination.failing_since_ms),
        "old_secret_expires_at": optional_time(destination.old_secret_expires_at_ms),
        "created_at": time(destination.created_at_ms),
        "updated_at": time(destination.updated_at_ms),
    });
    value[&destination.r#type] = stored(&destination.config);
    if !destination.secret.is_empty() {
        value["secret"] = destination.secret.clone().into();
    }
    value
}

/// A source.
#[must_use]
pub fn source(source: &v1::Source) -> Value {
    json!({
        "id": source.id,
        "object": "source",
        "type": source_type(source.r#type),
        "name": source.name,
        "url": or_null(&source.url),
        "created_at": time(source.created_at_ms),
        "updated_at": time(source.updated_at_ms),
    })
}

fn source_type(number: i32) -> &'static str {
    v1::SourceType::try_from(number)
        .ok()
        .and_then(|kind| errand_core::source::SourceType::try_from(kind).ok())
        .map_or("unspecified", errand_core::source::SourceType::as_str)
}

/// A credential, which has no secrets here.
#[must_use]
pub fn credential(credential: &v1::Credential) -> Value {
    json!({
        "id": credential.id,
        "object": "credential",
        "name": credential.name,
        "auth_method": auth_method(credential.auth_method),
        "has_totp": credential.has_totp,
        "source_id": or_null(&credential.source_id),
        "status": credential_status(credential.status),
        "failure": or_null(&credential.failure),
        "checked_at": optional_time(credential.checked_at_ms),
        "created_at": time(credential.created_at_ms),
        "updated_at": time(credential.updated_at_ms),
    })
}

fn auth_method(number: i32) -> &'static str {
    v1::AuthMethod::try_from(number)
        .ok()
        .and_then(|method| errand_core::credential::AuthMethod::try_from(method).ok())
        .map_or("unspecified", errand_core::credential::AuthMethod::as_str)
}

fn credential_status(number: i32) -> &'static str {
    v1::CredentialStatus::try_from(number)
        .ok()
        .and_then(|status| errand_core::credential::CredentialStatus::try_from(status).ok())
        .map_or("unspecified", errand_core::credential::CredentialStatus::as_str)
}

fn destination_status(number: i32) -> &'static str {
    match v1::DestinationStatus::try_from(number) {
        Ok(v1::DestinationStatus::Active) => "active",
        Ok(v1::DestinationStatus::Inactive) => "inactive",
        Ok(v1::DestinationStatus::Unspecified) | Err(_) => "unspecified",
    }
}

/// An event's way to a destination; `attempts` only where they came along.
#[must_use]
pub fn delivery(delivery: &v1::Delivery) -> Value {
    let mut value = json!({
        "id": delivery.id,
        "object": "event_delivery",
        "destination_id": delivery.destination_id,
        "event_id": delivery.event_id,
        "event_type": delivery.event_type,
        "object_id": delivery.object_id,
        "status": delivery_status(delivery.status),
        "origin": delivery.origin,
        "attempt_count": delivery.attempt_count,
        "next_attempt_at": optional_time(delivery.next_attempt_at_ms),
        "last_status_code": delivery.last_status_code,
        "last_error": or_null(&delivery.last_error),
        "created_at": time(delivery.created_at_ms),
        "finished_at": optional_time(delivery.finished_at_ms),
    });
    if !delivery.attempts.is_empty() {
        value["attempts"] = delivery.attempts.iter().map(attempt).collect();
    }
    value
}

fn attempt(attempt: &v1::DeliveryAttempt) -> Value {
    json!({
        "number": attempt.number,
        "at": time(attempt.at_ms),
        "duration_ms": attempt.duration_ms,
        "status_code": attempt.status_code,
        "error": or_null(&attempt.error),
        "response": or_null(&attempt.response),
    })
}

fn delivery_status(number: i32) -> &'static str {
    match v1::DeliveryStatus::try_from(number) {
        Ok(v1::DeliveryStatus::Pending) => "pending",
        Ok(v1::DeliveryStatus::Delivered) => "delivered",
        Ok(v1::DeliveryStatus::Failed) => "failed",
        Ok(v1::DeliveryStatus::Unspecified) | Err(_) => "unspecified",
    }
}

/// An event: CONTRACT section 4.
#[must_use]
pub fn event(event: &v1::Event) -> Value {
    serde_json::to_value(EventView::of(event)).unwrap_or_default()
}

/// An event as text. Of these there are more than of all else, so they take no way about a [`Value`].
#[must_use]
pub fn event_text(event: &v1::Event) -> Vec<u8> {
    // There is nothing in an event that JSON cannot say.
    serde_json::to_vec(&EventView::of(event)).unwrap_or_default()
}

#[derive(Serialize)]
struct EventView<'a> {
    id: &'a str,
    object: &'static str,
    r#type: &'a str,
    seq: u64,
    data: DataView<'a>,
    created_at: Time,
}

#[derive(Serialize)]
#[serde(untagged)]
enum DataView<'a> {
    Run(RunView<'a>),
    Session(SessionView<'a>),
    Other(Value),
}

#[derive(Serialize)]
struct RunView<'a> {
    id: &'a str,
    object: &'static str,
    status: &'static str,
    result: Option<&'static str>,
    task_id: &'a str,
    task_version: u32,
    session_id: Option<&'a str>,
    agent_id: Option<&'a str>,
    source_id: Option<&'a str>,
    credential_id: Option<&'a str>,
    attempt: u32,
    runtime_ms: Option<u64>,
    errors: Value,
    interaction: Value,
    metadata: &'a BTreeMap<String, String>,
    retry_of: Option<&'a str>,
    created_at: Time,
    started_at: Option<Time>,
    finished_at: Option<Time>,
}

#[derive(Serialize)]
struct SessionView<'a> {
    id: &'a str,
    object: &'static str,
    status: &'static str,
    agent_id: &'a str,
    runner_id: Option<&'a str>,
    task_run_id: Option<&'a str>,
    reason: Option<&'a str>,
    created_at: Time,
}

/// Milliseconds since the Unix epoch, told as [`time`] does.
struct Time(i64);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match rfc3339(self.0) {
            Some(text) => serializer.serialize_str(&text),
            None => serializer.serialize_none(),
        }
    }
}

fn given(text: &str) -> Option<&str> {
    Some(text).filter(|text| !text.is_empty())
}

impl<'a> EventView<'a> {
    fn of(event: &'a v1::Event) -> Self {
        let data = match &event.data {
            Some(v1::event::Data::Run(run)) => DataView::Run(run_summary(run)),
            Some(v1::event::Data::Session(session)) => DataView::Session(SessionView {
                id: &session.id,
                object: "session",
                status: session_status(session.status),
                agent_id: &session.agent_id,
                runner_id: given(&session.runner_id),
                task_run_id: given(&session.run_id),
                reason: given(&session.reason),
                created_at: Time(session.created_at_ms),
            }),
            Some(other) => DataView::Other(other_summary(other)),
            None => DataView::Other(Value::Object(Map::new())),
        };
        let (id, r#type, created_at) = (&event.id, &event.r#type, Time(event.created_at_ms));
        Self { id, object: "event", r#type, seq: event.seq, data, created_at }
    }
}

fn run_summary(run: &v1::RunSummary) -> RunView<'_> {
    RunView {
        id: &run.id,
        object: "task_run",
        status: run_status(run.status),
        result: run_result(run.result),
        task_id: &run.task_id,
        task_version: run.task_version,
        session_id: given(&run.session_id),
        agent_id: given(&run.agent_id),
        source_id: given(&run.source_id),
        credential_id: given(&run.credential_id),
        attempt: run.attempt,
        runtime_ms: run.runtime_ms,
        errors: errors(&run.errors),
        interaction: interaction(run.interaction.as_ref()),
        metadata: &run.metadata,
        retry_of: given(&run.retry_of),
        created_at: Time(run.created_at_ms),
        started_at: run.started_at_ms.map(Time),
        finished_at: run.finished_at_ms.map(Time),
    }
}

fn other_summary(data: &v1::event::Data) -> Value {
    use v1::event::Data;
    match data {
        Data::Run(_) | Data::Session(_) => Value::Null,
        Data::Task(task) => json!({
            "id": task.id,
            "object": "task",
            "version": task.version,
            "name": task.name,
            "agent_id": task.agent_id,
        }),
        Data::Destination(destination) => json!({
            "id": destination.id,
            "object": "event_destination",
            "name": destination.name,
            "type": destination.r#type,
            "reason": or_null(&destination.reason),
        }),
        Data::Credential(credential) => json!({
            "id": credential.id,
            "object": "credential",
            "name": credential.name,
            "auth_method": auth_method(credential.auth_method),
            "source_id": or_null(&credential.source_id),
            "status": credential_status(credential.status),
            "failure": or_null(&credential.failure),
        }),
        Data::Storage(storage) => json!({
            "id": storage.id,
            "object": "storage",
            "kind": artifact_kind(storage.kind),
            "name": storage.name,
            "mime_type": storage.mime_type,
            "size_bytes": storage.size_bytes,
            "sha256": hex(&storage.sha256),
            "task_run_id": storage.run_id,
            "task_id": storage.task_id,
            "created_at": time(storage.created_at_ms),
        }),
    }
}
