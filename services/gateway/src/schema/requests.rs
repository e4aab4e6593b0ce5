//! What requests hold. Each is read exactly: what is not here is refused by name.

use std::collections::BTreeMap;

use errand_core::task::{Definition, RetryOn, Settings, Storage};
use errand_core::{Error, ErrorCode};
use errand_secret::SecretText;
use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;
use utoipa::ToSchema;

use crate::body::given;

/// A run to be made.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"input": {"name": "Ada"}, "metadata": {"order": "4711"}}))]
pub struct RunTask {
    /// Must fit the task's input schema; at most 512 KiB.
    #[serde(default)]
    #[schema(value_type = Option<Value>)]
    pub input: Option<Box<RawValue>>,
    /// Secrets for the source.
    #[serde(default)]
    pub credential_id: Option<String>,
    /// The system that the run works on.
    #[serde(default)]
    pub source_id: Option<String>,
    /// The session that it must execute in.
    #[serde(default)]
    pub session_id: Option<String>,
    /// Higher first; in the task's place.
    #[serde(default)]
    #[schema(minimum = -100, maximum = 100)]
    pub priority: Option<i32>,
    /// Notes for its reader and for filters.
    #[serde(default)]
    pub metadata: Option<BTreeMap<String, String>>,
    /// Bounds the execution's whole time; in the task's place.
    #[serde(default)]
    #[schema(minimum = 1, maximum = 2_592_000)]
    pub timeout_seconds: Option<u32>,
}

/// How runs are bounded and treated. What is absent stays as it is (in a new task: at its default), null means the default.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SettingsInput {
    /// Bounds the execution's whole time, less what people took to answer; null: unbounded.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 2_592_000)]
    pub timeout_seconds: Option<Option<u32>>,
    /// A run without activity for so long has failed.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 2_592_000)]
    pub inactivity_seconds: Option<Option<u32>>,
    /// How long a person may take to answer.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 2_592_000)]
    pub interaction_seconds: Option<Option<u32>>,
    /// How long a run waits for a session.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 2_592_000)]
    pub queue_seconds: Option<Option<u32>>,
    /// How often a run is begun.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 10)]
    pub max_attempts: Option<Option<u32>>,
    /// When a further attempt is made.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<Vec<RetryReason>>)]
    pub retry_on: Option<Option<Vec<RetryReason>>>,
    /// Whether a person looks at the output before the run completes.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<bool>)]
    pub review: Option<Option<bool>>,
    /// How long the review may take; null: for ever.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<u32>, minimum = 1, maximum = 2_592_000)]
    pub review_seconds: Option<Option<u32>>,
    /// Whether a run may execute in a session that another one has left.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<bool>)]
    pub reuse_session: Option<Option<bool>>,
    /// Higher first.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<i32>, minimum = -100, maximum = 100)]
    pub priority: Option<Option<i32>>,
}

/// Why a run is begun again.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum RetryReason {
    /// Its session died under it.
    SessionLost,
}

impl SettingsInput {
    /// Changes what is given.
    pub fn apply(self, settings: &mut Settings) {
        fn set<T>(target: &mut T, given: Option<Option<T>>, default: T) {
            if let Some(value) = given {
                *target = value.unwrap_or(default);
            }
        }
        let default = Settings::default();
        set(&mut settings.timeout_seconds, self.timeout_seconds.map(Some), None);
        set(&mut settings.inactivity_seconds, self.inactivity_seconds, default.inactivity_seconds);
        set(&mut settings.interaction_seconds, self.interaction_seconds, default.interaction_seconds);
        set(&mut settings.queue_seconds, self.queue_seconds, default.queue_seconds);
        set(&mut settings.max_attempts, self.max_attempts, default.max_attempts);
        let reasons = |reasons: Vec<RetryReason>| {
            reasons.into_iter().map(|RetryReason::SessionLost| RetryOn::SessionLost).collect()
        };
        set(&mut settings.retry_on, self.retry_on.map(|given| given.map(reasons)), default.retry_on);
        set(&mut settings.review, self.review, default.review);
        set(&mut settings.review_seconds, self.review_seconds.map(Some), None);
        set(&mut settings.reuse_session, self.reuse_session, default.reuse_session);
        set(&mut settings.priority, self.priority, default.priority);
    }
}

/// What becomes of the files that runs capture. What is absent stays as it is (in a new task: at its default), null means
/// the default.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct StorageInput {
    /// Whether they are kept at all; true by default.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<bool>)]
    pub enabled: Option<Option<bool>>,
    /// Whether structured data is made of those to which the agent gave none.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<bool>)]
    pub extraction: Option<Option<bool>>,
    /// JSON Schema that each file's data must fit; null: anything fits.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<Value>)]
    pub extraction_schema: Option<Option<Value>>,
    /// Whether equal files of the task's runs share their bytes.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<bool>)]
    pub deduplication: Option<Option<bool>>,
}

impl StorageInput {
    /// Changes what is given.
    pub fn apply(self, storage: &mut Storage) {
        let default = Storage::default();
        if let Some(enabled) = self.enabled {
            storage.enabled = enabled.unwrap_or(default.enabled);
        }
        if let Some(extraction) = self.extraction {
            storage.extraction = extraction.unwrap_or(default.extraction);
        }
        if let Some(schema) = self.extraction_schema {
            storage.extraction_schema = schema;
        }
        if let Some(deduplication) = self.deduplication {
            storage.deduplication = deduplication.unwrap_or(default.deduplication);
        }
    }
}

/// A task to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "name": "hello", "agent_id": "agt_exec", "prompt": "Greet somebody.",
    "program": {"command": ["python3", "examples/hello/agent.py"]},
    "input_schema": {"type": "object", "required": ["name"], "properties": {"name": {"type": "string"}}},
    "settings": {"timeout_seconds": 30}
}))]
pub struct CreateTask {
    /// Unique among the tenant's tasks.
    #[schema(min_length = 1, max_length = 128)]
    pub name: String,
    /// The kind of runner that it needs.
    pub agent_id: String,
    /// For the agent; at most 64 KiB.
    #[serde(default)]
    pub prompt: Option<String>,
    /// For the agent, in a form of the agent's own; at most 128 KiB.
    #[serde(default)]
    pub program: Option<Value>,
    /// JSON Schema that a run's input must fit; null: anything fits.
    #[serde(default)]
    pub input_schema: Option<Value>,
    /// JSON Schema that a run's output must fit; null: anything fits.
    #[serde(default)]
    pub output_schema: Option<Value>,
    /// Times, attempts, review.
    #[serde(default)]
    pub settings: Option<SettingsInput>,
    /// What becomes of the files that runs capture.
    #[serde(default)]
    pub storage: Option<StorageInput>,
}

/// A change of a task: what is absent stays as it is.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"prompt": "Greet somebody warmly.", "settings": {"timeout_seconds": 60}}))]
pub struct UpdateTask {
    /// Unique among the tenant's tasks.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 128)]
    pub name: Option<String>,
    /// The kind of runner that it needs.
    #[serde(default)]
    pub agent_id: Option<String>,
    /// For the agent.
    #[serde(default)]
    pub prompt: Option<String>,
    /// For the agent; null: none.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<Value>)]
    pub program: Option<Option<Value>>,
    /// JSON Schema; null: anything fits.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<Value>)]
    pub input_schema: Option<Option<Value>>,
    /// JSON Schema; null: anything fits.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<Value>)]
    pub output_schema: Option<Option<Value>>,
    /// Times, attempts, review.
    #[serde(default)]
    pub settings: Option<SettingsInput>,
    /// What becomes of the files that runs capture.
    #[serde(default)]
    pub storage: Option<StorageInput>,
}

fn agent(text: &str) -> Result<errand_core::AgentId, Error> {
    errand_proto::id("agent_id", text)
}

impl TryFrom<CreateTask> for Definition {
    type Error = Error;

    fn try_from(task: CreateTask) -> Result<Self, Error> {
        let mut settings = Settings::default();
        if let Some(given) = task.settings {
            given.apply(&mut settings);
        }
        let mut storage = Storage::default();
        if let Some(given) = task.storage {
            given.apply(&mut storage);
        }
        let definition = Self {
            name: task.name,
            agent_id: agent(&task.agent_id)?,
            prompt: task.prompt.unwrap_or_default(),
            program: task.program,
            input_schema: task.input_schema,
            output_schema: task.output_schema,
            settings,
            storage,
        };
        definition.check()?;
        Ok(definition)
    }
}

impl UpdateTask {
    /// Changes what is given.
    ///
    /// # Errors
    /// `request`/`input_invalid`, `request`/`schema_invalid` at the field.
    pub fn apply(self, definition: &mut Definition) -> Result<(), Error> {
        if let Some(name) = self.name {
            definition.name = name;
        }
        if let Some(text) = self.agent_id {
            definition.agent_id = agent(&text)?;
        }
        if let Some(prompt) = self.prompt {
            definition.prompt = prompt;
        }
        if let Some(program) = self.program {
            definition.program = program;
        }
        if let Some(schema) = self.input_schema {
            definition.input_schema = schema;
        }
        if let Some(schema) = self.output_schema {
            definition.output_schema = schema;
        }
        if let Some(settings) = self.settings {
            settings.apply(&mut definition.settings);
        }
        if let Some(storage) = self.storage {
            storage.apply(&mut definition.storage);
        }
        definition.check()
    }
}

/// The user's answer to a run's question.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"input": {"code": "123456"}}))]
pub struct AnswerInteraction {
    /// Field name -> value. Stored nowhere.
    #[schema(value_type = BTreeMap<String, String>)]
    pub input: Box<RawValue>,
}

/// What a reviewer decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    /// The output stands.
    Approve,
    /// It does not.
    Reject,
}

/// A review.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"decision": "approve"}))]
pub struct ReviewRun {
    /// Whether the output stands.
    pub decision: Decision,
    /// Why.
    #[serde(default)]
    #[schema(max_length = 500)]
    pub comment: Option<String>,
}

/// Nothing: `{}`, or no body at all.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({}))]
pub struct Empty {}

/// Which events, besides their type.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct FilterInput {
    /// Of any of these tasks.
    #[serde(default)]
    pub task_id: Option<Vec<String>>,
    /// Of any of these agents.
    #[serde(default)]
    pub agent_id: Option<Vec<String>>,
    /// With all of these notes.
    #[serde(default)]
    pub metadata: Option<BTreeMap<String, String>>,
}

/// What a type of destination needs, under the type's name.
#[derive(Debug, Default)]
pub struct Configs(Vec<(&'static str, Value)>);

impl Configs {
    /// The one of a type, as JSON; another one is refused.
    ///
    /// # Errors
    /// `request`/`field_unknown` at the other one.
    pub fn of(self, r#type: &str) -> Result<Option<Value>, Error> {
        let mut found = None;
        for (name, config) in self.0 {
            if name != r#type {
                let message = format!("{name} does not belong to a destination of type {}", short(r#type));
                return Err(ErrorCode::FIELD_UNKNOWN.with(message).at(name));
            }
            found = Some(config);
        }
        Ok(found)
    }
}

fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

type Object = serde_json::Map<String, Value>;

macro_rules! with_configs {
    ($(#[$doc:meta])* $name:ident { $($(#[$attr:meta])* $field:ident: $type:ty,)* }) => {
        #[derive(Debug, Deserialize, ToSchema)]
        #[serde(deny_unknown_fields)]
        $(#[$doc])*
        pub struct $name {
            $($(#[$attr])* pub $field: $type,)*
            /// For type `webhook`.
            #[serde(default)]
            #[schema(value_type = Option<BTreeMap<String, Value>>)]
            pub webhook: Option<Object>,
            /// For type `nats`.
            #[serde(default)]
            #[schema(value_type = Option<BTreeMap<String, Value>>)]
            pub nats: Option<Object>,
            /// For type `rabbitmq`.
            #[serde(default)]
            #[schema(value_type = Option<BTreeMap<String, Value>>)]
            pub rabbitmq: Option<Object>,
            /// For type `aws_sqs`.
            #[serde(default)]
            #[schema(value_type = Option<BTreeMap<String, Value>>)]
            pub aws_sqs: Option<Object>,
            /// For type `aws_kinesis`.
            #[serde(default)]
            #[schema(value_type = Option<BTreeMap<String, Value>>)]
            pub aws_kinesis: Option<Object>,
            /// For type `aws_s3`.
            #[serde(default)]
            #[schema(value_type = Option<BTreeMap<String, Value>>)]
            pub aws_s3: Option<Object>,
            /// For type `gcp_pubsub`.
            #[serde(default)]
            #[schema(value_type = Option<BTreeMap<String, Value>>)]
            pub gcp_pubsub: Option<Object>,
            /// For type `azure_servicebus`.
            #[serde(default)]
            #[schema(value_type = Option<BTreeMap<String, Value>>)]
            pub azure_servicebus: Option<Object>,
        }

        impl $name {
            /// Takes out what the types need.
            pub fn configs(&mut self) -> Configs {
                let all = [
                    ("webhook", self.webhook.take()),
                    ("nats", self.nats.take()),
                    ("rabbitmq", self.rabbitmq.take()),
                    ("aws_sqs", self.aws_sqs.take()),
                    ("aws_kinesis", self.aws_kinesis.take()),
                    ("aws_s3", self.aws_s3.take()),
                    ("gcp_pubsub", self.gcp_pubsub.take()),
                    ("azure_servicebus", self.azure_servicebus.take()),
                ];
                Configs(all.into_iter().filter_map(|(name, config)| Some((name, Value::Object(config?)))).collect())
            }
        }
    };
}

with_configs! {
    /// A destination to be made: what its type needs stands under the type's name.
    #[schema(example = json!({
        "name": "billing", "type": "webhook", "webhook": {"url": "https://example.com/hook"},
        "events": ["task_run.completed", "task_run.failed"]
    }))]
    CreateDestination {
        /// For people.
        #[schema(min_length = 1, max_length = 128)]
        name: String,
        /// webhook, nats, rabbitmq, aws_sqs, aws_kinesis, aws_s3, gcp_pubsub, azure_servicebus
        r#type: String,
        /// `task_run.completed`, `task_run.*`, `*`
        #[schema(min_items = 1)]
        events: Vec<String>,
        /// Only some of these events.
        #[serde(default)]
        filter: Option<FilterInput>,
        /// Whether events of one object keep their order, so that one that fails holds up those behind it.
        #[serde(default)]
        ordered: Option<bool>,
    }
}

with_configs! {
    /// A change of a destination: what is absent stays as it is. A masked secret means: as it was.
    #[schema(example = json!({"events": ["task_run.*"]}))]
    UpdateDestination {
        /// For people.
        #[serde(default)]
        #[schema(min_length = 1, max_length = 128)]
        name: Option<String>,
        /// `task_run.completed`, `task_run.*`, `*`
        #[serde(default)]
        #[schema(min_items = 1)]
        events: Option<Vec<String>>,
        /// Only some of these events.
        #[serde(default)]
        filter: Option<FilterInput>,
        /// Whether events of one object keep their order.
        #[serde(default)]
        ordered: Option<bool>,
    }
}

/// Since when events are to be sent once more.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"since": "2026-05-01T12:00:00Z"}))]
pub struct Replay {
    /// RFC 3339.
    #[schema(format = DateTime)]
    pub since: String,
}

/// What kind of system a source is.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum SourceType {
    /// A web site: `http` or `https`.
    Website,
    /// A desktop: `rdp`, `vnc`, ...
    Desktop,
    /// An API: `http` or `https`.
    Api,
    /// What programs on the runner's machine work on.
    Exec,
}

impl From<SourceType> for errand_core::source::SourceType {
    fn from(kind: SourceType) -> Self {
        match kind {
            SourceType::Website => Self::Website,
            SourceType::Desktop => Self::Desktop,
            SourceType::Api => Self::Api,
            SourceType::Exec => Self::Exec,
        }
    }
}

/// A source to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"type": "website", "name": "Brightwater", "url": "https://portal.example.com"}))]
pub struct CreateSource {
    /// What kind of system it is.
    pub r#type: SourceType,
    /// For people.
    #[schema(min_length = 1, max_length = 128)]
    pub name: String,
    /// Where it is, without user and password; a source of type `exec` needs none.
    #[serde(default)]
    pub url: Option<String>,
}

/// What is to be otherwise with a source.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"name": "Brightwater (new)"}))]
pub struct UpdateSource {
    /// Another type.
    #[serde(default)]
    pub r#type: Option<SourceType>,
    /// Another name.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 128)]
    pub name: Option<String>,
    /// Another address.
    #[serde(default)]
    pub url: Option<String>,
}

/// How a credential signs in.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum AuthMethod {
    /// `username`, `password`, and perhaps `totp_secret`.
    UsernamePassword,
    /// `api_key`
    ApiKey,
    /// `totp_secret`
    Totp,
    /// Nothing: the source wants no sign-in.
    None,
}

impl From<AuthMethod> for errand_core::credential::AuthMethod {
    fn from(method: AuthMethod) -> Self {
        match method {
            AuthMethod::UsernamePassword => Self::UsernamePassword,
            AuthMethod::ApiKey => Self::ApiKey,
            AuthMethod::Totp => Self::Totp,
            AuthMethod::None => Self::None,
        }
    }
}

/// A credential to be made.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "name": "Eve's account", "auth_method": "username_password", "username": "eve@example.com", "password": "open sesame"
}))]
pub struct CreateCredential {
    /// For people.
    #[schema(min_length = 1, max_length = 128)]
    pub name: String,
    /// How it signs in: which of the secrets it has.
    pub auth_method: AuthMethod,
    /// The source that it is for; for any unless given.
    #[serde(default)]
    pub source_id: Option<String>,
    /// Who signs in.
    #[serde(default)]
    #[schema(value_type = Option<String>, write_only)]
    pub username: Option<SecretText>,
    /// With which password.
    #[serde(default)]
    #[schema(value_type = Option<String>, write_only)]
    pub password: Option<SecretText>,
    /// The key of an API.
    #[serde(default)]
    #[schema(value_type = Option<String>, write_only)]
    pub api_key: Option<SecretText>,
    /// What one-time codes are made from: base32, or an `otpauth://totp/` address.
    #[serde(default)]
    #[schema(value_type = Option<String>, write_only)]
    pub totp_secret: Option<SecretText>,
}

/// What is to be otherwise with a credential. Its method never changes.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({"password": "open barley"}))]
pub struct UpdateCredential {
    /// Another name.
    #[serde(default)]
    #[schema(min_length = 1, max_length = 128)]
    pub name: Option<String>,
    /// Another source; null: any.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>)]
    pub source_id: Option<Option<String>>,
    /// Another name to sign in with.
    #[serde(default)]
    #[schema(value_type = Option<String>, write_only)]
    pub username: Option<SecretText>,
    /// Another password.
    #[serde(default)]
    #[schema(value_type = Option<String>, write_only)]
    pub password: Option<SecretText>,
    /// Another key.
    #[serde(default)]
    #[schema(value_type = Option<String>, write_only)]
    pub api_key: Option<SecretText>,
    /// Another secret for one-time codes; null takes it away.
    #[serde(default, deserialize_with = "given")]
    #[schema(value_type = Option<String>, write_only)]
    pub totp_secret: Option<Option<SecretText>>,
}
