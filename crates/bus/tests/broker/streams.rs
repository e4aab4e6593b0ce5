//! The streams as a real broker has them.

use crate::harness::{Broker, PATIENCE};
use async_nats::jetstream;
use async_nats::jetstream::stream::{PersistenceMode, RetentionPolicy};
use errand_bus::{Bus, BusConfig, BusError, StreamKind};

#[tokio::test]
async fn they_are_made_once_and_brought_up_to_date() {
    let broker = Broker::start();
    let bus = broker.connect().await;
    let jetstream = jetstream::new(broker.bare().await);
    // An older Errand kept events for an hour.
    jetstream
        .create_stream(jetstream::stream::Config {
            name: "ERRAND_V1_EVENT".into(),
            subjects: vec!["errand.v1.event.>".into()],
            max_age: std::time::Duration::from_secs(3600),
            persist_mode: Some(PersistenceMode::Async),
            ..Default::default()
        })
        .await
        .unwrap();
    for _ in 0..2 {
        bus.ensure_streams().await.unwrap();
    }
    let config = async |name: &str| jetstream.get_stream(name).await.unwrap().cached_info().config.clone();
    let event = config("ERRAND_V1_EVENT").await;
    assert_eq!(event.max_age.as_secs(), 30 * 24 * 3600);
    assert_eq!(event.persist_mode, Some(PersistenceMode::Async));
    let submit = config("ERRAND_V1_SUBMIT").await;
    assert_eq!(submit.retention, RetentionPolicy::WorkQueue);
    assert_ne!(submit.persist_mode, Some(PersistenceMode::Async), "a submission must not be lost");
    assert!(submit.max_bytes > 0);
    assert_eq!(config("ERRAND_V1_DLQ").await.subjects, ["errand.v1.dlq.>"]);
}

#[tokio::test]
async fn what_cannot_be_changed_is_said() {
    let broker = Broker::start();
    let bus = broker.connect().await;
    let jetstream = jetstream::new(broker.bare().await);
    jetstream
        .create_stream(jetstream::stream::Config {
            name: StreamKind::Submit.name("errand.v1"),
            subjects: vec!["errand.v1.submit.*".into()],
            storage: jetstream::stream::StorageType::Memory,
            ..Default::default()
        })
        .await
        .unwrap();
    let error = bus.ensure_streams().await.unwrap_err();
    assert!(matches!(error, BusError::Refused { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("ERRAND_V1_SUBMIT") && text.contains("storage"), "{text}");
}

#[tokio::test]
async fn several_prefixes_share_a_small_disk() {
    let broker = Broker::with_storage("2GB");
    for prefix in ["errand.v1", "a", "b", "c"] {
        broker.connect_as(prefix).await.ensure_streams().await.unwrap();
    }
}

#[tokio::test]
async fn a_broker_that_is_not_there_is_named_without_its_password() {
    let config = BusConfig { url: "nats://user:secret@127.0.0.1:1".into(), ..BusConfig::default() };
    let error = Bus::connect(config, std::time::Duration::from_millis(100)).await.unwrap_err();
    let text = error.to_string();
    assert!(text.contains("127.0.0.1:1") && !text.contains("secret"), "{text}");
}

#[tokio::test]
async fn the_broker_is_awaited_and_counted() {
    let mut broker = Broker::start();
    broker.kill();
    let config = broker.config("errand.v1");
    let connecting = tokio::spawn(Bus::connect(config, PATIENCE));
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    broker.start_again();
    let bus = connecting.await.unwrap().unwrap();
    let mut connections = bus.connections();
    assert_eq!(*connections.borrow_and_update(), 1);
    assert!(bus.is_connected());
    bus.round_trip().await.unwrap();
    broker.kill();
    broker.start_again();
    connections.changed().await.unwrap();
    assert_eq!(*connections.borrow(), 2);
}
