//! How fast the queue is by itself, with destinations that take everything at once. Run it with
//! `cargo test --release -p errand-notifier --test destinations -- --ignored --nocapture`.

use std::sync::atomic::Ordering;
use std::time::Instant;

use errand_tests::{StoreKind, eventually};

use crate::double::Outside;
use crate::world::{PATIENCE, World, runs};

async fn measure(kind: StoreKind, places: usize) {
    const EVENTS: usize = 10_000;
    let mut world = World::start_with(kind, &["--delivery-claim", "6s"]).await;
    let names: Vec<String> = (0..places).map(|number| format!("place-{number}")).collect();
    for name in &names {
        world.destination(name, &["*"]).await;
    }
    // What is measured begins with everything in the stream.
    world.notifiers.pop().unwrap().stop();
    let (outside, counted) = Outside::counting();
    world.outside = outside;
    let runs = runs(EVENTS / 10);
    for seq in 1..=10 {
        world.put_round(&runs, seq).await;
    }
    let (started, cpu) = (Instant::now(), cpu_seconds());
    world.add_notifier();
    let wanted = u64::try_from(EVENTS * places).unwrap();
    eventually("all is sent", PATIENCE * 8, async || (counted.load(Ordering::Relaxed) >= wanted).then_some(())).await;
    eventually("all is written down", PATIENCE, async || {
        let status = world.client.notifier_status().await.ok()?;
        status.destinations.iter().all(|one| one.pending == 0).then_some(())
    })
    .await;
    let (took, cpu) = (started.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let (rate, per_cpu) = (wanted as f64 / took, wanted as f64 / cpu);
    println!("{kind:?}, {places} destinations: {rate:.0} deliveries/s, {per_cpu:.0} per second of CPU");
}

/// What this process has used, on whatever else the machine does: Linux counts it in hundredths of a second.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
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
