//! A runner whose agent does what the run's input says, one step after the other: `{"steps": [{"sleep_ms": 20},
//! {"progress": "half"}, {"capture": {"name": "a.csv", "content": "a,b"}}, {"ask": "code"}, {"fail": "why"},
//! {"lose": "why"}, {"output": 7}, "deaf", "stuck"]}`. Without steps the output is the input.

use std::io::Cursor;
use std::time::Duration;

use errand_runner::{
    ArtifactKind, Assigned, Control, Ending, Error, ErrorCode, Host, InteractionField, NewFile, NotKept, Question,
    RunnerConfig, SessionId, SessionStart,
};
use serde_json::Value;

#[derive(Debug, clap::Parser)]
struct Config {
    #[command(flatten)]
    kit: errand_kit::Args,
    #[arg(long, default_value = "agt_scripted")]
    agent: errand_runner::AgentId,
    #[arg(long, default_value_t = 4)]
    capacity: u32,
}

struct Scripted;

impl Host for Scripted {
    async fn start_session(&self, _session: SessionStart) -> Result<(), Error> {
        Ok(())
    }

    async fn end_session(&self, _id: SessionId) {}

    async fn execute(&self, run: Assigned, control: Control) -> Ending {
        let input: Value = serde_json::from_slice(&run.input).unwrap_or_default();
        let Some(steps) = input["steps"].as_array() else { return Ending::Finished(run.input) };
        for step in steps {
            if let Some(ending) = take(step, &control).await {
                return ending;
            }
        }
        Ending::Finished("null".into())
    }
}

/// Takes one step; what ends the run, if it does.
async fn take(step: &Value, control: &Control) -> Option<Ending> {
    match step.as_str() {
        // Alive, and of no use; to be told to stop does not help.
        Some("deaf") => std::future::pending().await,
        // No sign of life, but it listens.
        Some("stuck") => {
            control.stop().await;
            return Some(Ending::Stopped);
        }
        _ => {}
    }
    let (name, argument) = step.as_object().and_then(|step| step.iter().next())?;
    match name.as_str() {
        "sleep_ms" => {
            let sleep = tokio::time::sleep(Duration::from_millis(argument.as_u64().unwrap_or(0)));
            tokio::select! {
                () = sleep => None,
                _ = control.stop() => Some(Ending::Stopped),
            }
        }
        "progress" => {
            control.progress(argument.as_str().unwrap_or_default(), "script", Some(50));
            None
        }
        "capture" => capture(argument, control).await,
        "ask" => match control.ask(question(argument.as_str().unwrap_or_default())).await {
            Ok(answer) => Some(Ending::Finished(answer.to_string().into())),
            Err(_) => Some(Ending::Stopped),
        },
        "fail" => Some(Ending::Failed(vec![ErrorCode::AGENT_ERROR.with(argument.as_str().unwrap_or_default())])),
        "lose" => Some(Ending::SessionLost(argument.to_string())),
        "output" => Some(Ending::Finished(argument.to_string().into())),
        _ => Some(Ending::Failed(vec![ErrorCode::AGENT_ERROR.with(format!("no such step: {name}"))])),
    }
}

/// Keeps a file of this content: `name`, `content`, and where it is one `kind` (`screenshot`), and `data`.
async fn capture(said: &Value, control: &Control) -> Option<Ending> {
    let text = |field: &str| said[field].as_str().unwrap_or_default().to_owned();
    let kind = if said["kind"] == "screenshot" { ArtifactKind::Screenshot } else { ArtifactKind::File };
    let file = NewFile { kind, name: text("name"), data: said.get("data").cloned() };
    match control.upload(file, Cursor::new(text("content").into_bytes())).await {
        Ok(_) => None,
        Err(NotKept::Refused(error)) => Some(Ending::Failed(vec![error])),
        Err(error) => Some(Ending::Failed(vec![ErrorCode::AGENT_ERROR.with(error.to_string())])),
    }
}

fn question(field: &str) -> Question {
    let field =
        InteractionField { name: field.to_owned(), r#type: "code".into(), label: String::new(), options: Vec::new() };
    Question { id: String::new(), r#type: "mfa".into(), message: "The script asks".into(), fields: vec![field] }
}

fn main() -> std::process::ExitCode {
    let config = <Config as clap::Parser>::parse();
    errand_kit::main(&config.kit.clone(), "tests-runner", |shutdown| async move {
        let Some(bus) = config.kit.connect("tests-runner", &shutdown).await? else { return Ok(()) };
        let runner = RunnerConfig { capacity: config.capacity, ..RunnerConfig::new(config.agent) };
        Ok(errand_runner::run(bus, Scripted, runner, shutdown).await?)
    })
}
