//! A typed client over NATS: submit, get, cancel, answer, review and watch runs; tasks, sessions, runners,
//! events, destinations.
//!
//! Runs are named by the client before they are sent, so that every call that may be repeated can be: a request
//! whose answer is lost is sent again, and makes one run.
//!
//! ```no_run
//! # async fn example() -> Result<(), errand_client::ClientError> {
//! use errand_client::{Client, NewRun, Options};
//! let client = Client::connect(Options::default()).await?;
//! let run = NewRun::of_task("bills")?.input(&serde_json::json!({"month": "2026-05"}));
//! let id = run.id();
//! client.submit(run).await?;
//! let finished = client.wait(id, std::time::Duration::from_secs(60)).await?;
//! println!("{}", errand_proto::json::run(&finished.into_run()));
//! # Ok(())
//! # }
//! ```

mod artifacts;
mod call;
mod destinations;
mod events;
mod keys;
mod pages;
mod runs;
mod sessions;
mod tasks;
mod timeline;
mod vault;
mod watch;

use std::path::PathBuf;
use std::time::Duration;

use errand_bus::{Bus, BusConfig};
use errand_core::Tenant;

pub use call::ClientError;
pub use destinations::{DeliveryFilter, DestinationFilter, NewDestination};
pub use errand_core::{Error, ErrorCode, RunId};
pub use errand_proto::v1;
pub use errand_secret::{SecretText, Secrets};
pub use events::EventFilter;
pub use keys::{ApiSecret, NewApiKey, SECRET_PREFIX};
pub use runs::{NewRun, Published, RunFilter, Wait, run_status};
pub use timeline::Timeline;
pub use vault::{CredentialChange, CredentialFilter, NewCredential, NewSource, Rotated, SourceChange};

/// How to reach Errand.
#[derive(Debug, Clone)]
pub struct Options {
    /// `nats://HOST:PORT`, several separated by commas.
    pub url: String,
    /// What every subject starts with.
    pub prefix: String,
    /// Whose runs they are.
    pub tenant: Tenant,
    /// A NATS credentials file.
    pub credentials: Option<PathBuf>,
    /// The certificates by one of which the broker's must be signed.
    pub ca: Option<PathBuf>,
    /// How long to wait for a broker, and for a service that nobody serves at the moment.
    pub patience: Duration,
}

impl Default for Options {
    fn default() -> Self {
        let bus = BusConfig::default();
        Self {
            url: bus.url,
            prefix: bus.prefix,
            tenant: default_tenant(),
            credentials: None,
            ca: None,
            patience: Duration::from_secs(5),
        }
    }
}

/// The tenant of those who name none: `default`.
#[must_use]
pub fn default_tenant() -> Tenant {
    match "default".parse() {
        Ok(tenant) => tenant,
        Err(_) => Tenant::system(),
    }
}

/// Speaks to Errand for one tenant. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Client {
    bus: Bus,
    tenant: Tenant,
    patience: Duration,
}

impl Client {
    /// A client over a connection that is there.
    #[must_use]
    pub const fn new(bus: Bus, tenant: Tenant) -> Self {
        Self { bus, tenant, patience: Duration::from_secs(5) }
    }

    /// Connects.
    ///
    /// # Errors
    /// [`ClientError::Bus`] where no broker is there within the patience.
    pub async fn connect(options: Options) -> Result<Self, ClientError> {
        let config = BusConfig {
            url: options.url,
            prefix: options.prefix,
            name: "errand-client".into(),
            credentials: options.credentials,
            ca: options.ca,
            ..BusConfig::default()
        };
        let bus = Bus::connect(config, options.patience).await?;
        Ok(Self { bus, tenant: options.tenant, patience: options.patience })
    }

    /// The same connection, for another tenant.
    #[must_use]
    pub fn for_tenant(&self, tenant: Tenant) -> Self {
        Self { tenant, ..self.clone() }
    }

    /// The connection.
    #[must_use]
    pub const fn bus(&self) -> &Bus {
        &self.bus
    }

    /// Whose runs they are.
    #[must_use]
    pub const fn tenant(&self) -> &Tenant {
        &self.tenant
    }
}
