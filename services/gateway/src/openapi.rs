//! The OpenAPI document: what the handlers say, and what holds for all of them.

use bytes::Bytes;
use errand_core::limits;
use serde_json::{Map, Value, json};
use utoipa::openapi::OpenApi;

/// Every failure that any call may answer.
const FAILURES: &[(&str, &str)] = &[
    ("400", "The request does not fit"),
    ("401", "The API key is missing, not valid, revoked or expired"),
    ("403", "The API key lacks the scope, or a link is wrong or has expired"),
    ("404", "There is no such object"),
    ("405", "The method is not allowed here"),
    ("409", "The object's state does not admit it, or the idempotency key was used for another request"),
    ("413", "The body is too large"),
    ("429", "Too many requests; see Retry-After"),
    ("500", "Errand failed"),
    ("503", "A part of Errand is away; see Retry-After"),
    ("504", "A part of Errand did not answer in time"),
];

/// The patterns of ids, by the names of parameters and properties.
const IDS: &[(&str, &str)] = &[
    ("task_id", "task"),
    ("run_id", "trun"),
    ("session_id", "sess"),
    ("runner_id", "rnr"),
    ("source_id", "src"),
    ("credential_id", "cred"),
    ("destination_id", "evtd"),
    ("delivery_id", "edlv"),
    ("storage_id", "stor"),
];

/// The document as it is served.
///
/// # Errors
/// None but a fault of ours.
pub fn finish(document: OpenApi) -> anyhow::Result<Bytes> {
    let mut document = serde_json::to_value(document)?;
    document["openapi"] = "3.1.0".into();
    document["info"] = json!({
        "title": "Errand",
        "version": env!("CARGO_PKG_VERSION"),
        "description": "Runs tasks on scarce compute sessions, and tells everyone what happened. Send the key as \
            `Authorization: Bearer sk_...`. Every answer carries `request_id`; errors are a list, to branch on by \
            `type` and `code`.",
        "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
    });
    document["security"] = json!([{"api_key": []}]);
    document["components"]["securitySchemes"] =
        json!({"api_key": {"type": "http", "scheme": "bearer", "description": "An API key: sk_..."}});
    let errors = serde_json::to_value(<crate::schema::answers::Errors as utoipa::PartialSchema>::schema())?;
    let entry = serde_json::to_value(<crate::schema::answers::ErrorEntry as utoipa::PartialSchema>::schema())?;
    document["components"]["schemas"]["Errors"] = errors;
    document["components"]["schemas"]["ErrorEntry"] = entry;
    if let Some(paths) = document["paths"].as_object_mut() {
        for (path, item) in paths.iter_mut() {
            for (method, operation) in item.as_object_mut().into_iter().flatten() {
                finish_operation(path, method, operation);
            }
        }
    }
    finish_requests(&mut document["components"]["schemas"]);
    Ok(serde_json::to_vec(&document)?.into())
}

/// Whose ids begin a page of a list.
fn listed(path: &str) -> &'static str {
    match path {
        "/v2/tasks" => "task",
        "/v2/task-runs" => "trun",
        "/v2/sessions" => "sess",
        "/v2/runners" => "rnr",
        "/v2/event-destinations" => "evtd",
        _ if path.ends_with("/storage") => "stor",
        _ if path.ends_with("/deliveries") => "edlv",
        _ => "evt",
    }
}

fn finish_operation(path: &str, method: &str, operation: &mut Value) {
    // A body that may be absent may not be null.
    let body = &mut operation["requestBody"]["content"]["application/json"]["schema"];
    let reference = body["oneOf"].as_array().and_then(|kinds| kinds.iter().find(|kind| kind["$ref"].is_string()));
    if let Some(reference) = reference.cloned() {
        *body = reference;
    }
    if operation["requestBody"]["content"]["application/json"]["schema"].is_null() {
        operation.as_object_mut().map(|fields| fields.remove("requestBody"));
    }
    let id = json!({"description": "The request's id", "schema": {"type": "string"}});
    if let Some(responses) = operation["responses"].as_object_mut() {
        for response in responses.values_mut() {
            response["headers"] = json!({"x-request-id": id});
        }
        for (status, description) in FAILURES {
            let mut response = json!({
                "description": description,
                "headers": {"x-request-id": id},
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Errors"}}},
            });
            if matches!(*status, "429" | "503") {
                response["headers"]["retry-after"] = json!({"description": "Seconds", "schema": {"type": "string"}});
            }
            responses.entry((*status).to_owned()).or_insert(response);
        }
    }
    if !operation["parameters"].is_array() {
        operation["parameters"] = json!([]);
    }
    if let Some(parameters) = operation["parameters"].as_array_mut() {
        parameters.iter_mut().for_each(|parameter| finish_parameter(path, parameter));
        if method != "get" {
            parameters.push(json!({
                "name": "Idempotency-Key", "in": "header", "required": false,
                "description": "The same key and request within 24 h: the first answer again",
                "schema": {"type": "string", "minLength": 1, "maxLength": 256, "pattern": "^[\\t -~]*[!-~][\\t -~]*$"},
            }));
        }
        if path.ends_with("/events") {
            parameters.push(json!({
                "name": "Last-Event-ID", "in": "header", "required": false,
                "description": "Live: goes on behind this event",
                "schema": {"type": "string", "pattern": pattern("evt")},
            }));
        }
    }
}

fn pattern(prefix: &str) -> String {
    format!("^{prefix}_[0-7][0-9a-hjkmnp-tv-z]{{25}}$")
}

fn finish_parameter(path: &str, parameter: &mut Value) {
    let name = parameter["name"].as_str().unwrap_or_default().to_owned();
    let in_path = parameter["in"] == "path";
    let schema = &mut parameter["schema"];
    // Absent is the only null of a query string.
    if let Some(kinds) = schema["type"].as_array_mut() {
        kinds.retain(|kind| kind != "null");
        if let [one] = kinds.as_slice() {
            schema["type"] = one.clone();
        }
    }
    if in_path && name == "agent_id" {
        schema["pattern"] = AGENT.into();
    }
    if let Some((_, prefix)) = IDS.iter().find(|(id, _)| *id == name && in_path) {
        schema["pattern"] = pattern(prefix).into();
    }
    match name.as_str() {
        "agent_id" if !in_path => schema["items"] = json!({"type": "string", "pattern": AGENT}),
        "include" => schema["items"] = json!({"type": "string", "enum": ["input", "storage", "screenshots", "events"]}),
        "type" if path == "/v2/events" => {
            schema["items"] = json!({"type": "string", "enum": event_types()});
        }
        "type" => schema["items"] = json!({"type": "string", "enum": DESTINATIONS}),
        "status" if path == "/v2/event-destinations" => schema["items"]["enum"] = json!(["active", "inactive"]),
        "status" if path.ends_with("/deliveries") => {
            schema["items"]["enum"] = json!(["pending", "delivered", "failed"]);
        }
        "event_type" => schema["items"] = json!({"type": "string", "pattern": "^[a-z_]+\\.[a-z_]+$"}),
        "cursor" | "starting_after" | "ending_before" if path == "/v2/agents" => schema["pattern"] = AGENT.into(),
        "cursor" | "starting_after" | "ending_before" => schema["pattern"] = pattern(listed(path)).into(),
        "metadata" => {
            schema["additionalProperties"] = json!({"type": "string", "maxLength": 500});
            schema["maxProperties"] = 50.into();
            schema["propertyNames"] = json!({"pattern": "^[a-zA-Z0-9_.-]{1,40}$"});
        }
        _ => {
            if let Some((_, prefix)) = IDS.iter().find(|(id, _)| *id == name && !in_path) {
                schema["items"] = json!({"type": "string", "pattern": pattern(prefix)});
            }
        }
    }
    if schema["type"] == "array" {
        schema["maxItems"] = crate::query::MAX_VALUES.into();
    }
}

const AGENT: &str = "^agt_[a-z0-9-][a-z0-9_-]{0,63}$";
const DESTINATIONS: &[&str] =
    &["webhook", "nats", "rabbitmq", "aws_sqs", "aws_kinesis", "aws_s3", "gcp_pubsub", "azure_servicebus"];

fn event_types() -> Vec<&'static str> {
    crate::routes::event_types().collect()
}

/// Limits that the types of requests cannot say of themselves.
fn finish_requests(schemas: &mut Value) {
    let id = |prefix: &str| json!({"type": ["string", "null"], "pattern": pattern(prefix)});
    let metadata = json!({
        "type": ["object", "null"], "additionalProperties": {"type": "string", "maxLength": 500}, "maxProperties": 50,
        "propertyNames": {"minLength": 1, "maxLength": 40},
    });
    let schema = json!({
        "description": "JSON Schema; null: anything fits",
        "anyOf": [{"type": "null"}, {"type": "boolean"}, {"type": "object"}],
    });
    let mut set = |object: &str, property: &str, value: Value| {
        let properties = schemas[object]["properties"].as_object_mut();
        if let Some(found) = properties.and_then(|properties| properties.get_mut(property)) {
            let description = found["description"].clone();
            *found = value;
            if found["description"].is_null() && description.is_string() {
                found["description"] = description;
            }
        }
    };
    for (property, prefix) in [("credential_id", "cred"), ("source_id", "src"), ("session_id", "sess")] {
        set("RunTask", property, id(prefix));
    }
    set("RunTask", "metadata", metadata.clone());
    for (object, nullable) in [("CreateTask", false), ("UpdateTask", true)] {
        let kind = if nullable { json!(["string", "null"]) } else { json!("string") };
        set(object, "agent_id", json!({"type": kind, "pattern": AGENT}));
        set(object, "name", json!({"type": kind, "pattern": "^[^\\x00-\\x1f\\x7f-\\x9f]{1,128}$"}));
        set(object, "prompt", json!({"type": ["string", "null"], "maxLength": limits::MAX_PROMPT_BYTES}));
        set(object, "input_schema", schema.clone());
        set(object, "output_schema", schema.clone());
    }
    let events = json!({
        "type": "array", "minItems": 1, "maxItems": 50,
        "items": {"type": "string", "pattern": "^(\\*|[a-z_]+\\.(\\*|[a-z_]+))$"},
    });
    set("CreateDestination", "type", json!({"type": "string", "enum": DESTINATIONS}));
    set("CreateDestination", "events", events.clone());
    let mut nullable = events;
    nullable["type"] = json!(["array", "null"]);
    set("UpdateDestination", "events", nullable);
    set("FilterInput", "metadata", metadata);
    let ids = |pattern: String| json!({"type": ["array", "null"], "maxItems": 50, "items": {"type": "string", "pattern": pattern}});
    set("FilterInput", "task_id", ids(pattern("task")));
    set("FilterInput", "agent_id", ids(AGENT.to_owned()));
    for object in ["RunTask", "CreateTask", "UpdateTask", "SettingsInput", "AnswerInteraction", "ReviewRun", "Empty"]
        .into_iter()
        .chain(["FilterInput", "CreateDestination", "UpdateDestination", "Replay"])
    {
        if let Some(schema) = schemas.get_mut(object).and_then(Value::as_object_mut) {
            close(schema);
        }
    }
}

fn close(schema: &mut Map<String, Value>) {
    schema.insert("additionalProperties".to_owned(), false.into());
}
