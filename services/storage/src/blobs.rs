//! The bytes: in a local folder or an S3-compatible bucket, each under an id that is used once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context;
use bytes::Bytes;
use object_store::aws::AmazonS3Builder;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::prefix::PrefixStore;
use object_store::{Error, MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload};
use uuid::Uuid;

use crate::config::Config;
use crate::staging::Staged;

/// What goes in one request; beyond, the parts of an upload in several. S3 wants 5 MiB at least.
const PART: usize = 8 * 1024 * 1024;

/// Where the bytes are.
#[derive(Debug, Clone)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
    /// Where that is one.
    folder: Option<PathBuf>,
}

impl Blobs {
    /// Opens the folder or bucket, and sees whether it takes what is written.
    ///
    /// # Errors
    /// Where the address is none, or nothing can be written there.
    pub async fn open(config: &Config) -> anyhow::Result<Self> {
        let blobs = if let Some(folder) = config.files.strip_prefix("file://") {
            let folder = PathBuf::from(folder);
            Self { store: Arc::new(local(&folder)?), folder: Some(folder) }
        } else if let Some(bucket) = config.files.strip_prefix("s3://") {
            Self { store: bucket_of(bucket, config)?, folder: None }
        } else {
            anyhow::bail!("--files must be file://FOLDER or s3://BUCKET[/PREFIX]");
        };
        blobs.check().await.with_context(|| format!("--files {} takes nothing", config.files))?;
        Ok(blobs)
    }

    /// `file` or `s3`.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        if self.folder.is_some() { "file" } else { "s3" }
    }

    /// Writes something, and removes it.
    async fn check(&self) -> Result<(), Error> {
        let key = Key::from("check");
        self.store.put(&key, PutPayload::from_static(b"errand")).await?;
        match self.store.delete(&key).await {
            // Another instance that starts has done it.
            Err(Error::NotFound { .. }) => Ok(()),
            other => other,
        }
    }

    /// Puts what was staged; it is durable when this returns.
    ///
    /// # Errors
    /// Where it could not be read or written. Something of it may be there: delete it.
    pub async fn put(&self, id: Uuid, staged: &mut Staged) -> anyhow::Result<()> {
        let key = key(id);
        let single = staged.size() <= PART as u64;
        let mut parts = staged.parts(PART).await.context("staged bytes")?;
        if single {
            let bytes = parts.next().await.context("staged bytes")?.unwrap_or_default();
            self.store.put(&key, bytes.into()).await?;
            return Ok(());
        }
        let mut upload = self.store.put_multipart(&key).await?;
        let put = async {
            while let Some(bytes) = parts.next().await.context("staged bytes")? {
                upload.put_part(bytes.into()).await?;
            }
            upload.complete().await?;
            anyhow::Ok(())
        };
        let put = put.await;
        if put.is_err() {
            abort(upload).await;
        }
        put
    }

    /// Bytes from `offset`, at most so many; none where there is no such blob.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub async fn read(&self, id: Uuid, offset: u64, length: u64) -> Result<Option<Bytes>, Error> {
        match self.store.get_range(&key(id), offset..offset + length).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Deletes a blob; one that is not there is no error.
    ///
    /// # Errors
    /// Where it cannot be deleted.
    pub async fn delete(&self, id: Uuid) -> Result<(), Error> {
        let key = key(id);
        if let Some(folder) = &self.folder {
            // Where a put that broke off has gathered its bytes. The key is used once, so there is one such place.
            match tokio::fs::remove_file(folder.join(format!("{key}#1"))).await {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(Error::Generic { store: "file", source: error.into() });
                }
                _ => {}
            }
        }
        match self.store.delete(&key).await {
            Ok(()) | Err(Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }
}

/// What a broken upload leaves at a bucket costs money until it is told to go.
async fn abort(mut upload: Box<dyn MultipartUpload>) {
    if let Err(error) = upload.abort().await {
        tracing::warn!(%error, "a broken upload could not be called off");
    }
}

/// Spread over folders by the random end of the id.
fn key(id: Uuid) -> Key {
    let name = id.simple().to_string();
    let [.., folder] = id.into_bytes();
    Key::from(format!("{folder:02x}/{name}"))
}

fn local(folder: &Path) -> anyhow::Result<LocalFileSystem> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let store = LocalFileSystem::new_with_prefix(folder).with_context(|| folder.display().to_string())?;
    // A row is committed only behind bytes that outlive a loss of power.
    Ok(store.with_fsync(true))
}

fn bucket_of(place: &str, config: &Config) -> anyhow::Result<Arc<dyn ObjectStore>> {
    // One for the process; another part of it may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let (bucket, prefix) = place.split_once('/').unwrap_or((place, ""));
    let mut builder = AmazonS3Builder::from_env().with_bucket_name(bucket);
    if let Some(endpoint) = &config.s3_endpoint {
        builder = builder.with_endpoint(endpoint).with_allow_http(endpoint.starts_with("http://"));
    }
    if let Some(region) = &config.s3_region {
        builder = builder.with_region(region);
    }
    let store = builder.build().with_context(|| format!("--files s3://{place}"))?;
    let prefix = prefix.trim_matches('/');
    Ok(if prefix.is_empty() { Arc::new(store) } else { Arc::new(PrefixStore::new(store, prefix)) })
}
