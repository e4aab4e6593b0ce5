//! Where the master key comes from.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use errand_seal::{Keyring, new_key};

use crate::config::Config;

/// Master keys in a file, in bytes.
const MAX_FILE: u64 = 4096;

/// The keys that the configuration names; with SQLite those beside the store, which are made where there are none.
///
/// # Errors
/// Where there are none, or they cannot be read. The message holds no secrets, and says what to do.
pub(crate) fn keyring(config: &Config) -> anyhow::Result<Keyring> {
    match (&config.master_key, &config.master_key_file) {
        (Some(_), Some(_)) => bail!("give --master-key or --master-key-file, not both"),
        (Some(key), None) => Keyring::parse(&key.0).context("--master-key"),
        (None, Some(file)) => read(file),
        (None, None) => match config.store.strip_prefix("sqlite://") {
            Some(folder) => beside_the_store(Path::new(folder.split('?').next().unwrap_or(folder))),
            None => bail!(
                "ERRAND_MASTER_KEY is not set: it seals the destinations' secrets in Postgres. Make one with \
                 `openssl rand -base64 32`, and keep it"
            ),
        },
    }
}

fn read(file: &Path) -> anyhow::Result<Keyring> {
    let said = || format!("the master key file {}", file.display());
    let mut text = zeroize::Zeroizing::new(String::new());
    File::open(file).and_then(|opened| opened.take(MAX_FILE).read_to_string(&mut text)).with_context(said)?;
    Keyring::parse(&text).with_context(said)
}

fn beside_the_store(folder: &Path) -> anyhow::Result<Keyring> {
    let file = folder.join("master.key");
    if !file.try_exists().with_context(|| file.display().to_string())? {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        make(folder, &file).with_context(|| format!("cannot make {}", file.display()))?;
    }
    read(&file)
}

/// Written aside and linked to its place, which succeeds for one: no other process finds it half written, and the
/// others use what that one made.
fn make(folder: &Path, file: &Path) -> std::io::Result<()> {
    let aside: PathBuf = folder.join(format!("master.key.{}", uuid::Uuid::now_v7()));
    let mut written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
    let linked = written
        .write_all(format!("{}\n", *new_key()).as_bytes())
        .and_then(|()| written.sync_all())
        .and_then(|()| std::fs::hard_link(&aside, file));
    std::fs::remove_file(&aside)?;
    match linked {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        // What was sealed must not outlive its key.
        Ok(()) => File::open(folder)?.sync_all(),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use clap::Parser;

    use super::*;

    fn config(arguments: &[&str]) -> Config {
        Config::try_parse_from([&["notifier"], arguments].concat()).unwrap()
    }

    #[test]
    fn beside_sqlite_one_is_made_once_for_all_processes() {
        let folder = tempfile::tempdir().unwrap();
        let store = format!("sqlite://{}/data", folder.path().display());
        let rings: Vec<_> = std::thread::scope(|scope| {
            let starts: Vec<_> =
                (0..8).map(|_| scope.spawn(|| keyring(&config(&["--store", &store])).unwrap())).collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        let sealed = rings[0].seal(b"x", b"of").unwrap();
        assert!(rings.iter().all(|ring| ring.open(&sealed, b"of").is_ok()));
        let file = folder.path().join("data/master.key");
        assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path().join("data")).unwrap().count(), 1, "nothing is left aside");
    }

    #[test]
    fn with_postgres_it_must_be_given() {
        let error = keyring(&config(&["--store", "postgres://u:secret@h/d"])).unwrap_err().to_string();
        assert!(error.contains("ERRAND_MASTER_KEY") && error.contains("openssl rand -base64 32"), "{error}");
        assert!(!error.contains('\n') && !error.contains("secret@"), "{error}");
        assert!(keyring(&config(&["--store", "postgres://h/d", "--master-key", &new_key()])).is_ok());
        let wrong = keyring(&config(&["--master-key", "c2VjcmV0"])).unwrap_err();
        assert!(!format!("{wrong:#}").contains("c2VjcmV0"), "{wrong:#}");
    }
}
