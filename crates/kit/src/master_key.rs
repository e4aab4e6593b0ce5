//! Where services that keep secrets find their master key: as a setting, in a file, or, with a SQLite store, which is a
//! folder on one machine, as a `master.key` there that is made at the first start. With Postgres somebody has to give one:
//! services on other machines need the same.

use std::convert::Infallible;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, bail};
use errand_seal::{Keyring, SealError, new_key};
use zeroize::Zeroizing;

const FILE: &str = "master.key";

/// The master key's arguments.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct MasterKeyArgs {
    /// What seals secrets in the store: base64 of 32 bytes; several with commas, of which the first seals.
    #[arg(long, env = "ERRAND_MASTER_KEY", hide_env_values = true)]
    master_key: Option<MasterKey>,
    /// A file that holds it. With SQLite, where neither is given: master.key in the store's folder, made if missing.
    #[arg(long, value_name = "FILE", env = "ERRAND_MASTER_KEY_FILE")]
    master_key_file: Option<PathBuf>,
}

/// Master keys as they are given. Shown nowhere, wiped when dropped.
#[derive(Clone)]
struct MasterKey(Zeroizing<String>);

impl fmt::Debug for MasterKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl FromStr for MasterKey {
    type Err = Infallible;

    /// Anything: what clap refuses it would show.
    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(Zeroizing::new(text.to_owned())))
    }
}

impl MasterKeyArgs {
    /// This one, whatever was given.
    ///
    /// # Errors
    /// Where it is none.
    pub fn give(&mut self, key: &str) -> Result<(), SealError> {
        Keyring::parse(key)?;
        *self = Self { master_key: Some(MasterKey(Zeroizing::new(key.to_owned()))), master_key_file: None };
        Ok(())
    }

    /// The keys.
    ///
    /// # Errors
    /// One line that says what is missing and how to make it.
    pub fn load(&self, store: &str) -> anyhow::Result<Keyring> {
        let folder = store.strip_prefix("sqlite://").map(|folder| folder.split('?').next().unwrap_or(folder));
        match (&self.master_key, &self.master_key_file, folder) {
            (Some(_), Some(_), _) => bail!("give --master-key or --master-key-file, not both"),
            (Some(key), None, _) => Keyring::parse(&key.0).context("--master-key"),
            (None, Some(file), _) => read(file),
            (None, None, Some(folder)) => beside_the_store(Path::new(folder)),
            (None, None, None) => bail!(
                "ERRAND_MASTER_KEY is not set: it seals the secrets in Postgres. Make one with `openssl rand -base64 32`, \
                 keep it, and give it to every service of this store"
            ),
        }
    }
}

fn beside_the_store(folder: &Path) -> anyhow::Result<Keyring> {
    let file = folder.join(FILE);
    if !file.try_exists().with_context(|| file.display().to_string())? {
        make(folder, &file).with_context(|| format!("cannot make the master key {}", file.display()))?;
    }
    read(&file)
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
    let draft = folder.join(format!(".{FILE}.{}-{:?}", std::process::id(), std::thread::current().id()));
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
mod tests {
    use super::*;

    #[test]
    fn sqlite_gets_a_key_once_and_postgres_asks_for_one() {
        let folder = tempfile::tempdir().unwrap();
        let store = format!("sqlite://{}", folder.path().join("store").display());
        let args = MasterKeyArgs::default();
        let sealed = args.load(&store).unwrap().seal(b"x", b"of").unwrap();
        assert_eq!(*args.load(&store).unwrap().open(&sealed, b"of").unwrap(), b"x");
        let file = folder.path().join("store/master.key");
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path().join("store")).unwrap().count(), 1, "no draft is left");

        let refused = format!("{:#}", args.load("postgres://me@host/db").unwrap_err());
        assert!(refused.contains("ERRAND_MASTER_KEY") && !refused.contains('\n'), "{refused}");
        let named = MasterKeyArgs { master_key: None, master_key_file: Some(file.clone()) };
        assert_eq!(*named.load("postgres://x").unwrap().open(&sealed, b"of").unwrap(), b"x");
        let mut given = named;
        given.give(&fs::read_to_string(&file).unwrap()).unwrap();
        assert!(given.load("postgres://x").unwrap().open(&sealed, b"of").is_ok());
        assert_eq!(format!("{given:?}"), "MasterKeyArgs { master_key: Some(***), master_key_file: None }");
        assert!(given.give("nonsense").is_err());
        let wrong = MasterKeyArgs { master_key: Some("c2VjcmV0".parse().unwrap()), master_key_file: None };
        let refused = format!("{:#}", wrong.load("postgres://x").unwrap_err());
        assert!(refused.starts_with("--master-key") && !refused.contains("c2VjcmV0"), "{refused}");
    }

    #[test]
    fn services_that_start_at_once_come_to_the_same_key() {
        let folder = tempfile::tempdir().unwrap();
        let store = format!("sqlite://{}/data", folder.path().display());
        let rings: Vec<Keyring> = std::thread::scope(|scope| {
            let starts: Vec<_> =
                (0..8).map(|_| scope.spawn(|| MasterKeyArgs::default().load(&store).unwrap())).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        let sealed = rings[0].seal(b"x", b"of").unwrap();
        assert!(rings.iter().all(|ring| ring.open(&sealed, b"of").is_ok()));
        assert_eq!(fs::read_dir(folder.path().join("data")).unwrap().count(), 1, "no draft is left");
    }
}
