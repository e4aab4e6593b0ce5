//! `errand`: Errand's command line.

fn main() -> std::process::ExitCode {
    errand_cli::main()
}
