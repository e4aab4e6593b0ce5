//! `errand agents`.

use errand_client::Client;
use errand_proto::json;
use serde_json::Value;

use crate::output::Output;

const COLUMNS: &[(&str, &str)] = &[
    ("AGENT", "id"),
    ("RUNNERS", "runners"),
    ("CAPACITY", "capacity"),
    ("SESSIONS", "sessions"),
    ("LEASES", "leases"),
    ("WAITING", "waiting"),
];

pub(crate) async fn run(client: &Client, out: Output) -> anyhow::Result<()> {
    let agents: Vec<Value> = client.agents().await?.iter().map(json::agent).collect();
    out.list(&agents, COLUMNS)
}
