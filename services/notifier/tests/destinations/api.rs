//! What owners ask.

use std::collections::HashSet;

use errand_client::{ClientError, DestinationFilter, NewDestination};
use errand_core::ErrorCode;
use errand_proto::v1;
use errand_tests::StoreKind;
use futures::TryStreamExt;
use serde_json::{Value, json};

use crate::double::Reaction;
use crate::on_both_stores;
use crate::world::{World, runs};

on_both_stores! {
    a_destination_lives_its_life
    secrets_overlap_when_they_are_rotated
    a_test_says_what_became_of_it
    lists_come_by_pages
    a_tenant_has_so_many_and_no_more
}

fn code(error: ClientError) -> (ErrorCode, Option<String>) {
    let error = error.to_error();
    (error.code, error.field)
}

async fn a_destination_lives_its_life(kind: StoreKind) {
    let world = World::start(kind).await;
    let config = json!({"place": "a", "password": "geheim"});
    let new = NewDestination::new("first", "place", &config, &["task_run.*"]);
    let id = new.id();
    let made = world.client.create_destination(new.clone()).await.unwrap();
    let shown = |destination: &v1::Destination| -> Value { serde_json::from_slice(&destination.config).unwrap() };
    assert_eq!(shown(&made), json!({"place": "a", "password": "***"}));
    assert!(made.secret.starts_with("whsec_") && made.ordered);
    // A lost answer is given again; the id is nobody else's.
    assert_eq!(world.client.create_destination(new.clone()).await.unwrap().secret, made.secret);
    let other = world.client.for_tenant("other".parse().unwrap());
    let taken = other.create_destination(new).await.unwrap_err();
    assert_eq!(code(taken), (ErrorCode::INPUT_INVALID, Some("destination_id".into())));
    assert_eq!(code(other.get_destination(id).await.unwrap_err()).0, ErrorCode::EVENT_DESTINATION_NOT_FOUND);

    let masked = json!({"place": "b", "password": "***"}).to_string().into_bytes();
    let change = v1::UpdateDestinationRequest { name: "second".into(), config: masked.into(), ..Default::default() };
    let changed = world.client.update_destination(id, change).await.unwrap();
    assert_eq!((changed.name.as_str(), changed.secret.as_str(), changed.events.len()), ("second", "", 1));
    assert_eq!(shown(&world.get(id).await)["place"], "b");
    world.put_round(&runs(1), 1).await;
    world.outside.taken("b", 1).await;

    let off = world.client.deactivate_destination(id).await.unwrap();
    assert_eq!(off.status(), v1::DestinationStatus::Inactive);
    world.put_round(&runs(1), 1).await;
    world.client.activate_destination(id).await.unwrap();
    world.outside.taken("b", 2).await;
    world.client.delete_destination(id).await.unwrap();
    assert_eq!(code(world.client.get_destination(id).await.unwrap_err()).0, ErrorCode::EVENT_DESTINATION_NOT_FOUND);

    for (name, kind, config, events, field) in [
        ("", "place", json!({"place": "a"}), "*", "name"),
        ("n", "carrier-pigeon", json!({"place": "a"}), "*", "type"),
        ("n", "place", json!({}), "*", "place.place"),
        ("n", "place", json!({"place": "a"}), "task_run.finished", "events"),
    ] {
        let refused = world.client.create_destination(NewDestination::new(name, kind, &config, &[events])).await;
        assert_eq!(code(refused.unwrap_err()).1.as_deref(), Some(field));
    }
}

async fn secrets_overlap_when_they_are_rotated(kind: StoreKind) {
    let world = World::start(kind).await;
    let new = NewDestination::new("a", "place", &json!({"place": "a"}), &["*"]);
    let made = world.client.create_destination(new.clone()).await.unwrap();
    let rotated = world.client.rotate_secret(new.id()).await.unwrap();
    assert_ne!(made.secret, rotated.secret);
    let valid = rotated.old_secret_expires_at_ms.unwrap() - rotated.updated_at_ms;
    assert_eq!(valid, 24 * 3600 * 1000);
    world.put_round(&runs(1), 1).await;
    let taken = world.outside.taken("a", 1).await;
    assert_eq!(taken[0].secrets, [rotated.secret, made.secret]);
    assert_eq!(world.get(new.id()).await.secret, "");
    // Nothing of it stands in the store as it is.
    if let Some(folder) = world.stack.store_folder() {
        for file in ["notifier.db", "notifier.db-wal"] {
            let bytes = std::fs::read(folder.join(file)).unwrap();
            assert!(!bytes.windows(6).any(|window| window == b"whsec_"), "{file}");
        }
    }
    let quiet = NewDestination::new("q", "quiet", &json!({"place": "q"}), &["*"]);
    assert_eq!(world.client.create_destination(quiet.clone()).await.unwrap().secret, "");
    assert_eq!(code(world.client.rotate_secret(quiet.id()).await.unwrap_err()).0, ErrorCode::INPUT_INVALID);
}

async fn a_test_says_what_became_of_it(kind: StoreKind) {
    let world = World::start(kind).await;
    let id = world.destination("a", &["session.*"]).await;
    let tested = world.client.test_destination(id).await.unwrap();
    assert_eq!((tested.status(), tested.origin.as_str()), (v1::DeliveryStatus::Delivered, "test"));
    assert_eq!((tested.event_type.as_str(), tested.attempts.len()), ("event_destination.test", 1));
    let sent = world.outside.taken("a", 1).await;
    assert_eq!(sent[0].json["type"], "event_destination.test");
    world.outside.script("a", |_| Reaction::Fail(errand_notifier::channel::Failure::new("who are you")));
    let tested = world.client.test_destination(id).await.unwrap();
    assert_eq!((tested.status(), tested.last_error.as_str()), (v1::DeliveryStatus::Failed, "who are you"));
    assert_eq!(world.get(id).await.status(), v1::DestinationStatus::Active);
    assert_eq!(world.deliveries(id).await.len(), 2);
}

async fn lists_come_by_pages(kind: StoreKind) {
    let world = World::start(kind).await;
    let id = world.destination("a", &["*"]).await;
    let runs = runs(50);
    for seq in 1..=5 {
        world.put_round(&runs, seq).await;
    }
    let all = world.settled(id, 250).await;
    let ids: Vec<&String> = all.iter().map(|one| &one.id).collect();
    assert!(ids.is_sorted_by(|one, next| one > next), "newest first");
    assert_eq!(ids.iter().collect::<HashSet<_>>().len(), 250);
    let only = errand_client::DeliveryFilter { status: vec![v1::DeliveryStatus::Failed], ..Default::default() };
    let failed: Vec<v1::Delivery> = world.client.deliveries(id, only).try_collect().await.unwrap();
    assert!(failed.is_empty());
    let stranger = world.client.for_tenant("other".parse().unwrap());
    let peek = stranger.get_delivery(all[0].id.parse().unwrap()).await.unwrap_err();
    assert_eq!(code(peek).0, ErrorCode::EVENT_DELIVERY_NOT_FOUND);

    let second = world.destination("b", &["*"]).await;
    let listed: Vec<v1::Destination> =
        world.client.destinations(DestinationFilter::default()).try_collect().await.unwrap();
    assert_eq!(listed.iter().map(|one| one.id.clone()).collect::<Vec<_>>(), [second.to_string(), id.to_string()]);
    let inactive = DestinationFilter { status: vec![v1::DestinationStatus::Inactive], ..Default::default() };
    assert_eq!(world.client.destinations(inactive).try_collect::<Vec<_>>().await.unwrap().len(), 0);
}

async fn a_tenant_has_so_many_and_no_more(kind: StoreKind) {
    let world = World::start(kind).await;
    for _ in 0..100 {
        world.destination("a", &["session.*"]).await;
    }
    let new = NewDestination::new("one more", "place", &json!({"place": "a"}), &["*"]);
    assert_eq!(code(world.client.create_destination(new).await.unwrap_err()).0, ErrorCode::INPUT_INVALID);
    let all: Vec<v1::Destination> =
        world.client.destinations(DestinationFilter::default()).try_collect().await.unwrap();
    assert_eq!(all.len(), 100);
}
