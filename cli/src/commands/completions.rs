//! `errand completions`.

use clap::CommandFactory;

use crate::args::{Cli, CompletionsArgs};
use crate::output::Output;

pub(crate) fn run(args: &CompletionsArgs) -> anyhow::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "errand", &mut script);
    Output::new(false).line(String::from_utf8_lossy(&script).trim_end())
}
