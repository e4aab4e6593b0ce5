//! `errand runs`.

use errand_client::{Client, RunFilter};
use errand_proto::json;
use futures::{StreamExt, TryStreamExt};
use serde_json::Value;

use crate::args::{RunsArgs, RunsCommand, RunsListArgs};
use crate::commands::{follow, show};
use crate::output::{Output, cell};

pub(crate) async fn run(args: RunsArgs, client: &Client, out: Output) -> anyhow::Result<()> {
    match args.command {
        RunsCommand::List(args) => list(args, client, out).await,
        RunsCommand::Get { run, events } => {
            let (run, events) = client.get_run_with(run, events).await?;
            let mut value = json::run(&run);
            if !events.is_empty() {
                value["events"] = events.iter().map(json::event).collect();
            }
            out.item(&value, show::run)?;
            if !out.json {
                events.iter().try_for_each(|event| out.line(show::event(event)))?;
            }
            Ok(())
        }
        RunsCommand::Watch { run } => {
            // It says so where there is no such run.
            client.get_run(run).await?;
            let watch = client.watch(run).await?;
            follow::to_the_end(client, run, watch, out).await
        }
        RunsCommand::Cancel { runs } => {
            for run in runs {
                let run = json::run(&client.cancel(run).await?);
                out.item(&run, |run| format!("{} is {}", cell(run, "id"), cell(run, "status")))?;
            }
            Ok(())
        }
        RunsCommand::Retry { run, watch } => {
            let retry = client.retry(run).await?;
            if watch {
                let id = retry.id.parse()?;
                return follow::to_the_end(client, id, client.watch(id).await?, out).await;
            }
            out.item(&json::run(&retry), |run| {
                format!("{} is {}, a retry of {}", cell(run, "id"), cell(run, "status"), cell(run, "retry_of"))
            })
        }
    }
}

async fn list(args: RunsListArgs, client: &Client, out: Output) -> anyhow::Result<()> {
    let mut task_id = Vec::new();
    for task in &args.task {
        task_id.push(client.get_task(task, None).await?.id);
    }
    let filter = RunFilter {
        status: args.status,
        result: args.result,
        task_id,
        agent_id: args.agent,
        session_id: args.session.iter().map(ToString::to_string).collect(),
        metadata: args.metadata,
        created_after_ms: args.after,
        created_before_ms: args.before,
        ..RunFilter::default()
    };
    let most = if args.limit == 0 { usize::MAX } else { args.limit };
    let mut runs = client.runs(filter).take(most).map_ok(|run| json::run(&run));
    if out.json {
        // A long list is printed as it comes.
        while let Some(run) = runs.try_next().await? {
            out.line(run.to_string())?;
        }
        return Ok(());
    }
    let runs: Vec<Value> = runs.try_collect().await?;
    out.list(&runs, show::RUNS)
}
