//! A small disk, to be full at a test's will.

use std::path::{Path, PathBuf};
use std::process::Command;

use nix::unistd::geteuid;

use crate::guard;

/// What it holds when it is not full.
const SIZE: &str = "4g";

/// A disk in memory. Only root may have one.
#[derive(Debug)]
pub struct Disk {
    folder: PathBuf,
}

impl Disk {
    /// Puts a disk onto this folder, which is below the tests' own and empty; none for who may not mount.
    ///
    /// # Panics
    /// Where the folder cannot be made.
    #[must_use]
    pub fn on(folder: &Path) -> Option<Self> {
        if !geteuid().is_root() {
            return None;
        }
        std::fs::create_dir_all(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        let refused = mount(&["-t", "tmpfs", "-o", &format!("size={SIZE},mode=0777"), "errand-tests"], folder);
        if let Some(refused) = refused {
            // Root of a container that may not mount is no more than a user here.
            eprintln!("no small disk: {refused}");
            return None;
        }
        guard::mounted(folder);
        Some(Self { folder: folder.to_owned() })
    }

    /// It takes nothing more, or does again.
    ///
    /// # Panics
    /// Where the system refuses.
    pub fn full(&self, full: bool) {
        let mut refused = None;
        // Between the look and the mount more may have been written: then it is looked again.
        for _ in 0..200 {
            let size = if full { self.used().to_string() } else { SIZE.to_owned() };
            refused = mount(&["-o", &format!("remount,size={size}")], &self.folder);
            if refused.is_none() {
                return;
            }
        }
        panic!("{refused:?}");
    }

    /// Bytes in use.
    fn used(&self) -> u64 {
        let found = nix::sys::statvfs::statvfs(&self.folder);
        let found = found.unwrap_or_else(|error| panic!("{}: {error}", self.folder.display()));
        // A few pages more: it must not be smaller than what it holds by now.
        (found.blocks() - found.blocks_free() + 16) * found.fragment_size()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
    }
}

/// What the system has against it.
fn mount(args: &[&str], folder: &Path) -> Option<String> {
    let output = Command::new("mount").args(args).arg(folder).output().expect("there is a `mount`");
    let words = String::from_utf8_lossy(&output.stderr);
    (!output.status.success()).then(|| format!("mount {args:?} {}: {words}", folder.display()))
}
