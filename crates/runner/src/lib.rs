//! The SDK for writing a runner: a process that hosts sessions and executes runs in them.
//!
//! Implement [`Host`] and hand it to [`run`]. Errand's part is everything around it: registration, heartbeats, leases
//! with fencing, repeated messages, reports that are sent until they are answered, stops with a grace, drain.
//!
//! ```no_run
//! use errand_runner::{Assigned, Bus, BusConfig, CancellationToken, Control, Ending, Error, Host, RunnerConfig};
//! use errand_runner::{SessionId, SessionStart};
//!
//! struct Echo;
//!
//! impl Host for Echo {
//!     async fn start_session(&self, _session: SessionStart) -> Result<(), Error> {
//!         Ok(())
//!     }
//!
//!     async fn end_session(&self, _id: SessionId) {}
//!
//!     async fn execute(&self, run: Assigned, control: Control) -> Ending {
//!         control.progress("echoing", "echo", Some(50));
//!         Ending::Finished(run.input)
//!     }
//! }
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let bus = Bus::connect(BusConfig::default(), std::time::Duration::from_secs(10)).await?;
//! let config = RunnerConfig { capacity: 4, ..RunnerConfig::new("agt_echo".parse()?) };
//! errand_runner::run(bus, Echo, config, CancellationToken::new()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! A run's credential is [`Control::credential`]: sealed by the vault for this lease alone, opened here. It answers
//! questions for a one-time code by itself, and what it holds is taken out of all that the run tells.
//!
//! What holds: a session executes one run at a time; a run that a newer lease has taken away is dropped and never
//! reported; every message may come twice, late or not at all, and none of that does harm; while the broker is away,
//! runs go on and their reports wait.

mod activity;
mod backoff;
mod captures;
mod config;
mod control;
mod credential;
mod engine;
mod files;
mod host;
mod recent;
mod report;
mod run;
#[doc(hidden)]
pub mod simulated;
mod transport;

pub use captures::Captures;
pub use config::{MAX_CAPACITY, RunnerConfig};
pub use control::{Control, Stop, StopReason, Unanswered};
pub use credential::{Credential, SecretFilter, SecretStream};
pub use errand_bus::{Bus, BusConfig};
pub use errand_core::artifact::ArtifactKind;
pub use errand_core::credential::{AuthFailure, AuthMethod};
pub use errand_core::run::{InteractionField, Lease, Question};
pub use errand_core::{
    AgentId, CredentialId, Error, ErrorCode, RunId, RunnerId, SessionId, SourceId, StorageId, TaskId, Tenant,
};
pub use files::{Kept, NewFile, NotKept};
pub use host::{Assigned, Ending, Host, SessionHandle, SessionStart};
pub use run::{RunnerError, run};
pub use tokio_util::sync::CancellationToken;
