//! This program under a service's name is that service: an image needs one program, with a link for each name.

use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

/// Runs the service that this program was started as; none where it was started as `errand`.
pub(crate) fn by_name() -> Option<ExitCode> {
    let name = std::env::args_os().next()?;
    let name = Path::new(&name).file_name()?.to_str()?.strip_prefix("errand-")?.to_owned();
    macro_rules! services {
        ($($service:literal => $config:ty, $run:path;)*) => {
            match name.as_str() {
                $($service => {
                    let config = <$config>::parse();
                    Some(errand_kit::main(&config.kit.clone(), $service, |shutdown| $run(config, shutdown)))
                })*
                _ => None,
            }
        };
    }
    services! {
        "dispatcher" => errand_dispatcher::config::Config, errand_dispatcher::service::run;
        "session-pool" => errand_session_pool::config::Config, errand_session_pool::service::run;
        "timeout-watcher" => errand_timeout_watcher::Config, errand_timeout_watcher::run;
        "notifier" => errand_notifier::Config, errand_notifier::run;
        "vault" => errand_vault::config::Config, errand_vault::service::run;
        "storage" => errand_storage::config::Config, errand_storage::service::run;
        "gateway" => errand_gateway::Config, errand_gateway::run;
        "exec" => errand_exec::Config, errand_exec::run;
    }
}
