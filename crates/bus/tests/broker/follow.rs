//! Following events over a real broker.

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Duration;

use errand_bus::{Bus, BusError, Delivery, FollowFrom, StreamKind, follow};
use futures::stream::BoxStream;
use futures::{FutureExt, StreamExt};

use crate::harness::{Broker, eventually};

type Followed = BoxStream<'static, Result<Delivery, BusError>>;

const RUNS: &str = "errand.v1.event.acme.task_run.>";

async fn publish(bus: &Bus, numbers: std::ops::Range<u32>) {
    for number in numbers {
        let (subject, id) = (format!("errand.v1.event.acme.task_run.queued.trun_{number}"), format!("evt_{number:04}"));
        eventually("published", async || {
            let Ok(ack) = bus.publish_stream(subject.clone(), &id, None, id.clone().into()).await else { return false };
            ack.await.is_ok()
        })
        .await;
    }
}

/// The next so many, by their ids without the prefix.
async fn take(followed: &mut Followed, count: usize) -> Vec<u32> {
    let mut numbers = Vec::new();
    for _ in 0..count {
        let next = tokio::time::timeout(Duration::from_secs(20), followed.next()).await;
        let delivery = next.unwrap_or_else(|_| panic!("no more after {numbers:?}")).unwrap().unwrap();
        numbers.push(delivery.message_id.unwrap().trim_start_matches("evt_").parse().unwrap());
    }
    numbers
}

/// Reads until `last` has come; gives each once, in the order in which they came first.
async fn until(followed: &mut Followed, last: u32) -> Vec<u32> {
    let (mut known, mut numbers) = (BTreeSet::new(), Vec::new());
    while !known.contains(&last) {
        numbers.extend(take(followed, 1).await.into_iter().filter(|number| known.insert(*number)));
    }
    numbers
}

async fn start() -> (Broker, Bus) {
    let broker = Broker::start();
    let bus = broker.connect().await;
    make_stream(&broker).await;
    (broker, bus)
}

/// The event stream, but one that loses nothing when the broker is killed, so that a test knows what there is.
async fn make_stream(broker: &Broker) {
    let config = async_nats::jetstream::stream::Config {
        name: StreamKind::Event.name("errand.v1"),
        subjects: vec!["errand.v1.event.>".into()],
        duplicate_window: Duration::from_secs(120),
        ..Default::default()
    };
    let jetstream = async_nats::jetstream::new(broker.bare().await);
    eventually("a stream", async || jetstream.get_or_create_stream(config.clone()).await.is_ok()).await;
}

#[tokio::test]
async fn it_begins_where_it_is_told_to() {
    let (_broker, bus) = start().await;
    publish(&bus, 0..5).await;
    let at = bus.event_stream_message(3).await.unwrap().unwrap().published_at_ms;
    let follow = async |from| follow(&bus, RUNS.into(), from).await.unwrap();
    let mut new = follow(FollowFrom::New).await;
    publish(&bus, 5..7).await;
    assert_eq!(take(&mut new, 2).await, [5, 6]);
    assert_eq!(take(&mut follow(FollowFrom::Beginning).await, 7).await, [0, 1, 2, 3, 4, 5, 6]);
    assert_eq!(take(&mut follow(FollowFrom::Sequence(4)).await, 2).await, [3, 4]);
    let first = take(&mut follow(FollowFrom::Time(at)).await, 1).await[0];
    assert!(first <= 2, "nothing of that millisecond is left out: {first}");
    assert!(bus.event_stream_message(8).await.unwrap().is_none());
    let state = bus.event_stream_state().await.unwrap();
    assert_eq!((state.first_sequence, state.last_sequence, state.messages), (1, 7, 7));
}

#[tokio::test]
async fn only_what_the_filter_lets_through_and_in_bulk() {
    let (_broker, bus) = start().await;
    let mut followed = follow(&bus, "errand.v1.event.*.session.>".into(), FollowFrom::New).await.unwrap();
    let mut acks = Vec::new();
    for number in 0..2000u32 {
        let object = if number % 2 == 0 { "session" } else { "task_run" };
        let (subject, id) = (format!("errand.v1.event.acme.{object}.idle.x"), format!("evt_{number}"));
        acks.push(bus.publish_stream(subject, &id, None, id.clone().into()).await.unwrap());
        // Each ack has its seconds from here, so a slow disk is given few at once.
        if acks.len() == 200 {
            futures::future::try_join_all(acks.drain(..)).await.unwrap();
        }
    }
    let seen = take(&mut followed, 1000).await;
    assert!(seen.iter().copied().eq((0..2000).step_by(2)));
    assert!(followed.next().now_or_never().is_none());
}

#[tokio::test]
async fn a_filter_that_the_broker_refuses_is_an_error() {
    let (_broker, bus) = start().await;
    let refused = follow(&bus, "errand.v1.event.a..b".into(), FollowFrom::New).await;
    assert!(matches!(refused, Err(BusError::Refused { .. })), "{:?}", refused.err());
}

#[tokio::test]
async fn it_goes_on_after_the_broker_was_killed() {
    let (mut broker, bus) = start().await;
    let mut quiet = follow(&bus, RUNS.into(), FollowFrom::New).await.unwrap();
    let mut followed = follow(&bus, RUNS.into(), FollowFrom::New).await.unwrap();
    publish(&bus, 0..10).await;
    assert_eq!(take(&mut followed, 10).await, (0..10).collect::<Vec<_>>());
    broker.kill();
    broker.start_again();
    publish(&bus, 10..20).await;
    assert_eq!(until(&mut followed, 19).await, (10..20).collect::<Vec<_>>());
    assert_eq!(until(&mut quiet, 19).await, (0..20).collect::<Vec<_>>(), "one that had not read yet misses nothing");
}

#[tokio::test]
async fn it_goes_on_in_a_stream_that_was_made_anew() {
    let (mut broker, bus) = start().await;
    let mut followed = follow(&bus, RUNS.into(), FollowFrom::New).await.unwrap();
    publish(&bus, 0..10).await;
    assert_eq!(take(&mut followed, 10).await.len(), 10);
    broker.kill();
    broker.wipe();
    broker.start_again();
    make_stream(&broker).await;
    // Fewer than it has seen, so that their places are below its own.
    publish(&bus, 10..15).await;
    assert_eq!(until(&mut followed, 14).await, [10, 11, 12, 13, 14]);
}

#[tokio::test]
async fn it_misses_nothing_of_a_stream_that_lost_its_end() {
    let (mut broker, bus) = start().await;
    let mut followed = follow(&bus, RUNS.into(), FollowFrom::New).await.unwrap();
    publish(&bus, 0..5).await;
    // The broker must be down for its files to be whole.
    broker.kill();
    let files = broker.store().join("$G/streams").join(StreamKind::Event.name("errand.v1")).join("msgs");
    let earlier = broker.store().join("earlier");
    assert!(Command::new("cp").arg("-a").arg(&files).arg(&earlier).status().unwrap().success());
    broker.start_again();
    publish(&bus, 5..10).await;
    assert_eq!(until(&mut followed, 9).await, (0..10).collect::<Vec<_>>());
    broker.kill();
    std::fs::remove_dir_all(&files).unwrap();
    std::fs::rename(&earlier, &files).unwrap();
    broker.start_again();
    eventually("the broker", async || bus.event_stream_state().await.is_ok()).await;
    // Others take the places that were lost, and more.
    publish(&bus, 10..30).await;
    assert_eq!(until(&mut followed, 29).await, (10..30).collect::<Vec<_>>());
}

#[tokio::test]
async fn its_place_at_the_broker_goes_with_it() {
    let (broker, bus) = start().await;
    let followed = follow(&bus, RUNS.into(), FollowFrom::New).await.unwrap();
    let jetstream = async_nats::jetstream::new(broker.bare().await);
    let consumers = async || {
        let mut stream = jetstream.get_stream(StreamKind::Event.name("errand.v1")).await.unwrap();
        stream.info().await.unwrap().state.consumer_count
    };
    assert_eq!(consumers().await, 1);
    drop(followed);
    eventually("no consumer", async || consumers().await == 0).await;
}
