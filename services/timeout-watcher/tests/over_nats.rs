//! The watcher over a real nats-server, with a dispatcher that only remembers what it was asked.

mod fake;

use std::time::Duration;

use errand_core::Timestamp;
use errand_core::run::DeadlineKind;
use errand_proto::v1;
use errand_tests::Broker;
use errand_timeout_watcher::watch::now;
use fake::{Dispatcher, Watcher, connect, eventually, fixed, inactivity, publish_event, run_id, status};

const SOON: Duration = Duration::from_secs(10);

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_in_pages_is_awaited_and_fires() {
    let broker = Broker::start();
    let watcher = Watcher::start(&broker.url());
    // No dispatcher is there yet: it is asked again until one answers.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let bus = connect(&broker.url()).await;
    let dispatcher = Dispatcher::start(&bus, 3).await;
    let at = now().plus_millis(1_000);
    let ids: Vec<_> = (0..10).map(run_id).collect();
    for id in &ids {
        dispatcher.arm(*id, 1, vec![fixed(DeadlineKind::Queue, at)]);
    }
    eventually("all are asked about", SOON, || dispatcher.asked().len() == 10).await;
    let asked = dispatcher.asked();
    for id in ids {
        let (expiry, when) = asked.iter().find(|(expiry, _)| expiry.run_id == id.to_string()).unwrap();
        assert_eq!((expiry.version, expiry.kind()), (1, v1::DeadlineKind::Queue));
        assert!(*when >= at, "never early");
        assert!(when.millis_since(at) < 1_000, "{} ms late", when.millis_since(at));
    }
    eventually("the answers have ended them", SOON, async || status(&bus).await.armed == 0).await;
    let status = status(&bus).await;
    assert_eq!((status.answered, status.snapshots, status.lateness.unwrap().count), (10, 1, 10));
    watcher.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_arms_a_newer_one_replaces_and_a_final_one_disarms() {
    let broker = Broker::start();
    let bus = connect(&broker.url()).await;
    let dispatcher = Dispatcher::start(&bus, 100).await;
    let watcher = Watcher::start(&broker.url());
    watcher.ready(&bus).await;
    let (replaced, ended) = (run_id(1), run_id(2));
    let start = now();
    publish_event(&bus, replaced, 1, &[fixed(DeadlineKind::Queue, start.plus_millis(400))]).await;
    publish_event(&bus, ended, 1, &[fixed(DeadlineKind::Queue, start.plus_millis(400))]).await;
    let total = start.plus_millis(1_200);
    let running = [inactivity(start.plus_millis(60_000), 60_000), fixed(DeadlineKind::Total, total)];
    publish_event(&bus, replaced, 2, &running).await;
    publish_event(&bus, ended, 2, &[]).await;
    // An older one again, as after a redelivery.
    publish_event(&bus, replaced, 1, &[fixed(DeadlineKind::Queue, start.plus_millis(400))]).await;
    eventually("it is asked about", SOON, || !dispatcher.asked().is_empty()).await;
    let asked = dispatcher.asked();
    let (expiry, when) = &asked[0];
    assert_eq!((asked.len(), &expiry.run_id, expiry.version), (1, &replaced.to_string(), 2));
    assert_eq!(expiry.kind(), v1::DeadlineKind::Total);
    assert!(*when >= total);
    watcher.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn activity_moves_the_deadline_until_it_stops() {
    let broker = Broker::start();
    let bus = connect(&broker.url()).await;
    let dispatcher = Dispatcher::start(&bus, 100).await;
    let watcher = Watcher::start(&broker.url());
    watcher.ready(&bus).await;
    let run = run_id(1);
    publish_event(&bus, run, 2, &[inactivity(now().plus_millis(500), 500)]).await;
    let mut last = now();
    for _ in 0..12 {
        last = now();
        let sign = v1::Activity { run_id: run.to_string(), lease_token: 1, at_ms: last.0, ..v1::Activity::default() };
        bus.publish(bus.subjects().activity(run), &sign).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(dispatcher.asked(), [], "the agent lives");
    eventually("it is asked about", SOON, || !dispatcher.asked().is_empty()).await;
    let (expiry, when) = dispatcher.asked().remove(0);
    assert_eq!((expiry.kind(), expiry.last_activity_ms), (v1::DeadlineKind::Inactivity, last.0));
    assert!(when >= last.plus_millis(500));
    watcher.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watcher_that_was_down_fires_late_never_not() {
    let broker = Broker::start();
    let bus = connect(&broker.url()).await;
    let dispatcher = Dispatcher::start(&bus, 100).await;
    let watcher = Watcher::start(&broker.url());
    watcher.ready(&bus).await;
    let run = run_id(1);
    let deadlines = [fixed(DeadlineKind::Interaction, now().plus_millis(700))];
    dispatcher.arm(run, 3, deadlines.to_vec());
    publish_event(&bus, run, 3, &deadlines).await;
    watcher.kill().await;
    tokio::time::sleep(Duration::from_millis(1_000)).await;
    assert_eq!(dispatcher.asked(), []);
    let watcher = Watcher::start(&broker.url());
    eventually("it is asked about", SOON, || dispatcher.asked().len() == 1).await;
    watcher.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_watchers_both_fire() {
    let broker = Broker::start();
    let bus = connect(&broker.url()).await;
    let dispatcher = Dispatcher::start(&bus, 100).await;
    let at = now().plus_millis(2_000);
    dispatcher.arm(run_id(1), 1, vec![fixed(DeadlineKind::Queue, at)]);
    // The first answer does not end it, so that the second watcher finds it armed as well.
    dispatcher.keep(true);
    let watchers = [Watcher::start(&broker.url()), Watcher::start(&broker.url())];
    eventually("both ask", SOON, || dispatcher.asked().len() >= 2).await;
    assert!(dispatcher.asked().iter().all(|(_, when)| *when >= at));
    for watcher in watchers {
        watcher.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dispatcher_that_fails_is_asked_until_it_does_not_and_one_poison_run_harms_no_other() {
    let broker = Broker::start();
    let bus = connect(&broker.url()).await;
    let dispatcher = Dispatcher::start(&bus, 1_000).await;
    let at = now().plus_millis(300);
    for number in 0..200 {
        dispatcher.arm(run_id(number), 1, vec![fixed(DeadlineKind::Queue, at)]);
    }
    dispatcher.poison(run_id(77));
    let watcher = Watcher::start(&broker.url());
    eventually("all but one are ended", SOON * 2, async || status(&bus).await.armed == 1).await;
    let before = status(&bus).await;
    assert!(before.unanswered > 0);
    dispatcher.heal();
    eventually("the last is ended", SOON * 4, async || status(&bus).await.armed == 0).await;
    watcher.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_an_answer_arms_is_armed() {
    let broker = Broker::start();
    let bus = connect(&broker.url()).await;
    let dispatcher = Dispatcher::start(&bus, 100).await;
    let run = run_id(1);
    let watcher = Watcher::start(&broker.url());
    watcher.ready(&bus).await;
    let start = now();
    publish_event(&bus, run, 1, &[fixed(DeadlineKind::Queue, start.plus_millis(200))]).await;
    // The run has moved on, and the watcher missed the event.
    let later = start.plus_millis(1_000);
    dispatcher.arm(run, 2, vec![inactivity(later, 700)]);
    dispatcher.keep(true);
    eventually("it is asked again", SOON, || dispatcher.asked().len() >= 2).await;
    let asked = dispatcher.asked();
    assert_eq!((asked[0].0.kind(), asked[0].0.version), (v1::DeadlineKind::Queue, 1));
    assert_eq!((asked[1].0.kind(), asked[1].0.version), (v1::DeadlineKind::Inactivity, 2));
    assert!(asked[1].1 >= later);
    assert_eq!(Timestamp(asked[1].0.last_activity_ms), later.plus_millis(-700));
    watcher.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broker_that_comes_back_empty_brings_a_snapshot() {
    let mut broker = Broker::start();
    let bus = connect(&broker.url()).await;
    let dispatcher = Dispatcher::start(&bus, 100).await;
    let watcher = Watcher::start(&broker.url());
    watcher.ready(&bus).await;
    broker.kill9();
    // Accepted and committed; its event is lost with the broker.
    dispatcher.arm(run_id(1), 1, vec![fixed(DeadlineKind::Queue, now().plus_millis(300))]);
    tokio::time::sleep(Duration::from_millis(500)).await;
    broker.restart_empty();
    eventually("the missed one is asked about", SOON * 2, || dispatcher.asked().len() == 1).await;
    // Following goes on in the new stream.
    bus.ensure_streams().await.unwrap();
    publish_event(&bus, run_id(2), 1, &[fixed(DeadlineKind::Queue, now().plus_millis(100))]).await;
    eventually("the new one is asked about", SOON * 2, || dispatcher.asked().len() == 2).await;
    watcher.stop().await;
}
