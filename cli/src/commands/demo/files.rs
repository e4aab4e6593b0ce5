//! What a run has captured, as anybody sees it over HTTP: listed with a key, opened by its signed links without one.

use anyhow::{Context, ensure};
use bytes::Bytes;
use errand_client::RunId;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1::handshake;
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use ring::digest;
use serde_json::Value;
use tokio::net::TcpStream;

use crate::commands::dev::Http;

/// More than any answer here; the portal's bills are small.
const MAX_BODY: usize = 32 * 1024 * 1024;

/// The files of a run, oldest first: each as the API shows it.
pub(super) async fn list(http: &Http, run: RunId) -> anyhow::Result<Vec<Value>> {
    let url = format!("{}/v2/task-runs/{run}/storage?limit=100", http.url);
    let (status, body) = get(&url, Some(http.key.expose())).await?;
    ensure!(status == StatusCode::OK, "{url}: {status} {}", String::from_utf8_lossy(&body));
    let mut page: Value = serde_json::from_slice(&body)?;
    let Value::Array(mut files) = page["data"].take() else { anyhow::bail!("{url}: no list") };
    files.reverse();
    Ok(files)
}

/// Whether its link opens what was kept.
pub(super) async fn opens(file: &Value) -> anyhow::Result<Result<(), String>> {
    let (status, body) = get(file["url"].as_str().context("a file without a link")?, None).await?;
    if status != StatusCode::OK {
        return Ok(Err(format!("its link is answered with {status}")));
    }
    let digest = digest::digest(&digest::SHA256, &body);
    let sha256: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok(if file["sha256"] == *sha256 { Ok(()) } else { Err("its link opens something else".to_owned()) })
}

async fn get(url: &str, key: Option<&str>) -> anyhow::Result<(StatusCode, Bytes)> {
    let uri: Uri = url.parse().with_context(|| format!("{url} is no URL"))?;
    let authority = uri.authority().with_context(|| format!("{url} names no host"))?.to_string();
    let path = uri.path_and_query().map_or("/", |path| path.as_str()).to_owned();
    let stream = TcpStream::connect(&authority).await.with_context(|| format!("cannot reach {authority}"))?;
    let (mut sender, connection) = handshake(TokioIo::new(stream)).await?;
    let connection = tokio::spawn(connection);
    let mut request = Request::get(path).header("host", authority);
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let response = sender.send_request(request.body(Empty::<Bytes>::new())?).await?;
    let status = response.status();
    let body = Limited::new(response.into_body(), MAX_BODY).collect().await;
    connection.abort();
    let body = body.map_err(|error| anyhow::anyhow!("{url}: {error}"))?;
    Ok((status, body.to_bytes()))
}
