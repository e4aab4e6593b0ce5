//! JSON Schema checks. The library is built without any resolver, so a remote `$ref` is an error, never a request.

use errand_core::task::depth_exceeds;
use errand_core::{Error, ErrorCode, limits};
pub use jsonschema::Validator;
use serde_json::Value;

/// Compiles a task's schema.
///
/// # Errors
/// `request`/`schema_invalid` at the field.
pub fn compile(field: &str, schema: &Value) -> Result<Validator, Error> {
    let wrong = |what: String| ErrorCode::SCHEMA_INVALID.with(format!("{field}: {what}")).at(field);
    jsonschema::meta::validate(schema).map_err(|error| wrong(format!("{error} at {}", error.instance_path())))?;
    jsonschema::validator_for(schema).map_err(|error| wrong(error.to_string()))
}

/// Parses JSON and checks it against a schema. Empty bytes mean null.
///
/// # Errors
/// What does not fit, and where; none of the value's secrets beyond what the schema's own words say.
pub fn check(json: &[u8], schema: Option<&Validator>) -> Result<(), String> {
    let value: Value = if json.is_empty() {
        Value::Null
    } else {
        serde_json::from_slice(json).map_err(|error| format!("is not JSON: {error}"))?
    };
    if depth_exceeds(&value, limits::MAX_JSON_DEPTH) {
        return Err(format!("is nested deeper than {}", limits::MAX_JSON_DEPTH));
    }
    let Some(schema) = schema else { return Ok(()) };
    let misfits: Vec<String> = schema
        .iter_errors(&value)
        .take(5)
        .map(|error| format!("{}: {}", or_root(&error.instance_path().to_string()), error.masked()))
        .collect();
    if misfits.is_empty() { Ok(()) } else { Err(misfits.join("; ")) }
}

fn or_root(path: &str) -> &str {
    if path.is_empty() { "/" } else { path }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_does_not_fit_is_named_without_its_value() {
        let schema = json!({"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]});
        let schema = compile("input_schema", &schema).unwrap();
        assert_eq!(check(br#"{"n": 1}"#, Some(&schema)), Ok(()));
        let misfit = check(br#"{"n": "hunter2"}"#, Some(&schema)).unwrap_err();
        assert!(misfit.contains("/n") && !misfit.contains("hunter2"), "{misfit}");
        assert!(check(b"", Some(&schema)).is_err());
        assert!(check(b"{", None).unwrap_err().contains("not JSON"));
    }

    #[test]
    fn remote_references_and_nonsense_are_refused() {
        for schema in [
            json!({"$ref": "http://127.0.0.1:1/schema.json"}),
            json!({"$ref": "file:///etc/hosts"}),
            json!({"type": "colour"}),
            json!({"$ref": "#/nowhere"}),
        ] {
            assert_eq!(compile("input_schema", &schema).unwrap_err().code, ErrorCode::SCHEMA_INVALID, "{schema}");
        }
    }

    #[test]
    fn deep_values_are_refused() {
        let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
        assert!(check(deep.as_bytes(), None).unwrap_err().contains("deeper"));
    }
}
