//! Destinations over a real broker and real stores: a notifier in this process, with destinations that do what the
//! test says.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the answer")]

mod api;
mod delivering;
mod double;
mod failing;
mod store;
mod throughput;
mod world;

/// Each test on both stores.
#[macro_export]
macro_rules! on_both_stores {
    ($($name:ident)*) => {$(
        mod $name {
            #[tokio::test(flavor = "multi_thread")]
            async fn on_sqlite() {
                super::$name(errand_tests::StoreKind::Sqlite).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn on_postgres() {
                super::$name(errand_tests::StoreKind::Postgres).await;
            }
        }
    )*};
}
