//! What all channels share.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use errand_bus::Bus;
use ipnet::IpNet;

use super::guard::{CONNECT, Guard, Lookup, System};
use super::tls::Tls;

/// How long an HTTP call may take in all. The caller's own limit is shorter; this one is for a caller without.
const TOTAL: Duration = Duration::from_secs(15);
/// Idle connections kept to one host: more than one destination has under way at a time, less than a small server has.
const IDLE_PER_HOST: usize = 64;
/// Below what servers and load balancers wait before they close one (60 s is usual), so that it is we who close.
const IDLE: Duration = Duration::from_secs(45);

/// Where deliveries may go.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct OutsideArgs {
    /// A network that destinations may be in although it is not public: 10.1.0.0/16, fd00::/8. May be repeated.
    #[arg(long = "allow-network", env = "ERRAND_ALLOW_NETWORKS", value_name = "CIDR", value_delimiter = ',')]
    pub allow_networks: Vec<IpNet>,
    /// Certificates to trust beside the system's when deliveries go out over TLS, as PEM.
    #[arg(long = "delivery-ca-file", env = "ERRAND_DELIVERY_CA_FILE", value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
}

/// Why the outside cannot be reached at all.
#[derive(Debug, thiserror::Error)]
pub enum OutsideError {
    /// The operator's certificates.
    #[error("cannot use the certificates in {}: {what}", file.display())]
    Roots {
        /// Where they were sought.
        file: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The HTTP client.
    #[error("cannot make an HTTP client: {0}")]
    Client(reqwest::Error),
}

/// What all channels share: the networks that may be reached, the client for those that speak HTTP, and the
/// installation's own broker. Cheap to clone.
#[derive(Clone)]
pub struct Outside {
    pub(super) guard: Guard,
    pub(super) tls: Tls,
    pub(super) http: reqwest::Client,
    pub(super) broker: Option<Bus>,
}

impl std::fmt::Debug for Outside {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Outside").field("guard", &self.guard).finish_non_exhaustive()
    }
}

impl Outside {
    /// With the system's resolver. `broker` is the installation's own, for `nats` destinations without a `url`.
    ///
    /// # Errors
    /// The operator's certificates cannot be used.
    pub fn new(args: &OutsideArgs, broker: Option<Bus>) -> Result<Self, OutsideError> {
        Self::with_lookup(args, broker, Arc::new(System))
    }

    /// With a resolver of one's own.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn with_lookup(args: &OutsideArgs, broker: Option<Bus>, lookup: Arc<dyn Lookup>) -> Result<Self, OutsideError> {
        let guard = Guard::new(&args.allow_networks, lookup);
        let tls = Tls::new(args.ca_file.as_deref())?;
        let http = client(&guard, &tls).map_err(OutsideError::Client)?;
        Ok(Self { guard, tls, http, broker })
    }
}

impl Default for Outside {
    /// Nothing private is allowed, and there is no broker.
    fn default() -> Self {
        Self::new(&OutsideArgs::default(), None).expect("a client without files of its own can be made")
    }
}

fn client(guard: &Guard, tls: &Tls) -> reqwest::Result<reqwest::Client> {
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls.client())
        .dns_resolver(Arc::new(guard.clone()))
        // A redirect would be another's way to choose the address, a proxy would resolve the name by itself.
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .referer(false)
        .user_agent(concat!("errand/", env!("CARGO_PKG_VERSION")))
        .http1_only()
        .tcp_nodelay(true)
        .connect_timeout(CONNECT)
        .timeout(TOTAL)
        .pool_max_idle_per_host(IDLE_PER_HOST)
        .pool_idle_timeout(IDLE)
        .build()
}
