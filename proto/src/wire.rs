//! What every conversion needs: ids by field name, errors, leases, pages.

use std::fmt::Display;
use std::str::FromStr;

use errand_core::run::Lease;
use errand_core::{Error, ErrorCode, limits};
use prost::Message;

use crate::v1;

/// The id in a field that must be set.
///
/// # Errors
/// `request`/`input_missing` where it is empty, `request`/`input_invalid` where it is no such id; both name the field.
pub fn id<T: FromStr<Err: Display>>(field: &str, text: &str) -> Result<T, Error> {
    optional_id(field, text)?.ok_or_else(|| ErrorCode::INPUT_MISSING.with(format!("{field} is missing")).at(field))
}

/// The id in a field that may be empty.
///
/// # Errors
/// `request`/`input_invalid` where it is no such id; names the field.
pub fn optional_id<T: FromStr<Err: Display>>(field: &str, text: &str) -> Result<Option<T>, Error> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|error: T::Err| ErrorCode::INPUT_INVALID.with(error.to_string()).at(field))
}

/// A set enum value: unknown numbers and UNSPECIFIED are refused by name.
///
/// # Errors
/// `request`/`input_invalid`; names the field.
pub fn named<W: TryFrom<i32>, T>(field: &str, number: i32, convert: impl Fn(W) -> Option<T>) -> Result<T, Error> {
    W::try_from(number)
        .ok()
        .and_then(convert)
        .ok_or_else(|| ErrorCode::INPUT_INVALID.with(format!("{field} is unspecified or unknown ({number})")).at(field))
}

/// The lease in a field that must be set.
///
/// # Errors
/// `request`/`input_missing` or `request`/`input_invalid`; names the field.
pub fn lease(lease: Option<&v1::Lease>) -> Result<Lease, Error> {
    let lease = lease.ok_or_else(|| ErrorCode::INPUT_MISSING.with("lease is missing").at("lease"))?;
    if lease.token == 0 {
        return Err(ErrorCode::INPUT_MISSING.with("lease.token is missing").at("lease.token"));
    }
    Ok(Lease {
        session_id: id("lease.session_id", &lease.session_id)?,
        runner_id: id("lease.runner_id", &lease.runner_id)?,
        token: lease.token,
    })
}

impl From<Lease> for v1::Lease {
    fn from(lease: Lease) -> Self {
        Self { session_id: lease.session_id.to_string(), runner_id: lease.runner_id.to_string(), token: lease.token }
    }
}

/// What the items of one message may take: below the broker's limit of 1 MiB a message, with room for what is about them,
/// and for what the answer says of each beside what it repeats.
const MAX_BATCH_BYTES: usize = 640 * 1024;

/// Items in as few messages as take them, in their order: at most `most` in each. One that is too large for any goes alone.
pub fn batches<M: Message>(items: impl IntoIterator<Item = M>, most: usize) -> Vec<Vec<M>> {
    let mut all: Vec<Vec<M>> = Vec::new();
    let mut bytes = 0;
    for item in items {
        // The length before each item takes up to 4 bytes, its tag one.
        let size = item.encoded_len() + 5;
        match all.last_mut() {
            Some(batch) if batch.len() < most && bytes + size <= MAX_BATCH_BYTES => {
                batch.push(item);
                bytes += size;
            }
            _ => {
                all.push(vec![item]);
                bytes = size;
            }
        }
    }
    all
}

/// A page's limit, checked: 0 means the default.
///
/// # Errors
/// `request`/`input_invalid` for a limit beyond 100, or where more than one position is given.
pub fn page(page: Option<&v1::Page>) -> Result<v1::Page, Error> {
    let mut page = page.cloned().unwrap_or_default();
    if page.limit == 0 {
        page.limit = limits::DEFAULT_PAGE;
    }
    if page.limit > limits::MAX_PAGE {
        let message = format!("limit must be 1..{}", limits::MAX_PAGE);
        return Err(ErrorCode::INPUT_INVALID.with(message).at("limit"));
    }
    let positions = [&page.cursor, &page.starting_after, &page.ending_before];
    if positions.iter().filter(|position| !position.is_empty()).count() > 1 {
        let message = "at most one of cursor, starting_after and ending_before may be given";
        return Err(ErrorCode::INPUT_INVALID.with(message).at("cursor"));
    }
    Ok(page)
}

/// The wire form of an error.
#[must_use]
pub fn to_wire_error(error: &Error) -> v1::Error {
    v1::Error {
        r#type: error.code.kind.to_owned(),
        code: error.code.code.to_owned(),
        message: error.message.clone(),
        field: error.field.clone().unwrap_or_default(),
    }
}

impl From<&Error> for v1::Error {
    fn from(error: &Error) -> Self {
        to_wire_error(error)
    }
}

/// An error from elsewhere. One that is not in the catalogue (a newer service's) becomes `api`/`api_error`, its
/// words kept.
impl From<v1::Error> for Error {
    fn from(error: v1::Error) -> Self {
        let known = ErrorCode::find(&error.r#type, &error.code);
        let converted = match known {
            Some(code) => code.with(error.message),
            None => ErrorCode::API_ERROR.with(format!("{}/{}: {}", error.r#type, error.code, error.message)),
        };
        if error.field.is_empty() { converted } else { converted.at(error.field) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_keep_to_both_limits() {
        let request = |bytes: usize| v1::RunRequest { input: vec![b'x'; bytes].into(), ..Default::default() };
        let sizes = |requests: Vec<v1::RunRequest>| batches(requests, 500).iter().map(Vec::len).collect::<Vec<_>>();
        assert_eq!(sizes(vec![]), Vec::<usize>::new());
        assert_eq!(sizes(vec![request(0); 1001]), [500, 500, 1]);
        assert_eq!(sizes(vec![request(300 * 1024); 5]), [2, 2, 1]);
        assert_eq!(sizes(vec![request(0), request(MAX_BATCH_BYTES + 1), request(0)]), [1, 1, 1]);
    }
}
