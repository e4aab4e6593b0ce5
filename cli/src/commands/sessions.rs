//! `errand sessions`.

use errand_client::Client;
use errand_proto::json;
use futures::{StreamExt, TryStreamExt};
use serde_json::Value;

use crate::args::{SessionsArgs, SessionsCommand};
use crate::output::{Output, cell, pretty};

const COLUMNS: &[(&str, &str)] = &[
    ("SESSION", "id"),
    ("STATUS", "status"),
    ("AGENT", "agent_id"),
    ("RUNNER", "runner_id"),
    ("RUN", "task_run_id"),
    ("SERVED", "runs_served"),
    ("CREATED", "created_at"),
];

pub(crate) async fn run(args: SessionsArgs, client: &Client, out: Output) -> anyhow::Result<()> {
    match args.command {
        SessionsCommand::List { status, agent, limit } => {
            let most = if limit == 0 { usize::MAX } else { limit };
            let sessions = client.sessions(status, agent).take(most).map_ok(|session| json::session(&session));
            let sessions: Vec<Value> = sessions.try_collect().await?;
            out.list(&sessions, COLUMNS)
        }
        SessionsCommand::Get { session } => out.item(&json::session(&client.get_session(session).await?), pretty),
        SessionsCommand::End { session } => out.item(&json::session(&client.end_session(session).await?), |session| {
            format!("{} is {}", cell(session, "id"), cell(session, "status"))
        }),
    }
}
