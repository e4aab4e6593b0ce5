//! The browser runner with a real Chromium, over all services as processes. One binary, so that the broker's and the
//! services' start is the only thing that is paid for twice.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the answer")]

mod agents;
mod credentials;
mod life;
mod live;
mod many;
mod network;
mod portal;
mod site;
mod steps;
mod world;
