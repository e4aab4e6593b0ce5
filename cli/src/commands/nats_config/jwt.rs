//! NATS' JWTs (version 2): an operator vouches for accounts, an account for users. A server checks them against the
//! operator alone, so users can be added without it hearing of them.

use anyhow::Context;
use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use errand_bus::Permissions;
use nkeys::KeyPair;
use serde_json::{Value, json};
use sha2::{Digest, Sha512_256};

/// Who vouches for whom under which name, as of when.
pub(super) struct Claim<'a> {
    pub(super) issuer: &'a KeyPair,
    pub(super) subject: &'a KeyPair,
    pub(super) name: &'a str,
    /// Seconds since the Unix epoch.
    pub(super) at: u64,
}

impl Claim<'_> {
    /// The operator, vouching for itself.
    pub(super) fn operator(&self, system_account: &str) -> anyhow::Result<String> {
        self.sign(&json!({"type": "operator", "version": 2, "system_account": system_account}))
    }

    /// An account. Only one with `streams` has JetStream.
    pub(super) fn account(&self, streams: bool) -> anyhow::Result<String> {
        let mut limits = json!({"subs": -1, "data": -1, "payload": -1, "imports": -1, "exports": -1, "wildcards": true,
            "conn": -1, "leaf": -1});
        if streams {
            for limit in ["mem_storage", "disk_storage", "streams", "consumer"] {
                limits[limit] = json!(-1);
            }
        }
        self.sign(&json!({"type": "account", "version": 2, "limits": limits}))
    }

    /// A user, with what it may do.
    pub(super) fn user(&self, permissions: &Permissions, tags: &[String]) -> anyhow::Result<String> {
        self.sign(&json!({"type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1, "tags": tags,
            "pub": {"allow": permissions.publish}, "sub": {"allow": permissions.subscribe}}))
    }

    fn sign(&self, nats: &Value) -> anyhow::Result<String> {
        let mut claims = json!({"iat": self.at, "iss": self.issuer.public_key(), "name": self.name,
            "sub": self.subject.public_key(), "nats": nats});
        let id = Sha512_256::digest(claims.to_string());
        claims["jti"] = json!(BASE32_NOPAD.encode(&id));
        let header = json!({"typ": "JWT", "alg": "ed25519-nkey"});
        let encode = |part: &Value| BASE64URL_NOPAD.encode(part.to_string().as_bytes());
        let signed = format!("{}.{}", encode(&header), encode(&claims));
        let signature = self.issuer.sign(signed.as_bytes()).context("cannot sign")?;
        Ok(format!("{signed}.{}", BASE64URL_NOPAD.encode(&signature)))
    }
}
