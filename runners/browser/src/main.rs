//! The browser runner's process, and its supervisors'.

use std::process::ExitCode;

use clap::Parser;
use errand_browser::{Config, SUPERVISE, supervise_main};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == SUPERVISE) {
        return supervise_main(args);
    }
    let config = Config::parse();
    if config.schema {
        print!("{}", errand_browser::schema());
        return ExitCode::SUCCESS;
    }
    errand_kit::main(&config.kit.clone(), "browser", |shutdown| errand_browser::run(config, shutdown))
}
