//! Durable consumers over a real broker.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::harness::{Broker, eventually};
use errand_bus::{
    Bus, BusError, ConsumerConfig, Delivery, InOrderConfig, StreamKind, Verdict, consume, consume_in_order,
};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// What handlers have seen.
type Seen = Arc<Mutex<Vec<String>>>;

fn text(delivery: &Delivery) -> String {
    String::from_utf8(delivery.payload.to_vec()).unwrap()
}

fn distinct(seen: &Seen) -> usize {
    seen.lock().unwrap().iter().collect::<BTreeSet<_>>().len()
}

/// A consumer at work.
struct Worker {
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), BusError>>,
    seen: Seen,
}

impl Worker {
    fn start(bus: &Bus, config: ConsumerConfig, verdict: fn(&Delivery) -> Verdict) -> Self {
        let (shutdown, seen) = (CancellationToken::new(), Seen::default());
        let (bus, stop, noted) = (bus.clone(), shutdown.clone(), Arc::clone(&seen));
        let task = tokio::spawn(async move {
            let handler = move |delivery: Delivery| {
                noted.lock().unwrap().push(text(&delivery));
                let verdict = verdict(&delivery);
                async { verdict }
            };
            consume(&bus, config, stop, handler).await
        });
        Self { shutdown, task, seen }
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(5), self.task).await.unwrap().unwrap().unwrap();
    }
}

fn config() -> ConsumerConfig {
    ConsumerConfig {
        durable: "test",
        stream: StreamKind::Submit,
        ack_wait: Duration::from_secs(2),
        max_deliver: 5,
        in_flight: 16,
        dead_letter: "test",
    }
}

/// Publishes until the stream has it: a broker may be on its way back.
async fn publish(bus: &Bus, subject: &str, message: &str) {
    eventually("published", async || {
        let Ok(ack) = bus.publish_stream(subject.to_owned(), message, None, message.to_owned().into()).await else {
            return false;
        };
        ack.await.is_ok()
    })
    .await;
}

async fn submit(bus: &Bus, messages: impl IntoIterator<Item = String>) {
    for message in messages {
        publish(bus, "errand.v1.submit.acme", &message).await;
    }
}

async fn letters(broker: &Broker) -> Vec<async_nats::jetstream::message::StreamMessage> {
    let jetstream = async_nats::jetstream::new(broker.bare().await);
    let stream = jetstream.get_stream(StreamKind::DeadLetter.name("errand.v1")).await.unwrap();
    let mut letters = Vec::new();
    for sequence in 1..=stream.cached_info().state.last_sequence {
        letters.push(stream.get_raw_message(sequence).await.unwrap());
    }
    letters
}

async fn left_in_queue(broker: &Broker) -> u64 {
    let jetstream = async_nats::jetstream::new(broker.bare().await);
    let stream = jetstream.get_stream(StreamKind::Submit.name("errand.v1")).await.unwrap();
    stream.cached_info().state.messages
}

#[tokio::test]
async fn a_queue_is_shared_and_emptied() {
    let broker = Broker::start();
    let (bus, other) = (broker.connect().await, broker.connect().await);
    bus.ensure_streams().await.unwrap();
    let slow = |_: &Delivery| {
        std::thread::sleep(Duration::from_millis(1));
        Verdict::Ack
    };
    let workers = [Worker::start(&bus, config(), slow), Worker::start(&other, config(), slow)];
    submit(&bus, (0..300).map(|number| number.to_string())).await;
    eventually("an empty queue", async || left_in_queue(&broker).await == 0).await;
    let counts = workers.each_ref().map(|worker| worker.seen.lock().unwrap().len());
    assert_eq!(counts.iter().sum::<usize>(), 300, "each once: {counts:?}");
    assert!(counts.iter().all(|count| *count > 0), "both work: {counts:?}");
    for worker in workers {
        worker.stop().await;
    }
}

#[tokio::test]
async fn what_is_to_be_tried_again_comes_later_and_then_becomes_a_dead_letter() {
    let broker = Broker::start();
    let bus = broker.connect().await;
    bus.ensure_streams().await.unwrap();
    let worker = Worker::start(&bus, config(), |delivery| match text(delivery).as_str() {
        "later" if delivery.delivery_count < 3 => Verdict::RetryAfter(Duration::from_millis(200)),
        "never" => Verdict::RetryAfter(Duration::from_millis(10)),
        "bad" => Verdict::DeadLetter("two\nlines".into()),
        "panic" if delivery.delivery_count == 1 => panic!("on purpose"),
        _ => Verdict::Ack,
    });
    let started = tokio::time::Instant::now();
    submit(&bus, ["later", "never", "bad", "panic"].map(str::to_owned)).await;
    eventually("an empty queue", async || left_in_queue(&broker).await == 0).await;
    assert!(started.elapsed() >= Duration::from_millis(400));
    let seen = worker.seen.lock().unwrap().clone();
    let count = |what: &str| seen.iter().filter(|seen| *seen == what).count();
    assert_eq!((count("later"), count("never"), count("bad"), count("panic")), (3, 5, 1, 2));
    let reasons: Vec<_> = letters(&broker)
        .await
        .iter()
        .map(|letter| (letter.payload.clone(), letter.headers.get("Errand-Reason").unwrap().to_string()))
        .collect();
    assert_eq!(
        reasons,
        [("bad".into(), "two lines".to_owned()), ("never".into(), "not handled within 5 deliveries".to_owned())]
    );
    worker.stop().await;
}

/// A dead letter says more than the message did: it has to fit all the same, or it comes again for ever.
#[tokio::test]
async fn the_largest_message_there_is_becomes_a_dead_letter() {
    let broker = Broker::start();
    let bus = broker.connect().await;
    bus.ensure_streams().await.unwrap();
    let worker = Worker::start(&bus, config(), |_| Verdict::DeadLetter("\u{10ffff}".repeat(5_000)));
    let room = bus.max_message_bytes() - 16 * 1024;
    let largest = bus.max_message_bytes();
    let publisher = async_nats::jetstream::new(broker.bare().await);
    for size in [largest, room] {
        publisher.publish("errand.v1.submit.acme", vec![b'x'; size].into()).await.unwrap().await.unwrap();
    }
    eventually("an empty queue", async || left_in_queue(&broker).await == 0).await;
    let mut letters: Vec<(Option<String>, usize)> = letters(&broker)
        .await
        .iter()
        .map(|letter| (letter.headers.get("Errand-Size").map(ToString::to_string), letter.payload.len()))
        .collect();
    letters.sort();
    assert_eq!(letters, [(None, room), (Some(largest.to_string()), room)]);
    worker.stop().await;
}

#[tokio::test]
async fn one_that_kills_its_handlers_is_not_given_to_another() {
    let broker = Broker::start();
    let bus = broker.connect().await;
    bus.ensure_streams().await.unwrap();
    let config = || ConsumerConfig { max_deliver: 2, ack_wait: Duration::from_millis(300), ..config() };
    submit(&bus, ["poison".to_owned()]).await;
    for _ in 0..2 {
        // As a process that dies in its handler: no verdict.
        let victim = broker.connect().await;
        let seen = Seen::default();
        let noted = Arc::clone(&seen);
        let task = tokio::spawn(async move {
            let handler = move |delivery: Delivery| {
                noted.lock().unwrap().push(text(&delivery));
                std::future::pending::<Verdict>()
            };
            consume(&victim, config(), CancellationToken::new(), handler).await
        });
        eventually("it strikes", async || !seen.lock().unwrap().is_empty()).await;
        task.abort();
    }
    let worker = Worker::start(&bus, config(), |_| Verdict::Ack);
    eventually("an empty queue", async || left_in_queue(&broker).await == 0).await;
    assert_eq!(worker.seen.lock().unwrap().len(), 0);
    assert_eq!(letters(&broker).await.len(), 1);
    worker.stop().await;
}

#[tokio::test]
async fn it_goes_on_after_the_broker_was_killed_and_after_it_came_back_empty() {
    let mut broker = Broker::start();
    let bus = broker.connect().await;
    bus.ensure_streams().await.unwrap();
    let worker = Worker::start(&bus, config(), |_| Verdict::Ack);
    submit(&bus, (0..10).map(|number| format!("before-{number}"))).await;
    eventually("the first", async || distinct(&worker.seen) == 10).await;

    broker.kill();
    tokio::time::sleep(Duration::from_millis(300)).await;
    broker.start_again();
    submit(&bus, (0..10).map(|number| format!("after-{number}"))).await;
    let started = tokio::time::Instant::now();
    eventually("those after a kill", async || distinct(&worker.seen) == 20).await;
    assert!(started.elapsed() < Duration::from_secs(5), "it resumes at once: {:?}", started.elapsed());

    broker.kill();
    broker.wipe();
    broker.start_again();
    submit(&bus, (0..10).map(|number| format!("anew-{number}"))).await;
    let started = tokio::time::Instant::now();
    eventually("those in a new stream", async || distinct(&worker.seen) == 30).await;
    assert!(started.elapsed() < Duration::from_secs(5), "it resumes at once: {:?}", started.elapsed());
    eventually("an empty queue", async || left_in_queue(&broker).await == 0).await;
    worker.stop().await;
}

#[tokio::test]
async fn one_whose_consumer_is_deleted_makes_it_anew() {
    let broker = Broker::start();
    let bus = broker.connect().await;
    bus.ensure_streams().await.unwrap();
    let worker = Worker::start(&bus, config(), |_| Verdict::Ack);
    submit(&bus, ["a".to_owned()]).await;
    eventually("the first", async || distinct(&worker.seen) == 1).await;
    let jetstream = async_nats::jetstream::new(broker.bare().await);
    jetstream.delete_stream(StreamKind::Submit.name("errand.v1")).await.unwrap();
    bus.ensure_streams().await.unwrap();
    submit(&bus, ["b".to_owned()]).await;
    eventually("the second", async || distinct(&worker.seen) == 2).await;
    worker.stop().await;
}

#[tokio::test]
async fn one_that_stops_gives_back_what_it_has_not_begun() {
    let broker = Broker::start();
    let bus = broker.connect().await;
    bus.ensure_streams().await.unwrap();
    let long = || ConsumerConfig { ack_wait: Duration::from_secs(600), in_flight: 8, ..config() };
    submit(&bus, (0..100).map(|number| number.to_string())).await;
    let worker = Worker::start(&bus, long(), |_| {
        std::thread::sleep(Duration::from_millis(5));
        Verdict::Ack
    });
    eventually("some", async || distinct(&worker.seen) > 5).await;
    let seen = Arc::clone(&worker.seen);
    worker.stop().await;
    let first = distinct(&seen);
    assert!(first < 100, "it stopped too late to tell anything");
    let next = Worker::start(&bus, long(), |_| Verdict::Ack);
    eventually("the rest", async || left_in_queue(&broker).await == 0).await;
    assert_eq!(first + distinct(&next.seen), 100);
    next.stop().await;
}

// ---- in order

const EVENTS: &str = "errand.v1.event.acme.task_run.queued";

struct Follower {
    shutdown: CancellationToken,
    task: JoinHandle<Result<(), BusError>>,
    batches: Arc<Mutex<Vec<Vec<String>>>>,
}

impl Follower {
    fn start(bus: &Bus, verdict: impl Fn(&[String]) -> Verdict + Send + Sync + 'static) -> Self {
        let (shutdown, batches) = (CancellationToken::new(), Arc::<Mutex<Vec<Vec<String>>>>::default());
        let (bus, stop, noted) = (bus.clone(), shutdown.clone(), Arc::clone(&batches));
        let config = InOrderConfig {
            durable: "in-order",
            stream: StreamKind::Event,
            filters: vec!["errand.v1.event.*.task_run.>".into()],
            ack_wait: Duration::from_secs(2),
            max_batch: 50,
            max_attempts: 3,
            dead_letter: "event",
        };
        let task = tokio::spawn(async move {
            let handler = move |deliveries: Vec<Delivery>| {
                let texts: Vec<_> = deliveries.iter().map(text).collect();
                let verdict = verdict(&texts);
                noted.lock().unwrap().push(texts);
                async move {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    verdict
                }
            };
            consume_in_order(&bus, config, stop, handler).await
        });
        Self { shutdown, task, batches }
    }

    fn seen(&self) -> Vec<String> {
        self.batches.lock().unwrap().concat()
    }

    async fn stop(self) -> Vec<String> {
        self.shutdown.cancel();
        tokio::time::timeout(Duration::from_secs(5), self.task).await.unwrap().unwrap().unwrap();
        self.batches.lock().unwrap().concat()
    }
}

async fn publish_events(bus: &Bus, numbers: std::ops::Range<u32>) {
    let mut acks = Vec::new();
    for number in numbers {
        let text = format!("{number:04}");
        let subject = format!("{EVENTS}.trun_{number}");
        acks.push(bus.publish_stream(subject, &text, None, text.clone().into()).await.unwrap());
    }
    for ack in acks {
        ack.await.unwrap();
    }
}

fn assert_in_order(seen: &[String]) {
    assert!(seen.is_sorted(), "out of order: {seen:?}");
}

#[tokio::test]
async fn batches_grow_with_the_load_and_keep_the_order() {
    let broker = Broker::start();
    let bus = broker.connect().await;
    bus.ensure_streams().await.unwrap();
    let follower = Follower::start(&bus, |_| Verdict::Ack);
    publish_events(&bus, 0..500).await;
    eventually("all", async || follower.seen().len() >= 500).await;
    let batches = follower.batches.lock().unwrap().iter().map(Vec::len).collect::<Vec<_>>();
    assert!(batches.len() < 100 && batches.iter().all(|size| *size <= 50), "{batches:?}");
    let seen = follower.stop().await;
    assert_in_order(&seen);
    assert_eq!(seen.len(), 500);
    // What was acked does not come back.
    let next = Follower::start(&bus, |_| Verdict::Ack);
    publish_events(&bus, 500..510).await;
    eventually("the next", async || next.seen().len() >= 10).await;
    assert_eq!(next.stop().await.len(), 10);
}

#[tokio::test]
async fn what_must_be_tried_again_holds_up_the_rest_and_one_bad_message_does_not_take_others_along() {
    let broker = Broker::start();
    let bus = broker.connect().await;
    bus.ensure_streams().await.unwrap();
    publish_events(&bus, 0..20).await;
    let failures = Arc::new(Mutex::new(0));
    let counted = Arc::clone(&failures);
    let follower = Follower::start(&bus, move |texts| {
        if texts.iter().any(|text| text == "0007") {
            return Verdict::DeadLetter("bad".into());
        }
        let mut failures = counted.lock().unwrap();
        if *failures < 2 && texts.iter().any(|text| text == "0003") {
            *failures += 1;
            return Verdict::RetryAfter(Duration::from_millis(50));
        }
        Verdict::Ack
    });
    eventually("all", async || follower.seen().contains(&"0019".to_owned())).await;
    eventually("a letter", async || letters(&broker).await.len() == 1).await;
    assert_eq!(&letters(&broker).await[0].payload[..], b"0007");
    assert_eq!(*failures.lock().unwrap(), 2);
    let batches = follower.batches.lock().unwrap().clone();
    follower.stop().await;
    // By themselves, in order, from the batch that failed on.
    let singles: Vec<_> = batches.iter().filter(|batch| batch.len() == 1).flatten().cloned().collect();
    assert_in_order(&singles);
}

#[tokio::test]
async fn one_of_two_is_served_and_the_other_takes_over_in_order() {
    let broker = Broker::start();
    let (bus, first_bus, second_bus) = (broker.connect().await, broker.connect().await, broker.connect().await);
    bus.ensure_streams().await.unwrap();
    let first = Follower::start(&first_bus, |_| Verdict::Ack);
    publish_events(&bus, 0..100).await;
    eventually("the first works", async || first.seen().len() == 100).await;
    let second = Follower::start(&second_bus, |_| Verdict::Ack);
    publish_events(&bus, 100..200).await;
    eventually("the first works on", async || first.seen().len() == 200).await;
    assert_eq!(second.seen().len(), 0, "the second stands by");
    let started = tokio::time::Instant::now();
    let mut seen = first.stop().await;
    publish_events(&bus, 200..300).await;
    eventually("the second works", async || second.seen().len() >= 100).await;
    assert!(started.elapsed() < Duration::from_secs(8), "it takes over soon: {:?}", started.elapsed());
    seen.extend(second.stop().await);
    assert_in_order(&seen);
    assert_eq!(seen.len(), 300);
}

#[tokio::test]
async fn what_one_held_when_it_died_comes_before_what_is_newer() {
    let broker = Broker::start();
    let bus = broker.connect().await;
    bus.ensure_streams().await.unwrap();
    let victim = broker.connect().await;
    let first = Follower::start(&victim, |texts| {
        if texts.iter().any(|text| text.as_str() >= "0010") {
            return Verdict::RetryAfter(Duration::from_secs(3600));
        }
        Verdict::Ack
    });
    publish_events(&bus, 0..10).await;
    eventually("some", async || first.seen().len() == 10).await;
    publish_events(&bus, 10..60).await;
    eventually("it holds some", async || first.seen().len() > 10).await;
    first.task.abort();
    let second = Follower::start(&bus, |_| Verdict::Ack);
    publish_events(&bus, 60..100).await;
    eventually("the rest", async || second.seen().len() >= 90).await;
    let seen = second.stop().await;
    assert_in_order(&seen);
    assert_eq!(seen.first().unwrap(), "0010");
    assert_eq!(seen.last().unwrap(), "0099");
}

#[tokio::test]
async fn in_order_goes_on_after_the_broker_was_killed_and_after_it_came_back_empty() {
    let mut broker = Broker::start();
    let bus = broker.connect().await;
    bus.ensure_streams().await.unwrap();
    let follower = Follower::start(&bus, |_| Verdict::Ack);
    publish_events(&bus, 0..50).await;
    eventually("the first", async || follower.seen().len() >= 50).await;
    broker.kill();
    broker.start_again();
    publish(&bus, &format!("{EVENTS}.x"), "0050").await;
    eventually("after a kill", async || follower.seen().contains(&"0050".to_owned())).await;
    broker.kill();
    broker.wipe();
    broker.start_again();
    eventually("the streams", async || bus.ensure_streams().await.is_ok()).await;
    publish_events(&bus, 51..60).await;
    eventually("in a new stream", async || follower.seen().contains(&"0059".to_owned())).await;
    // An ack that the broker forgot as it was killed brings a message once more; what matters is when it came first.
    let mut known = BTreeSet::new();
    let seen: Vec<_> = follower.stop().await.into_iter().filter(|text| known.insert(text.clone())).collect();
    assert_in_order(&seen);
    assert_eq!(seen.len(), 60);
}
