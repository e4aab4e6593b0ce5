//! Sources: the systems that runs work on.

use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorCode};
use crate::id::{SourceId, Tenant};
use crate::limits;
use crate::time::Timestamp;

/// What kind of system it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SourceType {
    /// A web site: `http` or `https`.
    Website,
    /// A desktop, seen over a protocol such as `rdp` or `vnc`.
    Desktop,
    /// An API: `http` or `https`.
    Api,
    /// What programs on the runner's machine work on: any address, or none.
    Exec,
}

impl SourceType {
    /// Every type.
    pub const ALL: [Self; 4] = [Self::Website, Self::Desktop, Self::Api, Self::Exec];

    /// The word in JSON and stores.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Website => "website",
            Self::Desktop => "desktop",
            Self::Api => "api",
            Self::Exec => "exec",
        }
    }
}

/// A source.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its id.
    pub id: SourceId,
    /// Its owner.
    pub tenant: Tenant,
    /// What kind of system it is.
    pub r#type: SourceType,
    /// For people.
    pub name: String,
    /// Where it is; empty only for [`SourceType::Exec`].
    pub url: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it changed last.
    pub updated_at: Timestamp,
}

impl Source {
    /// Checks every limit.
    ///
    /// # Errors
    /// `request`/`input_missing` or `request`/`input_invalid`, naming the field and the limit.
    pub fn check(&self) -> Result<(), Error> {
        check_name(&self.name)?;
        check_url(self.r#type, &self.url)
    }
}

/// Checks a name that people give.
pub(crate) fn check_name(name: &str) -> Result<(), Error> {
    if name.is_empty() {
        return Err(ErrorCode::INPUT_MISSING.with("name is missing").at("name"));
    }
    if name.chars().count() > limits::MAX_NAME {
        let message = format!("name has more than {} characters", limits::MAX_NAME);
        return Err(ErrorCode::INPUT_INVALID.with(message).at("name"));
    }
    Ok(())
}

/// What an address has to have. The errors do not repeat it: it may hold a password.
fn check_url(r#type: SourceType, url: &str) -> Result<(), Error> {
    let wrong = |what: String| Err(ErrorCode::INPUT_INVALID.with(what).at("url"));
    if url.is_empty() {
        return match r#type {
            SourceType::Exec => Ok(()),
            _ => Err(ErrorCode::INPUT_MISSING.with("url is missing").at("url")),
        };
    }
    if url.len() > limits::MAX_URL_BYTES {
        return wrong(format!("url is larger than {} bytes", limits::MAX_URL_BYTES));
    }
    if url.chars().any(|character| character.is_control() || character.is_whitespace()) {
        return wrong("url holds white space or control characters".into());
    }
    let name = r#type.as_str();
    let Some((scheme, rest)) = url.split_once("://") else {
        return wrong(format!("url of a {name} must begin with a scheme and ://"));
    };
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte));
    let of_the_web = ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    match r#type {
        SourceType::Website | SourceType::Api if !of_the_web => {
            return wrong(format!("url of a {name} must begin with http:// or https://"));
        }
        _ if !is_scheme => return wrong("url has no scheme before ://".into()),
        _ => {}
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.contains('@') {
        return wrong("url must hold no user or password: those belong into a credential".into());
    }
    let (host, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) => (host, port.strip_prefix(':').unwrap_or(port)),
        None => authority.split_once(':').unwrap_or((authority, "")),
    };
    if host.is_empty() && r#type != SourceType::Exec {
        return wrong("url names no host".into());
    }
    if !port.is_empty() && port.parse::<u16>().is_err() {
        return wrong("url has a port that is none".into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::is_one_word;

    #[test]
    fn an_address_fits_its_type() {
        use SourceType::{Api, Desktop, Exec, Website};
        for (r#type, url) in [
            (Website, "https://portal.example.com/sign-in?next=/bills#top"),
            (Website, "HTTP://127.0.0.1:8090"),
            (Api, "https://[2001:db8::1]:8443/v1"),
            (Api, "https://[::1]"),
            (Desktop, "rdp://desk-7.example.com"),
            (Exec, ""),
            (Exec, "file:///srv/bills"),
        ] {
            assert_eq!(check_url(r#type, url), Ok(()), "{url}");
        }
        for (r#type, url) in [
            (Website, ""),
            (Website, "portal.example.com"),
            (Website, "ftp://portal.example.com"),
            (Website, "https://"),
            (Website, "https:///bills"),
            (Website, "https://ada:hunter2@portal.example.com"),
            (Website, "https://portal.example.com:99999"),
            (Website, "https://portal .example.com"),
            (Api, "javascript://alert"),
            (Desktop, "://host"),
            (Desktop, "1rdp://host"),
            (Exec, "no scheme"),
        ] {
            let error = check_url(r#type, url).unwrap_err();
            assert!(error.field.as_deref() == Some("url") && !error.message.contains("hunter2"), "{url}: {error}");
        }
        let of_length = |length: usize| format!("{:y<length$}", "https://x/");
        assert_eq!(check_url(Website, &of_length(limits::MAX_URL_BYTES)), Ok(()));
        assert!(check_url(Website, &of_length(limits::MAX_URL_BYTES + 1)).is_err());
    }

    #[test]
    fn names_have_a_limit() {
        assert!(check_name("").is_err() && check_name(&"x".repeat(limits::MAX_NAME + 1)).is_err());
        assert_eq!(check_name("Brightwater"), Ok(()));
        assert_eq!(check_name(&"é".repeat(limits::MAX_NAME)), Ok(()), "it counts characters");
    }

    #[test]
    fn a_source_is_checked_as_a_whole() {
        let source = |name: &str, url: &str| Source {
            id: SourceId::from_uuid(uuid::Uuid::nil()),
            tenant: "acme".parse().unwrap(),
            r#type: SourceType::Website,
            name: name.into(),
            url: url.into(),
            created_at: Timestamp(1),
            updated_at: Timestamp(1),
        };
        assert_eq!(source("Brightwater", "https://x").check(), Ok(()));
        assert_eq!(source("", "https://x").check().unwrap_err().field.as_deref(), Some("name"));
        assert_eq!(source("Brightwater", "").check().unwrap_err().field.as_deref(), Some("url"));
    }

    #[test]
    fn a_type_is_one_word_wherever_it_stands() {
        is_one_word(&SourceType::ALL, SourceType::as_str);
    }
}
