//! How fast the queue is by itself, with destinations that take everything at once. Run it with
//! `cargo test --release -p errand-notifier --test destinations -- --ignored --nocapture`.

use std::time::Instant;

use errand_tests::{StoreKind, eventually};

use crate::world::{PATIENCE, World, runs};

async fn measure(kind: StoreKind, places: usize) {
    const EVENTS: usize = 10_000;
    let mut world = World::start_with(kind, &[]).await;
    let names: Vec<String> = (0..places).map(|number| format!("place-{number}")).collect();
    for name in &names {
        world.destination(name, &["*"]).await;
    }
    // What is measured begins with everything in the stream.
    world.notifiers.pop().unwrap().stop();
    let runs = runs(EVENTS / 10);
    for seq in 1..=10 {
        world.put_round(&runs, seq).await;
    }
    let started = Instant::now();
    world.add_notifier();
    let wanted = u64::try_from(EVENTS * places).unwrap();
    eventually("all is delivered", PATIENCE * 4, async || {
        let status = world.client.notifier_status().await.ok()?;
        let delivered: u64 = status.destinations.iter().map(|one| one.delivered).sum();
        let pending: u64 = status.destinations.iter().map(|one| one.pending).sum();
        (delivered >= wanted && pending == 0).then_some(())
    })
    .await;
    let took = started.elapsed();
    println!("{kind:?}, {places} destinations: {:.0} deliveries/s", wanted as f64 / took.as_secs_f64());
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn deliveries_per_second() {
    for kind in [StoreKind::Sqlite, StoreKind::Postgres] {
        for places in [1, 5] {
            measure(kind, places).await;
        }
    }
}
