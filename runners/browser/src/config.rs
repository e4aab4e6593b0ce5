//! The browser runner's arguments.

use std::path::PathBuf;

use errand_core::{AgentId, Tenant};

use crate::egress::Upstream;
use crate::net::Network;
use crate::program::Viewport;

/// The browser runner's arguments.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "errand-browser", version, about = "A runner that drives a real Chromium")]
pub struct Config {
    /// What all services take.
    #[command(flatten)]
    pub kit: errand_kit::Args,
    /// The agent that tasks ask for.
    #[arg(long, env = "ERRAND_BROWSER_AGENT", default_value = "agt_browser")]
    pub agent: AgentId,
    /// The browser; looked for in PATH and among the applications unless given.
    #[arg(long, env = "ERRAND_CHROMIUM")]
    pub chromium: Option<PathBuf>,
    /// Where sessions, profiles and files are kept; a folder for temporary files unless given.
    #[arg(long, env = "ERRAND_BROWSER_WORK")]
    pub work: Option<PathBuf>,
    /// Sessions, and so browsers, at the same time; twice the number of processors unless given.
    #[arg(long, env = "ERRAND_BROWSER_CAPACITY")]
    pub capacity: Option<u32>,
    /// Sessions that are kept ready.
    #[arg(long, env = "ERRAND_BROWSER_WARM", default_value_t = 0)]
    pub warm: u32,
    /// Whom it serves, separated by commas; every tenant unless given.
    #[arg(long, env = "ERRAND_BROWSER_TENANTS", value_delimiter = ',')]
    pub tenants: Vec<Tenant>,
    /// Shows the browsers' windows, which needs a display.
    #[arg(long, env = "ERRAND_BROWSER_HEADED")]
    pub headed: bool,
    /// Starts browsers without Chromium's own sandbox: for containers that do not allow it. Implied as root, where
    /// Chromium has none.
    #[arg(long, env = "ERRAND_BROWSER_NO_SANDBOX")]
    pub no_sandbox: bool,
    /// The proxy: http://[user:password@]host:port or socks5://...
    #[arg(long, env = "ERRAND_BROWSER_PROXY", hide_env_values = true)]
    pub proxy: Option<Upstream>,
    /// Networks beside the public internet that browsers may reach, separated by commas: 10.0.0.0/8, ::1, ...
    #[arg(long, env = "ERRAND_BROWSER_ALLOW_NETWORK", value_delimiter = ',')]
    pub allow_network: Vec<Network>,
    /// The size of pages' windows.
    #[arg(long, env = "ERRAND_BROWSER_VIEWPORT", default_value = "1280x800")]
    pub viewport: Size,
    /// The locale of pages: de-DE, ...
    #[arg(long, env = "ERRAND_BROWSER_LOCALE")]
    pub locale: Option<String>,
    /// The time zone of pages: Europe/Berlin, ...
    #[arg(long, env = "ERRAND_BROWSER_TIME_ZONE")]
    pub time_zone: Option<String>,
    /// What browsers say that they are.
    #[arg(long, env = "ERRAND_BROWSER_USER_AGENT")]
    pub user_agent: Option<String>,
    /// Lets tasks bring programs of their own, which run on this machine and attach to their session's browser.
    #[arg(long, env = "ERRAND_BROWSER_AGENTS")]
    pub agents: bool,
    /// Where such programs are started.
    #[arg(long, env = "ERRAND_BROWSER_DIRECTORY", default_value = ".")]
    pub directory: PathBuf,
    /// Lets people watch sessions: what their pages show, the gateway shows to keys of the session's tenant.
    #[arg(long, env = "ERRAND_BROWSER_LIVE")]
    pub live: bool,
    /// Prints the JSON Schema of programs and ends.
    #[arg(long)]
    pub schema: bool,
    /// The binary that supervises browsers: one whose main calls `supervise_main`; this one unless given.
    #[arg(skip)]
    pub supervisor: Option<PathBuf>,
}

/// `WIDTHxHEIGHT`
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size(pub(crate) Viewport);

impl std::str::FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let sizes = text.split_once('x').and_then(|(width, height)| Some((width.parse().ok()?, height.parse().ok()?)));
        match sizes {
            Some((width, height)) if [width, height].iter().all(|size| (200..=4096).contains(size)) => {
                Ok(Self(Viewport { width, height }))
            }
            _ => Err("a size must be WIDTHxHEIGHT with 200..4096 both ways".to_owned()),
        }
    }
}
