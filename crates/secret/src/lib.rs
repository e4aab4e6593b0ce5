//! Secrets in memory and on their way: what a credential holds ([`Secrets`]), how it is sealed for whoever is to have
//! it ([`handover`]), one-time codes ([`totp`]), and the last defence against a program that says them aloud
//! ([`scrub`]). Pure: no bus, no store, no clock. How secrets are kept is `errand-seal`'s.
//!
//! Everything here is wiped when it is dropped, and shows nothing in `Debug`.

pub mod handover;
pub mod scrub;
mod secrets;
pub mod totp;

pub use secrets::{OpenedCredential, SecretText, Secrets, SecretsError};
