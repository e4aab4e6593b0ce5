//! The OpenAPI document, and a page to try the API at. The page is Swagger UI out of a crate that holds its files as
//! the project's own archive; nothing is unpacked, and nothing comes from another host.
//!
//! A file in a zip archive is what gzip holds, with another head and tail, so it is served as it lies there.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::extract::{Path, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::{IntoResponse, Redirect, Response};
use axum::routing::get;
use bytes::Bytes;
use utoipa_swagger_ui_vendored::SWAGGER_UI_VENDORED;

use crate::envelope;
use crate::service::Gateway;

const PAGE: &str = r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Errand</title>
<link rel="stylesheet" href="swagger-ui.css">
<link rel="icon" href="favicon-32x32.png">
</head>
<body>
<div id="swagger-ui"></div>
<script src="swagger-ui-bundle.js"></script>
<script src="start.js"></script>
</body>
</html>
"#;
const START: &str = r##"window.ui = SwaggerUIBundle({
  url: "../v2/openapi.json",
  dom_id: "#swagger-ui",
  deepLinking: true,
  persistAuthorization: false,
  validatorUrl: null,
});
"##;
/// Swagger UI sets styles on elements and draws with images that it holds as data.
const POLICY: &str = "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; \
    frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// Served from the archive.
const FILES: &[(&str, &str)] = &[
    ("swagger-ui.css", "text/css; charset=utf-8"),
    ("swagger-ui-bundle.js", "text/javascript; charset=utf-8"),
    ("favicon-32x32.png", "image/png"),
];

/// The routes.
pub fn routes() -> Router<Arc<Gateway>> {
    Router::new()
        .route("/v2/openapi.json", get(document))
        .route("/docs", get(|| async { Redirect::permanent("/docs/") }))
        .route(
            "/docs/",
            get(|| async { asset("text/html; charset=utf-8", Bytes::from_static(PAGE.as_bytes()), false) }),
        )
        .route("/docs/{file}", get(file))
}

async fn document(State(gateway): State<Arc<Gateway>>) -> Response {
    ([(CONTENT_TYPE, "application/json")], gateway.document.clone()).into_response()
}

async fn file(Path(name): Path<String>) -> Response {
    if name == "start.js" {
        return asset("text/javascript; charset=utf-8", Bytes::from_static(START.as_bytes()), false);
    }
    let kind = FILES.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind);
    match (kind, ASSETS.get(name.as_str())) {
        (Some(kind), Some(asset_)) => asset(kind, asset_.bytes.clone(), asset_.gzip),
        _ => envelope::no_route().await,
    }
}

fn asset(kind: &'static str, bytes: Bytes, gzip: bool) -> Response {
    let headers = [(CONTENT_TYPE, kind), (CONTENT_SECURITY_POLICY, POLICY), (CACHE_CONTROL, "public, max-age=3600")];
    let mut response = (headers, bytes).into_response();
    if gzip {
        // Every browser takes it; who does not, has the document.
        response.headers_mut().insert(CONTENT_ENCODING, axum::http::HeaderValue::from_static("gzip"));
    }
    response
}

struct Asset {
    bytes: Bytes,
    gzip: bool,
}

static ASSETS: LazyLock<HashMap<&'static str, Asset>> = LazyLock::new(|| {
    let wanted = |name: &str| {
        let name = name.split_once("/dist/")?.1;
        FILES.iter().find(|(known, _)| *known == name).map(|(known, _)| *known)
    };
    entries(SWAGGER_UI_VENDORED, wanted).unwrap_or_default()
});

fn number<const N: usize>(bytes: &[u8], at: usize) -> Option<usize> {
    let part = bytes.get(at..at + N)?;
    Some(part.iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte)))
}

/// The wanted files of a zip archive, by its central directory (APPNOTE 6.3, sections 4.3.7, 4.3.12 and 4.3.16).
fn entries(
    archive: &'static [u8],
    wanted: impl Fn(&str) -> Option<&'static str>,
) -> Option<HashMap<&'static str, Asset>> {
    let end = archive.windows(4).rposition(|four| four == b"PK\x05\x06")?;
    let (count, mut at) = (number::<2>(archive, end + 10)?, number::<4>(archive, end + 16)?);
    let mut found = HashMap::new();
    for _ in 0..count {
        let (name_length, extra, comment) =
            (number::<2>(archive, at + 28)?, number::<2>(archive, at + 30)?, number::<2>(archive, at + 32)?);
        let name = std::str::from_utf8(archive.get(at + 46..at + 46 + name_length)?).ok()?;
        if let Some(name) = wanted(name) {
            let method = number::<2>(archive, at + 10)?;
            let (crc, packed, size) =
                (archive.get(at + 16..at + 20)?, number::<4>(archive, at + 20)?, archive.get(at + 24..at + 28)?);
            let local = number::<4>(archive, at + 42)?;
            let start = local + 30 + number::<2>(archive, local + 26)? + number::<2>(archive, local + 28)?;
            let data = archive.get(start..start + packed)?;
            let asset = if method == 0 {
                Asset { bytes: Bytes::from_static(data), gzip: false }
            } else {
                // RFC 1952: ten bytes before, checksum and size behind.
                let gzip = [&[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255], data, crc, size].concat();
                Asset { bytes: gzip.into(), gzip: true }
            };
            found.insert(name, asset);
        }
        at += 46 + name_length + extra + comment;
    }
    Some(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_of_the_page_is_there() {
        for (name, _) in FILES {
            let asset = ASSETS.get(name).unwrap_or_else(|| panic!("{name}"));
            assert!(asset.bytes.len() > 500 && (!asset.gzip || asset.bytes.starts_with(&[0x1f, 0x8b])), "{name}");
        }
        assert!(!PAGE.contains("http") && !START.contains("http"));
    }
}
