//! Waiting for outside processes, and ports for them.

use std::hash::{BuildHasher, RandomState};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::time::Duration;

/// Asks `probe` until it gives something, and panics with `what` where it does not in time. Only for what happens in
/// outside processes and can be seen in no better way: where there is an event, await the event.
pub async fn eventually<T>(what: &str, patience: Duration, mut probe: impl AsyncFnMut() -> Option<T>) -> T {
    let asking = async {
        loop {
            if let Some(seen) = probe().await {
                return seen;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    match tokio::time::timeout(patience, asking).await {
        Ok(seen) => seen,
        Err(_) => panic!("not seen within {patience:?}: {what}"),
    }
}

/// A port that is free now, below those that systems give to outgoing connections. From among those, a server that is
/// down for a moment could lose its port to a client that knocks there in vain (even to one that reaches itself).
/// Whoever starts a server on it tries another one where it has been taken since.
#[must_use]
pub fn pick_port() -> u16 {
    let random = RandomState::new();
    for attempt in 0..1000 {
        let port = 20_000 + (random.hash_one(attempt) % 12_000) as u16;
        if TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).is_ok() {
            return port;
        }
    }
    panic!("no free port from 20000 to 31999 on 127.0.0.1")
}
