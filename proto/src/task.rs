//! Task definitions in and out.

use std::collections::BTreeSet;

use errand_core::task::{Definition, RetryOn, Settings, Storage, Task};
use errand_core::{Error, ErrorCode};
use serde_json::Value;

use crate::v1;
use crate::wire::id;

fn json(field: &str, bytes: &[u8], code: ErrorCode) -> Result<Option<Value>, Error> {
    if bytes.is_empty() {
        return Ok(None);
    }
    serde_json::from_slice(bytes)
        .map(Some)
        .map_err(|error| code.with(format!("{field} is not JSON: {error}")).at(field))
}

fn bytes(value: Option<&Value>) -> bytes::Bytes {
    value.map(|value| value.to_string().into()).unwrap_or_default()
}

/// What the owner of a task writes, its limits checked.
impl TryFrom<v1::Task> for Definition {
    type Error = Error;

    fn try_from(task: v1::Task) -> Result<Self, Error> {
        let definition = Self {
            name: task.name,
            agent_id: id("agent_id", &task.agent_id)?,
            prompt: task.prompt,
            program: json("program", &task.program, ErrorCode::INPUT_INVALID)?,
            input_schema: json("input_schema", &task.input_schema, ErrorCode::SCHEMA_INVALID)?,
            output_schema: json("output_schema", &task.output_schema, ErrorCode::SCHEMA_INVALID)?,
            settings: task.settings.map(Settings::try_from).transpose()?.unwrap_or_default(),
            storage: task.storage.as_ref().map(Storage::try_from).transpose()?.unwrap_or_default(),
        };
        definition.check()?;
        Ok(definition)
    }
}

impl TryFrom<v1::TaskSettings> for Settings {
    type Error = Error;

    fn try_from(wire: v1::TaskSettings) -> Result<Self, Error> {
        let default = Self::default();
        let retry_on = wire
            .retry_on
            .iter()
            .map(|reason| match reason.as_str() {
                "session_lost" => Ok(RetryOn::SessionLost),
                _ => Err(ErrorCode::INPUT_INVALID.with("retry_on may hold session_lost").at("settings.retry_on")),
            })
            .collect::<Result<BTreeSet<_>, _>>()?;
        Ok(Self {
            timeout_seconds: wire.timeout_seconds,
            inactivity_seconds: wire.inactivity_seconds.unwrap_or(default.inactivity_seconds),
            interaction_seconds: wire.interaction_seconds.unwrap_or(default.interaction_seconds),
            queue_seconds: wire.queue_seconds.unwrap_or(default.queue_seconds),
            max_attempts: wire.max_attempts.unwrap_or(default.max_attempts),
            retry_on: if wire.retry_on_given || !retry_on.is_empty() { retry_on } else { default.retry_on },
            review: wire.review,
            review_seconds: wire.review_seconds,
            reuse_session: wire.reuse_session,
            priority: wire.priority,
        })
    }
}

impl From<&Settings> for v1::TaskSettings {
    fn from(settings: &Settings) -> Self {
        Self {
            timeout_seconds: settings.timeout_seconds,
            inactivity_seconds: Some(settings.inactivity_seconds),
            interaction_seconds: Some(settings.interaction_seconds),
            queue_seconds: Some(settings.queue_seconds),
            max_attempts: Some(settings.max_attempts),
            retry_on: settings.retry_on.iter().map(|RetryOn::SessionLost| "session_lost".to_owned()).collect(),
            retry_on_given: true,
            review: settings.review,
            review_seconds: settings.review_seconds,
            reuse_session: settings.reuse_session,
            priority: settings.priority,
        }
    }
}

impl TryFrom<&v1::TaskStorage> for Storage {
    type Error = Error;

    fn try_from(wire: &v1::TaskStorage) -> Result<Self, Error> {
        let schema = json("storage.extraction_schema", &wire.extraction_schema, ErrorCode::SCHEMA_INVALID)?;
        Ok(Self {
            enabled: wire.enabled.unwrap_or(true),
            extraction: wire.extraction,
            extraction_schema: schema,
            deduplication: wire.deduplication,
        })
    }
}

impl From<&Storage> for v1::TaskStorage {
    fn from(storage: &Storage) -> Self {
        Self {
            enabled: Some(storage.enabled),
            extraction: storage.extraction,
            extraction_schema: bytes(storage.extraction_schema.as_ref()),
            deduplication: storage.deduplication,
        }
    }
}

/// What a client sends to create a task.
impl From<&Definition> for v1::Task {
    fn from(definition: &Definition) -> Self {
        Self {
            name: definition.name.clone(),
            agent_id: definition.agent_id.to_string(),
            prompt: definition.prompt.clone(),
            program: bytes(definition.program.as_ref()),
            input_schema: bytes(definition.input_schema.as_ref()),
            output_schema: bytes(definition.output_schema.as_ref()),
            settings: Some((&definition.settings).into()),
            storage: Some((&definition.storage).into()),
            ..Self::default()
        }
    }
}

impl From<&Task> for v1::Task {
    fn from(task: &Task) -> Self {
        Self {
            id: task.id.to_string(),
            tenant: task.tenant.to_string(),
            version: task.version,
            created_at_ms: task.created_at.0,
            updated_at_ms: task.updated_at.0,
            ..Self::from(&task.definition)
        }
    }
}
