//! Query strings: pages, filters with several values, `metadata[key]`. What is not known is refused by name.

use std::collections::BTreeMap;
use std::str::FromStr;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use errand_core::{Error, ErrorCode, limits};
use errand_proto::v1;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::answer::Failure;

/// Parameters that one request may have.
const MAX_PARAMETERS: usize = 200;

/// Values that one filter may have.
pub const MAX_VALUES: usize = 50;

/// A query string on its way into a request: each parameter is taken once, and what is left over is refused.
#[derive(Debug, Clone, Default)]
pub struct Query {
    pairs: Vec<(String, String)>,
}

impl<S: Send + Sync> FromRequestParts<S> for Query {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        Ok(Self::parse(parts.uri.query().unwrap_or_default())?)
    }
}

impl Query {
    /// Reads a query string.
    ///
    /// # Errors
    /// `request`/`input_invalid` for too many parameters.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let pairs: Vec<(String, String)> = url::form_urlencoded::parse(text.as_bytes())
            .take(MAX_PARAMETERS + 1)
            .map(|(name, value)| (name.into_owned(), value.into_owned()))
            .collect();
        if pairs.len() > MAX_PARAMETERS {
            let message = format!("a request may have {MAX_PARAMETERS} query parameters");
            return Err(ErrorCode::INPUT_INVALID.with(message));
        }
        Ok(Self { pairs })
    }

    /// A parameter that may be given once.
    ///
    /// # Errors
    /// `request`/`input_invalid` where it is given twice.
    pub fn one(&mut self, name: &str) -> Result<Option<String>, Error> {
        let mut found = self.pairs.extract_if(.., |(key, _)| key == name).map(|(_, value)| value);
        let first = found.next();
        if found.next().is_some() {
            return Err(ErrorCode::INPUT_INVALID.with(format!("{name} may be given once")).at(name));
        }
        Ok(first)
    }

    /// A parameter of a type, that may be given once.
    ///
    /// # Errors
    /// `request`/`input_invalid` at the parameter.
    pub fn parsed<T: FromStr>(&mut self, name: &str, what: &str) -> Result<Option<T>, Error> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        text.parse().map(Some).map_err(|_| ErrorCode::INPUT_INVALID.with(format!("{name} must be {what}")).at(name))
    }

    /// A parameter that may be repeated, or hold several values with commas between.
    ///
    /// # Errors
    /// `request`/`input_invalid` for more than [`MAX_VALUES`].
    pub fn many(&mut self, name: &str) -> Result<Vec<String>, Error> {
        let found = self.pairs.extract_if(.., |(key, _)| key == name || key.strip_suffix("[]") == Some(name));
        let all: Vec<String> =
            found.flat_map(|(_, value)| value.split(',').map(str::to_owned).collect::<Vec<_>>()).collect();
        if all.len() > MAX_VALUES {
            return Err(ErrorCode::INPUT_INVALID.with(format!("{name} may have {MAX_VALUES} values")).at(name));
        }
        Ok(all)
    }

    /// Several values of an enumeration.
    ///
    /// # Errors
    /// `request`/`input_invalid` at the parameter, with what it may be.
    pub fn named<T: Copy>(&mut self, name: &str, all: &[(&str, T)]) -> Result<Vec<T>, Error> {
        let value = |text: String| {
            all.iter().find(|(known, _)| *known == text).map(|(_, value)| *value).ok_or_else(|| {
                let known: Vec<&str> = all.iter().map(|(known, _)| *known).collect();
                ErrorCode::INPUT_INVALID.with(format!("{name} must be one of {}", known.join(", "))).at(name)
            })
        };
        self.many(name)?.into_iter().map(value).collect()
    }

    /// A time, in milliseconds since the Unix epoch.
    ///
    /// # Errors
    /// `request`/`input_invalid` where it is not RFC 3339.
    pub fn time(&mut self, name: &str) -> Result<Option<i64>, Error> {
        let Some(text) = self.one(name)? else { return Ok(None) };
        time_ms(name, &text).map(Some)
    }

    /// `metadata[key]=value`, all of them.
    ///
    /// # Errors
    /// `request`/`input_invalid` where a key is given twice.
    pub fn metadata(&mut self) -> Result<BTreeMap<String, String>, Error> {
        let key =
            |name: &str| name.strip_prefix("metadata[").and_then(|rest| rest.strip_suffix(']')).map(str::to_owned);
        let mut metadata = BTreeMap::new();
        for (name, value) in self.pairs.extract_if(.., |(name, _)| key(name).is_some()) {
            let Some(key) = key(&name) else { continue };
            if metadata.insert(key, value).is_some() {
                return Err(ErrorCode::INPUT_INVALID.with(format!("{name} may be given once")).at(name));
            }
        }
        Ok(metadata)
    }

    /// Which page.
    ///
    /// # Errors
    /// `request`/`input_invalid` at the parameter.
    pub fn page(&mut self) -> Result<v1::Page, Error> {
        let what = format!("1..{}", limits::MAX_PAGE);
        let limit: Option<u32> = self.parsed("limit", &what)?;
        if limit.is_some_and(|limit| !(1..=limits::MAX_PAGE).contains(&limit)) {
            return Err(ErrorCode::INPUT_INVALID.with(format!("limit must be {what}")).at("limit"));
        }
        let page = v1::Page {
            limit: limit.unwrap_or(limits::DEFAULT_PAGE),
            cursor: self.position("cursor", ErrorCode::CURSOR_INVALID)?,
            starting_after: self.position("starting_after", ErrorCode::INPUT_INVALID)?,
            ending_before: self.position("ending_before", ErrorCode::INPUT_INVALID)?,
        };
        errand_proto::page(Some(&page))
    }

    /// One that is given must say where: empty would mean the beginning.
    fn position(&mut self, name: &str, code: ErrorCode) -> Result<String, Error> {
        match self.one(name)? {
            Some(text) if text.is_empty() => Err(code.with(format!("{name} is empty")).at(name)),
            text => Ok(text.unwrap_or_default()),
        }
    }

    /// Refuses what was not taken.
    ///
    /// # Errors
    /// `request`/`field_unknown` at the first.
    pub fn finish(self) -> Result<(), Error> {
        let Some((name, _)) = self.pairs.into_iter().next() else { return Ok(()) };
        let name: String = name.chars().take(100).collect();
        Err(ErrorCode::FIELD_UNKNOWN.with(format!("there is no query parameter {name}")).at(name))
    }
}

/// A time in RFC 3339, in milliseconds since the Unix epoch.
///
/// # Errors
/// `request`/`input_invalid` at the field.
pub fn time_ms(field: &str, text: &str) -> Result<i64, Error> {
    let invalid = || ErrorCode::INPUT_INVALID.with(format!("{field} must be RFC 3339: 2026-05-01T12:00:00Z")).at(field);
    let at = OffsetDateTime::parse(text, &Rfc3339).map_err(|_| invalid())?;
    i64::try_from(at.unix_timestamp_nanos() / 1_000_000).map_err(|_| invalid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_taken_once_and_the_rest_is_named() {
        let mut query =
            Query::parse("status=failed,canceled&status=queued&metadata%5Border%5D=4711&limit=5&x=1").unwrap();
        assert_eq!(query.many("status").unwrap(), ["failed", "canceled", "queued"]);
        assert_eq!(query.metadata().unwrap(), BTreeMap::from([("order".to_owned(), "4711".to_owned())]));
        assert_eq!(query.page().unwrap().limit, 5);
        let error = query.finish().unwrap_err();
        assert_eq!((error.code, error.field.as_deref()), (ErrorCode::FIELD_UNKNOWN, Some("x")));
    }

    #[test]
    fn a_filter_has_so_many_values_and_no_more() {
        let of = |count: usize| Query::parse(&vec!["a=1"; count].join("&")).unwrap().many("a");
        assert_eq!(of(MAX_VALUES).unwrap().len(), MAX_VALUES);
        assert_eq!(of(MAX_VALUES + 1).unwrap_err().field.as_deref(), Some("a"));
    }

    #[test]
    fn what_makes_no_page_is_named() {
        for (text, field) in [
            ("limit=0", "limit"),
            ("limit=101", "limit"),
            ("limit=x", "limit"),
            ("limit=1&limit=2", "limit"),
            ("cursor=", "cursor"),
            ("cursor=a&starting_after=b", "cursor"),
        ] {
            let error = Query::parse(text).unwrap().page().unwrap_err();
            assert_eq!(error.field.as_deref(), Some(field), "{text}");
        }
    }

    #[test]
    fn times_are_rfc_3339() {
        assert_eq!(time_ms("t", "2026-05-01T12:00:00.5Z").unwrap(), 1_777_636_800_500);
        assert!(time_ms("t", "yesterday").is_err());
    }
}
