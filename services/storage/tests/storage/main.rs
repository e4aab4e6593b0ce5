//! The storage over a real broker, real databases, a folder and a bucket.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the answer")]

mod service;
mod store;
mod theatre;

/// Each test with SQLite and a folder, and with Postgres and a bucket.
macro_rules! on_both {
    ($($name:ident)*) => {$(
        mod $name {
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_sqlite_and_a_folder() -> anyhow::Result<()> {
                super::$name(crate::theatre::Place::Folder).await
            }

            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn on_postgres_and_a_bucket() -> anyhow::Result<()> {
                super::$name(crate::theatre::Place::Bucket).await
            }
        }
    )*};
}
pub(crate) use on_both;
