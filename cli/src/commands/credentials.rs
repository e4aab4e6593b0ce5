//! `errand credentials`. Secrets come from a file, from stdin, or are typed unseen; never from an argument.

use std::io::{IsTerminal, Read};
use std::path::Path;

use anyhow::{Context, bail};
use errand_client::{Client, CredentialChange, CredentialFilter, NewCredential, SecretText, Secrets};
use errand_core::ErrorCode;
use errand_core::credential::AuthMethod;
use errand_proto::json;
use futures::{StreamExt, TryStreamExt};
use serde_json::Value;
use zeroize::Zeroizing;

use crate::args::{CredentialsArgs, CredentialsCommand, SecretsArg};
use crate::output::{Output, cell, pretty};

/// What a file of secrets may hold.
const MAX_BYTES: u64 = 64 * 1024;

const COLUMNS: &[(&str, &str)] = &[
    ("CREDENTIAL", "id"),
    ("NAME", "name"),
    ("METHOD", "auth_method"),
    ("STATUS", "status"),
    ("SOURCE", "source_id"),
    ("CHECKED", "checked_at"),
];

pub(crate) async fn run(args: CredentialsArgs, client: &Client, out: Output) -> anyhow::Result<()> {
    match args.command {
        CredentialsCommand::Create { name, method, source, secrets } => {
            let secrets = secrets_for(method, &secrets)?;
            let new = NewCredential { name, auth_method: method, source_id: source, secrets };
            let credential = client.create_credential(new).await?;
            out.item(&json::credential(&credential), |credential| {
                format!("{} is {}", cell(credential, "name"), cell(credential, "id"))
            })
        }
        CredentialsCommand::List { status, source, limit } => {
            let limit = if limit == 0 { usize::MAX } else { limit };
            let credentials = client.credentials(CredentialFilter { status, source }).take(limit);
            let credentials = credentials.map_ok(|credential| json::credential(&credential));
            out.list(&credentials.try_collect::<Vec<Value>>().await?, COLUMNS)
        }
        CredentialsCommand::Get { credential } => {
            out.item(&json::credential(&client.get_credential(credential).await?), pretty)
        }
        CredentialsCommand::Update { credential, name, source, any_source, secrets } => {
            let secrets = secrets.file.as_deref().map(read).transpose()?.unwrap_or_default();
            let source_id = if any_source { Some(None) } else { source.map(Some) };
            let change = CredentialChange { name, source_id, secrets };
            out.item(&json::credential(&client.update_credential(credential, change).await?), pretty)
        }
        CredentialsCommand::Delete { credential } => {
            let credential = client.delete_credential(credential).await?;
            out.item(&json::credential(&credential), |credential| {
                format!("{} ({}) is deleted with its secrets", cell(credential, "name"), cell(credential, "id"))
            })
        }
    }
}

fn secrets_for(method: AuthMethod, from: &SecretsArg) -> anyhow::Result<Secrets> {
    if let Some(file) = &from.file {
        return read(file);
    }
    match method {
        AuthMethod::None => Ok(Secrets::default()),
        _ if !std::io::stdin().is_terminal() => {
            bail!("give the secrets in a file: --secrets FILE, or --secrets - for stdin")
        }
        AuthMethod::UsernamePassword => {
            let username = Some(typed("user name")?);
            let password = Some(typed("password")?);
            let totp = typed("TOTP secret, if there is one")?;
            let totp_secret = Some(totp).filter(|text| !text.expose().is_empty());
            Ok(Secrets { username, password, totp_secret, ..Secrets::default() })
        }
        AuthMethod::ApiKey => Ok(Secrets { api_key: Some(typed("API key")?), ..Secrets::default() }),
        AuthMethod::Totp => Ok(Secrets { totp_secret: Some(typed("TOTP secret")?), ..Secrets::default() }),
    }
}

/// Typed at the terminal, unseen.
fn typed(what: &str) -> anyhow::Result<SecretText> {
    let terminal = console::Term::stderr();
    terminal.write_str(&format!("{what}: "))?;
    Ok(SecretText::new(terminal.read_secure_line()?))
}

/// Secrets from a file. What is wrong with it is told without what it holds.
fn read(file: &Path) -> anyhow::Result<Secrets> {
    let shown = file.display();
    let mut text = Zeroizing::new(String::with_capacity(8 * 1024));
    let read = if file == Path::new("-") {
        std::io::stdin().take(MAX_BYTES).read_to_string(&mut text)
    } else {
        std::fs::File::open(file).and_then(|open| open.take(MAX_BYTES).read_to_string(&mut text))
    };
    read.with_context(|| format!("cannot read {shown}"))?;
    Ok(Secrets::decode(text.as_bytes()).map_err(|_| {
        let what = "must be a JSON object of texts: username, password, api_key, totp_secret, and nothing else";
        ErrorCode::BODY_INVALID.with(format!("{shown} {what}"))
    })?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_holds_secrets_and_nothing_of_it_is_told() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let from = |text: &str| {
            std::fs::write(file.path(), text).unwrap();
            read(file.path())
        };
        let secrets = from(r#"{"username": "ada", "password": "hunter22"}"#).unwrap();
        assert_eq!(secrets.password.unwrap().expose(), "hunter22");
        for wrong in [r#"{"password": "hunter22""#, r#"{"pin": "hunter22"}"#, r#"["hunter22"]"#, "hunter22"] {
            let error = format!("{:#}", from(wrong).unwrap_err());
            assert!(error.contains("totp_secret") && !error.contains("hunter22"), "{error}");
        }
    }
}
