//! The error catalogue: CONTRACT section 5. What a user may see is one of these; clients branch on `type` and `code`.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::limits::MAX_MESSAGE_BYTES;

/// A type, a code, and the HTTP status of a call that fails with it.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Clone, Copy)]
pub struct ErrorCode {
    /// Who is at fault, broadly: `request`, `session`, `task`, ...
    pub kind: &'static str,
    /// What is wrong.
    pub code: &'static str,
    /// The HTTP status.
    pub http: u16,
}

macro_rules! catalogue {
    ($($name:ident = $kind:literal $code:literal $http:literal;)*) => {
        #[expect(missing_docs, reason = "the names repeat type and code; CONTRACT section 5 explains them")]
        impl ErrorCode {
            $(pub const $name: Self = Self { kind: $kind, code: $code, http: $http };)*

            /// Every code there is.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];
        }
    };
}

catalogue! {
    API_ERROR = "api" "api_error" 500;
    API_TIMEOUT = "api" "timeout" 504;
    API_UNAVAILABLE = "api" "unavailable" 503;
    INPUT_MISSING = "request" "input_missing" 400;
    INPUT_INVALID = "request" "input_invalid" 400;
    FIELD_UNKNOWN = "request" "field_unknown" 400;
    INCLUDE_INVALID = "request" "include_invalid" 400;
    CURSOR_INVALID = "request" "cursor_invalid" 400;
    BODY_INVALID = "request" "body_invalid" 400;
    BODY_TOO_LARGE = "request" "body_too_large" 413;
    API_KEY_MISSING = "request" "api_key_missing" 401;
    API_KEY_INVALID = "request" "api_key_invalid" 401;
    FORBIDDEN = "request" "forbidden" 403;
    TASK_NOT_FOUND = "request" "task_not_found" 404;
    TASK_RUN_NOT_FOUND = "request" "task_run_not_found" 404;
    SESSION_NOT_FOUND = "request" "session_not_found" 404;
    RUNNER_NOT_FOUND = "request" "runner_not_found" 404;
    AGENT_NOT_FOUND = "request" "agent_not_found" 404;
    SOURCE_NOT_FOUND = "request" "source_not_found" 404;
    CREDENTIAL_NOT_FOUND = "request" "credential_not_found" 404;
    EVENT_NOT_FOUND = "request" "event_not_found" 404;
    EVENT_DESTINATION_NOT_FOUND = "request" "event_destination_not_found" 404;
    EVENT_DELIVERY_NOT_FOUND = "request" "event_delivery_not_found" 404;
    API_KEY_NOT_FOUND = "request" "api_key_not_found" 404;
    ROUTE_NOT_FOUND = "request" "route_not_found" 404;
    STORAGE_NOT_FOUND = "request" "storage_not_found" 404;
    METHOD_NOT_ALLOWED = "request" "method_not_allowed" 405;
    TASK_RUN_NOT_CANCELABLE = "request" "task_run_not_cancelable" 409;
    INTERACTION_NOT_PENDING = "request" "interaction_not_pending" 409;
    REVIEW_NOT_PENDING = "request" "review_not_pending" 409;
    SESSION_NOT_AVAILABLE = "request" "session_not_available" 409;
    SCHEMA_INVALID = "request" "schema_invalid" 400;
    IDEMPOTENCY_ERROR = "idempotency" "idempotency_error" 409;
    IDEMPOTENCY_KEY_ERROR = "idempotency" "idempotency_key_error" 400;
    RATE_LIMIT_EXCEEDED = "rate_limit" "rate_limit_exceeded" 429;
    SESSION_LIMIT_EXCEEDED = "rate_limit" "session_limit_exceeded" 429;
    SESSION_TIMEOUT = "session" "timeout" 504;
    SESSION_LOST = "session" "lost" 503;
    PROVISION_FAILED = "session" "provision_failed" 503;
    SOURCE_ERROR = "source" "source_error" 503;
    SOURCE_INVALID = "source" "source_invalid" 400;
    SOURCE_NOT_AVAILABLE = "source" "source_not_available" 503;
    SOURCE_BLOCKED = "source" "source_blocked" 403;
    AUTH_INVALID = "auth" "auth_invalid" 401;
    AUTH_LOCKED = "auth" "auth_locked" 403;
    AUTH_UNSUPPORTED = "auth" "auth_unsupported" 400;
    INTERACTION_TIMEOUT = "interaction" "interaction_timeout" 408;
    INTERACTION_INVALID = "interaction" "interaction_invalid" 400;
    TASK_TIMEOUT = "task" "timeout" 504;
    OUTPUT_INVALID = "task" "output_invalid" 500;
    AGENT_ERROR = "task" "agent_error" 500;
    REVIEW_REJECTED = "task" "review_rejected" 409;
    REVIEW_TIMEOUT = "task" "review_timeout" 408;
    STORAGE_ERROR = "storage" "storage_error" 500;
    FILE_TOO_LARGE = "storage" "file_too_large" 413;
    EXTRACTION_FAILED = "storage" "extraction_failed" 500;
}

impl ErrorCode {
    /// The entry with this type and code.
    #[must_use]
    pub fn find(kind: &str, code: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|entry| entry.kind == kind && entry.code == code)
    }

    /// Whether an agent may report it: not those that only Errand itself can know.
    #[must_use]
    pub fn is_agents(self) -> bool {
        matches!(self.kind, "source" | "auth" | "storage") || self == Self::AGENT_ERROR
    }

    /// This error, with a message.
    #[must_use]
    pub fn with(self, message: impl Into<String>) -> Error {
        Error::new(self, message)
    }
}

/// One entry of an `errors` list.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[serde(try_from = "Plain", into = "Plain")]
pub struct Error {
    /// Its place in the catalogue.
    pub code: ErrorCode,
    /// For people; at most 2 KiB; holds no secrets.
    pub message: String,
    /// The request field at fault, dotted.
    pub field: Option<String>,
}

impl Error {
    /// An error of this code. A message beyond the limit is cut.
    #[must_use]
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > MAX_MESSAGE_BYTES {
            let end = message.floor_char_boundary(MAX_MESSAGE_BYTES - 3);
            message.truncate(end);
            message.push('…');
        }
        Self { code, message, field: None }
    }

    /// The same error, at this field.
    #[must_use]
    pub fn at(mut self, field: impl Into<String>) -> Self {
        self.field = Some(field.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}: {}", self.code.kind, self.code.code, self.message)?;
        match &self.field {
            Some(field) => write!(f, " (field {field})"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The JSON form.
#[derive(Serialize, Deserialize)]
struct Plain {
    r#type: Cow<'static, str>,
    code: Cow<'static, str>,
    message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    field: Option<String>,
}

impl From<Error> for Plain {
    fn from(error: Error) -> Self {
        Self {
            r#type: error.code.kind.into(),
            code: error.code.code.into(),
            message: error.message,
            field: error.field,
        }
    }
}

impl TryFrom<Plain> for Error {
    type Error = String;

    fn try_from(plain: Plain) -> Result<Self, String> {
        let code = ErrorCode::find(&plain.r#type, &plain.code)
            .ok_or_else(|| format!("no error {}/{} in the catalogue", plain.r#type, plain.code))?;
        Ok(Self { code, message: plain.message, field: plain.field })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_code_stands_twice() {
        for (at, entry) in ErrorCode::ALL.iter().enumerate() {
            assert_eq!(ErrorCode::find(entry.kind, entry.code), Some(*entry), "{at}");
        }
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let error = ErrorCode::API_ERROR.with("é".repeat(5000));
        assert!(error.message.len() <= MAX_MESSAGE_BYTES && error.message.ends_with('…'));
    }

    #[test]
    fn the_json_form_is_the_contracts() {
        let error = ErrorCode::INPUT_INVALID.with("is not a number").at("input.amount");
        let json = serde_json::to_string(&error).unwrap();
        assert_eq!(
            json,
            r#"{"type":"request","code":"input_invalid","message":"is not a number","field":"input.amount"}"#
        );
        assert_eq!(serde_json::from_str::<Error>(&json).unwrap(), error);
    }

    /// Agents blame sources, credentials, files and themselves. That a time is over, a session lost or a request wrong
    /// is not theirs to say: clients branch on it.
    #[test]
    fn an_agent_reports_no_error_that_only_errand_can_know() {
        let agents: Vec<ErrorCode> = ErrorCode::ALL.iter().copied().filter(|code| code.is_agents()).collect();
        let expected = [
            ErrorCode::SOURCE_ERROR,
            ErrorCode::SOURCE_INVALID,
            ErrorCode::SOURCE_NOT_AVAILABLE,
            ErrorCode::SOURCE_BLOCKED,
            ErrorCode::AUTH_INVALID,
            ErrorCode::AUTH_LOCKED,
            ErrorCode::AUTH_UNSUPPORTED,
            ErrorCode::AGENT_ERROR,
            ErrorCode::STORAGE_ERROR,
            ErrorCode::FILE_TOO_LARGE,
            ErrorCode::EXTRACTION_FAILED,
        ];
        assert_eq!(agents, expected);
    }

    #[test]
    fn logs_name_code_message_and_field() {
        let error = ErrorCode::INPUT_INVALID.with("is not a number");
        assert_eq!(error.to_string(), "request/input_invalid: is not a number");
        let error = error.at("input.amount");
        for text in [error.to_string(), format!("{error:?}")] {
            assert_eq!(text, "request/input_invalid: is not a number (field input.amount)");
        }
    }
}
