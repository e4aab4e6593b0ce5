//! Three brokers that are one.

use std::time::Duration;

use errand_bus::{Bus, BusConfig};
use errand_tests::Broker;

const PATIENCE: Duration = Duration::from_secs(60);

#[tokio::test]
async fn whoever_starts_before_the_cluster_has_settled_waits_for_it() {
    let mut brokers = Broker::start_cluster();
    // One alone is no cluster: it takes clients, and makes nothing for them.
    brokers[1].kill9();
    brokers[2].kill9();
    let config = BusConfig { url: brokers[0].url(), replicas: 3, ..BusConfig::default() };
    let bus = Bus::connect(config, PATIENCE).await.unwrap();
    let error = bus.await_streams(Duration::ZERO).await.unwrap_err().to_string();
    assert!(error.contains("ERRAND_V1_SUBMIT"), "{error}");
    let early = bus.clone();
    let waiting = tokio::spawn(async move { early.await_streams(PATIENCE).await });
    brokers[1].restart();
    brokers[2].restart();
    waiting.await.unwrap().unwrap();
    bus.event_stream_state().await.unwrap();
}
