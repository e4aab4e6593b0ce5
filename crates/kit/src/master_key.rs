//! Where services that keep secrets find their master key.
//!
//! `ERRAND_MASTER_KEY` holds it (never an argument: those are shown to everybody on the machine), or
//! `--master-key-file` names a file. With a SQLite store, which is a folder on one machine, a `master.key` there is
//! made at the first start. With Postgres somebody has to give one: services on other machines need the same.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use errand_seal::{Keyring, new_key};
use zeroize::Zeroizing;

const VARIABLE: &str = "ERRAND_MASTER_KEY";
const FILE: &str = "master.key";

/// The master key's arguments.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct MasterKeyArgs {
    /// A file with the master key that seals secrets in the store: base64 of 32 bytes; several, separated by white
    /// space, while the key is changed, the new one first. ERRAND_MASTER_KEY may hold the same. Default with SQLite:
    /// master.key in the store's folder, made at the first start.
    #[arg(long, value_name = "FILE", env = "ERRAND_MASTER_KEY_FILE")]
    pub master_key_file: Option<PathBuf>,
}

impl MasterKeyArgs {
    /// The keys.
    ///
    /// # Errors
    /// One line that says what is missing and how to make it.
    pub fn load(&self, store: &str) -> anyhow::Result<Keyring> {
        let given = std::env::var(VARIABLE).ok().map(Zeroizing::new).filter(|text| !text.trim().is_empty());
        self.load_with(given, store)
    }

    fn load_with(&self, given: Option<Zeroizing<String>>, store: &str) -> anyhow::Result<Keyring> {
        if let Some(text) = given {
            return Keyring::parse(&text).context(VARIABLE);
        }
        if let Some(file) = &self.master_key_file {
            return read(file);
        }
        let Some(folder) = store.strip_prefix("sqlite://") else {
            bail!(
                "no master key: set {VARIABLE}, or --master-key-file, to the output of `openssl rand -base64 32`, \
                 the same for every service of this store"
            );
        };
        let folder = Path::new(folder.split('?').next().unwrap_or(folder));
        let file = folder.join(FILE);
        if !file.exists() {
            make(folder, &file).with_context(|| format!("cannot make the master key {}", file.display()))?;
        }
        read(&file)
    }
}

fn read(file: &Path) -> anyhow::Result<Keyring> {
    let shown = file.display();
    let text = fs::read_to_string(file).map(Zeroizing::new).with_context(|| format!("the master key {shown}"))?;
    let mode = fs::metadata(file).map_or(0, |found| found.permissions().mode());
    if mode & 0o077 != 0 {
        tracing::warn!(file = %shown, "the master key can be read by other users; chmod 600 it");
    }
    Keyring::parse(&text).with_context(|| format!("the master key {shown}"))
}

/// Under its name only when it is whole, and never in place of one that is there: services that start at once must
/// come to the same key.
fn make(folder: &Path, file: &Path) -> std::io::Result<()> {
    fs::create_dir_all(folder)?;
    let draft = folder.join(format!(".{FILE}.{}", std::process::id()));
    let written = (|| {
        let mut open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
        open.write_all(new_key().as_bytes())?;
        open.write_all(b"\n")?;
        open.sync_all()?;
        match fs::hard_link(&draft, file) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            _ => fs::File::open(folder)?.sync_all(),
        }
    })();
    let _ = fs::remove_file(&draft);
    written
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "in a test a panic is the answer")]
mod tests {
    use super::*;

    #[test]
    fn sqlite_gets_a_key_once_and_postgres_asks_for_one() {
        let folder = tempfile::tempdir().unwrap();
        let store = format!("sqlite://{}", folder.path().join("store").display());
        let args = MasterKeyArgs::default();
        let sealed = args.load_with(None, &store).unwrap().seal(b"x", b"of").unwrap();
        assert_eq!(*args.load_with(None, &store).unwrap().open(&sealed, b"of").unwrap(), b"x");
        let file = folder.path().join("store/master.key");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path().join("store")).unwrap().count(), 1, "no draft is left");

        let refused = format!("{:#}", args.load_with(None, "postgres://me@host/db").unwrap_err());
        assert!(refused.contains("ERRAND_MASTER_KEY") && !refused.contains('\n'), "{refused}");
        let named = MasterKeyArgs { master_key_file: Some(file.clone()) };
        assert_eq!(*named.load_with(None, "postgres://x").unwrap().open(&sealed, b"of").unwrap(), b"x");
        let given = Some(Zeroizing::new(fs::read_to_string(&file).unwrap()));
        assert!(args.load_with(given, "postgres://x").unwrap().open(&sealed, b"of").is_ok());
        let wrong = format!("{:#}", args.load_with(Some(Zeroizing::new("nonsense".into())), "x").unwrap_err());
        assert!(wrong.starts_with(VARIABLE) && !wrong.contains("nonsense"), "{wrong}");
    }
}
