//! What an installation listens on, from its own mouth and from the broker's, so that nothing is forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, ensure};
use errand_tests::eventually;
use futures::StreamExt;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::world::{PATIENCE, World};

/// The subjects of all methods, by service: what each says on NATS micro's discovery.
pub(crate) async fn methods(world: &World) -> anyhow::Result<BTreeMap<String, Vec<String>>> {
    let inbox = world.nats.new_inbox();
    let mut answers = world.nats.subscribe(inbox.clone()).await?;
    world.nats.publish_with_reply("$SRV.INFO", inbox, bytes::Bytes::new()).await?;
    let mut methods: BTreeMap<String, Vec<String>> = BTreeMap::new();
    // One answer of each process, and no more.
    while let Ok(Some(answer)) = tokio::time::timeout(Duration::from_secs(1), answers.next()).await {
        let info: Value = serde_json::from_slice(&answer.payload)?;
        let name = info["name"].as_str().context("a service has a name")?.to_owned();
        let endpoints = info["endpoints"].as_array().context("a service has endpoints")?;
        let subjects = endpoints.iter().filter_map(|endpoint| endpoint["subject"].as_str().map(str::to_owned));
        methods.entry(name).or_default().extend(subjects);
    }
    Ok(methods)
}

/// All that anybody is subscribed to below the prefix, as the broker sees it.
pub(crate) async fn subscribed(world: &World) -> anyhow::Result<BTreeSet<String>> {
    let mut stream = TcpStream::connect(("127.0.0.1", world.monitor)).await?;
    stream.write_all(b"GET /connz?subs=1&limit=1000 HTTP/1.0\r\n\r\n").await?;
    let mut text = String::new();
    stream.read_to_string(&mut text).await?;
    let (_, body) = text.split_once("\r\n\r\n").context("an answer has a body")?;
    let connz: Value = serde_json::from_str(body)?;
    let prefix = format!("{}.", world.stack.prefix());
    let connections = connz["connections"].as_array().context("there are connections")?;
    // Not the test's own, which waits for the good runs.
    let others = connections.iter().filter(|connection| connection["name"] != "errand-tests");
    let subjects = others.filter_map(|connection| connection["subscriptions_list"].as_array()).flatten();
    Ok(subjects.filter_map(Value::as_str).filter(|subject| subject.starts_with(&prefix)).map(str::to_owned).collect())
}

/// What is listened to without an answer: signs of life, hints. Wildcards are filled in.
pub(crate) async fn told(world: &World, methods: &BTreeMap<String, Vec<String>>) -> anyhow::Result<Vec<String>> {
    let answered: BTreeSet<&String> = methods.values().flatten().collect();
    let all = subscribed(world).await?;
    for method in &answered {
        ensure!(all.contains(*method), "{method} is said to be served and nobody is subscribed to it");
    }
    let fill = |subject: &String| subject.replace(".*", ".whoever").replace(".>", ".whoever.whatever");
    Ok(all.iter().filter(|subject| !answered.contains(subject)).map(fill).collect())
}

/// How many dead letters there are, by what they are of.
pub(crate) async fn dead_letters(world: &World) -> anyhow::Result<BTreeMap<String, usize>> {
    let prefix = world.stack.prefix();
    let name = errand_bus::StreamKind::DeadLetter.name(prefix);
    let stream = async_nats::jetstream::new(world.nats.clone()).get_stream(name).await?;
    let mut counts = BTreeMap::new();
    let mut subjects = stream.info_with_subjects(format!("{prefix}.dlq.>")).await?;
    while let Some(counted) = subjects.next().await {
        let (subject, count) = counted?;
        let what = subject.rsplit_once("dlq.").context("a dead letter's subject")?.1.to_owned();
        counts.insert(what, count);
    }
    Ok(counts)
}

/// Waits until there are so many dead letters of a kind.
pub(crate) async fn dead(world: &World, what: &str, count: usize) {
    eventually(&format!("{count} dead letters of {what}"), PATIENCE, async || {
        let counts = dead_letters(world).await.ok()?;
        (counts.get(what).copied().unwrap_or_default() >= count).then_some(())
    })
    .await;
}
