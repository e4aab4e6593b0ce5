//! The services, by the answers of their instances; the store and the runners, by asking the services.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use errand_client::{Client, ClientError};
use futures::StreamExt;
use serde::Deserialize;

use super::Finding;

/// What a stack needs, and what is amiss without it.
const SERVICES: [(&str, &str); 6] = [
    ("dispatcher", "no run is accepted"),
    ("session-pool", "no run gets a session"),
    ("timeout-watcher", "what hangs is not stopped"),
    ("notifier", "no event is told on as JSON"),
    ("vault", "no run gets its credential"),
    ("storage", "no file is kept: runs that capture one wait for it"),
];

#[derive(Debug, Default, PartialEq, Eq)]
struct Instances {
    ids: BTreeSet<String>,
    versions: BTreeSet<String>,
}

/// What an instance answers to `$SRV.PING` (NATS micro).
#[derive(Debug, Deserialize)]
struct Ping {
    name: String,
    id: String,
    version: String,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
}

pub(super) async fn look(client: &async_nats::Client, prefix: &str, wait: Duration) -> Vec<Finding> {
    match ping(client, prefix, wait).await {
        Ok(found) => judge(&found),
        Err(error) => vec![Finding::wrong("services", format!("{error:#}"), "look at the NATS server's log")],
    }
}

/// Asks all instances at once, and takes what comes in time.
async fn ping(
    client: &async_nats::Client,
    prefix: &str,
    wait: Duration,
) -> anyhow::Result<BTreeMap<String, Instances>> {
    let inbox = client.new_inbox();
    let answers = client.subscribe(inbox.clone()).await?;
    client.publish_with_reply("$SRV.PING", inbox, Vec::new().into()).await?;
    client.flush().await?;
    let mut answers = answers.take_until(Box::pin(tokio::time::sleep(wait)));
    let mut found: BTreeMap<String, Instances> = BTreeMap::new();
    while let Some(answer) = answers.next().await {
        // Others may use the broker, too, and other installations of Errand.
        let Ok(ping) = serde_json::from_slice::<Ping>(&answer.payload) else { continue };
        if ping.metadata.get("prefix").is_none_or(|theirs| theirs == prefix) {
            let instances = found.entry(ping.name).or_default();
            instances.ids.insert(ping.id);
            instances.versions.insert(ping.version);
        }
    }
    Ok(found)
}

fn judge(found: &BTreeMap<String, Instances>) -> Vec<Finding> {
    SERVICES
        .iter()
        .map(|(name, without)| {
            let Some(instances) = found.get(*name) else {
                let mend = format!("start one: errand-{name}. Without it {without}");
                return Finding::wrong(*name, "nobody answers", mend);
            };
            let versions: Vec<&str> = instances.versions.iter().map(String::as_str).collect();
            let seen = format!("{} running, version {}", instances.ids.len(), versions.join(" and "));
            match versions.as_slice() {
                [_] => Finding::well(*name, seen),
                _ => Finding::notable(*name, seen, "finish the update: let all be of one version"),
            }
        })
        .collect()
}

/// The store, through the dispatcher: it must take what is written. A full disk is still read well.
pub(super) async fn store(client: &Client) -> Finding {
    match client.check_store().await {
        Ok(store) => {
            let ms = f64::from(store.commit_us) / 1000.0;
            Finding::well("store", format!("{}, a commit takes {ms:.1} ms", store.kind))
        }
        Err(error) => {
            let mend = "is the disk full? For Postgres: is the server there, and --store right? The dispatcher's log \
                        has more";
            Finding::wrong("store", text(&error), mend)
        }
    }
}

pub(super) async fn runners(client: &Client) -> Finding {
    let start = "start one: `errand-exec` runs programs; `errand dev` has one";
    match client.runners(Vec::new()).await {
        Err(error) => Finding::wrong("runners", text(&error), "is the session-pool running?"),
        Ok(runners) if runners.iter().all(|runner| runner.draining) => {
            Finding::notable("runners", "none takes runs: they wait in the queue", start)
        }
        Ok(runners) => {
            let capacity: u32 = runners.iter().map(|runner| runner.capacity).sum();
            let agents: BTreeSet<&str> = runners.iter().map(|runner| runner.agent_id.as_str()).collect();
            let agents = agents.into_iter().collect::<Vec<_>>().join(", ");
            Finding::well("runners", format!("{} with room for {capacity} sessions: {agents}", runners.len()))
        }
    }
}

fn text(error: &ClientError) -> String {
    crate::failure::entry_text(&error.to_error())
}

#[cfg(test)]
mod tests {
    use super::super::Health;
    use super::*;

    #[test]
    fn each_service_must_answer_in_one_version() {
        let set = |items: &[&str]| items.iter().map(ToString::to_string).collect();
        let found = BTreeMap::from([
            ("dispatcher".to_owned(), Instances { ids: set(&["a", "b"]), versions: set(&["0.1.0", "0.2.0"]) }),
            ("session-pool".to_owned(), Instances { ids: set(&["c"]), versions: set(&["0.1.0"]) }),
            ("another".to_owned(), Instances::default()),
        ]);
        let health: Vec<_> = judge(&found).into_iter().map(|finding| (finding.what, finding.health)).collect();
        assert_eq!(
            health,
            [
                ("dispatcher".to_owned(), Health::Notable),
                ("session-pool".to_owned(), Health::Well),
                ("timeout-watcher".to_owned(), Health::Wrong),
                ("notifier".to_owned(), Health::Wrong),
                ("vault".to_owned(), Health::Wrong),
                ("storage".to_owned(), Health::Wrong),
            ]
        );
    }
}
