//! Steps that capture files.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use errand_core::ErrorCode;
use errand_core::artifact::ArtifactKind;
use serde_json::{Value, json};
use tokio::fs;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;
use uuid::Uuid;

use super::failure::{self, Failure};
use super::{Broken, Machine, template};
use crate::captures::{Captured, MAX_FILE_BYTES};
use crate::cdp::CdpError;
use crate::page::Page;
use crate::program::{Download, DownloadFrom, Screenshot, Target, Template, place};

/// What is read of a file at a time.
const CHUNK: u64 = 1024 * 1024;
/// Files that a page's links may have saved in a row (`LocalFrame::ShouldThrottleDownload` in Blink), and within which
/// time: a little more than Blink's second.
const BURST: usize = 10;
const BURST_TIME: Duration = Duration::from_millis(1_200);
/// One picture, decoded.
const MAX_PICTURE_BYTES: usize = 32 * 1024 * 1024;

fn storage(what: &str) -> Broken {
    Failure::new(ErrorCode::STORAGE_ERROR, what).into()
}

fn too_large() -> Broken {
    Failure::new(ErrorCode::FILE_TOO_LARGE, format!("the file is larger than {MAX_FILE_BYTES} bytes")).into()
}

impl Machine<'_> {
    pub(super) async fn download(&mut self, download: &Download) -> Result<(), Broken> {
        let (path, name) = match &download.from {
            DownloadFrom::Click(target) => self.file_of_click(target).await?,
            DownloadFrom::Url(url) => self.file_at(url).await?,
        };
        let scrap = Scrap(path);
        let name = match &download.name {
            Some(own) => own.text(self).map_err(template)?,
            None => name,
        };
        let data = download.data.as_ref().map(|data| data.value(self).map_err(template)).transpose()?;
        let captured = Captured { path: scrap.0.clone(), name, kind: ArtifactKind::File, data };
        let kept = self.files.take(captured).await.map_err(|error| Failure::new(error.code, error.message))?;
        self.control.alive();
        if let Some(into) = &download.into {
            let place = place(into).map_err(template)?;
            let root = if place.is_var { &mut self.vars } else { &mut self.output };
            place.put(root, Value::String(kept)).map_err(|what| template(format!("{into}: {what}")))?;
        }
        Ok(())
    }

    /// Clicks, and waits for the file that comes of it.
    async fn file_of_click(&mut self, target: &Target) -> Result<(PathBuf, String), Broken> {
        let query = self.query(target)?;
        self.pace().await;
        let before = self.before();
        self.click_on(&query).await?;
        self.new_file(before).await
    }

    /// Chromium drops what a page's links have it save beyond [`BURST`] within a second, without a word.
    async fn pace(&mut self) {
        if self.links_saved.len() == BURST
            && let Some(first) = self.links_saved.pop_front()
        {
            tokio::time::sleep_until(first + BURST_TIME).await;
        }
        self.links_saved.push_back(Instant::now());
    }

    fn before(&self) -> Before {
        let known = self.browser.known();
        let documents = known.current().map(|page| page.documents);
        Before { downloads: known.downloads.keys().cloned().collect(), documents }
    }

    /// Waits for the file of a download that was not there before.
    async fn new_file(&self, before: Before) -> Result<(PathBuf, String), Broken> {
        loop {
            let (found, page) = {
                let known = self.browser.known();
                let new = known.download_order.iter().find(|id| !before.downloads.contains(*id));
                let found = new.and_then(|id| Some((id.clone(), known.downloads.get(id)?.clone())));
                (found, known.current().cloned())
            };
            if self.browser.cdp.closed().is_cancelled() {
                return Err(Broken::Lost);
            }
            let what = match found {
                Some((id, state)) if state.received > MAX_FILE_BYTES => {
                    let _ = self.browser.cdp.call("", "Browser.cancelDownload", json!({"guid": id})).await;
                    return Err(too_large());
                }
                Some((id, state)) => match state.ended {
                    Some(true) => return Ok((self.browser.downloads.join(id), state.name)),
                    Some(false) => {
                        return Err(Failure::new(ErrorCode::SOURCE_ERROR, "the source broke the download off").into());
                    }
                    None => "the file did not come in time",
                },
                None => {
                    // Another page instead of a file says why.
                    let other = page.filter(|page| Some(page.documents) != before.documents);
                    if let Some(failure) = other.and_then(|page| failure::of_page(&page, &self.browser.egress)) {
                        return Err(failure.into());
                    }
                    "no file has come"
                }
            };
            if !self.a_moment().await {
                return Err(self.missing(what));
            }
        }
    }

    /// Asks for a URL as the page would, with its cookies.
    async fn file_at(&mut self, url: &Template) -> Result<(PathBuf, String), Broken> {
        let url = self.url(url)?;
        let page = Page::current(self.browser).await?;
        let params = json!({"frameId": page.target, "url": url.as_str(),
            "options": {"disableCache": true, "includeCredentials": true}});
        let mut answer = match page.call("Network.loadNetworkResource", params).await {
            // A page that lets its scripts ask for nothing still has links.
            Err(CdpError::Refused(words)) if words.contains("CSP") => {
                self.pace().await;
                let before = self.before();
                page.save(url.as_str()).await?;
                return self.new_file(before).await;
            }
            answer => answer?,
        };
        let resource = answer["resource"].take();
        if let Some(status) = resource["httpStatusCode"].as_f64().map(|status| status as u16)
            && let Some(failure) = failure::of_status(status)
        {
            return Err(failure.into());
        }
        if resource["success"] != true {
            let words = resource["netErrorName"].as_str().unwrap_or("no answer");
            return Err(failure::of_network(words, url.as_str(), &self.browser.egress).into());
        }
        let stream = resource["stream"].as_str().ok_or(CdpError::Strange("an answer without a stream"))?;
        let path = self.browser.downloads.join(Uuid::now_v7().to_string());
        let scrap = Scrap(path);
        let written = self.write_stream(&page, stream, &scrap.0).await;
        let _ = page.call("IO.close", json!({"handle": stream})).await;
        written?;
        let name = name_of(&resource["headers"], &url);
        Ok((scrap.keep(), name))
    }

    async fn write_stream(&self, page: &Page<'_>, stream: &str, path: &PathBuf) -> Result<(), Broken> {
        let mut file = fs::File::create(path).await.map_err(|_| storage("the file could not be made"))?;
        let mut size = 0;
        loop {
            let chunk = page.call("IO.read", json!({"handle": stream, "size": CHUNK})).await?;
            let data = chunk["data"].as_str().unwrap_or_default();
            let bytes = if chunk["base64Encoded"] == true {
                STANDARD.decode(data).map_err(|_| CdpError::Strange("data that is not base64"))?
            } else {
                data.as_bytes().to_vec()
            };
            size += bytes.len() as u64;
            if size > MAX_FILE_BYTES {
                return Err(too_large());
            }
            file.write_all(&bytes).await.map_err(|_| storage("the file could not be written"))?;
            if chunk["eof"] == true {
                break;
            }
        }
        file.flush().await.map_err(|_| storage("the file could not be written"))
    }

    pub(super) async fn screenshot(&mut self, screenshot: &Screenshot) -> Result<(), Broken> {
        let name = match &screenshot.name {
            Some(name) => format!("{}.png", name.text(self).map_err(template)?.trim_end_matches(".png")),
            None => "screenshot.png".to_owned(),
        };
        let data = self.picture(screenshot.full_page).await?;
        self.keep_picture(data, name).await?;
        self.control.alive();
        Ok(())
    }

    pub(super) async fn picture(&self, full_page: bool) -> Result<String, Broken> {
        Ok(Page::current(self.browser).await?.screenshot(full_page).await?)
    }

    pub(super) async fn keep_picture(&self, data: String, name: String) -> Result<(), Broken> {
        let bytes = STANDARD.decode(data).map_err(|_| CdpError::Strange("a picture that is not base64"))?;
        if bytes.len() > MAX_PICTURE_BYTES {
            return Err(Failure::new(ErrorCode::FILE_TOO_LARGE, "the picture is too large").into());
        }
        let scrap = Scrap(self.browser.downloads.join(Uuid::now_v7().to_string()));
        fs::write(&scrap.0, bytes).await.map_err(|_| storage("the picture could not be written"))?;
        let captured = Captured { path: scrap.0.clone(), name, kind: ArtifactKind::Screenshot, data: None };
        let taken = self.files.take(captured).await;
        taken.map(|_| ()).map_err(|error| Failure::new(error.code, error.message).into())
    }
}

/// What there was before something was to bring a file.
struct Before {
    downloads: HashSet<String>,
    documents: Option<u64>,
}

/// A file that goes unless it was moved.
struct Scrap(PathBuf);

impl Scrap {
    fn keep(mut self) -> PathBuf {
        std::mem::take(&mut self.0)
    }
}

impl Drop for Scrap {
    fn drop(&mut self) {
        if !self.0.as_os_str().is_empty() {
            let _ = std::fs::remove_file(&self.0);
        }
    }
}

/// What a file is called by its answer's headers, or by its URL.
fn name_of(headers: &Value, url: &url::Url) -> String {
    let disposition = headers.as_object().into_iter().flatten();
    let disposition = disposition.filter(|(name, _)| name.eq_ignore_ascii_case("content-disposition"));
    let named = disposition.filter_map(|(_, value)| value.as_str()).find_map(|value| {
        let parts = value.split(';').map(str::trim);
        let found =
            parts.filter_map(|part| part.split_once('=')).find(|(name, _)| name.eq_ignore_ascii_case("filename"));
        found.map(|(_, name)| name.trim_matches('"').to_owned())
    });
    let last = || url.path_segments().and_then(|mut parts| parts.next_back()).unwrap_or_default().to_owned();
    named.filter(|name| !name.is_empty()).unwrap_or_else(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_called_as_its_source_says() {
        let url = url::Url::parse("https://example.com/a/june.pdf?x=1").unwrap();
        assert_eq!(name_of(&json!({}), &url), "june.pdf");
        let header = json!({"Content-Disposition": "attachment; filename=\"bill 7.pdf\""});
        assert_eq!(name_of(&header, &url), "bill 7.pdf");
        assert_eq!(name_of(&json!({"content-disposition": "inline"}), &url), "june.pdf");
    }
}
