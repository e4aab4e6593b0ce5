//! Destinations that refuse, hang, or are gone.

use std::time::Duration;

use errand_notifier::channel::Failure;
use errand_proto::v1;
use errand_tests::StoreKind;
use futures::StreamExt;

use crate::double::{Reaction, assert_in_order};
use crate::on_both_stores;
use crate::world::{PATIENCE, World, runs};

on_both_stores! {
    what_fails_is_tried_again_and_holds_only_its_object_up
    the_bad_ones_do_not_delay_the_good_one
    one_that_only_fails_is_deactivated_and_catches_up_later
    one_that_is_gone_is_deactivated_and_loses_nothing
    one_dead_letter_is_tried_again_where_somebody_asks
    it_is_left_alone_as_long_as_it_asks
}

fn refuse(text: &str) -> Reaction {
    Reaction::Fail(Failure { status_code: Some(503), response: "busy".into(), ..Failure::new(text) })
}

async fn what_fails_is_tried_again_and_holds_only_its_object_up(kind: StoreKind) {
    let world = World::start(kind).await;
    let id = world.destination("a", &["*"]).await;
    let runs = runs(2);
    let bad = runs[0].to_string();
    let failures = std::sync::atomic::AtomicUsize::new(0);
    world.outside.script("a", {
        let bad = bad.clone();
        move |sent| {
            let first = sent.object == bad && sent.seq == 1;
            let fails = first && failures.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < 2;
            if fails { refuse("not now") } else { Reaction::Take }
        }
    });
    for seq in 1..=5 {
        world.put_round(&runs, seq).await;
    }
    world.outside.taken("a", 10).await;
    let sent = world.outside.until("a", "12 attempts", |sent| sent.len() >= 12).await;
    assert_eq!(sent.len(), 12, "two attempts failed, and nothing else was sent twice");
    assert_in_order(&crate::double::distinct(&sent));
    let second = sent.iter().position(|one| one.object == bad && one.seq == 2).unwrap();
    let last_good = sent.iter().rposition(|one| one.object != bad).unwrap();
    assert!(last_good < second, "the other object went on");
    let all = world.settled(id, 10).await;
    let tried = all.iter().find(|one| one.attempt_count == 3).unwrap();
    let full = world.client.get_delivery(tried.id.parse().unwrap()).await.unwrap();
    let codes: Vec<Option<u32>> = full.attempts.iter().map(|attempt| attempt.status_code).collect();
    assert_eq!(codes, [Some(503), Some(503), Some(200)]);
    assert_eq!((full.attempts[0].error.as_str(), full.attempts[0].response.as_str()), ("not now", "busy"));
    assert_eq!(full.attempts.iter().map(|attempt| attempt.number).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(world.get(id).await.failing_since_ms, None);
}

async fn the_bad_ones_do_not_delay_the_good_one(kind: StoreKind) {
    let world = World::start_with(kind, &["--delivery-timeout", "1s", "--delivery-concurrency", "8"]).await;
    for place in ["good", "refuses", "hangs", "panics"] {
        world.destination(place, &["*"]).await;
    }
    world.outside.script("refuses", |_| refuse("never"));
    world.outside.script("hangs", |_| Reaction::Hang);
    world.outside.script("panics", |_| Reaction::Panic);
    let runs = runs(50);
    let started = std::time::Instant::now();
    for seq in 1..=20 {
        world.put_round(&runs, seq).await;
    }
    let put = started.elapsed();
    assert_in_order(&world.outside.taken("good", 1_000).await);
    assert!(started.elapsed() < put + Duration::from_secs(5), "{put:?}, then {:?}", started.elapsed());
    // They are sought out one at a time by now: hardly more than the ten failures, those that were under way, and probes.
    for place in ["refuses", "hangs", "panics"] {
        world.outside.until(place, "is probed", |sent| sent.len() >= 10).await;
        assert!(world.outside.count(place) < 40, "{place} was sent {}", world.outside.count(place));
    }
}

async fn one_that_only_fails_is_deactivated_and_catches_up_later(kind: StoreKind) {
    let world = World::start(kind).await;
    let id = world.destination("a", &["*"]).await;
    let changes = world.bus.subjects().event(&"acme".parse().unwrap(), "event_destination", "*", "*");
    let changes = errand_bus::follow(&world.bus, changes, errand_bus::FollowFrom::Beginning).await.unwrap();
    world.outside.script("a", |_| refuse("never"));
    let runs = runs(3);
    world.put_round(&runs, 1).await;
    world.put_round(&runs, 2).await;
    let dead = world.until_inactive(id).await;
    assert!(dead.inactive_reason.contains("3 attempts failed") && dead.inactive_reason.contains("never"), "{dead:?}");
    assert!(dead.failing_since_ms.is_some());
    // It gets its events all the same, later.
    world.put_round(&runs, 3).await;
    world.outside.script("a", |_| Reaction::Take);
    let before = world.outside.count("a");
    let again = world.client.activate_destination(id).await.unwrap();
    assert_eq!((again.status(), again.failing_since_ms), (v1::DestinationStatus::Active, None));
    let taken = world.outside.taken("a", 9).await;
    assert_in_order(&taken);
    assert!(world.outside.count("a") >= before + 9);
    let all = world.settled(id, 9).await;
    assert!(
        all.iter()
            .filter(|one| one.event_type == "task_run.running")
            .all(|one| one.status() == v1::DeliveryStatus::Delivered)
    );
    // Each change has its event.
    let told: Vec<String> =
        tokio::time::timeout(PATIENCE, changes.take(2).map(|one| one.unwrap().subject).collect()).await.unwrap();
    assert!(told[0].contains(".deactivated.") && told[1].contains(".activated."), "{told:?}");
}

async fn one_that_is_gone_is_deactivated_and_loses_nothing(kind: StoreKind) {
    let world = World::start(kind).await;
    let id = world.destination("a", &["task_run.*"]).await;
    world
        .outside
        .script("a", |_| Reaction::Fail(Failure { status_code: Some(410), gone: true, ..Failure::new("gone") }));
    let runs = runs(1);
    for seq in 1..=3 {
        world.put_round(&runs, seq).await;
    }
    let dead = world.until_inactive(id).await;
    assert!(dead.inactive_reason.contains("gone"), "{dead:?}");
    assert_eq!(world.outside.count("a"), 1, "nothing was sent behind it");
    world.outside.script("a", |_| Reaction::Take);
    world.client.activate_destination(id).await.unwrap();
    assert_in_order(&world.outside.taken("a", 3).await);
}

async fn one_dead_letter_is_tried_again_where_somebody_asks(kind: StoreKind) {
    let world = World::start(kind).await;
    let id = world.destination("a", &["*"]).await;
    let runs = runs(2);
    let bad = runs[0].to_string();
    world.outside.script("a", {
        let bad = bad.clone();
        // The other one is taken now and then, so that the destination is not dead.
        move |sent| if sent.object == bad && sent.seq == 1 { refuse("no") } else { Reaction::Take }
    });
    world.put_round(&runs, 1).await;
    world
        .outside
        .until("a", "two attempts failed", |sent| sent.iter().filter(|one| one.object == bad).count() >= 2)
        .await;
    world.put_round(&runs[1..], 2).await;
    let all = world.settled(id, 3).await;
    let letter = all.iter().find(|one| one.status() == v1::DeliveryStatus::Failed).unwrap();
    assert_eq!((letter.attempt_count, letter.last_status_code, letter.last_error.as_str()), (3, Some(503), "no"));
    assert_eq!(world.get(id).await.status(), v1::DestinationStatus::Active);

    world.outside.script("a", |_| Reaction::Take);
    let retried = world.client.retry_delivery(letter.id.parse().unwrap()).await.unwrap();
    assert_eq!(retried.id, letter.id);
    world.settled(id, 3).await;
    let full = world.client.get_delivery(letter.id.parse().unwrap()).await.unwrap();
    assert_eq!((full.status(), full.attempts.len()), (v1::DeliveryStatus::Delivered, 4));
}

async fn it_is_left_alone_as_long_as_it_asks(kind: StoreKind) {
    let world = World::start(kind).await;
    let id = world.destination("a", &["*"]).await;
    let asked = std::sync::atomic::AtomicBool::new(false);
    world.outside.script("a", move |_| {
        if asked.swap(true, std::sync::atomic::Ordering::Relaxed) {
            return Reaction::Take;
        }
        let alone = Some(Duration::from_millis(1_500));
        Reaction::Fail(Failure { status_code: Some(429), retry_after: alone, ..Failure::new("too much") })
    });
    let runs = runs(1);
    world.put_round(&runs, 1).await;
    world.outside.until("a", "asks to be left alone", |sent| !sent.is_empty()).await;
    world.put_round(&crate::world::runs(1), 1).await;
    let sent = world.outside.until("a", "both are taken", |sent| crate::double::distinct(sent).len() == 2).await;
    assert!(sent[1].at - sent[0].at >= Duration::from_millis(1_450), "{:?}", sent[1].at - sent[0].at);
    world.settled(id, 2).await;
}
