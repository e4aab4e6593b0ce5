//! `errand runners`.

use errand_client::Client;
use errand_proto::json;
use serde_json::Value;

use crate::args::{RunnersArgs, RunnersCommand};
use crate::output::{Output, cell};

const COLUMNS: &[(&str, &str)] = &[
    ("RUNNER", "id"),
    ("AGENT", "agent_id"),
    ("CAPACITY", "capacity"),
    ("SESSIONS", "sessions"),
    ("LEASES", "leases"),
    ("DRAINING", "draining"),
    ("HOST", "host"),
    ("VERSION", "version"),
    ("LAST SEEN", "last_seen_at"),
];

pub(crate) async fn run(args: RunnersArgs, client: &Client, out: Output) -> anyhow::Result<()> {
    match args.command {
        RunnersCommand::List { agent } => {
            let runners: Vec<Value> = client.runners(agent).await?.iter().map(json::runner).collect();
            out.list(&runners, COLUMNS)
        }
        RunnersCommand::Drain { runner } => out.item(&json::runner(&client.drain_runner(runner).await?), |runner| {
            format!("{} takes no further runs; {} under way", cell(runner, "id"), cell(runner, "leases"))
        }),
    }
}
