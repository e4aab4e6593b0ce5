//! Owns time: holds every armed deadline and tells the dispatcher when one has passed (DESIGN section 4). Soft state
//! only: a snapshot from the dispatcher, then events and signs of life. A watcher that was down fires late, never not;
//! of two that fire the second is ignored by the dispatcher.

pub mod asks;
mod config;
mod service;
pub mod timers;
pub mod transport;
pub mod watch;

pub use config::Config;
pub use service::run;
