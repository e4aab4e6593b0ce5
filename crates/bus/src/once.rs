//! A connection that is made once. async-nats sends what still waits in its queue after a reconnect, and no option of
//! its own turns reconnecting off, so the second try is refused our own credentials: then, and where the broker is not
//! there, the client gives up, and what waited fails at once.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use async_nats::{Auth, AuthError, ConnectOptions};

use crate::connection::{BusError, PING};

/// What a credentials file holds.
pub(crate) struct Credentials {
    pub(crate) jwt: String,
    key: nkeys::KeyPair,
}

/// Options of a connection that is not made again.
pub(crate) async fn options(name: &str, credentials: Option<&Path>) -> Result<ConnectOptions, BusError> {
    let credentials = match credentials {
        Some(file) => Some(read(file).await.map_err(|error| BusError::Credentials(file.to_owned(), error))?),
        None => None,
    };
    let (credentials, used) = (Arc::new(credentials), Arc::new(AtomicBool::new(false)));
    let options = ConnectOptions::with_auth_callback(move |nonce| {
        let auth = if used.swap(true, Ordering::AcqRel) {
            Err(AuthError::new("this connection is not made again"))
        } else {
            sign(credentials.as_ref().as_ref(), &nonce)
        };
        async move { auth }
    });
    Ok(options
        .name(name)
        .max_reconnects(1)
        .connection_timeout(Duration::from_secs(3))
        .ping_interval(PING)
        .client_capacity(16_384)
        .subscription_capacity(65_536))
}

fn sign(credentials: Option<&Credentials>, nonce: &[u8]) -> Result<Auth, AuthError> {
    let mut auth = Auth::new();
    if let Some(Credentials { jwt, key }) = credentials {
        auth.jwt = Some(jwt.clone());
        auth.signature = Some(key.sign(nonce).map_err(AuthError::new)?);
    }
    Ok(auth)
}

pub(crate) async fn read(file: &Path) -> Result<Credentials, std::io::Error> {
    let text = tokio::fs::read_to_string(PathBuf::from(file)).await?;
    parse(&text).ok_or_else(|| std::io::Error::new(std::io::ErrorKind::InvalidData, "it holds no JWT and seed"))
}

/// The file format of `nsc`: two blocks, each one line between `-----BEGIN ...` and `------END ...`.
fn parse(text: &str) -> Option<Credentials> {
    let block = |name: &str| {
        let mut lines = text.lines().skip_while(|line| !(line.contains("BEGIN") && line.contains(name))).skip(1);
        lines.find(|line| !line.trim().is_empty()).map(|line| line.trim().to_owned())
    };
    let key = nkeys::KeyPair::from_seed(&block("USER NKEY SEED")?).ok()?;
    Some(Credentials { jwt: block("USER JWT")?, key })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_credentials_file_is_read() {
        let key = nkeys::KeyPair::new_user();
        let file = format!(
            "-----BEGIN NATS USER JWT-----\neyJ0.x.y\n------END NATS USER JWT------\n\n************* IMPORTANT\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            key.seed().unwrap()
        );
        let credentials = parse(&file).unwrap();
        assert_eq!((credentials.jwt.as_str(), credentials.key.public_key()), ("eyJ0.x.y", key.public_key()));
        let auth = sign(Some(&credentials), b"nonce").unwrap();
        assert!(key.verify(b"nonce", &auth.signature.unwrap()).is_ok());
        assert!(parse("nothing").is_none());
    }
}
