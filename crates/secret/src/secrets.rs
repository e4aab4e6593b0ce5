//! What a credential holds.

use std::fmt;

use errand_core::credential::AuthMethod;
use errand_core::{Error, ErrorCode};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

use crate::totp::Totp;

/// A user's name, in bytes.
const MAX_USERNAME: usize = 1024;
/// A password, in bytes.
const MAX_PASSWORD: usize = 4096;
/// An API key, in bytes: some are whole signed documents.
const MAX_API_KEY: usize = 16 * 1024;
/// A TOTP secret or its `otpauth://` address, in bytes.
const MAX_TOTP: usize = 1024;
/// Room for the names and quotes around them.
const ENVELOPE: usize = 512;

/// A text that is wiped when it is dropped, and never shown.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct SecretText(Zeroizing<String>);

impl SecretText {
    /// Takes a text over.
    #[must_use]
    pub fn new(text: String) -> Self {
        Self(Zeroizing::new(text))
    }

    /// The text. Whoever asks sees to it that it goes nowhere.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Self::new)
    }
}

/// Only [`Secrets::encode`] writes secrets, into memory that is wiped.
fn exposed<S: Serializer>(text: &Option<SecretText>, serializer: S) -> Result<S::Ok, S::Error> {
    text.as_ref().map(SecretText::expose).serialize(serializer)
}

/// Why bytes are no secrets. Says nothing of what they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what was sealed holds no secrets")]
pub struct SecretsError;

/// The secrets of a credential. Which of them are there depends on its [`AuthMethod`].
#[derive(Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Secrets {
    /// Who signs in. Kept with the secrets, although it is less of one.
    #[serde(default)]
    pub username: Option<SecretText>,
    /// With which password.
    #[serde(default)]
    pub password: Option<SecretText>,
    /// The key of an API.
    #[serde(default)]
    pub api_key: Option<SecretText>,
    /// From what one-time codes are made: base32, or the `otpauth://` address that a site shows as a QR code.
    #[serde(default)]
    pub totp_secret: Option<SecretText>,
}

/// Shows which secrets are there.
impl fmt::Debug for Secrets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.named().into_iter().filter(|(_, text)| text.is_some()).map(|(name, _)| name))
            .finish()
    }
}

#[derive(Serialize)]
struct Written<'a> {
    #[serde(serialize_with = "exposed", skip_serializing_if = "Option::is_none")]
    username: &'a Option<SecretText>,
    #[serde(serialize_with = "exposed", skip_serializing_if = "Option::is_none")]
    password: &'a Option<SecretText>,
    #[serde(serialize_with = "exposed", skip_serializing_if = "Option::is_none")]
    api_key: &'a Option<SecretText>,
    #[serde(serialize_with = "exposed", skip_serializing_if = "Option::is_none")]
    totp_secret: &'a Option<SecretText>,
}

impl Secrets {
    fn named(&self) -> [(&'static str, Option<&SecretText>); 4] {
        [
            ("username", self.username.as_ref()),
            ("password", self.password.as_ref()),
            ("api_key", self.api_key.as_ref()),
            ("totp_secret", self.totp_secret.as_ref()),
        ]
    }

    /// Whether there is none at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.named().iter().all(|(_, text)| text.is_none())
    }

    /// What must appear nowhere: all but the user's name.
    pub fn guarded(&self) -> impl Iterator<Item = &SecretText> {
        [&self.password, &self.api_key, &self.totp_secret].into_iter().flatten()
    }

    /// Checks that these are the secrets of this method, and their limits.
    ///
    /// # Errors
    /// `request`/`input_missing` or `request`/`input_invalid` at the field. They hold nothing of the values.
    pub fn check(&self, method: AuthMethod) -> Result<(), Error> {
        let (needed, allowed): (&[&str], &[&str]) = match method {
            AuthMethod::UsernamePassword => (&["username", "password"], &["totp_secret"]),
            AuthMethod::ApiKey => (&["api_key"], &[]),
            AuthMethod::Totp => (&["totp_secret"], &[]),
            AuthMethod::None => (&[], &[]),
        };
        for ((name, text), most) in self.named().into_iter().zip([MAX_USERNAME, MAX_PASSWORD, MAX_API_KEY, MAX_TOTP]) {
            let method = method.as_str();
            match text.map(|text| text.expose().len()) {
                None if needed.contains(&name) => {
                    return Err(ErrorCode::INPUT_MISSING.with(format!("{method} needs {name}")).at(name));
                }
                Some(_) if !needed.contains(&name) && !allowed.contains(&name) => {
                    return Err(ErrorCode::INPUT_INVALID.with(format!("{name} is not for {method}")).at(name));
                }
                Some(bytes) if bytes == 0 || bytes > most => {
                    return Err(ErrorCode::INPUT_INVALID.with(format!("{name} must have 1..{most} bytes")).at(name));
                }
                None | Some(_) => {}
            }
        }
        if let Some(text) = &self.totp_secret {
            Totp::parse(text.expose())
                .map_err(|error| ErrorCode::INPUT_INVALID.with(error.to_string()).at("totp_secret"))?;
        }
        Ok(())
    }

    /// These with what `change` holds in its place; what is empty there is gone.
    #[must_use]
    pub fn changed(&self, change: Self) -> Self {
        let merge = |old: &Option<SecretText>, new: Option<SecretText>| match new {
            None => old.clone(),
            Some(text) if text.expose().is_empty() => None,
            some => some,
        };
        Self {
            username: merge(&self.username, change.username),
            password: merge(&self.password, change.password),
            api_key: merge(&self.api_key, change.api_key),
            totp_secret: merge(&self.totp_secret, change.totp_secret),
        }
    }

    /// As bytes to be sealed.
    #[must_use]
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let Self { username, password, api_key, totp_secret } = self;
        encode(&Written { username, password, api_key, totp_secret }, self)
    }

    /// From bytes that were sealed.
    ///
    /// # Errors
    /// [`SecretsError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, SecretsError> {
        // serde takes a list for a struct as well, its first entry for the first field.
        if bytes.trim_ascii_start().first() != Some(&b'{') {
            return Err(SecretsError);
        }
        serde_json::from_slice(bytes).map_err(|_| SecretsError)
    }
}

/// JSON in memory that is wiped: with room enough from the start, so that growing leaves no copy behind.
fn encode(value: &impl Serialize, secrets: &Secrets) -> Zeroizing<Vec<u8>> {
    // A character may become six: \u0001.
    let room: usize = secrets.named().iter().filter_map(|(_, text)| *text).map(|text| text.expose().len() * 6).sum();
    let mut bytes = Zeroizing::new(Vec::with_capacity(ENVELOPE + room));
    if serde_json::to_writer(&mut *bytes, value).is_err() {
        // Nothing in it can fail; an empty text opens as an error.
        bytes.clear();
    }
    bytes
}

/// A credential as the holder of a lease gets it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenedCredential {
    /// How it signs in.
    pub auth_method: AuthMethod,
    /// Which of the credential's secrets these are: 1, 2, 3 ... with each change.
    pub generation: u64,
    /// The secrets.
    pub secrets: Secrets,
}

#[derive(Serialize)]
struct WrittenOpened<'a> {
    auth_method: AuthMethod,
    generation: u64,
    secrets: Written<'a>,
}

#[derive(Deserialize)]
struct ReadOpened {
    auth_method: AuthMethod,
    generation: u64,
    secrets: Secrets,
}

impl OpenedCredential {
    /// As bytes to be sealed.
    #[must_use]
    pub fn encode(&self) -> Zeroizing<Vec<u8>> {
        let Secrets { username, password, api_key, totp_secret } = &self.secrets;
        let secrets = Written { username, password, api_key, totp_secret };
        let (auth_method, generation) = (self.auth_method, self.generation);
        encode(&WrittenOpened { auth_method, generation, secrets }, &self.secrets)
    }

    /// From bytes that were sealed.
    ///
    /// # Errors
    /// [`SecretsError`].
    pub fn decode(bytes: &[u8]) -> Result<Self, SecretsError> {
        let ReadOpened { auth_method, generation, secrets } =
            serde_json::from_slice(bytes).map_err(|_| SecretsError)?;
        Ok(Self { auth_method, generation, secrets })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Option<SecretText> {
        Some(SecretText::new(text.to_owned()))
    }

    fn signing_in() -> Secrets {
        Secrets { username: text("ada"), password: text("correct \u{1}\"horse\""), ..Secrets::default() }
    }

    #[test]
    fn each_method_has_its_secrets() {
        let key = || Secrets { api_key: text("k"), ..Secrets::default() };
        let codes = || Secrets { totp_secret: text("JBSWY3DPEHPK3PXP"), ..Secrets::default() };
        let both = Secrets { totp_secret: codes().totp_secret, ..signing_in() };
        for (method, secrets) in [
            (AuthMethod::UsernamePassword, signing_in()),
            (AuthMethod::UsernamePassword, both),
            (AuthMethod::ApiKey, key()),
            (AuthMethod::Totp, codes()),
            (AuthMethod::None, Secrets::default()),
        ] {
            assert_eq!(secrets.check(method), Ok(()), "{method:?}");
        }
        let field = |method, secrets: Secrets| {
            let error = secrets.check(method).unwrap_err();
            (error.code, error.field.unwrap_or_default())
        };
        let nameless = Secrets { username: None, ..signing_in() };
        assert_eq!(field(AuthMethod::UsernamePassword, nameless), (ErrorCode::INPUT_MISSING, "username".into()));
        assert_eq!(field(AuthMethod::ApiKey, signing_in()).1, "username");
        assert_eq!(field(AuthMethod::None, key()), (ErrorCode::INPUT_INVALID, "api_key".into()));
        let empty = Secrets { password: text(""), ..signing_in() };
        assert_eq!(field(AuthMethod::UsernamePassword, empty), (ErrorCode::INPUT_INVALID, "password".into()));
        let long = Secrets { password: text(&"x".repeat(MAX_PASSWORD + 1)), ..signing_in() };
        assert_eq!(field(AuthMethod::UsernamePassword, long).1, "password");
        let nonsense = Secrets { totp_secret: text("!!"), ..Secrets::default() };
        let error = nonsense.check(AuthMethod::Totp).unwrap_err();
        assert!(error.field.as_deref() == Some("totp_secret") && !error.message.contains("!!"), "{error}");
    }

    #[test]
    fn what_is_encoded_is_decoded_and_never_shown() {
        let secrets = signing_in();
        assert_eq!(Secrets::decode(&secrets.encode()), Ok(secrets.clone()));
        let opened = OpenedCredential { auth_method: AuthMethod::UsernamePassword, generation: 7, secrets };
        assert_eq!(OpenedCredential::decode(&opened.encode()), Ok(opened.clone()));
        let shown = format!("{opened:?} {:?}", opened.secrets.password);
        assert!(!shown.contains("horse") && !shown.contains("ada") && shown.contains("password"), "{shown}");
        assert!(opened.encode().capacity() >= opened.encode().len());
        for nonsense in [&b""[..], b"{", b"7", b"[]", b"[\"x\"]", b"{\"pin\":\"1\"}"] {
            assert_eq!(Secrets::decode(nonsense), Err(SecretsError));
        }
    }

    #[test]
    fn a_change_replaces_what_it_names() {
        let old = Secrets { totp_secret: text("JBSWY3DPEHPK3PXP"), ..signing_in() };
        let change = Secrets { password: text("new"), totp_secret: text(""), ..Secrets::default() };
        let new = old.changed(change);
        assert_eq!(new, Secrets { username: text("ada"), password: text("new"), ..Secrets::default() });
        assert_eq!(new.guarded().count(), 1);
    }
}
