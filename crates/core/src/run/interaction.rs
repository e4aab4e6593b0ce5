use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::{Error, ErrorCode};
use crate::limits;
use crate::time::Timestamp;

/// What the agent asks: an [`Interaction`] before the dispatcher has set its deadline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Question {
    /// Unique within the run.
    pub id: String,
    /// `mfa`, `security_question`, `account_selection`, ...
    pub r#type: String,
    /// For the user.
    pub message: String,
    /// What to fill in.
    pub fields: Vec<InteractionField>,
}

/// One thing to fill in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct InteractionField {
    /// Its key in the answer.
    pub name: String,
    /// `text`, `password`, `code` or `select`.
    pub r#type: String,
    /// For the user.
    pub label: String,
    /// What a `select` offers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// A question to the user in the middle of a run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interaction {
    /// What is asked.
    #[serde(flatten)]
    pub question: Question,
    /// When it is too late to answer.
    pub expires_at: Timestamp,
}

const FIELD_TYPES: [&str; 4] = ["text", "password", "code", "select"];

impl Question {
    /// Checks every limit.
    ///
    /// # Errors
    /// `interaction`/`interaction_invalid`, naming the field and the limit.
    pub fn check(&self) -> Result<(), Error> {
        let wrong = |field: &str, what: String| {
            Err(ErrorCode::INTERACTION_INVALID.with(what).at(format!("interaction.{field}")))
        };
        if self.id.is_empty() || self.id.len() > 128 {
            return wrong("id", "id must have 1..128 bytes".into());
        }
        if self.r#type.is_empty() || self.r#type.len() > 64 {
            return wrong("type", "type must have 1..64 bytes".into());
        }
        if self.message.len() > limits::MAX_MESSAGE_BYTES {
            return wrong("message", format!("message is larger than {} bytes", limits::MAX_MESSAGE_BYTES));
        }
        if !(1..=limits::MAX_INTERACTION_FIELDS).contains(&self.fields.len()) {
            return wrong("fields", format!("there must be 1..{} fields", limits::MAX_INTERACTION_FIELDS));
        }
        for (at, field) in self.fields.iter().enumerate() {
            if let Err(what) = field.check() {
                return wrong(&format!("fields.{at}"), what);
            }
            if self.fields[..at].iter().any(|other| other.name == field.name) {
                return wrong(&format!("fields.{at}.name"), format!("{} stands twice", field.name));
            }
        }
        Ok(())
    }
}

impl InteractionField {
    fn check(&self) -> Result<(), String> {
        if self.name.is_empty() || self.name.len() > 64 {
            return Err("name must have 1..64 bytes".into());
        }
        if !FIELD_TYPES.contains(&self.r#type.as_str()) {
            return Err(format!("type must be one of {}", FIELD_TYPES.join(", ")));
        }
        if self.label.len() > limits::MAX_MESSAGE_BYTES {
            return Err(format!("label is larger than {} bytes", limits::MAX_MESSAGE_BYTES));
        }
        let is_select = self.r#type == "select";
        if is_select == self.options.is_empty() {
            return Err("options belong to a select, and a select has options".into());
        }
        if self.options.len() > limits::MAX_INTERACTION_OPTIONS
            || self.options.iter().any(|option| option.len() > limits::MAX_MESSAGE_BYTES)
        {
            return Err(format!(
                "there may be {} options of {} bytes",
                limits::MAX_INTERACTION_OPTIONS,
                limits::MAX_MESSAGE_BYTES
            ));
        }
        Ok(())
    }
}

/// Checks a user's answer against the question's fields. The errors hold nothing of the answer's values.
///
/// # Errors
/// `request`/`input_missing`, `request`/`field_unknown` or `request`/`input_invalid`, at the field.
pub fn check_answer(question: &Question, answer: &Value) -> Result<(), Error> {
    let Value::Object(answer) = answer else {
        return Err(ErrorCode::INPUT_INVALID.with("input must be an object: field name -> value").at("input"));
    };
    for name in answer.keys() {
        if !question.fields.iter().any(|field| field.name == *name) {
            let name: String = name.chars().take(64).collect();
            let message = format!("the interaction has no field {name}");
            return Err(ErrorCode::FIELD_UNKNOWN.with(message).at(format!("input.{name}")));
        }
    }
    for field in &question.fields {
        let at = format!("input.{}", field.name);
        match answer.get(&field.name) {
            None | Some(Value::Null) => {
                return Err(ErrorCode::INPUT_MISSING.with(format!("{} is missing", field.name)).at(at));
            }
            Some(Value::String(text)) => {
                if text.len() > limits::MAX_MESSAGE_BYTES {
                    let message = format!("{} is larger than {} bytes", field.name, limits::MAX_MESSAGE_BYTES);
                    return Err(ErrorCode::INPUT_INVALID.with(message).at(at));
                }
                if field.r#type == "select" && !field.options.contains(text) {
                    return Err(ErrorCode::INPUT_INVALID.with("is none of the options").at(at));
                }
            }
            Some(_) => return Err(ErrorCode::INPUT_INVALID.with(format!("{} must be a string", field.name)).at(at)),
        }
    }
    Ok(())
}
