//! How fast a stream takes messages, by replicas and persistence: what ADR 0014 rests on.
//! `cargo run --release -p errand-bus --example persist -- nats://127.0.0.1:4222 [MESSAGES]`. It makes streams named
//! `PERSIST_*` and removes them.

use std::time::Instant;

use async_nats::jetstream::stream::{Config, PersistenceMode, StorageType};
use async_nats::jetstream::{self, Context};
use futures::{StreamExt, stream};

/// Of an event, about.
const BYTES: usize = 600;
/// As the publisher of events has them under way.
const IN_FLIGHT: usize = 1_024;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let url = args.next().unwrap_or_else(|| "nats://127.0.0.1:4222".into());
    let count = args.next().map_or(Ok(20_000), |count| count.parse())?;
    let jetstream = jetstream::new(async_nats::connect(url).await?);
    let cases = [
        ("R1_FILE", 1, StorageType::File, None),
        ("R1_FILE_ASYNC", 1, StorageType::File, Some(PersistenceMode::Async)),
        ("R3_FILE", 3, StorageType::File, None),
        ("R3_FILE_ASYNC", 3, StorageType::File, Some(PersistenceMode::Async)),
        ("R3_MEMORY", 3, StorageType::Memory, None),
    ];
    for (name, num_replicas, storage, persist_mode) in cases {
        let config = Config {
            name: format!("PERSIST_{name}"),
            subjects: vec![format!("persist.{name}.>")],
            num_replicas,
            storage,
            persist_mode,
            ..Config::default()
        };
        match measure(&jetstream, config, name, count).await {
            Ok((rate, p50)) => println!("{name}: {rate:.0} messages/s, one alone {p50:.2} ms"),
            Err(error) => println!("{name}: {error}"),
        }
    }
    Ok(())
}

/// Messages a second with many under way, and the median of one after another.
async fn measure(jetstream: &Context, config: Config, name: &str, count: usize) -> Result<(f64, f64), Failure> {
    let stream_name = config.name.clone();
    jetstream.create_stream(config).await?;
    let publish = |number: usize| async move {
        jetstream.publish(format!("persist.{name}.{number}"), vec![0u8; BYTES].into()).await?.await?;
        Ok::<_, Failure>(())
    };
    for number in 0..200 {
        publish(number).await?;
    }
    let mut alone = Vec::new();
    for number in 0..500 {
        let started = Instant::now();
        publish(number).await?;
        alone.push(started.elapsed().as_secs_f64() * 1000.0);
    }
    alone.sort_by(f64::total_cmp);
    let started = Instant::now();
    let mut all = stream::iter((0..count).map(publish)).buffer_unordered(IN_FLIGHT);
    while let Some(done) = all.next().await {
        done?;
    }
    let rate = count as f64 / started.elapsed().as_secs_f64();
    jetstream.delete_stream(&stream_name).await?;
    Ok((rate, alone[alone.len() / 2]))
}
