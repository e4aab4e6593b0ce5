//! The session-pool's process.

use std::process::ExitCode;

use clap::Parser;
use errand_session_pool::config::Config;

fn main() -> ExitCode {
    let config = Config::parse();
    errand_kit::main(&config.kit.clone(), "session-pool", |shutdown| {
        errand_session_pool::service::run(config, shutdown)
    })
}
