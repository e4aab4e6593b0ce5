//! `errand task`.

use std::io::Read;
use std::path::Path;

use anyhow::Context;
use errand_client::Client;
use errand_core::ErrorCode;
use errand_core::task::Definition;
use errand_proto::json;
use futures::TryStreamExt;
use serde_json::Value;

use crate::args::{TaskArgs, TaskCommand};
use crate::output::{Output, cell, pretty};

const COLUMNS: &[(&str, &str)] =
    &[("TASK", "id"), ("NAME", "name"), ("AGENT", "agent_id"), ("VERSION", "version"), ("UPDATED", "updated_at")];

pub(crate) async fn run(args: TaskArgs, client: &Client, out: Output) -> anyhow::Result<()> {
    match args.command {
        TaskCommand::Apply { files } => {
            // All are read before the first is applied: half of a set is worse than none.
            let mut definitions = Vec::new();
            for file in &files {
                definitions.extend(read(file)?);
            }
            for definition in definitions {
                let task = json::task(&client.apply_task(&definition).await?);
                out.item(&task, applied)?;
            }
            Ok(())
        }
        TaskCommand::List { agent } => {
            let tasks: Vec<Value> = client.tasks(agent).map_ok(|task| json::task(&task)).try_collect().await?;
            out.list(&tasks, COLUMNS)
        }
        TaskCommand::Get { task, version } => out.item(&json::task(&client.get_task(&task, version).await?), pretty),
        TaskCommand::Delete { task } => out.item(&json::task(&client.delete_task(&task).await?), |task| {
            format!("{} ({}) is deleted", cell(task, "name"), cell(task, "id"))
        }),
    }
}

fn applied(task: &Value) -> String {
    format!("{} is {}, version {}", cell(task, "name"), cell(task, "id"), cell(task, "version"))
}

/// The definitions in a file: one, or a list.
pub(crate) fn read(file: &Path) -> anyhow::Result<Vec<Definition>> {
    let shown = file.display().to_string();
    let text = if file == Path::new("-") {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).map(|_| text)
    } else {
        std::fs::read_to_string(file)
    };
    let text = text.with_context(|| format!("cannot read {shown}"))?;
    let invalid = |error: serde_json::Error| {
        let code = if error.to_string().starts_with("unknown field") {
            ErrorCode::FIELD_UNKNOWN
        } else {
            ErrorCode::BODY_INVALID
        };
        code.with(format!("{shown}: {error}"))
    };
    let definitions: Vec<Definition> = if text.trim_start().starts_with('[') {
        serde_json::from_str(&text).map_err(invalid)?
    } else {
        vec![serde_json::from_str(&text).map_err(invalid)?]
    };
    for definition in &definitions {
        definition.check()?;
    }
    Ok(definitions)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_one_definition_or_a_list() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let names = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            read(file.path()).map(|all| all.into_iter().map(|one| one.name).collect::<Vec<_>>())
        };
        assert_eq!(names(r#"{"name":"a","agent_id":"agt_exec"}"#).unwrap(), ["a"]);
        assert_eq!(
            names(r#" [{"name":"a","agent_id":"agt_exec"},{"name":"b","agent_id":"agt_exec"}]"#).unwrap(),
            ["a", "b"]
        );
        let code = |text: &str| names(text).unwrap_err().downcast::<errand_core::Error>().unwrap().code;
        assert_eq!(code(r#"{"name":"a","agent_id":"agt_exec","color":1}"#), ErrorCode::FIELD_UNKNOWN);
        assert_eq!(code(r#"{"name":"a""#), ErrorCode::BODY_INVALID);
        assert_eq!(code(r#"{"name":"","agent_id":"agt_exec"}"#), ErrorCode::INPUT_MISSING);
    }
}
