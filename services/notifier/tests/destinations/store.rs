//! What the notifier's store promises, the same on SQLite and Postgres.

use std::time::Duration;

use errand_core::{DestinationId, EventId, Timestamp};
use errand_notifier::delivery::Status as Stands;
use errand_notifier::destination::{Definition, Destination, Status};
use errand_notifier::store::{Added, Entry, Record, Store};
use errand_tests::{Stack, StoreKind};
use uuid::Uuid;

use crate::on_both_stores;

on_both_stores! {
    events_are_taken_once_and_replays_take_nothing_away
    an_outcome_is_written_once
    claims_end_and_are_shared
    what_is_old_goes
}

const NOW: i64 = 1_700_000_000_000;

async fn open(kind: StoreKind) -> (Stack, Store) {
    let stack = Stack::new(kind);
    let store = Store::open(stack.store()).await.unwrap();
    (stack, store)
}

async fn destination(store: &Store) -> Destination {
    let events = ["*".to_owned()];
    let new = Destination {
        number: 0,
        id: DestinationId::from_uuid(Uuid::now_v7()),
        tenant: "acme".parse().unwrap(),
        version: 1,
        seq: 0,
        definition: Definition::new("n".into(), "place".into(), &events, None, true).unwrap(),
        status: Status::Active,
        inactive_reason: String::new(),
        created_at: Timestamp(NOW),
        updated_at: Timestamp(NOW),
        old_secret_expires_at: None,
        failing_since: None,
        sealed: vec![1, 2, 3],
    };
    let before = store.destination_change().await.unwrap();
    assert_eq!(store.add_destination(&new).await.unwrap(), Added::Yes);
    assert_eq!(store.add_destination(&new).await.unwrap(), Added::Taken);
    assert_eq!(store.destination_change().await.unwrap(), before + 1);
    let read = store.destination(new.id).await.unwrap().unwrap();
    assert_eq!(read, Destination { number: read.number, ..new });
    read
}

fn entry(destinations: &[i64]) -> Entry {
    Entry {
        id: EventId::from_uuid(Uuid::now_v7()),
        event_type: "task_run.running".into(),
        object_id: "trun_1".into(),
        payload: b"payload".as_slice().into(),
        destinations: destinations.to_vec(),
    }
}

async fn events_are_taken_once_and_replays_take_nothing_away(kind: StoreKind) {
    let (_stack, store) = open(kind).await;
    let (one, two) = (destination(&store).await, destination(&store).await);
    let both = [one.number, two.number];
    let entries: Vec<Entry> = (0..300).map(|_| entry(&both)).collect();
    let taken = store.take(&entries, NOW).await.unwrap();
    assert_eq!((taken.deliveries, taken.destinations), (600, both.into()));
    let mut again = entries[290..].to_vec();
    again.extend([entry(&both), entries[0].clone()]);
    assert_eq!(store.take(&again, NOW).await.unwrap().deliveries, 2, "only the new one");

    // A replay that comes to an event before its intake has: the intake still makes its deliveries.
    let early = entry(&[one.number]);
    store.add_replay(one.number, Timestamp(NOW - 1), Timestamp(NOW)).await.unwrap();
    let (me, lasting) = (Uuid::now_v7(), Duration::from_secs(10));
    let mut replay = store.claim_replay(me, Timestamp(NOW), lasting).await.unwrap().unwrap();
    assert!(store.claim_replay(Uuid::now_v7(), Timestamp(NOW), lasting).await.unwrap().is_none());
    replay.sequence = 7;
    let piece = [early.clone(), entries[0].clone()];
    assert!(store.advance_replay(me, &replay, &piece, Timestamp(NOW), lasting).await.unwrap());
    let taken = store.take(&[Entry { destinations: both.to_vec(), ..early.clone() }], NOW).await.unwrap();
    assert_eq!(taken.deliveries, 2);
    // Another one takes it over where the first has died, at its place.
    let later = Timestamp(NOW + 11_000);
    let other = Uuid::now_v7();
    let over = store.claim_replay(other, later, lasting).await.unwrap().unwrap();
    assert_eq!(over.sequence, 7);
    assert!(!store.advance_replay(me, &replay, &piece, later, lasting).await.unwrap());
    store.end_replay(other, &over).await.unwrap();
    assert_eq!(store.replays_of(one.number).await.unwrap(), 0);
    let waiting = store.waiting().await.unwrap();
    assert_eq!(waiting.iter().map(|one| one.pending).collect::<Vec<_>>(), [304, 303]);
}

async fn an_outcome_is_written_once(kind: StoreKind) {
    let (_stack, store) = open(kind).await;
    let one = destination(&store).await;
    let entries: Vec<Entry> = (0..3).map(|_| entry(&[one.number])).collect();
    store.take(&entries, NOW).await.unwrap();
    let waiting = store.waiting().await.unwrap().remove(0);
    assert_eq!((waiting.pending, waiting.oldest), (3, Some(Timestamp(NOW))));
    let first = 1;
    let object = store.delivery(first).await.unwrap().unwrap();
    assert_eq!(object.destination, one.number);
    let record = |status, due_at, holds| Record {
        position: first,
        destination: one.number,
        object: i64::MIN,
        attempts_before: 0,
        status,
        due_at,
        finished_at: (status != Stands::Pending).then_some(NOW),
        log: Vec::new(),
        holds,
    };
    let failing = [(one.number, Some(NOW))];
    store.record(&[record(Stands::Pending, NOW + 500, true)], &failing).await.unwrap();
    let read = store.delivery(first).await.unwrap().unwrap().view;
    assert_eq!((read.attempt_count, read.next_attempt_at_ms), (1, Some(NOW + 500)));
    assert_eq!(store.destination(one.id).await.unwrap().unwrap().failing_since, Some(Timestamp(NOW)));
    // Whoever has it down as untried is late.
    store.record(&[record(Stands::Delivered, NOW, false)], &[]).await.unwrap();
    assert_eq!(store.delivery(first).await.unwrap().unwrap().view, read);
    assert_eq!(store.next_due(one.number, NOW).await.unwrap(), Some(NOW + 500));
    store.put_off(&[(first, NOW + 900), (2, NOW + 700)]).await.unwrap();
    assert_eq!(store.next_due(one.number, NOW).await.unwrap(), Some(NOW + 700));
}

async fn claims_end_and_are_shared(kind: StoreKind) {
    let (_stack, store) = open(kind).await;
    let mut all = Vec::new();
    for _ in 0..4 {
        all.push(destination(&store).await);
    }
    let (one, two, lasting) = (Uuid::now_v7(), Uuid::now_v7(), Duration::from_millis(300));
    // Postgres goes by its own clock, so that this one must be the real one.
    let now = || Timestamp(crate::world::errand_now());
    let held = store.claim_round(one, now(), lasting).await.unwrap().held;
    assert_eq!(held.len(), 4);
    let round = store.claim_round(two, now(), lasting).await.unwrap();
    assert!(round.held.is_empty());
    let round = store.claim_round(one, now(), lasting).await.unwrap();
    assert_eq!((round.held.len(), round.too_many), (4, 2));
    let given: Vec<i64> = round.held.into_iter().take(2).collect();
    store.release(one, &given).await.unwrap();
    let round = store.claim_round(two, now(), lasting).await.unwrap();
    assert_eq!(round.held, given.into_iter().collect());
    // The first is gone without a word: its claims end.
    let over = errand_tests::eventually("the claims end", Duration::from_secs(10), async || {
        let round = store.claim_round(two, now(), lasting).await.unwrap();
        (round.held.len() == 4).then_some(round)
    })
    .await;
    assert_eq!(over.too_many, 0);
    store.leave(two).await.unwrap();
    assert_eq!(store.claim_round(one, now(), lasting).await.unwrap().held.len(), 4);
}

async fn what_is_old_goes(kind: StoreKind) {
    let (_stack, store) = open(kind).await;
    let (stays, goes) = (destination(&store).await, destination(&store).await);
    let old: Vec<Entry> = (0..1_200).map(|_| entry(&[stays.number, goes.number])).collect();
    store.take(&old, NOW).await.unwrap();
    let finished: Vec<Record> = (1..=2_400)
        .filter(|position| position % 3 != 0)
        .map(|position| Record {
            position,
            destination: stays.number,
            object: 0,
            attempts_before: 0,
            status: Stands::Delivered,
            due_at: NOW,
            finished_at: Some(NOW),
            log: Vec::new(),
            holds: false,
        })
        .collect();
    store.record(&finished, &[]).await.unwrap();
    assert_eq!(store.sweep(NOW).await.unwrap(), 0, "not yet");
    let gone = store.sweep(NOW + 1).await.unwrap();
    assert_eq!(gone, 1_600 + 400, "what was delivered, and the events of which nothing is left");
    store.delete_destination(goes.number).await.unwrap();
    assert!(store.destination(goes.id).await.unwrap().is_none());
    store.sweep(NOW + 1).await.unwrap();
    let waiting = store.waiting().await.unwrap();
    assert_eq!(waiting.iter().map(|one| (one.number, one.pending)).collect::<Vec<_>>(), [(stays.number, 400)]);
}
