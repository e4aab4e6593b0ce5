//! `errand agents`.

use errand_client::{Client, v1};
use serde_json::{Value, json};

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
    let agents: Vec<Value> = client.agents().await?.iter().map(agent).collect();
    out.list(&agents, COLUMNS)
}

fn agent(agent: &v1::Agent) -> Value {
    json!({
        "id": agent.id,
        "object": "agent",
        "runners": agent.runners,
        "capacity": agent.capacity,
        "sessions": agent.sessions,
        "leases": agent.leases,
        "waiting": agent.waiting,
    })
}
