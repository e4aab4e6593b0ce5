//! The notifier's first part: every event of the stream reaches plain subscribers as JSON, at least once and in order
//! per object, whatever is killed meanwhile.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the answer")]

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use errand_bus::{Bus, StreamKind};
use errand_core::{EventId, RunId};
use errand_proto::v1;
use errand_tests::{Role, Stack, StoreKind, eventually};
use futures::StreamExt;
use prost::Message;
use serde_json::Value;
use uuid::Uuid;

const PATIENCE: Duration = Duration::from_secs(60);
const OBJECTS: usize = 40;

fn event(run: RunId, seq: u64) -> v1::Event {
    let summary = v1::RunSummary {
        id: run.to_string(),
        status: v1::RunStatus::Running.into(),
        metadata: [("n".to_owned(), seq.to_string())].into(),
        ..v1::RunSummary::default()
    };
    v1::Event {
        id: EventId::from_uuid(Uuid::now_v7()).to_string(),
        r#type: "task_run.running".into(),
        tenant: "acme".into(),
        object_id: run.to_string(),
        seq,
        created_at_ms: 1_700_000_000_000,
        data: Some(v1::event::Data::Run(summary)),
        ..v1::Event::default()
    }
}

async fn put(bus: &Bus, run: RunId, id: &str, payload: Vec<u8>) {
    let subject = bus.subjects().event(&"acme".parse().unwrap(), "task_run", "running", &run.to_string());
    bus.publish_stream(subject, id, None, payload.into()).await.unwrap().await.unwrap();
}

/// Puts one more event of each object into the stream.
async fn put_round(bus: &Bus, runs: &[RunId], seq: u64) {
    futures::future::join_all(runs.iter().map(|run| async {
        let event = event(*run, seq);
        put(bus, *run, &event.id, event.encode_to_vec()).await;
    }))
    .await;
}

/// What a plain subscriber has been told, by object, once repetitions are dropped by id.
#[derive(Default)]
struct Told {
    seqs: BTreeMap<String, Vec<u64>>,
    ids: HashSet<String>,
}

impl Told {
    fn note(&mut self, message: &async_nats::Message) {
        assert_eq!(message.subject.as_str(), "test.errand.notify.acme.task_run.running");
        let event: Value = serde_json::from_slice(&message.payload).unwrap();
        let id = event["id"].as_str().unwrap().to_owned();
        let headers = message.headers.as_ref().unwrap();
        assert_eq!(headers.get("Errand-Event-Id").unwrap().as_str(), id);
        if !self.ids.insert(id) {
            return;
        }
        let seqs = self.seqs.entry(event["data"]["id"].as_str().unwrap().to_owned()).or_default();
        seqs.push(event["seq"].as_u64().unwrap());
        assert_eq!(seqs.last().copied(), Some(seqs.len() as u64), "in order, without a gap: {seqs:?}");
    }

    fn count(&self) -> usize {
        self.ids.len()
    }
}

struct World {
    stack: Stack,
    bus: Bus,
    told: async_nats::Subscriber,
}

impl World {
    async fn start(notifiers: usize) -> Self {
        let mut stack = Stack::new(StoreKind::Sqlite);
        for _ in 0..notifiers {
            stack.start(Role::Notifier, &["--log", "warn"]);
        }
        stack.ready().await;
        let bus = stack.bus().await;
        bus.ensure_streams().await.unwrap();
        let plain = async_nats::connect(stack.broker.url()).await.unwrap();
        let told = plain.subscribe("test.errand.notify.>").await.unwrap();
        plain.flush().await.unwrap();
        Self { stack, bus, told }
    }

    async fn hear(&mut self, told: &mut Told, count: usize) {
        let hearing = async {
            while told.count() < count {
                told.note(&self.told.next().await.unwrap());
            }
        };
        let heard = tokio::time::timeout(PATIENCE, hearing).await;
        assert!(heard.is_ok(), "{} of {count} events were told on", told.count());
    }
}

fn runs() -> Vec<RunId> {
    (0..OBJECTS).map(|_| RunId::from_uuid(Uuid::now_v7())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscriber_misses_nothing_while_notifiers_are_killed() {
    const ROUNDS: u64 = 60;
    let mut world = World::start(2).await;
    let (runs, mut told) = (runs(), Told::default());
    for seq in 1..=ROUNDS {
        put_round(&world.bus, &runs, seq).await;
        if seq % 10 == 0 {
            let victim = world.stack.services(Role::Notifier).nth((seq / 10 % 2) as usize).unwrap();
            victim.restart();
        }
    }
    world.hear(&mut told, OBJECTS * ROUNDS as usize).await;
    assert_eq!(told.seqs.len(), OBJECTS);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_while_no_notifier_runs_is_told_on_later() {
    let mut world = World::start(1).await;
    let (runs, mut told) = (runs(), Told::default());
    put_round(&world.bus, &runs, 1).await;
    world.hear(&mut told, OBJECTS).await;
    world.stack.service(Role::Notifier).process().kill9();
    put_round(&world.bus, &runs, 2).await;
    world.stack.service(Role::Notifier).restart();
    world.hear(&mut told, 2 * OBJECTS).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_after_the_broker_has_been_away() {
    let mut world = World::start(1).await;
    let (runs, mut told) = (runs(), Told::default());
    put_round(&world.bus, &runs, 1).await;
    world.hear(&mut told, OBJECTS).await;
    world.stack.broker.restart();
    // The subscriber is there again before anything new is: a plain subscription holds nothing back for it.
    eventually("the subscriber is back", PATIENCE, async || {
        let plain = async_nats::connect(world.stack.broker.url()).await.ok()?;
        world.told = plain.subscribe("test.errand.notify.>").await.ok()?;
        plain.flush().await.ok()
    })
    .await;
    eventually("the bus is back", PATIENCE, async || world.bus.round_trip().await.ok().map(drop)).await;
    put_round(&world.bus, &runs, 2).await;
    world.hear(&mut told, 2 * OBJECTS).await;
}

/// Nothing is published where nobody listens, and nothing is kept from who does.
#[tokio::test(flavor = "multi_thread")]
async fn who_listens_to_one_subject_of_many_is_told_all_of_it() {
    const ROUNDS: u64 = 20;
    let mut world = World::start(1).await;
    let (runs, mut told) = (runs(), Told::default());
    world.stack.service(Role::Notifier).process().kill9();
    for seq in 1..=ROUNDS {
        put_round(&world.bus, &runs, seq).await;
        for (run, action) in runs.iter().zip(["queued", "completed", "failed"].into_iter().cycle()) {
            let other = v1::Event { r#type: format!("task_run.{action}"), ..event(*run, seq) };
            put(&world.bus, *run, &other.id, other.encode_to_vec()).await;
        }
    }
    let plain = async_nats::connect(world.stack.broker.url()).await.unwrap();
    world.told = plain.subscribe("test.errand.notify.*.task_run.running").await.unwrap();
    plain.flush().await.unwrap();
    world.stack.service(Role::Notifier).restart();
    world.hear(&mut told, OBJECTS * ROUNDS as usize).await;
    let all = 2 * OBJECTS as u64 * ROUNDS;
    eventually("all is told on", PATIENCE, async || {
        let status: v1::NotifierStatusResponse = world
            .bus
            .request(world.bus.subjects().api("notifier", "status"), &v1::NotifierStatusRequest {})
            .await
            .ok()?;
        (status.published >= all && status.stream_sequence == status.last_stream_sequence).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_event_is_a_dead_letter_and_stops_nothing() {
    let mut world = World::start(1).await;
    let (runs, mut told) = (runs(), Told::default());
    put_round(&world.bus, &runs, 1).await;
    put(&world.bus, runs[0], "torn", b"\x07nonsense".to_vec()).await;
    let nameless = v1::Event { r#type: "task_run".into(), ..event(runs[0], 9) };
    put(&world.bus, runs[0], "nameless", nameless.encode_to_vec()).await;
    put_round(&world.bus, &runs, 2).await;
    world.hear(&mut told, 2 * OBJECTS).await;

    let nats = async_nats::connect(world.stack.broker.url()).await.unwrap();
    let name = StreamKind::DeadLetter.name(world.bus.subjects().prefix());
    let stream = async_nats::jetstream::new(nats).get_stream(name).await.unwrap();
    let consumer = async_nats::jetstream::consumer::pull::OrderedConfig::default();
    let mut letters = stream.create_consumer(consumer).await.unwrap().messages().await.unwrap();
    let mut reasons = Vec::new();
    while reasons.len() < 2 {
        let letter = tokio::time::timeout(PATIENCE, letters.next()).await.unwrap().unwrap().unwrap();
        assert_eq!(letter.subject.as_str(), "test.errand.dlq.notifier");
        let headers = letter.headers.clone().unwrap();
        let texts: Vec<String> = headers.iter().map(|(name, values)| format!("{name}: {values:?}")).collect();
        reasons.push(texts.join("\n"));
    }
    assert!(reasons[0].contains("it is no event"), "{reasons:?}");
    assert!(reasons[1].contains("is not object.action"), "{reasons:?}");
}
