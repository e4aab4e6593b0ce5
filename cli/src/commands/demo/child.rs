//! A server in Python beside the demo.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use crate::keep::Kept;

/// How long it may take to be there.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(20);

/// A server that runs.
pub(super) struct Child {
    pub(super) kept: Kept,
    pub(super) port: u16,
    /// What it prints.
    pub(super) log: PathBuf,
}

impl Child {
    /// Starts a script that takes `--port 0 --port-file FILE`, and waits until it has told its port.
    pub(super) async fn start(
        what: &'static str,
        python: &Path,
        script: &Path,
        more: &[OsString],
        scratch: &Path,
    ) -> anyhow::Result<Self> {
        let name = script.file_stem().unwrap_or_default();
        let (port_file, log) = (scratch.join(name).with_extension("port"), scratch.join(name).with_extension("log"));
        let mut arguments = vec![script.as_os_str().to_owned(), "--port".into(), "0".into(), "--port-file".into()];
        arguments.push(port_file.clone().into_os_string());
        arguments.extend_from_slice(more);
        let mut kept = Kept::start(what, python, &arguments, &[], &log)?;
        let started = Instant::now();
        loop {
            if let Ok(text) = std::fs::read_to_string(&port_file) {
                let port = text.trim().parse().with_context(|| format!("the port of {what}"))?;
                return Ok(Self { kept, port, log });
            }
            if kept.has_ended()? || started.elapsed() > PATIENCE {
                bail!("{what} did not start: {}", std::fs::read_to_string(&log).unwrap_or_default());
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}
