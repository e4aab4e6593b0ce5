//! The vault's process.

use std::process::ExitCode;

use clap::Parser;
use errand_vault::config::Config;

fn main() -> ExitCode {
    let config = Config::parse();
    errand_kit::main(&config.kit.clone(), "vault", |shutdown| errand_vault::service::run(config, shutdown))
}
