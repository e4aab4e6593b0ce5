//! The ways out, each against a real or a faithful server.

#![expect(clippy::unwrap_used, reason = "helpers of tests are tests")]

#[cfg(feature = "aws")]
mod aws;
#[cfg(feature = "azure")]
mod azure;
mod configs;
#[cfg(feature = "gcp")]
mod gcp;
mod guard;
mod helper;
mod keys;
mod nats;
#[cfg(feature = "rabbitmq")]
mod rabbitmq;
mod signatures;
mod tls;
mod webhook;
