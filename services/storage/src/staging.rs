//! What has arrived of an upload: small ones in memory, large ones in a file without a name, which is gone with the
//! process however that ends.

use std::io::SeekFrom;
use std::path::PathBuf;

use bytes::{Bytes, BytesMut};
use ring::digest;
use tokio::fs::File;
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};

use crate::artifact::Sha256;
use crate::content::HEAD_BYTES;

/// Beyond, it goes to a file.
const IN_MEMORY: usize = 1024 * 1024;

/// Where uploads are gathered.
#[derive(Debug, Clone)]
pub struct Staging {
    folder: PathBuf,
}

/// An upload's bytes so far.
pub struct Staged {
    folder: PathBuf,
    body: Body,
    size: u64,
    head: Vec<u8>,
    digest: digest::Context,
}

enum Body {
    Memory(BytesMut),
    File(File),
}

impl Staging {
    /// In this folder, which is made.
    ///
    /// # Errors
    /// Where it cannot be made.
    pub fn new(folder: PathBuf) -> std::io::Result<Self> {
        std::fs::create_dir_all(&folder)?;
        Ok(Self { folder })
    }

    /// Nothing yet.
    #[must_use]
    pub fn empty(&self) -> Staged {
        let digest = digest::Context::new(&digest::SHA256);
        Staged { folder: self.folder.clone(), body: Body::Memory(BytesMut::new()), size: 0, head: Vec::new(), digest }
    }
}

impl std::fmt::Debug for Staged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Staged").field("size", &self.size).finish_non_exhaustive()
    }
}

impl Staged {
    /// How many bytes have arrived.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Of all that has arrived.
    #[must_use]
    pub fn sha256(&self) -> Sha256 {
        let mut sha256 = Sha256::default();
        sha256.copy_from_slice(self.digest.clone().finish().as_ref());
        sha256
    }

    /// The beginning, and whether that is all.
    #[must_use]
    pub fn head(&self) -> (&[u8], bool) {
        (&self.head, self.size == self.head.len() as u64)
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// Where the file cannot be written. Then it is unknown what it holds: begin again.
    pub async fn append(&mut self, data: &[u8]) -> std::io::Result<()> {
        if let Body::Memory(memory) = &self.body
            && memory.len() + data.len() > IN_MEMORY
        {
            let folder = self.folder.clone();
            let file = tokio::task::spawn_blocking(move || tempfile::tempfile_in(folder)).await;
            let mut file = File::from_std(file.map_err(std::io::Error::other)??);
            file.write_all(memory).await?;
            self.body = Body::File(file);
        }
        match &mut self.body {
            Body::Memory(memory) => memory.extend_from_slice(data),
            Body::File(file) => {
                file.write_all(data).await?;
                // Until then the last write may still fail unseen.
                file.flush().await?;
            }
        }
        self.digest.update(data);
        let wanted = HEAD_BYTES.saturating_sub(self.head.len()).min(data.len());
        self.head.extend_from_slice(&data[..wanted]);
        self.size += data.len() as u64;
        Ok(())
    }

    /// Reads it from the start, in parts of this size.
    ///
    /// # Errors
    /// Where the file cannot be read.
    pub async fn parts(&mut self, part: usize) -> std::io::Result<Parts<'_>> {
        if let Body::File(file) = &mut self.body {
            file.seek(SeekFrom::Start(0)).await?;
        }
        Ok(Parts { left: self.size, body: &mut self.body, part, at: 0 })
    }
}

/// What was staged, part by part.
pub struct Parts<'a> {
    body: &'a mut Body,
    left: u64,
    part: usize,
    at: usize,
}

impl Parts<'_> {
    /// The next part; none at the end.
    ///
    /// # Errors
    /// Where the file cannot be read, or is shorter than what was written.
    pub async fn next(&mut self) -> std::io::Result<Option<Bytes>> {
        let size = usize::try_from(self.left).unwrap_or(usize::MAX).min(self.part);
        if size == 0 {
            return Ok(None);
        }
        self.left -= size as u64;
        let bytes = match self.body {
            Body::Memory(memory) => Bytes::copy_from_slice(&memory[self.at..self.at + size]),
            Body::File(file) => {
                let mut bytes = BytesMut::zeroed(size);
                file.read_exact(&mut bytes).await?;
                bytes.freeze()
            }
        };
        self.at += size;
        Ok(Some(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_went_in_comes_out_from_memory_and_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let staging = Staging::new(folder.path().join("deep")).unwrap();
        for size in [0usize, 1, 70_000, IN_MEMORY, IN_MEMORY + 1, 3 * IN_MEMORY + 17] {
            let body: Vec<u8> = (0..size).map(|at| (at % 251) as u8).collect();
            let mut staged = staging.empty();
            for chunk in body.chunks(300_000) {
                staged.append(chunk).await.unwrap();
            }
            assert_eq!(staged.size(), size as u64);
            assert_eq!(staged.sha256(), digest::digest(&digest::SHA256, &body).as_ref());
            assert_eq!(staged.head(), (&body[..size.min(HEAD_BYTES)], size <= HEAD_BYTES));
            for part in [999_983, 8 << 20] {
                let mut read = Vec::new();
                let mut parts = staged.parts(part).await.unwrap();
                while let Some(bytes) = parts.next().await.unwrap() {
                    read.extend_from_slice(&bytes);
                }
                assert!(read == body, "{size} in parts of {part}");
            }
            assert_eq!(std::fs::read_dir(folder.path().join("deep")).unwrap().count(), 0, "no name, nothing to sweep");
        }
    }
}
