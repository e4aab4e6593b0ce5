//! What a credentials file says of its holder beside the proof: under which subject its answers come, and which runner
//! it may be. `errand nats-config` writes both into the user's JWT, whose permissions the broker enforces; so nobody has
//! to set here what would have to agree with what is allowed there.

use std::path::Path;

use data_encoding::BASE64URL_NOPAD;
use errand_core::RunnerId;
use serde_json::Value;

use crate::once;

/// Who we are to the broker, as far as it matters here.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Identity {
    /// What the subjects of answers start with; none: as the client library has it.
    pub(crate) inbox: Option<String>,
    /// The runner that these credentials are confined to.
    pub(crate) runner: Option<RunnerId>,
}

/// The tag that names a runner.
const RUNNER: &str = "runner:";

impl Identity {
    /// Of a credentials file; nothing where it is not one of ours.
    pub(crate) async fn read(credentials: Option<&Path>) -> Result<Self, std::io::Error> {
        let Some(file) = credentials else { return Ok(Self::default()) };
        let credentials = once::read(file).await?;
        Ok(Self::of_jwt(&credentials.jwt).unwrap_or_default())
    }

    fn of_jwt(jwt: &str) -> Option<Self> {
        let claims = BASE64URL_NOPAD.decode(jwt.split('.').nth(1)?.as_bytes()).ok()?;
        let claims: Value = serde_json::from_slice(&claims).ok()?;
        let strings = |value: &Value| -> Vec<String> {
            value.as_array().into_iter().flatten().filter_map(|one| one.as_str().map(str::to_owned)).collect()
        };
        let allowed = strings(&claims["nats"]["sub"]["allow"]);
        let inbox =
            allowed.iter().find_map(|subject| subject.strip_suffix(".>").filter(|it| it.starts_with("_INBOX.")));
        let runner = strings(&claims["nats"]["tags"]).iter().find_map(|tag| tag.strip_prefix(RUNNER)?.parse().ok());
        Some(Self { inbox: inbox.map(str::to_owned), runner })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jwt_says_where_answers_come_and_which_runner_it_is() {
        let runner: RunnerId = RunnerId::from_uuid(uuid::Uuid::now_v7());
        let claims = serde_json::json!({"nats": {
            "sub": {"allow": ["errand.v1.pool.hello", "_INBOX.exec-1.>"]}, "tags": [format!("runner:{runner}")]}});
        let jwt = format!("e30.{}.x", BASE64URL_NOPAD.encode(claims.to_string().as_bytes()));
        let identity = Identity { inbox: Some("_INBOX.exec-1".into()), runner: Some(runner) };
        assert_eq!(Identity::of_jwt(&jwt), Some(identity));
        assert_eq!(Identity::of_jwt("e30.e30.x"), Some(Identity::default()));
        assert_eq!(Identity::of_jwt("nothing"), None);
    }
}
