//! The notifier's process.

use std::process::ExitCode;

use clap::Parser;
use errand_notifier::{Config, run};

fn main() -> ExitCode {
    let config = Config::parse();
    let kit = config.kit.clone();
    errand_kit::main(&kit, "notifier", |shutdown| run(config, shutdown))
}
