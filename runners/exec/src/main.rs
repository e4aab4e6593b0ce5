//! The exec runner's process, and its supervisors'.

use std::process::ExitCode;

use clap::Parser;
use errand_exec::{Config, SUPERVISE, supervise_main};

fn main() -> ExitCode {
    let mut args = std::env::args_os().skip(1);
    if args.next().is_some_and(|first| first == SUPERVISE) {
        return supervise_main(args);
    }
    let config = Config::parse();
    errand_kit::main(&config.kit.clone(), "exec", |shutdown| errand_exec::run(config, shutdown))
}
