//! Ids are TypeIDs (<https://github.com/jetify-com/typeid>, spec 0.3.0): a prefix, `_`, and a UUIDv7 in 26
//! characters of Crockford's base32, so that they sort by time and say what they name. Whoever creates an object
//! makes its id.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use uuid::Uuid;

const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
const SUFFIX: usize = 26;
/// Of a prefix, at most.
const PREFIX: usize = 5;
/// What each byte stands for; those that stand for nothing are beyond the alphabet.
const DIGITS: [u8; 256] = {
    let mut digits = [u8::MAX; 256];
    let mut at = 0;
    while at < ALPHABET.len() {
        digits[ALPHABET[at] as usize] = at as u8;
        at += 1;
    }
    digits
};

/// Why a text is no id of the kind that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {article} id: it must be {prefix}_ and 26 characters of base32")]
pub struct IdError {
    text: String,
    article: &'static str,
    prefix: &'static str,
}

/// In one piece, so that a string takes no more than it needs.
fn encode(prefix: &str, uuid: Uuid, out: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut text = [b'_'; PREFIX + 1 + SUFFIX];
    let (head, tail) = text.split_at_mut(prefix.len());
    head.copy_from_slice(prefix.as_bytes());
    let mut value = uuid.as_u128();
    for byte in tail[1..=SUFFIX].iter_mut().rev() {
        *byte = ALPHABET[value as usize & 31];
        value >>= 5;
    }
    out.write_str(std::str::from_utf8(&text[..prefix.len() + 1 + SUFFIX]).map_err(|_| fmt::Error)?)
}

fn decode(prefix: &str, text: &str) -> Option<Uuid> {
    let suffix = text.strip_prefix(prefix)?.strip_prefix('_')?.as_bytes();
    // 26 * 5 = 130 bits: the first character holds only three.
    if suffix.len() != SUFFIX || suffix[0] > b'7' {
        return None;
    }
    let mut value = 0u128;
    for byte in suffix {
        let digit = DIGITS[usize::from(*byte)];
        if usize::from(digit) >= ALPHABET.len() {
            return None;
        }
        value = (value << 5) | u128::from(digit);
    }
    Some(Uuid::from_u128(value))
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal, $article:literal;)*) => {$(
        const _: () = assert!($prefix.len() <= PREFIX);

        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Uuid);

        impl $name {
            /// The text before `_`.
            pub const PREFIX: &'static str = $prefix;

            /// The id with this UUID, which should be of version 7.
            #[must_use]
            pub const fn from_uuid(uuid: Uuid) -> Self {
                Self(uuid)
            }

            /// The UUID behind the prefix.
            #[must_use]
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                encode($prefix, self.0, f)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = IdError;

            fn from_str(text: &str) -> Result<Self, IdError> {
                decode($prefix, text).map(Self).ok_or_else(|| IdError {
                    text: text.chars().take(64).collect(),
                    article: $article,
                    prefix: $prefix,
                })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                std::borrow::Cow::<str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    )*};
}

ids! {
    /// A task: a definition.
    TaskId = "task", "a task";
    /// A task run: one execution of a task with one input.
    RunId = "trun", "a task run";
    /// A session: an isolated compute environment in which runs execute, one at a time.
    SessionId = "sess", "a session";
    /// A runner: a process that hosts sessions and executes runs in them.
    RunnerId = "rnr", "a runner";
    /// A source: the system that a run works on.
    SourceId = "src", "a source";
    /// A credential: sealed secrets for a source.
    CredentialId = "cred", "a credential";
    /// An event: a fact about an object.
    EventId = "evt", "an event";
    /// An event destination: where a tenant's events are pushed.
    DestinationId = "evtd", "an event destination";
    /// An event delivery: one event's way to one destination.
    DeliveryId = "edlv", "an event delivery";
    /// An API key: not its secret, which nothing but its hash is kept of.
    ApiKeyId = "key", "an API key";
    /// An artifact: a file or screenshot captured during a run.
    StorageId = "stor", "an artifact";
    /// One request and its answer.
    RequestId = "req", "a request";
}

/// A name that people choose: lower case letters, digits, `-` and `_`, 1..64 characters, no `_` first. It stands in
/// subjects, so nothing else may.
fn is_name(text: &str) -> bool {
    (1..=64).contains(&text.len())
        && !text.starts_with('_')
        && text.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-' || b == b'_')
}

/// Why a text is no tenant or agent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}: {prefix}1..64 of a-z, 0-9, - and _")]
pub struct NameError {
    text: String,
    what: &'static str,
    prefix: &'static str,
}

macro_rules! names {
    ($($(#[$doc:meta])* $name:ident = $prefix:literal, $what:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// The whole text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = NameError;

            fn from_str(text: &str) -> Result<Self, NameError> {
                match text.strip_prefix($prefix) {
                    Some(name) if is_name(name) => Ok(Self(text.into())),
                    _ => Err(NameError { text: text.chars().take(80).collect(), what: $what, prefix: $prefix }),
                }
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;

            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.as_ref().to_owned()
            }
        }
    )*};
}

names! {
    /// Who owns all of the above. Isolation, limits and fairness are per tenant.
    Tenant = "", "a tenant";
    /// The kind of runner that a task needs. People name it, so its id is its name: `agt_exec`, `agt_browser`
    /// (ADR 0003).
    AgentId = "agt_", "an agent";
}

impl Tenant {
    /// Whose the events of warm sessions are that serve nobody yet: `_system`, which no client can be.
    #[must_use]
    pub fn system() -> Self {
        Self("_system".into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_examples_of_the_typeid_specification_hold() {
        for (uuid, suffix) in [
            ("00000000-0000-0000-0000-000000000000", "00000000000000000000000000"),
            ("00000000-0000-0000-0000-000000000001", "00000000000000000000000001"),
            ("ffffffff-ffff-ffff-ffff-ffffffffffff", "7zzzzzzzzzzzzzzzzzzzzzzzzz"),
            ("01890a5d-ac96-774b-bcce-b302099a8057", "01h455vb4pex5vsknk084sn02q"),
        ] {
            let id = RunId::from_uuid(uuid.parse().unwrap());
            assert_eq!(id.to_string(), format!("trun_{suffix}"));
            assert_eq!(id.to_string().parse(), Ok(id));
        }
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in [
            "",
            "trun_",
            "trun_8zzzzzzzzzzzzzzzzzzzzzzzzz",
            "trun_01h455vb4pex5vsknk084sn02",
            "trun_01h455vb4pex5vsknk084sn02qq",
            "trun_01h455vb4pex5vsknk084sn02u",
            "TRUN_01h455vb4pex5vsknk084sn02q",
            "task_01h455vb4pex5vsknk084sn02q",
            "trun_01H455VB4PEX5VSKNK084SN02Q",
            "trun_é1h455vb4pex5vsknk084sn02q",
        ] {
            assert!(text.parse::<RunId>().is_err(), "{text}");
        }
    }

    #[test]
    fn names_keep_out_of_the_subjects_grammar() {
        for text in ["a", "acme-2", "my_team"] {
            assert_eq!(text.parse::<Tenant>().map(|t| t.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "_system", "a.b", "*", ">", "A", "a b", "é", &"a".repeat(65)] {
            assert!(text.parse::<Tenant>().is_err(), "{text}");
            assert!(format!("agt_{text}").parse::<AgentId>().is_err(), "{text}");
        }
        assert!("exec".parse::<AgentId>().is_err());
    }
}
