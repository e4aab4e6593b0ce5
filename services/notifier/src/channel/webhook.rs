//! Standard Webhooks (<https://www.standardwebhooks.com>).

/// What a webhook needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where it is posted.
    pub url: String,
}
