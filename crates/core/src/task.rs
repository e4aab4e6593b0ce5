//! Task definitions: what a run executes. CONTRACT section 3.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, ErrorCode};
use crate::id::{AgentId, TaskId, Tenant};
use crate::limits;
use crate::time::Timestamp;

/// A task: one version of a definition.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    /// The task.
    pub id: TaskId,
    /// Its owner.
    pub tenant: Tenant,
    /// 1, 2, 3 ...; a run keeps the one it began with.
    pub version: u32,
    /// What the owner wrote.
    pub definition: Definition,
    /// When version 1 was made.
    pub created_at: Timestamp,
    /// When this version was made.
    pub updated_at: Timestamp,
}

/// What the owner of a task writes; the JSON form is the contract's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Definition {
    /// Unique per tenant; 1..128 characters.
    pub name: String,
    /// The kind of runner that it needs.
    pub agent_id: AgentId,
    /// For the agent; at most 64 KiB.
    #[serde(default)]
    pub prompt: String,
    /// For the agent, in a form of the agent's own; at most 128 KiB.
    #[serde(default)]
    pub program: Option<Value>,
    /// JSON Schema that a run's input must fit; none: anything fits.
    #[serde(default)]
    pub input_schema: Option<Value>,
    /// JSON Schema that a run's output must fit; none: anything fits.
    #[serde(default)]
    pub output_schema: Option<Value>,
    /// Times, attempts, review.
    #[serde(default)]
    pub settings: Settings,
    /// What becomes of the files that a run captures.
    #[serde(default)]
    pub storage: Storage,
}

/// What becomes of the files that a run captures.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Storage {
    /// Whether they are kept at all.
    pub enabled: bool,
    /// Whether structured data is made of those to which the agent gave none.
    pub extraction: bool,
    /// JSON Schema that the structured data of each file must fit; none: anything fits.
    pub extraction_schema: Option<Value>,
    /// Whether equal files of the task's runs share their bytes.
    pub deduplication: bool,
}

impl Default for Storage {
    fn default() -> Self {
        Self { enabled: true, extraction: false, extraction_schema: None, deduplication: false }
    }
}

/// Why a run whose attempt came to nothing is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RetryOn {
    /// Its session died under it.
    SessionLost,
}

/// How runs of a task are bounded and treated. Seconds are 1..30 days.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Bounds the execution's whole time, less what people took to answer; none: unbounded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<u32>,
    /// A run without activity for so long has failed.
    pub inactivity_seconds: u32,
    /// How long a person may take to answer.
    pub interaction_seconds: u32,
    /// How long a run waits for a session.
    pub queue_seconds: u32,
    /// 1..10.
    pub max_attempts: u32,
    /// When a further attempt is made.
    pub retry_on: BTreeSet<RetryOn>,
    /// Whether a person looks at the output before the run completes.
    pub review: bool,
    /// How long the review may take; none: for ever.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub review_seconds: Option<u32>,
    /// Whether a run may execute in an idle session that another run of the same tenant, agent, source and
    /// credential has left.
    pub reuse_session: bool,
    /// -100..100, higher first.
    pub priority: i32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            timeout_seconds: None,
            inactivity_seconds: 30 * 60,
            interaction_seconds: 10 * 60,
            queue_seconds: 60 * 60,
            max_attempts: 3,
            retry_on: BTreeSet::from([RetryOn::SessionLost]),
            review: false,
            review_seconds: None,
            reuse_session: false,
            priority: 0,
        }
    }
}

impl Settings {
    fn check(&self) -> Result<(), Error> {
        let times = [
            ("timeout_seconds", self.timeout_seconds),
            ("inactivity_seconds", Some(self.inactivity_seconds)),
            ("interaction_seconds", Some(self.interaction_seconds)),
            ("queue_seconds", Some(self.queue_seconds)),
            ("review_seconds", self.review_seconds),
        ];
        for (name, seconds) in times {
            if let Some(seconds) = seconds {
                check_seconds(&format!("settings.{name}"), seconds)?;
            }
        }
        if !(1..=limits::MAX_ATTEMPTS).contains(&self.max_attempts) {
            return Err(out_of_range("settings.max_attempts", 1, limits::MAX_ATTEMPTS.into()));
        }
        check_priority("settings.priority", self.priority)
    }
}

/// Refuses a number of seconds beyond 1..[`limits::MAX_SECONDS`].
///
/// # Errors
/// `request`/`input_invalid` at the field.
pub fn check_seconds(field: &str, seconds: u32) -> Result<(), Error> {
    if (1..=limits::MAX_SECONDS).contains(&seconds) {
        Ok(())
    } else {
        Err(out_of_range(field, 1, limits::MAX_SECONDS.into()))
    }
}

/// Refuses a priority beyond -[`limits::MAX_PRIORITY`]..[`limits::MAX_PRIORITY`].
///
/// # Errors
/// `request`/`input_invalid` at the field.
pub fn check_priority(field: &str, priority: i32) -> Result<(), Error> {
    if (-limits::MAX_PRIORITY..=limits::MAX_PRIORITY).contains(&priority) {
        Ok(())
    } else {
        Err(out_of_range(field, (-limits::MAX_PRIORITY).into(), limits::MAX_PRIORITY.into()))
    }
}

fn out_of_range(field: &str, least: i64, most: i64) -> Error {
    ErrorCode::INPUT_INVALID.with(format!("{field} must be {least}..{most}")).at(field)
}

fn too_large(field: &str, limit: usize) -> Error {
    ErrorCode::INPUT_INVALID.with(format!("{field} is larger than {limit} bytes")).at(field)
}

impl Definition {
    /// Checks every limit; that the schemas are schemas is checked where they are compiled.
    ///
    /// # Errors
    /// `request`/`input_invalid`, `request`/`input_missing` or `request`/`schema_invalid`, naming the field and the limit.
    pub fn check(&self) -> Result<(), Error> {
        if self.name.is_empty() {
            return Err(ErrorCode::INPUT_MISSING.with("name is missing").at("name"));
        }
        if self.name.chars().count() > limits::MAX_NAME || self.name.chars().any(char::is_control) {
            let message = format!("name must have 1..{} characters and no control characters", limits::MAX_NAME);
            return Err(ErrorCode::INPUT_INVALID.with(message).at("name"));
        }
        if self.prompt.len() > limits::MAX_PROMPT_BYTES {
            return Err(too_large("prompt", limits::MAX_PROMPT_BYTES));
        }
        if self.program.as_ref().is_some_and(|program| program.to_string().len() > limits::MAX_PROGRAM_BYTES) {
            return Err(too_large("program", limits::MAX_PROGRAM_BYTES));
        }
        let schemas = [
            ("input_schema", &self.input_schema),
            ("output_schema", &self.output_schema),
            ("storage.extraction_schema", &self.storage.extraction_schema),
        ];
        for (field, schema) in schemas {
            if let Some(schema) = schema {
                check_schema_size(field, schema)?;
            }
        }
        self.settings.check()
    }
}

fn check_schema_size(field: &str, schema: &Value) -> Result<(), Error> {
    if schema.to_string().len() > limits::MAX_SCHEMA_BYTES {
        let message = format!("{field} is larger than {} bytes", limits::MAX_SCHEMA_BYTES);
        return Err(ErrorCode::SCHEMA_INVALID.with(message).at(field));
    }
    if depth_exceeds(schema, limits::MAX_JSON_DEPTH) {
        let message = format!("{field} is nested deeper than {}", limits::MAX_JSON_DEPTH);
        return Err(ErrorCode::SCHEMA_INVALID.with(message).at(field));
    }
    Ok(())
}

/// Whether a value is nested deeper than `limit`.
#[must_use]
pub fn depth_exceeds(value: &Value, limit: usize) -> bool {
    let Some(rest) = limit.checked_sub(1) else { return true };
    match value {
        Value::Array(items) => items.iter().any(|item| depth_exceeds(item, rest)),
        Value::Object(fields) => fields.values().any(|item| depth_exceeds(item, rest)),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> Definition {
        serde_json::from_str(r#"{"name":"bills","agent_id":"agt_exec"}"#).unwrap()
    }

    #[test]
    fn the_smallest_definition_has_the_contracts_defaults() {
        let settings = definition().settings;
        assert_eq!(definition().check(), Ok(()));
        assert_eq!(
            (settings.inactivity_seconds, settings.interaction_seconds, settings.queue_seconds),
            (1800, 600, 3600)
        );
    }

    #[test]
    fn each_limit_names_its_field() {
        type Spoil = fn(&mut Definition);
        let cases: [(&str, Spoil); 10] = [
            ("name", |d| d.name.clear()),
            ("name", |d| d.name = "x".repeat(129)),
            ("prompt", |d| d.prompt = "x".repeat(limits::MAX_PROMPT_BYTES + 1)),
            ("program", |d| d.program = Some(Value::String("x".repeat(limits::MAX_PROGRAM_BYTES)))),
            ("input_schema", |d| d.input_schema = Some(Value::String("x".repeat(limits::MAX_SCHEMA_BYTES)))),
            ("output_schema", |d| {
                d.output_schema = Some((0..80).fold(Value::Null, |inner, _| Value::Array(vec![inner])));
            }),
            ("storage.extraction_schema", |d| {
                d.storage.extraction_schema = Some(Value::String("x".repeat(limits::MAX_SCHEMA_BYTES)));
            }),
            ("settings.queue_seconds", |d| d.settings.queue_seconds = 0),
            ("settings.max_attempts", |d| d.settings.max_attempts = 11),
            ("settings.priority", |d| d.settings.priority = -101),
        ];
        for (field, spoil) in cases {
            let mut spoiled = definition();
            spoil(&mut spoiled);
            assert_eq!(spoiled.check().unwrap_err().field.as_deref(), Some(field));
        }
    }

    #[test]
    fn an_unknown_field_is_an_error() {
        let error = serde_json::from_str::<Definition>(r#"{"name":"a","agent_id":"agt_exec","colour":1}"#).unwrap_err();
        assert!(error.to_string().contains("colour"), "{error}");
    }

    /// A value that is nested `depth` deep.
    fn nested(depth: usize) -> Value {
        (1..depth).fold(Value::Null, |inner, at| match at % 2 {
            0 => Value::Array(vec![Value::Bool(true), inner]),
            _ => serde_json::json!({ "in": inner }),
        })
    }

    /// A value whose JSON is so long.
    fn of_bytes(bytes: usize) -> Option<Value> {
        Some(Value::String("x".repeat(bytes - r#""""#.len())))
    }

    #[test]
    fn sizes_are_taken_up_to_their_limit() {
        type Size = fn(&mut Definition, usize);
        let cases: [(&str, ErrorCode, usize, Size); 7] = [
            ("name", ErrorCode::INPUT_INVALID, limits::MAX_NAME, |d, n| d.name = "é".repeat(n)),
            ("prompt", ErrorCode::INPUT_INVALID, limits::MAX_PROMPT_BYTES, |d, n| d.prompt = "x".repeat(n)),
            ("program", ErrorCode::INPUT_INVALID, limits::MAX_PROGRAM_BYTES, |d, n| d.program = of_bytes(n)),
            ("input_schema", ErrorCode::SCHEMA_INVALID, limits::MAX_SCHEMA_BYTES, |d, n| d.input_schema = of_bytes(n)),
            ("output_schema", ErrorCode::SCHEMA_INVALID, limits::MAX_SCHEMA_BYTES, |d, n| {
                d.output_schema = of_bytes(n)
            }),
            ("storage.extraction_schema", ErrorCode::SCHEMA_INVALID, limits::MAX_SCHEMA_BYTES, |d, n| {
                d.storage.extraction_schema = of_bytes(n);
            }),
            ("input_schema", ErrorCode::SCHEMA_INVALID, limits::MAX_JSON_DEPTH, |d, n| {
                d.input_schema = Some(nested(n))
            }),
        ];
        for (field, code, limit, size) in cases {
            let checked = |n| {
                let mut definition = definition();
                size(&mut definition, n);
                definition.check()
            };
            assert_eq!(checked(limit), Ok(()), "{field}");
            let error = checked(limit + 1).unwrap_err();
            assert_eq!((error.code, error.field.as_deref()), (code, Some(field)));
        }
    }

    #[test]
    fn settings_are_taken_up_to_both_ends_of_their_range() {
        type Set = fn(&mut Settings, i32);
        let seconds = i32::try_from(limits::MAX_SECONDS).unwrap();
        let cases: [(&str, i32, i32, Set); 7] = [
            ("settings.timeout_seconds", 1, seconds, |s, n| s.timeout_seconds = Some(n.cast_unsigned())),
            ("settings.inactivity_seconds", 1, seconds, |s, n| s.inactivity_seconds = n.cast_unsigned()),
            ("settings.interaction_seconds", 1, seconds, |s, n| s.interaction_seconds = n.cast_unsigned()),
            ("settings.queue_seconds", 1, seconds, |s, n| s.queue_seconds = n.cast_unsigned()),
            ("settings.review_seconds", 1, seconds, |s, n| s.review_seconds = Some(n.cast_unsigned())),
            ("settings.max_attempts", 1, 10, |s, n| s.max_attempts = n.cast_unsigned()),
            ("settings.priority", -100, 100, |s, n| s.priority = n),
        ];
        for (field, least, most, set) in cases {
            let checked = |n| {
                let mut definition = definition();
                set(&mut definition.settings, n);
                definition.check()
            };
            assert_eq!((checked(least), checked(most)), (Ok(()), Ok(())), "{field}");
            let refused = Err(ErrorCode::INPUT_INVALID.with(format!("{field} must be {least}..{most}")).at(field));
            assert_eq!((checked(least - 1), checked(most + 1)), (refused.clone(), refused));
        }
    }
}
