//! The API key of `errand dev`: made once, and kept in the data folder for its owner alone, so that it stays the same.

use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;

use anyhow::Context;
use errand_client::{ApiSecret, Client, NewApiKey};

/// The key, known to the gateway.
pub(crate) async fn of(data: &Path, client: &Client) -> anyhow::Result<ApiSecret> {
    let path = data.join("api-key");
    if let Some(secret) = read(&path)?
        && registered(client, &secret).await?
    {
        return Ok(secret);
    }
    let secret = ApiSecret::generate();
    anyhow::ensure!(registered(client, &secret).await?, "a new key is not valid");
    write(&path, &secret).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(secret)
}

/// Makes the key known; false where it was revoked.
async fn registered(client: &Client, secret: &ApiSecret) -> anyhow::Result<bool> {
    let key = NewApiKey { name: "errand dev".into(), scopes: vec!["admin".into()], expires_at_ms: None };
    match client.create_api_key(key, secret).await {
        Ok(key) => Ok(key.revoked_at_ms.is_none()),
        // Another tenant's: `--tenant` has changed.
        Err(errand_client::ClientError::Refused(error)) if error.field.as_deref() == Some("secret_hash") => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The key that is kept, if others cannot read it.
fn read(path: &Path) -> anyhow::Result<Option<ApiSecret>> {
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    let mode = std::fs::metadata(path)?.permissions().mode();
    if mode & 0o077 != 0 {
        eprintln!("{} can be read by others: a new key is made", path.display());
        return Ok(None);
    }
    Ok(ApiSecret::parse(text.trim()).ok())
}

fn write(path: &Path, secret: &ApiSecret) -> std::io::Result<()> {
    // A new file: one that was there may be open to others.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{}", secret.expose())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_kept_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api-key");
        assert!(read(&path).unwrap().is_none());
        let secret = ApiSecret::generate();
        write(&path, &secret).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(read(&path).unwrap().unwrap().expose(), secret.expose());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(read(&path).unwrap().is_none());
    }
}
