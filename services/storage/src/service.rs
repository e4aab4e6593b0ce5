//! Owns the tasks and clients of a storage.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use errand_kit::{Tasks, health, metrics};
use errand_store::Outbox;
use ring::rand::{SecureRandom, SystemRandom};
use tokio_util::sync::CancellationToken;

use crate::blobs::Blobs;
use crate::config::Config;
use crate::extraction::Extractor;
use crate::keeper::Keeper;
use crate::signing::{LinkKey, MIN_KEY_BYTES};
use crate::staging::Staging;
use crate::store::{RunLimits, Store};
use crate::uploads::Uploads;
use crate::{retention, transport};

/// Runs a storage until shutdown.
///
/// # Errors
/// Where the broker, the store or the place of the bytes is not there at start, or a task fails for good.
pub async fn run(config: Config, shutdown: CancellationToken) -> anyhow::Result<()> {
    let link_key = link_key(&config)?;
    let Some(bus) = config.kit.connect_with_streams("storage", &shutdown).await? else { return Ok(()) };
    let store = Store::open(&config.store).await?;
    let blobs = Blobs::open(&config).await?;
    let (outbox, publisher) = Outbox::open(store.db().clone(), bus.clone()).await?;
    let program = match config.extractor.clone() {
        Some(program) => program,
        None => std::env::current_exe().context("this program's own file")?,
    };
    let limits = RunLimits { files: config.max_run_files, bytes: config.max_run_bytes };
    let lag = outbox.clone();
    let (extractor, retention) = (Extractor::new(program), config.retention());
    let keeper = Keeper::new(bus.clone(), store.clone(), blobs.clone(), outbox, extractor, limits, retention);
    let folder = config.staging.clone().unwrap_or_else(std::env::temp_dir);
    let staging = Staging::new(folder.clone()).with_context(|| format!("--staging {}", folder.display()))?;
    let max_uploads = usize::try_from(config.max_uploads)?;
    let uploads = Arc::new(Uploads::new(staging, Arc::new(keeper), config.max_file_bytes, max_uploads));
    let shared = Arc::new(transport::Storage {
        bus: bus.clone(),
        store: store.clone(),
        blobs: blobs.clone(),
        uploads: Arc::clone(&uploads),
        link_key,
        link_seconds: config.link_seconds,
        instance: transport::instance(),
    });
    // The publisher stops behind those who give it work.
    let draining = CancellationToken::new();
    let mut running = Tasks::new(shutdown.clone());
    let publishing = draining.clone();
    running.spawn("publisher", async move { Ok(publisher.run(publishing).await?) });
    let pace = retention::Pace {
        every: Duration::from_secs(config.sweep_seconds.into()),
        abandoned_after: Duration::from_secs(config.abandoned_seconds.into()),
    };
    let forgetting = store.db().clone().forget_old_events(shutdown.clone());
    running.spawn("old events", async move { Ok(forgetting.await?) });
    running.spawn("lag", metrics::watch_outbox("files", move || lag.lag(), shutdown.clone()));
    running.spawn("sweep", retention::run(store.clone(), blobs.clone(), uploads, pace, shutdown.clone()));
    if let Some(listen) = config.kit.health_listen {
        running.spawn("health", health::serve(listen, bus.clone(), shutdown.clone()));
    }
    let service = transport::serve(&shared).await?;
    tracing::info!(
        store = store.db().kind(),
        files = blobs.kind(),
        broker = bus.broker_version(),
        "the storage serves"
    );
    running.spawn("service", async move {
        shutdown.cancelled().await;
        service.stop(Duration::from_secs(10)).await;
        draining.cancel();
        Ok(())
    });
    let ended = running.join().await;
    store.db().close().await;
    ended
}

/// The key of links: given, or in a file, which is made where it is missing.
fn link_key(config: &Config) -> anyhow::Result<LinkKey> {
    let text = match &config.link_key {
        Some(key) => key.clone(),
        None => read_or_make(&config.link_key_file)
            .with_context(|| format!("--link-key-file {}", config.link_key_file.display()))?,
    };
    let too_short = || format!("the key of download links needs {MIN_KEY_BYTES} characters at least");
    LinkKey::new(text.trim().as_bytes()).with_context(too_short)
}

fn read_or_make(path: &Path) -> anyhow::Result<String> {
    // A secret that is mounted lies in a folder that nobody writes to.
    match std::fs::read_to_string(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        read => return Ok(read?),
    }
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let mut random = [0u8; 32];
    SystemRandom::new().fill(&mut random).map_err(|_| anyhow::anyhow!("the system has no random bytes"))?;
    let key: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
    // Whole under its name, or not there: two that start at once come to one key.
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut draft = tempfile::Builder::new()
        .make_in(folder, |draft| std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(draft))?;
    draft.write_all(key.as_bytes())?;
    draft.as_file().sync_all()?;
    match draft.persist_noclobber(path) {
        Ok(_) => Ok(key),
        Err(error) if error.error.kind() == std::io::ErrorKind::AlreadyExists => Ok(std::fs::read_to_string(path)?),
        Err(error) => Err(error.error.into()),
    }
}
