//! Which events a destination gets.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use errand_core::{AgentId, Error, ErrorCode, TaskId, limits};
use errand_proto::event::TYPES;
use errand_proto::{id, v1};
use serde::{Deserialize, Serialize};

/// Values in one field of a filter.
const MAX_VALUES: usize = 100;

/// Which types of events.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Pattern {
    /// `*`
    All,
    /// `task_run.*`, without the `.*`.
    Object(String),
    /// `task_run.completed`
    Exact(String),
}

impl Pattern {
    /// Whether events of this type are meant.
    #[must_use]
    pub fn fits(&self, event_type: &str) -> bool {
        match self {
            Self::All => true,
            Self::Object(object) => event_type.strip_prefix(object.as_str()).is_some_and(|rest| rest.starts_with('.')),
            Self::Exact(exact) => exact == event_type,
        }
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = |fits: &dyn Fn(&str) -> bool| TYPES.iter().any(|known| fits(known));
        let pattern = match text.strip_suffix(".*") {
            _ if text == "*" => return Ok(Self::All),
            Some(object) => Self::Object(object.to_owned()),
            None => Self::Exact(text.to_owned()),
        };
        if known(&|event_type| pattern.fits(event_type)) {
            return Ok(pattern);
        }
        Err(format!("{:?} is no type of event: say `task_run.completed`, `task_run.*` or `*`", short(text)))
    }
}

fn short(text: &str) -> String {
    text.chars().take(80).collect()
}

impl TryFrom<String> for Pattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> Self {
        pattern.to_string()
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::All => f.write_str("*"),
            Self::Object(object) => write!(f, "{object}.*"),
            Self::Exact(exact) => f.write_str(exact),
        }
    }
}

/// Of which objects: several values in one field mean any of them, several fields mean all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Filter {
    task_id: Vec<String>,
    agent_id: Vec<String>,
    metadata: BTreeMap<String, String>,
}

impl Filter {
    /// Whether an event is meant. One whose object has no such property does not fit a field that is set.
    #[must_use]
    pub fn fits(&self, event: &v1::Event) -> bool {
        use v1::event::Data;
        let (task, agent, metadata) = match &event.data {
            Some(Data::Run(run)) => (Some(&run.task_id), Some(&run.agent_id), Some(&run.metadata)),
            Some(Data::Session(session)) => (None, Some(&session.agent_id), None),
            Some(Data::Task(task)) => (Some(&task.id), Some(&task.agent_id), None),
            Some(Data::Storage(storage)) => (Some(&storage.task_id), None, None),
            Some(Data::Destination(_) | Data::Credential(_)) | None => (None, None, None),
        };
        let any_of = |wanted: &[String], value: Option<&String>| {
            wanted.is_empty() || value.is_some_and(|value| wanted.contains(value))
        };
        let has = |(key, value): (&String, &String)| metadata.is_some_and(|metadata| metadata.get(key) == Some(value));
        any_of(&self.task_id, task) && any_of(&self.agent_id, agent) && self.metadata.iter().all(has)
    }
}

impl TryFrom<v1::DestinationFilter> for Filter {
    type Error = Error;

    fn try_from(filter: v1::DestinationFilter) -> Result<Self, Error> {
        at_most("filter.task_id", filter.task_id.len(), MAX_VALUES)?;
        at_most("filter.agent_id", filter.agent_id.len(), MAX_VALUES)?;
        at_most("filter.metadata", filter.metadata.len(), limits::MAX_METADATA_ENTRIES)?;
        for task in &filter.task_id {
            id::<TaskId>("filter.task_id", task)?;
        }
        for agent in &filter.agent_id {
            id::<AgentId>("filter.agent_id", agent)?;
        }
        for (key, value) in &filter.metadata {
            at_most("filter.metadata", key.chars().count(), limits::MAX_METADATA_KEY)?;
            at_most("filter.metadata", value.chars().count(), limits::MAX_METADATA_VALUE)?;
        }
        let metadata = filter.metadata.into_iter().collect();
        Ok(Self { task_id: filter.task_id, agent_id: filter.agent_id, metadata })
    }
}

fn at_most(field: &str, count: usize, limit: usize) -> Result<(), Error> {
    if count <= limit {
        return Ok(());
    }
    Err(ErrorCode::INPUT_INVALID.with(format!("{field}: {count} is more than {limit}")).at(field))
}

impl From<&Filter> for v1::DestinationFilter {
    fn from(filter: &Filter) -> Self {
        Self {
            task_id: filter.task_id.clone(),
            agent_id: filter.agent_id.clone(),
            metadata: filter.metadata.clone().into_iter().collect(),
        }
    }
}
