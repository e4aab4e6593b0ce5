//! `errand nats-config`: an operator, an account and a user for each part, as files. What a user may do is in
//! `errand_bus::Permissions`.

mod jwt;

use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use errand_bus::{Part, Permissions, Subjects};
use errand_core::RunnerId;
use nkeys::{KeyPair, KeyPairType};
use serde_json::json;
use uuid::Uuid;

use crate::args::{Global, NatsConfigArgs};
use crate::output::Output;
use jwt::Claim;

pub(crate) fn run(args: &NatsConfigArgs, global: &Global, out: Output) -> anyhow::Result<()> {
    let writer = Writer { notifier_publishes: args.notifier_publishes.clone(), ..Writer::open(&args.folder)? };
    let server = writer.server(args)?;
    let mut users = Vec::new();
    let subjects = Subjects::new(&global.prefix);
    let mut add = |part: Part, name: &str, file: &str| -> anyhow::Result<()> {
        users.push(writer.user(&part, name, file, &subjects)?);
        Ok(())
    };
    for (part, name) in Part::SERVICES {
        add(part, name, name)?;
    }
    add(Part::Operator, "operator", "operator")?;
    add(Part::Runner(None), "runners", "runners")?;
    for name in &args.runners {
        ensure!(is_word(name), "{name:?} is no name of a runner: letters, digits, - and _");
        let id = writer.runner_id(name)?;
        add(Part::Runner(Some(id)), &format!("runner-{name}"), &format!("runner-{name}"))?;
    }
    for tenant in &args.tenants {
        add(Part::Tenant(tenant.clone()), &format!("tenant-{tenant}"), &format!("tenant-{tenant}"))?;
    }
    if out.json {
        return out.line(json!({"object": "nats_config", "server": server, "users": users}).to_string());
    }
    out.line(format!(
        "{} is for the servers: `include \"auth.conf\"` in nats.conf, from the folder where it is.\n\
         Credentials, one file for each user ({}), are beside its folder. Keep {} where no server is.",
        server.display(),
        users.iter().filter_map(|user| user.file_stem()?.to_str()).collect::<Vec<_>>().join(", "),
        args.folder.join("keys").display(),
    ))
}

fn is_word(name: &str) -> bool {
    (1..=40).contains(&name.len()) && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

/// Makes what is not there, and keeps what is.
struct Writer {
    folder: PathBuf,
    operator: KeyPair,
    account: KeyPair,
    system: KeyPair,
    at: u64,
    notifier_publishes: Vec<String>,
}

impl Writer {
    fn open(folder: &Path) -> anyhow::Result<Self> {
        let keys = folder.join("keys");
        for made in [folder, &keys, &folder.join("server")] {
            fs::create_dir_all(made).with_context(|| format!("cannot make {}", made.display()))?;
        }
        let key = |name: &str, kind| key(&keys.join(format!("{name}.nk")), kind);
        Ok(Self {
            operator: key("operator", KeyPairType::Operator)?,
            account: key("errand", KeyPairType::Account)?,
            system: key("system", KeyPairType::Account)?,
            folder: folder.to_owned(),
            at: SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs(),
            notifier_publishes: Vec::new(),
        })
    }

    fn claim<'a>(&'a self, issuer: &'a KeyPair, subject: &'a KeyPair, name: &'a str) -> Claim<'a> {
        Claim { issuer, subject, name, at: self.at }
    }

    /// What the servers include.
    fn server(&self, args: &NatsConfigArgs) -> anyhow::Result<PathBuf> {
        let (account, system) = (self.account.public_key(), self.system.public_key());
        let operator = self.claim(&self.operator, &self.operator, "errand").operator(&system)?;
        let of_account = self.claim(&self.operator, &self.account, "errand").account(true)?;
        let of_system = self.claim(&self.operator, &self.system, "SYS").account(false)?;
        let mut text = format!(
            "# Written by errand nats-config. It holds no secrets.\noperator: {operator}\nsystem_account: {system}\n\
             resolver: MEMORY\nresolver_preload {{\n    {account}: {of_account}\n    {system}: {of_system}\n}}\n"
        );
        if let (Some(certificate), Some(key)) = (&args.tls_certificate, &args.tls_key) {
            let quoted = |path: &Path| json!(path.to_string_lossy()).to_string();
            text += &format!(
                "tls {{\n    cert_file: {}\n    key_file: {}\n    timeout: 5\n}}\n",
                quoted(certificate),
                quoted(key)
            );
        }
        let file = self.folder.join("server/auth.conf");
        fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }

    /// A user's credentials.
    fn user(&self, part: &Part, name: &str, file: &str, subjects: &Subjects) -> anyhow::Result<PathBuf> {
        let key = key(&self.folder.join(format!("keys/user-{name}.nk")), KeyPairType::User)?;
        let tags: Vec<String> = match part {
            Part::Runner(Some(id)) => vec![format!("runner:{id}")],
            _ => Vec::new(),
        };
        let mut permissions = Permissions::of(part, name, subjects);
        if *part == Part::Notifier {
            permissions.publish(self.notifier_publishes.iter().cloned());
        }
        let jwt = self.claim(&self.account, &key, name).user(&permissions, &tags)?;
        let text = format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{}\n------END USER NKEY SEED------\n",
            key.seed().context("a seed")?
        );
        let file = self.folder.join(format!("{file}.creds"));
        write_secret(&file, &text)?;
        Ok(file)
    }

    /// The id of a runner by its name: the same at each call, or its credentials would fit no more.
    fn runner_id(&self, name: &str) -> anyhow::Result<RunnerId> {
        let file = self.folder.join(format!("keys/runner-{name}.id"));
        if let Ok(text) = fs::read_to_string(&file) {
            return text.trim().parse().with_context(|| format!("{} holds no id of a runner", file.display()));
        }
        let id = RunnerId::from_uuid(Uuid::now_v7());
        write_secret(&file, &id.to_string())?;
        Ok(id)
    }
}

/// The key in a file; a new one where there is none.
fn key(file: &Path, kind: KeyPairType) -> anyhow::Result<KeyPair> {
    if let Ok(seed) = fs::read_to_string(file) {
        return KeyPair::from_seed(seed.trim()).with_context(|| format!("{} holds no key", file.display()));
    }
    let key = KeyPair::new(kind);
    write_secret(file, &key.seed().context("a seed")?)?;
    Ok(key)
}

/// Replaces a file as a whole; only its owner may read it.
fn write_secret(file: &Path, text: &str) -> anyhow::Result<()> {
    let failed = || format!("cannot write {}", file.display());
    let new = file.with_extension("new");
    let mut options = fs::OpenOptions::new();
    let mut opened = options.write(true).create(true).truncate(true).mode(0o600).open(&new).with_context(failed)?;
    opened.write_all(text.as_bytes()).with_context(failed)?;
    fs::rename(&new, file).with_context(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_there_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let first = Writer::open(folder.path()).unwrap();
        let id = first.runner_id("one").unwrap();
        let again = Writer::open(folder.path()).unwrap();
        assert_eq!(again.runner_id("one").unwrap(), id);
        assert_eq!(again.operator.public_key(), first.operator.public_key());
        assert!(is_word("exec-1") && !is_word("a.b") && !is_word(""));
    }
}
