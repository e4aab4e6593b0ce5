//! Reads a configuration field by field. By hand rather than by serde's derive, whose errors quote the value that they
//! do not like - which may be a secret - and do not name the field.

use std::ops::RangeInclusive;

use errand_core::{Error, ErrorCode};
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};
use url::Url;

/// The whole of a configuration.
const MAX_BYTES: usize = 64 * 1024;
/// A URL.
const MAX_URL: usize = 2_048;
/// What stands for a secret where it is shown.
pub(super) const MASK: &str = "***";

/// A secret: shown to nobody. Serialized it is plain, as what is sealed is.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(String);

impl Secret {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    pub(super) fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(MASK)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

/// `request`/`input_invalid` at this field.
pub(super) fn invalid(field: &str, what: impl std::fmt::Display) -> Error {
    ErrorCode::INPUT_INVALID.with(format!("{field} {what}")).at(field)
}

/// An object whose fields are taken one by one; what is left at the end is unknown.
#[derive(Debug)]
pub(super) struct Fields {
    path: String,
    map: Map<String, Value>,
}

impl Fields {
    /// What stands under `path`.
    pub(super) fn parse(path: &str, json: &[u8]) -> Result<Self, Error> {
        if json.len() > MAX_BYTES {
            return Err(invalid(path, format_args!("has at most {MAX_BYTES} bytes")));
        }
        // The parser's words name a place, never a value.
        let value = serde_json::from_slice(json).map_err(|error| invalid(path, format_args!("is no JSON: {error}")))?;
        Self::of(path, value)
    }

    pub(super) fn of(path: &str, value: Value) -> Result<Self, Error> {
        match value {
            Value::Object(map) => Ok(Self { path: path.to_owned(), map }),
            _ => Err(invalid(path, "is an object")),
        }
    }

    /// The full name of one of its fields.
    pub(super) fn at(&self, name: &str) -> String {
        format!("{}.{name}", self.path)
    }

    /// Takes a field; null counts as absent.
    fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    /// Where it stands.
    pub(super) fn path(&self) -> &str {
        &self.path
    }

    /// `request`/`input_missing` at this field.
    pub(super) fn missing(&self, name: &str) -> Error {
        let field = self.at(name);
        ErrorCode::INPUT_MISSING.with(format!("{field} is missing")).at(field)
    }

    /// A text with so many characters, none of them a control character; absent stays absent.
    pub(super) fn optional(&mut self, name: &str, length: RangeInclusive<usize>) -> Result<Option<String>, Error> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let field = self.at(name);
        let (least, most) = (*length.start(), *length.end());
        match value {
            Value::String(text) if text.chars().any(char::is_control) => {
                Err(invalid(&field, "holds no control characters"))
            }
            Value::String(text) if length.contains(&text.chars().count()) => Ok(Some(text)),
            _ => Err(invalid(&field, format_args!("is a text of {least} to {most} characters"))),
        }
    }

    /// As [`Self::optional`], and it has to be there.
    pub(super) fn text(&mut self, name: &str, length: RangeInclusive<usize>) -> Result<String, Error> {
        let text = self.optional(name, length)?;
        text.ok_or_else(|| self.missing(name))
    }

    /// A secret on one line or several. The mask is none: a new destination has no secret that it could stand for.
    pub(super) fn optional_secret(&mut self, name: &str, most: usize) -> Result<Option<Secret>, Error> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let field = self.at(name);
        match value {
            Value::String(text) if text == MASK => Err(invalid(&field, "is masked: give the secret itself")),
            Value::String(text) if (1..=most).contains(&text.len()) => Ok(Some(Secret(text))),
            _ => Err(invalid(&field, format_args!("is a text of 1 to {most} bytes"))),
        }
    }

    /// As [`Self::optional_secret`], and it has to be there.
    #[cfg(any(feature = "aws", feature = "azure", feature = "gcp", feature = "rabbitmq"))]
    pub(super) fn secret(&mut self, name: &str, most: usize) -> Result<Secret, Error> {
        let secret = self.optional_secret(name, most)?;
        secret.ok_or_else(|| self.missing(name))
    }

    /// True or false.
    pub(super) fn flag(&mut self, name: &str, default: bool) -> Result<bool, Error> {
        match self.take(name) {
            None => Ok(default),
            Some(Value::Bool(flag)) => Ok(flag),
            Some(_) => Err(invalid(&self.at(name), "is true or false")),
        }
    }

    /// A port.
    #[cfg(feature = "rabbitmq")]
    pub(super) fn port(&mut self, name: &str, default: u16) -> Result<u16, Error> {
        match self.take(name) {
            None => Ok(default),
            Some(value) => {
                let port = value.as_u64().and_then(|number| u16::try_from(number).ok()).filter(|port| *port != 0);
                port.ok_or_else(|| invalid(&self.at(name), "is a number from 1 to 65535"))
            }
        }
    }

    /// One of these words; absent stays absent.
    pub(super) fn choice<T: Copy>(&mut self, name: &str, choices: &[(&str, T)]) -> Result<Option<T>, Error> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let chosen = value.as_str().and_then(|word| choices.iter().find(|(known, _)| *known == word));
        chosen.map(|(_, choice)| Some(*choice)).ok_or_else(|| {
            let words: Vec<&str> = choices.iter().map(|(word, _)| *word).collect();
            invalid(&self.at(name), format_args!("is one of {}", words.join(", ")))
        })
    }

    /// An object within.
    pub(super) fn object(&mut self, name: &str) -> Result<Option<Self>, Error> {
        let path = self.at(name);
        self.take(name).map(|value| Self::of(&path, value)).transpose()
    }

    /// An http or https URL without credentials in it.
    pub(super) fn http_url(&mut self, name: &str) -> Result<Option<Url>, Error> {
        let url = self.url(name, &["http", "https"])?;
        if url.as_ref().is_some_and(|url| url.fragment().is_some()) {
            return Err(invalid(&self.at(name), "has no fragment"));
        }
        Ok(url)
    }

    /// A URL of one of these schemes, with a host and without credentials in it.
    pub(super) fn url(&mut self, name: &str, schemes: &[&str]) -> Result<Option<Url>, Error> {
        let Some(text) = self.optional(name, 1..=MAX_URL)? else { return Ok(None) };
        let field = self.at(name);
        let url = Url::parse(&text).map_err(|error| invalid(&field, format_args!("is no URL: {error}")))?;
        if !schemes.contains(&url.scheme()) {
            return Err(invalid(&field, format_args!("begins with {}://", schemes.join(":// or "))));
        }
        if url.host_str().is_none_or(str::is_empty) {
            return Err(invalid(&field, "names a host"));
        }
        if url.port() == Some(0) {
            return Err(invalid(&field, "has a port from 1 to 65535"));
        }
        // They would stand in logs and lists, and `http://good@evil/` misleads who reads it.
        if !url.username().is_empty() || url.password().is_some() {
            return Err(invalid(&field, "holds no credentials: give them in a field of their own"));
        }
        Ok(Some(url))
    }

    /// All that is left, where any name will do.
    pub(super) fn rest(self) -> Map<String, Value> {
        self.map
    }

    /// Nothing is left.
    ///
    /// # Errors
    /// `request`/`field_unknown`.
    pub(super) fn finish(self) -> Result<(), Error> {
        let Some(name) = self.map.keys().next() else { return Ok(()) };
        let name: String = name.chars().take(64).collect();
        let field = self.at(&name);
        Err(ErrorCode::FIELD_UNKNOWN.with(format!("{field:?} is not known")).at(field))
    }
}
