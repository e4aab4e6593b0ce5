//! The smallest runner: its output is its input. `cargo run -p errand-runner --example echo [nats://HOST:PORT]`

use std::time::Duration;

use errand_runner::{
    Assigned, Bus, BusConfig, CancellationToken, Control, Ending, Error, Host, RunnerConfig, SessionId, SessionStart,
};

struct Echo;

impl Host for Echo {
    async fn start_session(&self, _session: SessionStart) -> Result<(), Error> {
        Ok(())
    }

    async fn end_session(&self, _id: SessionId) {}

    async fn execute(&self, run: Assigned, control: Control) -> Ending {
        control.progress("echoing", "echo", Some(50));
        Ending::Finished(run.input)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut config = BusConfig { name: "echo".into(), ..BusConfig::default() };
    if let Some(url) = std::env::args().nth(1) {
        config.url = url;
    }
    let bus = Bus::connect(config, Duration::from_secs(10)).await?;
    let shutdown = CancellationToken::new();
    let stop = shutdown.clone();
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            stop.cancel();
        }
    });
    let config = RunnerConfig { capacity: 4, ..RunnerConfig::new("agt_echo".parse()?) };
    errand_runner::run(bus, Echo, config, shutdown).await?;
    Ok(())
}
