//! What a command that fails says, and its exit code: 1 for an error or a run that did not complete, 2 for a command
//! that makes no sense.

use errand_client::ClientError;
use errand_core::{Error, ErrorCode};
use serde_json::{Value, json};

/// The command line makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Usage(pub(crate) String);

/// Exit code 1; what there is to say was said.
#[derive(Debug, thiserror::Error)]
#[error("see above")]
pub(crate) struct Said;

/// Nobody reads our output any more: not an error of ours.
#[derive(Debug, thiserror::Error)]
#[error("the output is closed")]
pub(crate) struct OutputClosed;

/// What to print on stderr, and the exit code.
pub(crate) fn report(error: &anyhow::Error, as_json: bool) -> (Option<String>, u8) {
    if error.is::<Said>() {
        return (None, 1);
    }
    if error.is::<OutputClosed>() {
        return (None, 0);
    }
    let code = if error.is::<Usage>() { 2 } else { 1 };
    let text = if as_json { json!({"errors": [as_value(error)]}).to_string() } else { as_text(error) };
    (Some(text), code)
}

fn catalogued(error: &anyhow::Error) -> Option<Error> {
    error
        .downcast_ref::<ClientError>()
        .map(ClientError::to_error)
        .or_else(|| error.downcast_ref::<Error>().cloned())
        .or_else(|| error.downcast_ref::<Usage>().map(|usage| ErrorCode::INPUT_INVALID.with(usage.0.clone())))
}

fn as_value(error: &anyhow::Error) -> Value {
    let entry = catalogued(error).unwrap_or_else(|| ErrorCode::API_ERROR.with(format!("{error:#}")));
    serde_json::to_value(entry).unwrap_or(Value::Null)
}

fn as_text(error: &anyhow::Error) -> String {
    if let Some(usage) = error.downcast_ref::<Usage>() {
        return format!("error: {usage}");
    }
    match catalogued(error) {
        Some(entry) => format!("error: {}", entry_text(&entry)),
        None => format!("error: {error:#}"),
    }
}

/// `type/code: message (field)`.
pub(crate) fn entry_text(error: &Error) -> String {
    let field = error.field.as_ref().map(|field| format!(" ({field})")).unwrap_or_default();
    format!("{}/{}: {}{field}", error.code.kind, error.code.code, error.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_type_code_message_and_field() {
        let invalid = || ErrorCode::INPUT_INVALID.with("\"x\" is not a number").at("input.amount");
        let cases = [
            anyhow::Error::from(invalid()),
            anyhow::Error::from(ClientError::Refused(invalid())).context("submitting"),
            anyhow::Error::from(Usage("--input is not JSON: expected value at line 1".into())),
            anyhow::anyhow!("no such file").context("tasks/bills.json"),
            anyhow::Error::from(Said),
            anyhow::Error::from(OutputClosed),
        ];
        let said: Vec<String> = cases
            .iter()
            .flat_map(|error| [report(error, false), report(error, true)])
            .map(|(text, code)| format!("{code} {}", text.as_deref().unwrap_or("-")))
            .collect();
        insta::assert_snapshot!("errors", said.join("\n"));
    }
}
