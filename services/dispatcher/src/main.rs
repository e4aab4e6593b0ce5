//! The dispatcher's process.

use std::process::ExitCode;

use clap::Parser;
use errand_dispatcher::config::Config;

fn main() -> ExitCode {
    let config = Config::parse();
    errand_kit::main(&config.kit.clone(), "dispatcher", |shutdown| errand_dispatcher::service::run(config, shutdown))
}
