//! The storage owns files: it takes what runs capture, keeps it, and gives it to readers. Sole writer of artifacts.
//!
//! A binary that embeds this service calls [`extract_main`] before anything else when its first argument is
//! [`EXTRACT`]: files from outside are read in such a process, never in the service (ADR 0011).

pub mod artifact;
pub mod blobs;
pub mod config;
pub mod content;
pub mod extraction;
pub mod holder;
pub mod keeper;
pub mod names;
pub mod retention;
pub mod service;
pub mod signing;
pub mod staging;
pub mod store;
pub mod transport;
pub mod uploads;

pub use extraction::{EXTRACT, extract_main};
