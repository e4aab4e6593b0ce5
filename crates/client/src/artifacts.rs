//! Artifacts: what runs have captured.

use bytes::Bytes;
use errand_core::artifact::ArtifactKind;
use errand_core::{RunId, StorageId};
use errand_proto::v1;
use futures::Stream;

use crate::call::{Repeat, present};
use crate::{Client, ClientError, pages};

impl Client {
    /// What a run has captured, newest first; all kinds where none is named.
    pub fn artifacts(
        &self,
        run: RunId,
        kinds: Vec<ArtifactKind>,
    ) -> impl Stream<Item = Result<v1::Artifact, ClientError>> + Send + Unpin + use<> {
        let client = self.clone();
        let pages = pages::stream(move |cursor| {
            let (client, kinds) = (client.clone(), kinds.clone());
            async move {
                let page = client.artifact_page(run, &kinds, pages::page(cursor).unwrap_or_default()).await?;
                Ok((page.artifacts, pages::following(page.page)))
            }
        });
        Box::pin(pages)
    }

    /// One page of what a run has captured, as it is on the wire: with a token for each.
    ///
    /// # Errors
    /// [`ClientError`].
    pub async fn artifact_page(
        &self,
        run: RunId,
        kinds: &[ArtifactKind],
        page: v1::Page,
    ) -> Result<v1::ListArtifactsResponse, ClientError> {
        let kind = kinds.iter().map(|kind| v1::ArtifactKind::from(*kind).into()).collect();
        let (tenant, run_id) = (self.tenant.to_string(), run.to_string());
        let request = v1::ListArtifactsRequest { tenant, run_id, page: Some(page), kind };
        self.storage("list_artifacts", &request).await
    }

    /// An artifact, and a token that lets anybody read its content for a while.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`storage_not_found`.
    pub async fn get_artifact(&self, id: StorageId) -> Result<(v1::Artifact, v1::ContentToken), ClientError> {
        let (tenant, artifact_id) = (self.tenant.to_string(), id.to_string());
        let request = v1::GetArtifactRequest { tenant, artifact_id, token_seconds: 0 };
        let answer: v1::GetArtifactResponse = self.storage("get_artifact", &request).await?;
        Ok((present(answer.artifact, "artifact")?, present(answer.token, "token")?))
    }

    /// The artifact that a token gives the right to read, whoever's it is.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`forbidden` where the token is wrong or has expired.
    pub async fn open_artifact(&self, id: StorageId, token: v1::ContentToken) -> Result<v1::Artifact, ClientError> {
        let request = v1::OpenArtifactRequest { artifact_id: id.to_string(), token: Some(token) };
        let answer: v1::OpenArtifactResponse = self.storage("open_artifact", &request).await?;
        present(answer.artifact, "artifact")
    }

    /// Bytes of an artifact from `offset`, as many as one message holds or at most `length`; empty at the end.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`storage_not_found`.
    pub async fn read_artifact(&self, id: StorageId, offset: u64, length: u32) -> Result<Bytes, ClientError> {
        let (tenant, artifact_id) = (self.tenant.to_string(), id.to_string());
        let request = v1::ReadArtifactRequest { tenant, artifact_id, offset, length };
        let answer: v1::ReadArtifactResponse = self.storage("read_artifact", &request).await?;
        Ok(answer.data)
    }

    /// The content of an artifact from `offset` on, chunk by chunk.
    pub fn content(
        &self,
        id: StorageId,
        offset: u64,
    ) -> impl Stream<Item = Result<Bytes, ClientError>> + Send + Unpin + use<> {
        let client = self.clone();
        let chunks = futures::stream::try_unfold(offset, move |offset| {
            let client = client.clone();
            async move {
                let bytes = client.read_artifact(id, offset, 0).await?;
                let next = offset + bytes.len() as u64;
                Ok((!bytes.is_empty()).then_some((bytes, next)))
            }
        });
        Box::pin(chunks)
    }

    /// Deletes an artifact; gives it as it was.
    ///
    /// # Errors
    /// [`ClientError`]; `request`/`storage_not_found`.
    pub async fn delete_artifact(&self, id: StorageId) -> Result<v1::Artifact, ClientError> {
        let request = v1::DeleteArtifactRequest { tenant: self.tenant.to_string(), artifact_id: id.to_string() };
        // Done twice, the second says that there is none: only what nobody received is sent again.
        let answer: v1::DeleteArtifactResponse =
            self.call("storage", "delete_artifact", &request, Repeat::Unreceived).await?;
        present(answer.artifact, "artifact")
    }

    async fn storage<Q, A>(&self, method: &str, request: &Q) -> Result<A, ClientError>
    where
        Q: prost::Message,
        A: prost::Message + Default,
    {
        self.call("storage", method, request, Repeat::Safe).await
    }
}
