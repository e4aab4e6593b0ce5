//! What a destination's type needs, as its owner gave it.

use std::sync::Arc;

use errand_core::{Error, ErrorCode};
use serde::Serialize;
use serde_json::Value;

use super::fields::{Fields, MASK};
use super::{Channel, Outside};

/// One type of destination.
pub(super) trait Settings: Serialize + Sized {
    /// Its name.
    const KIND: &'static str;
    /// Whether it signs with a `whsec_` secret.
    const SIGNS: bool = false;
    /// Where its secrets stand: names joined by dots, `*` for any name.
    const SECRETS: &'static [&'static str];

    /// Takes its fields. What it leaves is unknown.
    fn read(fields: &mut Fields) -> Result<Self, Error>;

    /// Opens the way out. Connects to nothing yet.
    fn open(&self, secrets: &[String], outside: &Outside) -> Result<Arc<dyn Channel>, Error>;
}

fn read<T: Settings>(json: &[u8]) -> Result<T, Error> {
    let mut fields = Fields::parse(T::KIND, json)?;
    let settings = T::read(&mut fields)?;
    fields.finish()?;
    Ok(settings)
}

/// With its secrets.
fn plain<T: Settings>(settings: &T) -> Value {
    serde_json::to_value(settings).expect("settings are texts, numbers and maps of them")
}

/// The enum over all types that this build has, and its dispatch.
macro_rules! types {
    ($($(#[doc = $doc:literal])* $(#[cfg($cfg:meta)])? $variant:ident($settings:ty);)*) => {
        /// The checked configuration of one type of destination. Holds secrets: it is sealed before it is stored, and
        /// shown [`Self::masked`].
        #[derive(Debug, Clone, PartialEq, Eq)]
        pub enum Config {
            $($(#[doc = $doc])* $(#[cfg($cfg)])? $variant($settings),)*
        }

        impl Config {
            /// Reads what stands under the type's name (`{"url": ...}` of `webhook`).
            ///
            /// # Errors
            /// `request`/`input_invalid`, `input_missing` or `field_unknown`; names the field: `type`, `webhook.url`.
            pub fn parse(kind: &str, json: &[u8]) -> Result<Self, Error> {
                match kind {
                    $($(#[cfg($cfg)])? <$settings>::KIND => read(json).map(Self::$variant),)*
                    _ => Err(no_type(kind)),
                }
            }

            /// The type's name: `webhook`.
            #[must_use]
            pub const fn kind(&self) -> &'static str {
                match self {
                    $($(#[cfg($cfg)])? Self::$variant(_) => <$settings>::KIND,)*
                }
            }

            /// Whether it signs, so that it needs a `whsec_` secret.
            #[must_use]
            pub const fn signs(&self) -> bool {
                match self {
                    $($(#[cfg($cfg)])? Self::$variant(_) => <$settings>::SIGNS,)*
                }
            }

            const fn secrets(&self) -> &'static [&'static str] {
                match self {
                    $($(#[cfg($cfg)])? Self::$variant(_) => <$settings>::SECRETS,)*
                }
            }

            fn plain(&self) -> Value {
                match self {
                    $($(#[cfg($cfg)])? Self::$variant(settings) => plain(settings),)*
                }
            }

            /// Opens the way out. `secrets` are the `whsec_` secrets that sign, newest first. Connects to nothing yet.
            ///
            /// # Errors
            /// What its owner is told.
            pub fn open(&self, secrets: &[String], outside: &Outside) -> Result<Arc<dyn Channel>, Error> {
                match self {
                    $($(#[cfg($cfg)])? Self::$variant(settings) => settings.open(secrets, outside),)*
                }
            }
        }
    };
}

types! {
    /// Standard Webhooks.
    Webhook(super::webhook::Config);
    /// A subject of this or another NATS server.
    Nats(super::nats::Config);
    /// An exchange of a RabbitMQ server.
    #[cfg(feature = "rabbitmq")]
    Rabbitmq(super::rabbitmq::Config);
    /// A queue of Amazon SQS.
    #[cfg(feature = "aws")]
    AwsSqs(super::aws_sqs::Config);
    /// A stream of Amazon Kinesis.
    #[cfg(feature = "aws")]
    AwsKinesis(super::aws_kinesis::Config);
    /// A bucket of Amazon S3, or of what speaks like it.
    #[cfg(feature = "aws")]
    AwsS3(super::aws_s3::Config);
    /// A topic of Google Cloud Pub/Sub.
    #[cfg(feature = "gcp")]
    GcpPubsub(super::gcp_pubsub::Config);
    /// A queue or topic of Azure Service Bus.
    #[cfg(feature = "azure")]
    AzureServicebus(super::azure_servicebus::Config);
}

/// Types that a build may lack, with the cargo feature that brings them.
const FEATURES: &[(&str, &str)] = &[
    ("rabbitmq", "rabbitmq"),
    ("aws_sqs", "aws"),
    ("aws_kinesis", "aws"),
    ("aws_s3", "aws"),
    ("gcp_pubsub", "gcp"),
    ("azure_servicebus", "azure"),
];

fn no_type(kind: &str) -> Error {
    let what = match FEATURES.iter().find(|(known, _)| *known == kind) {
        Some((_, feature)) => {
            format!(
                "this build has no destinations of type {kind}: errand-notifier was built without feature {feature}"
            )
        }
        None => {
            let kind: String = kind.chars().take(40).collect();
            let known: Vec<_> = ["webhook", "nats"].into_iter().chain(FEATURES.iter().map(|(kind, _)| *kind)).collect();
            format!("{kind:?} is no type of destination: {}", known.join(", "))
        }
    };
    ErrorCode::INPUT_INVALID.with(what).at("type")
}

impl Config {
    /// As [`Self::parse`] for a change: a masked secret means the one that `before` has.
    ///
    /// # Errors
    /// As [`Self::parse`].
    pub fn parse_change(before: &Self, json: &[u8]) -> Result<Self, Error> {
        // What is no JSON is for `parse` to refuse, with its limits.
        let Ok(mut value) = serde_json::from_slice(json) else { return Self::parse(before.kind(), json) };
        let known = before.plain();
        for path in before.secrets() {
            unmask(&mut value, &known, path);
        }
        Self::parse(before.kind(), value.to_string().as_bytes())
    }

    /// As its owner may read it: secrets are `"***"`.
    #[must_use]
    pub fn masked(&self) -> Value {
        let mut value = self.plain();
        for path in self.secrets() {
            at_path(&mut value, path, &mut |secret, _| *secret = MASK.into());
        }
        value
    }

    /// With its secrets, as [`Self::parse`] reads it: to be sealed.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        self.plain().to_string().into_bytes()
    }
}

/// Puts the known secrets where the mask stands.
fn unmask(value: &mut Value, known: &Value, path: &str) {
    at_path(value, path, &mut |secret, names| {
        let before = names.iter().try_fold(known, |at, name| at.get(name));
        if secret.as_str() == Some(MASK)
            && let Some(before) = before
        {
            *secret = before.clone();
        }
    });
}

/// Calls `each` with what stands at the path, and the names on the way there.
fn at_path(value: &mut Value, path: &str, each: &mut dyn FnMut(&mut Value, &[String])) {
    fn walk(value: &mut Value, path: &[&str], names: &mut Vec<String>, each: &mut dyn FnMut(&mut Value, &[String])) {
        let [first, rest @ ..] = path else { return each(value, names) };
        let Value::Object(map) = value else { return };
        for (name, inner) in map {
            if *first == "*" || first == name {
                names.push(name.clone());
                walk(inner, rest, names, each);
                names.pop();
            }
        }
    }
    walk(value, &path.split('.').collect::<Vec<_>>(), &mut Vec::new(), each);
}
