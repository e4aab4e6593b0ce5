//! The HTTP API over a whole stack: real nats-server, real stores, the services as processes.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the answer")]

#[path = "../common/mod.rs"]
mod common;
mod events;
mod keys;
mod limits;
mod objects;
mod repeats;
mod runs;
mod storage;
mod tenants;

macro_rules! on_both_stores {
    ($($name:ident)*) => {$(
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_sqlite() {
                super::$name(crate::common::World::of(errand_tests::StoreKind::Sqlite)).await;
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgres() {
                super::$name(crate::common::World::of(errand_tests::StoreKind::Postgres)).await;
            }
        }
    )*};
}
pub(crate) use on_both_stores;
