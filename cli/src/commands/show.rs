//! Objects as people read them.

use errand_proto::{json, v1};
use serde_json::Value;

use crate::output::{cell, pretty, time_of_day};

/// Columns of a list of runs.
pub(crate) const RUNS: &[(&str, &str)] = &[
    ("RUN", "id"),
    ("STATUS", "status"),
    ("TASK", "task_id"),
    ("CREATED", "created_at"),
    ("RUNTIME MS", "runtime_ms"),
    ("ATTEMPT", "attempt"),
    ("ERROR", "errors.0.code"),
];

/// One run, key by key, then what it has to say.
pub(crate) fn run(run: &Value) -> String {
    let mut lines = Vec::new();
    let shown = [
        "id",
        "status",
        "result",
        "task_id",
        "session_id",
        "agent_id",
        "source_id",
        "credential_id",
        "attempt",
        "priority",
        "runtime_ms",
        "metadata",
        "retry_of",
        "created_at",
        "started_at",
        "finished_at",
        "canceled_at",
    ];
    for key in shown {
        let text = cell(run, key);
        if text != "-" {
            lines.push(format!("{key:<14}{text}"));
        }
    }
    for key in ["input", "output"] {
        if run.get(key).is_some_and(|value| !value.is_null()) {
            lines.push(format!("{key}:\n{}", pretty(&run[key])));
        }
    }
    lines.extend(errors(run));
    lines.extend(question(run));
    lines.join("\n")
}

/// The entries of `errors`, a line each.
pub(crate) fn errors(object: &Value) -> Vec<String> {
    let entries = object["errors"].as_array().map(Vec::as_slice).unwrap_or_default();
    entries
        .iter()
        .map(|entry| {
            let field = entry.get("field").map(|_| format!(" ({})", cell(entry, "field"))).unwrap_or_default();
            format!("{}/{}: {}{field}", cell(entry, "type"), cell(entry, "code"), cell(entry, "message"))
        })
        .map(|text| format!("error: {text}"))
        .collect()
}

/// The open question, if there is one, and how to answer it.
fn question(run: &Value) -> Vec<String> {
    let interaction = &run["interaction"];
    if interaction.is_null() {
        return Vec::new();
    }
    vec![
        format!("asks ({}): {}", cell(interaction, "type"), cell(interaction, "message")),
        format!("answer with: {}", how_to_answer(&cell(run, "id"), interaction)),
    ]
}

/// The command that answers an interaction.
pub(crate) fn how_to_answer(run: &str, interaction: &Value) -> String {
    let fields = interaction["fields"].as_array().map(Vec::as_slice).unwrap_or_default();
    let fields: Vec<String> = fields.iter().map(|field| format!("{}=...", cell(field, "name"))).collect();
    format!("errand interact {run} {}", fields.join(" "))
}

/// One event in one line: when, what, of what, and what is worth knowing.
pub(crate) fn event(event: &v1::Event) -> String {
    let value = json::event(event);
    let detail = detail(&value["data"]);
    let text = format!(
        "{}  {:<30}  {}  {}  {detail}",
        time_of_day(&value["created_at"]),
        cell(&value, "type"),
        cell(&value["data"], "id"),
        event.seq
    );
    text.trim_end().to_owned()
}

/// What an event tells beyond the status.
pub(crate) fn detail(data: &Value) -> String {
    let mut parts = Vec::new();
    if !data["interaction"].is_null() {
        parts.push(format!("asks: {}", cell(data, "interaction.message")));
    }
    parts.extend(errors(data).into_iter().map(|text| text.trim_start_matches("error: ").to_owned()));
    if data["runtime_ms"].is_u64() {
        parts.push(format!("{} ms", data["runtime_ms"]));
    }
    for key in ["name", "task_run_id", "reason"] {
        if data.get(key).is_some_and(Value::is_string) {
            parts.push(format!("{key}={}", cell(data, key)));
        }
    }
    if data["attempt"].as_u64().is_some_and(|attempt| attempt > 1) {
        parts.push(format!("attempt {}", data["attempt"]));
    }
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn summary() -> v1::RunSummary {
        v1::RunSummary {
            id: "trun_01h455vb4pex5vsknk084sn02q".into(),
            status: v1::RunStatus::InteractionRequired.into(),
            attempt: 2,
            interaction: Some(v1::Interaction {
                id: "i1".into(),
                r#type: "mfa".into(),
                message: "The code\nfrom your mail".into(),
                fields: vec![v1::InteractionField { name: "code".into(), r#type: "code".into(), ..Default::default() }],
                expires_at_ms: 600_000,
            }),
            ..Default::default()
        }
    }

    #[test]
    fn an_event_is_one_line() {
        let asks = v1::Event {
            r#type: "task_run.interaction_required".into(),
            seq: 3,
            created_at_ms: 1_777_777_777_123,
            data: Some(v1::event::Data::Run(summary())),
            ..Default::default()
        };
        let failed = v1::RunSummary {
            status: v1::RunStatus::Failed.into(),
            errors: vec![v1::Error {
                r#type: "task".into(),
                code: "timeout".into(),
                message: "no activity for 2 s".into(),
                field: String::new(),
            }],
            interaction: None,
            runtime_ms: Some(2012),
            attempt: 1,
            ..summary()
        };
        let fails = v1::Event {
            r#type: "task_run.failed".into(),
            seq: 4,
            data: Some(v1::event::Data::Run(failed)),
            ..asks.clone()
        };
        insta::assert_snapshot!("event_lines", [event(&asks), event(&fails)].join("\n"));
    }

    #[test]
    fn a_run_that_asks_says_how_to_answer() {
        let summary = summary();
        let asking = v1::Run {
            id: summary.id.clone(),
            status: summary.status,
            interaction: summary.interaction,
            output: Some(b"{\"a\":1}".as_slice().into()),
            ..Default::default()
        };
        insta::assert_snapshot!("run_that_asks", run(&json::run(&asking)));
    }
}
