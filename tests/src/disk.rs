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
    /// Puts a disk onto this folder, which is below the tests' own and empty; none for who is not root.
    ///
    /// # Panics
    /// Where root may not either.
    #[must_use]
    pub fn on(folder: &Path) -> Option<Self> {
        if !geteuid().is_root() {
            return None;
        }
        std::fs::create_dir_all(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
        mount(&["-t", "tmpfs", "-o", &format!("size={SIZE},mode=0777"), "errand-tests"], folder);
        guard::mounted(folder);
        Some(Self { folder: folder.to_owned() })
    }

    /// It takes nothing more, or does again.
    ///
    /// # Panics
    /// Where the system refuses.
    pub fn full(&self, full: bool) {
        let size = if full { self.used().to_string() } else { SIZE.to_owned() };
        mount(&["-o", &format!("remount,size={size}")], &self.folder);
    }

    /// Bytes in use.
    fn used(&self) -> u64 {
        let found = nix::sys::statvfs::statvfs(&self.folder);
        let found = found.unwrap_or_else(|error| panic!("{}: {error}", self.folder.display()));
        // One page more: it must not be smaller than what it holds by now.
        (found.blocks() - found.blocks_free() + 1) * found.fragment_size()
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.folder).status();
    }
}

fn mount(args: &[&str], folder: &Path) {
    let mut tries = 0;
    loop {
        let output = Command::new("mount").args(args).arg(folder).output().expect("there is a `mount`");
        // Between the look and the mount more may have been written.
        tries += 1;
        if output.status.success() {
            return;
        }
        assert!(tries < 50, "mount {args:?} {}: {}", folder.display(), String::from_utf8_lossy(&output.stderr));
    }
}
