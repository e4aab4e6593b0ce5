//! The gateway's process.

use std::process::ExitCode;

use clap::Parser;
use errand_gateway::Config;

fn main() -> ExitCode {
    let config = Config::parse();
    errand_kit::main(&config.kit.clone(), "gateway", |shutdown| errand_gateway::run(config, shutdown))
}
