//! The timeout-watcher's process.

use std::process::ExitCode;

use clap::Parser;
use errand_timeout_watcher::{Config, run};

fn main() -> ExitCode {
    let config = Config::parse();
    let kit = config.kit.clone();
    errand_kit::main(&kit, "timeout-watcher", |shutdown| run(config, shutdown))
}
