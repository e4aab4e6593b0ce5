//! What goes well, whatever is killed meanwhile.

use errand_client::NewDestination;
use errand_core::Timestamp;
use errand_proto::v1;
use errand_tests::{StoreKind, eventually};
use serde_json::json;

use crate::double::{Reaction, assert_in_order, distinct, last_of_each};
use crate::on_both_stores;
use crate::world::{PATIENCE, World, errand_now, event, runs};

on_both_stores! {
    an_event_reaches_who_asked_for_it_and_nobody_else
    an_event_that_comes_twice_is_taken_once
    what_was_under_way_when_it_was_killed_is_delivered
    two_notifiers_share_and_one_takes_over
    a_replay_sends_again_and_survives_its_notifier
}

async fn an_event_reaches_who_asked_for_it_and_nobody_else(kind: StoreKind) {
    let world = World::start(kind).await;
    world.destination("all", &["*"]).await;
    world.destination("sessions", &["session.*"]).await;
    let odd = v1::DestinationFilter { metadata: [("parity".into(), "1".into())].into(), ..Default::default() };
    let new = NewDestination::new("odd", "place", &json!({"place": "odd"}), &["task_run.running"]);
    world.client.create_destination(new.filter(odd)).await.unwrap();
    let other = world.client.for_tenant("other".parse().unwrap());
    let new = NewDestination::new("other", "place", &json!({"place": "other"}), &["*"]);
    other.create_destination(new).await.unwrap();

    let runs = runs(20);
    for seq in 1..=4 {
        world.put_round(&runs, seq).await;
    }
    let all = world.outside.taken("all", 80).await;
    assert_in_order(&all);
    let odd = world.outside.taken("odd", 40).await;
    assert!(odd.iter().all(|one| one.seq % 2 == 1));
    assert_eq!(all[0].json["object"], "event");
    assert_eq!(all[0].json["data"]["id"], all[0].object.as_str());
    assert!(all[0].secrets[0].starts_with("whsec_"));
    assert_eq!(world.outside.count("sessions") + world.outside.count("other"), 0);
    let status = world.client.notifier_status().await.unwrap();
    assert_eq!(status.destinations.len(), 4);
}

async fn an_event_that_comes_twice_is_taken_once(kind: StoreKind) {
    let world = World::start(kind).await;
    let id = world.destination("a", &["*"]).await;
    let run = runs(1)[0];
    let once = event(run, 1);
    world.put(&once).await;
    world.outside.taken("a", 1).await;
    // The stream drops a repeated id for two minutes only: under another one it is there twice.
    let subject = world.bus.subjects().event(&"acme".parse().unwrap(), "task_run", "running", &run.to_string());
    let payload = prost::Message::encode_to_vec(&once);
    world.bus.publish_stream(subject, "another", None, payload.into()).await.unwrap().await.unwrap();
    world.put(&event(run, 2)).await;
    let taken = world.outside.until("a", "the second", |sent| sent.iter().any(|one| one.seq == 2)).await;
    assert_eq!(taken.len(), 2);
    assert_eq!(world.deliveries(id).await.len(), 2);
}

async fn what_was_under_way_when_it_was_killed_is_delivered(kind: StoreKind) {
    const ROUNDS: u64 = 30;
    let mut world = World::start(kind).await;
    let id = world.destination("a", &["*"]).await;
    // Every seventh is refused at first, so that retries are under way, too.
    let refused = std::sync::Mutex::new(std::collections::HashSet::new());
    world.outside.script("a", move |sent| {
        let refuse = sent.seq % 7 == 0 && refused.lock().unwrap().insert(sent.event.clone());
        if refuse { Reaction::Fail(errand_notifier::channel::Failure::new("not now")) } else { Reaction::Take }
    });
    let runs = runs(20);
    for seq in 1..=ROUNDS {
        world.put_round(&runs, seq).await;
        if seq % 6 == 0 {
            world.notifiers.pop().unwrap().kill();
            world.add_notifier();
        }
    }
    let count = runs.len() * ROUNDS as usize;
    let taken = world.outside.taken("a", count).await;
    assert_in_order(&taken);
    let all = world.settled(id, count).await;
    assert_eq!(all.len(), count, "each event has one delivery");
    assert!(all.iter().all(|one| one.status() == v1::DeliveryStatus::Delivered));
    world.notifiers.pop().unwrap().stop();
}

async fn two_notifiers_share_and_one_takes_over(kind: StoreKind) {
    let mut world = World::start(kind).await;
    world.add_notifier();
    let places: Vec<String> = (0..6).map(|number| format!("place-{number}")).collect();
    for place in &places {
        world.destination(place, &["*"]).await;
    }
    let runs = runs(10);
    world.put_round(&runs, 1).await;
    for place in &places {
        world.outside.taken(place, 10).await;
    }
    // Both work: each has its share of the destinations.
    eventually("both have destinations", PATIENCE, async || {
        world.put_round(&crate::world::runs(1), 1).await;
        let mut serving = std::collections::HashSet::new();
        for _ in 0..10 {
            let status = world.client.notifier_status().await.unwrap();
            let mine: Vec<String> =
                status.destinations.into_iter().filter(|one| one.delivered > 0).map(|one| one.destination_id).collect();
            serving.insert(mine);
        }
        (serving.len() > 1).then_some(())
    })
    .await;
    world.notifiers.pop().unwrap().kill();
    for seq in 2..=5 {
        world.put_round(&runs, seq).await;
    }
    for place in &places {
        let of_ours = |sent: &[crate::double::Sent]| -> Vec<crate::double::Sent> {
            distinct(sent).into_iter().filter(|one| runs.iter().any(|run| run.to_string() == one.object)).collect()
        };
        let sent = world.outside.until(place, "all of five rounds", |sent| of_ours(sent).len() == 50).await;
        assert_in_order(&of_ours(&sent));
    }
}

async fn a_replay_sends_again_and_survives_its_notifier(kind: StoreKind) {
    let mut world = World::start(kind).await;
    let runs = runs(40);
    let since = errand_now();
    for seq in 1..=10 {
        world.put_round(&runs, seq).await;
    }
    let id = world.destination("late", &["*"]).await;
    let until = world.client.replay(id, Timestamp(since - 1_000)).await.unwrap();
    assert!(until.0 >= since);
    world.notifiers.pop().unwrap().kill();
    world.add_notifier();
    world.outside.taken("late", 400).await;
    // Whether or not the intake had come to them before: the replay has sent them all. What the intake came to only
    // now was on its way besides, perhaps ahead of what is older.
    eventually("the replay is done", PATIENCE, async || {
        let all = world.settled(id, 400).await;
        let replayed = all.iter().filter(|one| one.origin == "replay").count();
        assert!(replayed <= 400, "{replayed} replayed: a piece was repeated");
        (replayed == 400).then_some(())
    })
    .await;
    let sent = world.outside.sent_until("late", 400).await;
    assert_in_order(&last_of_each(&sent));
    // What comes later is delivered as ever.
    world.put_round(&runs, 11).await;
    assert_in_order(&last_of_each(&world.outside.sent_until("late", 440).await));
}
