//! Request bodies: JSON that fits a type exactly. What does not fit is named.

use axum::extract::{FromRequest, Request};
use bytes::Bytes;
use errand_core::{Error, ErrorCode, limits};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::answer::Failure;

/// A request's body may have so many bytes.
pub const MAX_BYTES: usize = 1024 * 1024;

/// A body that was read. An empty one counts as `{}`.
#[derive(Debug, Clone, Copy)]
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        // The guard has read it, with a limit and a deadline.
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|_| ErrorCode::BODY_INVALID.with("the body cannot be read"))?;
        Ok(Self(parse(&bytes)?))
    }
}

/// Reads a body.
///
/// # Errors
/// `request`/`body_invalid` for what is no JSON object or nested too deep; `request`/`field_unknown`,
/// `request`/`input_missing` and `request`/`input_invalid` at the field.
pub fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Error> {
    let bytes = if bytes.is_empty() { b"{}" } else { bytes };
    check_form(bytes)?;
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let mut track = serde_path_to_error::Track::new();
    let tracked = serde_path_to_error::Deserializer::new(&mut deserializer, &mut track);
    let parsed = T::deserialize(tracked).map_err(|error| refusal(&error, &track.path().to_string()))?;
    deserializer.end().map_err(|error| not_json(&error))?;
    Ok(parsed)
}

fn not_json(error: &serde_json::Error) -> Error {
    // Only the place: the text may be a secret.
    let (line, column) = (error.line(), error.column());
    ErrorCode::BODY_INVALID.with(format!("the body is not JSON: line {line}, column {column}"))
}

/// Refuses what is no object, and what is nested too deep, before anything recurses over it.
fn check_form(bytes: &[u8]) -> Result<(), Error> {
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    if first != Some(&b'{') {
        return Err(ErrorCode::BODY_INVALID.with("the body must be a JSON object"));
    }
    // The body itself is the first level of its values' depth.
    if depth(bytes) > limits::MAX_JSON_DEPTH + 1 {
        let message = format!("the body is nested deeper than {}", limits::MAX_JSON_DEPTH);
        return Err(ErrorCode::BODY_INVALID.with(message));
    }
    Ok(())
}

/// How deep brackets go, those within strings left out.
fn depth(bytes: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0usize, false, false);
    for byte in bytes {
        match (in_string, byte) {
            (true, _) if escaped => escaped = false,
            (true, b'\\') => escaped = true,
            (_, b'"') => in_string = !in_string,
            (false, b'{' | b'[') => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            (false, b'}' | b']') => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

fn refusal(error: &serde_json::Error, path: &str) -> Error {
    use serde_json::error::Category;
    match error.classify() {
        Category::Data => {}
        Category::Io | Category::Syntax | Category::Eof => return not_json(error),
    }
    let message = error.to_string();
    let parent = if path == "." { "" } else { path };
    if let Some(name) = quoted(&message, "unknown field `") {
        let field = if parent.is_empty() || parent == name || parent.ends_with(&format!(".{name}")) {
            if parent.is_empty() { name.to_owned() } else { parent.to_owned() }
        } else {
            format!("{parent}.{name}")
        };
        let field: String = field.chars().take(200).collect();
        return ErrorCode::FIELD_UNKNOWN.with(format!("there is no field {field}")).at(field);
    }
    if let Some(name) = quoted(&message, "missing field `") {
        let field = if parent.is_empty() { name.to_owned() } else { format!("{parent}.{name}") };
        return ErrorCode::INPUT_MISSING.with(format!("{field} is missing")).at(field);
    }
    let field: String = parent.chars().take(200).collect();
    if field.is_empty() {
        return ErrorCode::INPUT_INVALID.with(format!("the body does not fit: {}", without_value(&message)));
    }
    ErrorCode::INPUT_INVALID.with(format!("{field}: {}", without_value(&message))).at(field)
}

fn quoted<'a>(message: &'a str, before: &str) -> Option<&'a str> {
    message
        .strip_prefix(before)
        .and_then(|rest| rest.rsplit_once("` at line").map_or(Some(rest), |(rest, _)| Some(rest)))
        .map(|rest| rest.split("`, expected").next().unwrap_or(rest).split("`, there are no").next().unwrap_or(rest))
        .map(|rest| rest.trim_end_matches('`'))
}

/// `invalid type: string "hunter2", expected u32 at line 1 column 20` without the value, which may be a secret.
fn without_value(message: &str) -> String {
    let message = message.rsplit_once(" at line ").map_or(message, |(text, _)| text);
    match (message.split_once(": "), message.rsplit_once(", expected ")) {
        (Some((what, _)), Some((_, expected))) if what.starts_with("invalid ") => {
            format!("{what}, expected {expected}")
        }
        _ => message.to_owned(),
    }
}

/// For fields where null means something else than absence: absent is `None`, null `Some(None)`.
///
/// # Errors
/// What the type says.
pub fn given<'de, T, D>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    T: Deserialize<'de>,
    D: serde::Deserializer<'de>,
{
    Option::<T>::deserialize(deserializer).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Inner {
        #[expect(dead_code, reason = "only its type matters")]
        seconds: u32,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Outer {
        #[expect(dead_code, reason = "only its type matters")]
        name: String,
        #[serde(default)]
        #[expect(dead_code, reason = "only its type matters")]
        settings: Option<Inner>,
        #[serde(default)]
        #[expect(dead_code, reason = "only its type matters")]
        metadata: BTreeMap<String, String>,
    }

    fn error(text: &str) -> (ErrorCode, Option<String>, String) {
        let error = parse::<Outer>(text.as_bytes()).unwrap_err();
        (error.code, error.field.clone(), error.message)
    }

    #[test]
    fn what_is_wrong_is_named() {
        let cases = [
            (r#"{"name":"a","colour":1}"#, ErrorCode::FIELD_UNKNOWN, Some("colour")),
            (r#"{"name":"a","settings":{"seconds":1,"hours":2}}"#, ErrorCode::FIELD_UNKNOWN, Some("settings.hours")),
            (r"{}", ErrorCode::INPUT_MISSING, Some("name")),
            ("", ErrorCode::INPUT_MISSING, Some("name")),
            (r#"{"name":"a","settings":{}}"#, ErrorCode::INPUT_MISSING, Some("settings.seconds")),
            (r#"{"name":7}"#, ErrorCode::INPUT_INVALID, Some("name")),
            (r#"{"name":"a","settings":{"seconds":-1}}"#, ErrorCode::INPUT_INVALID, Some("settings.seconds")),
            (r#"{"name":"a","metadata":{"k":1}}"#, ErrorCode::INPUT_INVALID, Some("metadata.k")),
            ("[]", ErrorCode::BODY_INVALID, None),
            ("{", ErrorCode::BODY_INVALID, None),
            (r#"{"name":"a"} x"#, ErrorCode::BODY_INVALID, None),
            ("\u{0}", ErrorCode::BODY_INVALID, None),
        ];
        for (text, code, field) in cases {
            let found = error(text);
            assert_eq!((found.0, found.1.as_deref()), (code, field), "{text}: {}", found.2);
        }
        assert!(parse::<Outer>(br#"{"name":"a","settings":{"seconds":1},"metadata":{"k":"v"}}"#).is_ok());
    }

    #[test]
    fn a_value_is_not_repeated() {
        let (_, _, message) = error(r#"{"name":"a","settings":{"seconds":"hunter2, expected x"}}"#);
        assert!(!message.contains("hunter2"), "{message}");
    }

    #[test]
    fn depth_has_a_limit_that_strings_do_not_count_for() {
        let deep = format!(r#"{{"name":{}1{}}}"#, "[".repeat(100), "]".repeat(100));
        assert_eq!(error(&deep).0, ErrorCode::BODY_INVALID);
        let flat = format!(r#"{{"name":"{}\"[{{"}}"#, "[".repeat(100));
        assert!(parse::<Outer>(flat.as_bytes()).is_ok());
    }
}
