//! What the types of Amazon share: credentials, the signature (version 4), and one signed call.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime};

use aws_credential_types::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings, UriPathNormalizationMode,
    sign,
};
use aws_sigv4::sign::v4;
use bytes::Bytes;
use errand_core::{Error, Timestamp};
use reqwest::header::{HeaderName, HeaderValue};
use reqwest::{Method, Request};
use serde::Serialize;
use url::Url;

use super::fields::{Fields, Secret, invalid};
use super::http::{self, Answer};
use super::{Failure, Outside};

/// Keys have 16 to 128 characters.
const MAX_KEY: usize = 128;
/// Session tokens are long.
const MAX_TOKEN: usize = 8 * 1024;

/// Who calls where.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Access {
    region: String,
    access_key_id: String,
    secret_access_key: Secret,
    #[serde(skip_serializing_if = "Option::is_none")]
    session_token: Option<Secret>,
    /// In place of Amazon's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    endpoint: Option<String>,
}

/// Where the secrets of [`Access`] stand.
pub(super) const SECRETS: &[&str] = &["secret_access_key", "session_token"];

impl Access {
    pub(super) fn read(fields: &mut Fields) -> Result<Self, Error> {
        let region = fields.text("region", 1..=40)?;
        // It becomes a part of a host's name.
        if !region.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-')) {
            return Err(invalid(&fields.at("region"), "is a name like eu-central-1"));
        }
        let access_key_id = fields.text("access_key_id", 1..=MAX_KEY)?;
        if !access_key_id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return Err(invalid(&fields.at("access_key_id"), "is letters and digits"));
        }
        let endpoint = fields.http_url("endpoint")?;
        if endpoint.as_ref().is_some_and(|url| url.query().is_some() || url.path() != "/") {
            return Err(invalid(&fields.at("endpoint"), "is a scheme, a host and a port"));
        }
        let session_token = fields.optional_secret("session_token", MAX_TOKEN)?;
        if session_token.as_ref().is_some_and(|token| !token.expose().bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(invalid(&fields.at("session_token"), "is printable ASCII"));
        }
        Ok(Self {
            region,
            access_key_id,
            secret_access_key: fields.secret("secret_access_key", MAX_KEY)?,
            session_token,
            endpoint: endpoint.map(Into::into),
        })
    }

    /// The service's address: `https://sqs.eu-central-1.amazonaws.com/`, or the endpoint that was given.
    pub(super) fn endpoint(&self, host: &str) -> Result<Url, url::ParseError> {
        if let Some(endpoint) = &self.endpoint {
            return Url::parse(endpoint);
        }
        let suffix = if self.region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
        Url::parse(&format!("https://{host}.{}.{suffix}/", self.region))
    }

    pub(super) const fn has_own_endpoint(&self) -> bool {
        self.endpoint.is_some()
    }
}

/// One call.
pub(super) struct Call<'a> {
    pub(super) service: &'static str,
    pub(super) method: Method,
    pub(super) url: Url,
    /// Signed with the rest.
    pub(super) headers: Vec<(&'static str, &'a str)>,
    pub(super) body: Bytes,
}

impl Call<'_> {
    /// Signs and sends it.
    pub(super) async fn send(self, access: &Access, outside: &Outside, now: Timestamp) -> Result<Answer, Failure> {
        let request = self.signed(access, now).map_err(|()| Failure::new("the call cannot be signed"))?;
        http::call(outside, request, now).await
    }

    fn signed(self, access: &Access, now: Timestamp) -> Result<Request, ()> {
        let token = access.session_token.as_ref().map(|token| token.expose().to_owned());
        let secret = access.secret_access_key.expose();
        let identity = Credentials::new(&access.access_key_id, secret, token, None, "errand").into();
        let mut settings = SigningSettings::default();
        if self.service == "s3" {
            // S3 signs paths as they are, and wants the body's hash in a header.
            settings.percent_encoding_mode = PercentEncodingMode::Single;
            settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
            settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        }
        let time = SystemTime::UNIX_EPOCH + Duration::from_millis(u64::try_from(now.0).unwrap_or(0));
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&access.region)
            .name(self.service)
            .time(time)
            .settings(settings)
            .build()
            .map_err(drop)?
            .into();
        let headers = self.headers.iter().copied();
        let body = SignableBody::Bytes(&self.body);
        let signable = SignableRequest::new(self.method.as_str(), self.url.as_str(), headers, body).map_err(drop)?;
        let (signature, _) = sign(signable, &params).map_err(drop)?.into_parts();
        let (added, _) = signature.into_parts();
        let mut request = Request::new(self.method, self.url);
        for (name, value) in self.headers {
            request.headers_mut().insert(name, HeaderValue::from_str(value).map_err(drop)?);
        }
        for header in added {
            let mut value = HeaderValue::from_str(header.value()).map_err(drop)?;
            value.set_sensitive(header.sensitive());
            request.headers_mut().insert(HeaderName::from_static(header.name()), value);
        }
        *request.body_mut() = Some(self.body.into());
        Ok(request)
    }
}

/// The headers of a call of one of Amazon's JSON protocols.
pub(super) fn json_headers(version: &'static str, target: &'static str) -> Vec<(&'static str, &'static str)> {
    vec![(CONTENT_TYPE_NAME, version), ("x-amz-target", target)]
}

/// By name, as it is signed.
pub(super) const CONTENT_TYPE_NAME: &str = "content-type";

/// A path segment by segment as Amazon encodes it: all but its unreserved characters, `/` stays.
pub(super) fn encode_path(path: &str) -> String {
    let mut encoded = String::with_capacity(path.len());
    for byte in path.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'/' => {
                encoded.push(char::from(byte));
            }
            _ => write!(encoded, "%{byte:02X}").expect("a String takes all"),
        }
    }
    encoded
}

/// Why a URL made of checked parts is none: never.
pub(super) fn no_url(error: url::ParseError) -> Failure {
    Failure::new(format!("its address is no URL: {error}"))
}
