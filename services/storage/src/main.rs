//! The storage's process; or, asked by it, the one that reads a file.

use std::process::ExitCode;

use clap::Parser;
use errand_storage::config::Config;

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(errand_storage::EXTRACT) {
        return errand_storage::extract_main(std::env::args().nth(2));
    }
    let config = Config::parse();
    errand_kit::main(&config.kit.clone(), "storage", |shutdown| errand_storage::service::run(config, shutdown))
}
