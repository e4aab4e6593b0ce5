//! What runs have captured: lists, single ones with a link, and their content.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::header::{
    ACCEPT_RANGES, CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, ETAG, HeaderName,
    IF_NONE_MATCH, IF_RANGE, RANGE,
};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use errand_core::artifact::ArtifactKind;
use errand_core::{Error, ErrorCode, RunId, StorageId};
use errand_proto::{json, v1};
use serde_json::Value;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::PathId;
use super::runs::run_id;
use crate::answer::{Answer, Result};
use crate::auth::Access;
use crate::backend::present;
use crate::query::Query;
use crate::range::{Part, part};
use crate::schema::answers;
use crate::service::Gateway;

/// The path of contents, which a signed link may read without a key.
pub(crate) const CONTENT: &str = "/v2/storage/{storage_id}/content";
/// Pages of one run's files that are shown with the run: more than a run may have.
const MAX_PAGES: usize = 100;

pub(super) fn routes() -> OpenApiRouter<Arc<Gateway>> {
    OpenApiRouter::new().routes(routes!(list_storage)).routes(routes!(get_storage)).routes(routes!(read_content))
}

fn storage_id(id: &PathId) -> std::result::Result<StorageId, Error> {
    id.read(ErrorCode::STORAGE_NOT_FOUND, "artifact")
}

/// An artifact with its link.
fn shown(gateway: &Gateway, artifact: &v1::Artifact, token: Option<&v1::ContentToken>) -> Value {
    let mut value = json::artifact(artifact);
    if let Some(token) = token {
        let path = CONTENT.replace("{storage_id}", &artifact.id);
        let base = gateway.public_url.get().map_or("", String::as_str);
        value["url"] = format!("{base}{path}?expires={}&signature={}", token.expires, token.signature).into();
        value["url_expires_at"] = json::time(token.expires.saturating_mul(1000));
    }
    value
}

/// Lists what a run has captured, newest first.
#[utoipa::path(
    get, path = "/v2/task-runs/{run_id}/storage", tag = "Storage",
    params(
        ("run_id" = String, Path, description = "The run"),
        ("kind" = Option<Vec<answers::ArtifactKind>>, Query, description = "Of any of these kinds"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 100, description = "20 unless given"),
        ("cursor" = Option<String>, Query, description = "`next_cursor` of the page before"),
        ("starting_after" = Option<String>, Query, description = "Behind this id"),
        ("ending_before" = Option<String>, Query, description = "Before this id"),
    ),
    responses((status = 200, description = "A page", body = answers::StorageList)),
)]
async fn list_storage(State(gateway): State<Arc<Gateway>>, access: Access, id: PathId, mut query: Query) -> Result {
    let kinds = [ArtifactKind::File, ArtifactKind::Screenshot].map(|kind| (kind.as_str(), kind));
    let kinds = query.named("kind", &kinds)?;
    let (page, run) = (query.page()?, run_id(&id)?);
    query.finish()?;
    // That there is such a run, and whose it is, the dispatcher knows.
    let (tenant, run) = (access.tenant.to_string(), run.to_string());
    let request = v1::GetRunRequest { tenant: tenant.clone(), run_id: run.clone(), ..v1::GetRunRequest::default() };
    let _: v1::GetRunResponse = gateway.backend.dispatcher("get_run", &request).await?;
    let kind = kinds.into_iter().map(|kind| v1::ArtifactKind::from(kind).into()).collect();
    let request = v1::ListArtifactsRequest { tenant, run_id: run, page: Some(page), kind };
    let answer: v1::ListArtifactsResponse = gateway.backend.storage("list_artifacts", &request).await?;
    let tokens = answer.tokens.iter().map(Some).chain(std::iter::repeat(None));
    let data = answer.artifacts.iter().zip(tokens).map(|(artifact, token)| shown(&gateway, artifact, token));
    Ok(Answer::list(data.collect(), answer.page))
}

/// All of a run's artifacts of a kind, oldest first, for the run's own answer.
pub(super) async fn of_run(gateway: &Gateway, access: &Access, run: RunId, kind: ArtifactKind) -> Result<Value> {
    let mut all = Vec::new();
    let mut cursor = String::new();
    for _ in 0..MAX_PAGES {
        let request = v1::ListArtifactsRequest {
            tenant: access.tenant.to_string(),
            run_id: run.to_string(),
            page: Some(v1::Page { limit: errand_core::limits::MAX_PAGE, cursor, ..v1::Page::default() }),
            kind: vec![v1::ArtifactKind::from(kind).into()],
        };
        let answer: v1::ListArtifactsResponse = gateway.backend.storage("list_artifacts", &request).await?;
        let tokens = answer.tokens.iter().map(Some).chain(std::iter::repeat(None));
        all.extend(answer.artifacts.iter().zip(tokens).map(|(artifact, token)| shown(gateway, artifact, token)));
        cursor = answer.page.filter(|page| page.has_more).map(|page| page.next_cursor).unwrap_or_default();
        if cursor.is_empty() {
            break;
        }
    }
    all.reverse();
    Ok(Value::Array(all))
}

/// Shows an artifact, with a link to its content that is good for a while without a key.
#[utoipa::path(
    get, path = "/v2/storage/{storage_id}", tag = "Storage",
    params(("storage_id" = String, Path, description = "The artifact")),
    responses((status = 200, description = "The artifact", body = answers::Storage)),
)]
async fn get_storage(State(gateway): State<Arc<Gateway>>, access: Access, id: PathId, query: Query) -> Result {
    query.finish()?;
    let (tenant, artifact_id) = (access.tenant.to_string(), storage_id(&id)?.to_string());
    let request = v1::GetArtifactRequest { tenant, artifact_id, token_seconds: 0 };
    let answer: v1::GetArtifactResponse = gateway.backend.storage("get_artifact", &request).await?;
    Ok(Answer::ok(shown(&gateway, &present(answer.artifact, "artifact")?, answer.token.as_ref())))
}

/// Who reads a content: with a key, or with a link alone.
pub(super) struct Reader(Option<Access>);

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Reader {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        _: &S,
    ) -> std::result::Result<Self, Self::Rejection> {
        Ok(Self(parts.extensions.get::<Access>().cloned()))
    }
}

/// Reads an artifact's content, all of it or a range of bytes: with a key, or by its link (`url`) without one.
#[utoipa::path(
    get, path = "/v2/storage/{storage_id}/content", tag = "Storage",
    // A link needs no key.
    security((), ("api_key" = [])),
    params(
        ("storage_id" = String, Path, description = "The artifact"),
        ("expires" = Option<i64>, Query, description = "Of the link"),
        ("signature" = Option<String>, Query, description = "Of the link"),
    ),
    responses(
        (status = 200, description = "The content", content_type = "application/octet-stream", body = Vec<u8>),
        (status = 206, description = "The range", content_type = "application/octet-stream", body = Vec<u8>),
        (status = 304, description = "Not modified"),
        (status = 416, description = "The range is outside"),
    ),
)]
async fn read_content(
    State(gateway): State<Arc<Gateway>>,
    Reader(access): Reader,
    id: PathId,
    headers: HeaderMap,
    mut query: Query,
) -> Result<Response> {
    let artifact_id = storage_id(&id)?.to_string();
    let expires: Option<i64> = query.parsed("expires", "a number of seconds since 1970")?;
    let signature = query.one("signature")?;
    query.finish()?;
    let artifact = match access {
        Some(access) => {
            let tenant = access.tenant.to_string();
            let request = v1::GetArtifactRequest { tenant, artifact_id, token_seconds: 0 };
            gateway.backend.storage::<_, v1::GetArtifactResponse>("get_artifact", &request).await?.artifact
        }
        None => {
            let token =
                v1::ContentToken { expires: expires.unwrap_or_default(), signature: signature.unwrap_or_default() };
            let request = v1::OpenArtifactRequest { artifact_id, token: Some(token) };
            gateway.backend.storage::<_, v1::OpenArtifactResponse>("open_artifact", &request).await?.artifact
        }
    };
    Ok(content(&gateway, &headers, present(artifact, "artifact")?))
}

fn content(gateway: &Arc<Gateway>, headers: &HeaderMap, artifact: v1::Artifact) -> Response {
    let digest: String = artifact.sha256.iter().map(|byte| format!("{byte:02x}")).collect();
    let (size, etag) = (artifact.size_bytes, format!("\"{digest}\""));
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok());
    let part = part(size, &etag, text(RANGE), text(IF_RANGE), text(IF_NONE_MATCH));
    let (status, range, told) = match part {
        Part::Whole => (StatusCode::OK, 0..size, None),
        Part::Bytes(range) => {
            let told = format!("bytes {}-{}/{size}", range.start, range.end - 1);
            (StatusCode::PARTIAL_CONTENT, range, Some(told))
        }
        Part::Unsatisfiable => (StatusCode::RANGE_NOT_SATISFIABLE, 0..0, Some(format!("bytes */{size}"))),
        Part::NotModified => (StatusCode::NOT_MODIFIED, 0..0, None),
    };
    let mut response = status.into_response();
    let mut set = |name: HeaderName, value: &str| {
        if let Ok(value) = HeaderValue::from_str(value) {
            response.headers_mut().insert(name, value);
        }
    };
    set(ETAG, &etag);
    set(ACCEPT_RANGES, "bytes");
    // For the one who has asked; what it is never changes.
    set(CACHE_CONTROL, "private, max-age=0, must-revalidate");
    if let Some(told) = told {
        set(CONTENT_RANGE, &told);
    }
    if matches!(status, StatusCode::OK | StatusCode::PARTIAL_CONTENT) {
        set(CONTENT_TYPE, &artifact.mime_type);
        set(CONTENT_DISPOSITION, &disposition(&artifact.name));
        set(CONTENT_LENGTH, &(range.end - range.start).to_string());
        *response.body_mut() = Body::from_stream(chunks(Arc::clone(gateway), artifact, range));
    }
    response
}

/// The bytes of a range, a message after the other. One that fails breaks the answer off, which its length shows.
fn chunks(
    gateway: Arc<Gateway>,
    artifact: v1::Artifact,
    range: std::ops::Range<u64>,
) -> impl futures::Stream<Item = std::result::Result<Bytes, Error>> + Send {
    futures::stream::try_unfold(range, move |range| {
        let (gateway, tenant, artifact_id) = (Arc::clone(&gateway), artifact.tenant.clone(), artifact.id.clone());
        async move {
            if range.is_empty() {
                return Ok(None);
            }
            let length = u32::try_from(range.end - range.start).unwrap_or(u32::MAX);
            let request = v1::ReadArtifactRequest { tenant, artifact_id, offset: range.start, length };
            let answer: v1::ReadArtifactResponse = gateway.backend.storage("read_artifact", &request).await?;
            if answer.data.is_empty() {
                return Err(ErrorCode::STORAGE_ERROR.with("the file is shorter than it was"));
            }
            let next = range.start + answer.data.len() as u64;
            Ok(Some((answer.data, next..range.end)))
        }
    })
}

/// To be saved, never shown by a browser: it comes from a stranger. The name twice, for old clients and new ones (RFC 6266).
fn disposition(name: &str) -> String {
    let plain: String = name.chars().map(|c| if c.is_ascii_graphic() || c == ' ' { c } else { '_' }).collect();
    let plain = plain.replace(['"', '\\', '%'], "_");
    let unreserved = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
    let encoded: String = name
        .bytes()
        .map(|byte| if unreserved(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect();
    format!("attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_breaks_out_of_no_header() {
        assert_eq!(disposition("a.pdf"), "attachment; filename=\"a.pdf\"; filename*=UTF-8''a.pdf");
        let odd = disposition("Über \"x\"\r\n\\.pdf");
        assert_eq!(odd, "attachment; filename=\"_ber _x____.pdf\"; filename*=UTF-8''%C3%9Cber%20%22x%22%0D%0A%5C.pdf");
        assert!(HeaderValue::from_str(&odd).is_ok());
    }
}
