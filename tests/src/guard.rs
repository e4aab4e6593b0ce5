//! Nothing outlives the test process: a guard, a small shell process, holds the other end of a pipe, and when the pipe
//! closes - however the test process ended, SIGKILL included - it ends what is still there and removes the files.

use std::fs::Permissions;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{LazyLock, Mutex, PoisonError};

use tempfile::TempDir;

/// Reads `group PID`, `postmaster PID`, `gone PID` and `disk FOLDER` until the end of its input, then ends what is not
/// gone, and takes away the disks, which are below the folder that it removes. A postmaster gets SIGQUIT first: killed, it would leave its shared memory in the system.
const SCRIPT: &str = r#"
trap '' HUP INT TERM
groups= postmasters= disks=
without() { kept=; for one in $1; do [ "$one" = "$2" ] || kept="$kept $one"; done; }
while read -r verb pid; do
    case $verb in
        group) groups="$groups $pid" ;;
        postmaster) postmasters="$postmasters $pid" ;;
        disk) disks="$disks $pid" ;;
        gone) without "$groups" "$pid"; groups=$kept; without "$postmasters" "$pid"; postmasters=$kept ;;
    esac
done
for pid in $groups; do kill -s KILL -- "-$pid"; done
for pid in $postmasters; do kill -s QUIT "$pid"; done
for pid in $postmasters; do
    tries=50
    while [ "$tries" -gt 0 ] && kill -s 0 "$pid"; do sleep 0.1; tries=$((tries - 1)); done
    kill -s KILL "$pid"
done
for disk in $disks; do umount -l "$disk"; done
rm -rf -- "$1"
"#;

/// How a process is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// By SIGKILL to its process group.
    Group,
    /// As Postgres wants it.
    Postmaster,
}

struct Guard {
    process: Mutex<Child>,
    root: PathBuf,
}

// Never dropped, and it need not be: the end of the process closes the pipe.
static GUARD: LazyLock<Guard> = LazyLock::new(Guard::start);

impl Guard {
    fn start() -> Self {
        let root = tempfile::Builder::new().prefix("errand-tests-").tempdir();
        let root = root.expect("a temporary folder can be made").keep();
        // Postgres runs as another user where the tests run as root, and has to get through.
        std::fs::set_permissions(&root, Permissions::from_mode(0o711)).expect("the folder is ours");
        let process = Command::new("/bin/sh")
            .args(["-c", SCRIPT, "errand-tests-guard"])
            .arg(&root)
            .current_dir("/")
            .stdin(Stdio::piped())
            // Whoever reads this process's output must not wait for the guard.
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            // A Ctrl-C at the terminal is for the tests, not for who cleans up after them.
            .process_group(0)
            .spawn()
            .expect("/bin/sh starts");
        Self { process: Mutex::new(process), root }
    }

    fn tell(&self, line: &str) {
        let mut process = self.process.lock().unwrap_or_else(PoisonError::into_inner);
        let pipe = process.stdin.as_mut().expect("it was asked for");
        pipe.write_all(line.as_bytes()).expect("the guard of the test processes lives");
    }
}

/// Has the guard end this process should we not.
pub(crate) fn watch(kind: Kind, pid: u32) {
    match kind {
        Kind::Group => GUARD.tell(&format!("group {pid}\n")),
        Kind::Postmaster => GUARD.tell(&format!("postmaster {pid}\n")),
    }
}

/// Has the guard take away the disk that is mounted there.
pub(crate) fn mounted(folder: &Path) {
    GUARD.tell(&format!("disk {}\n", folder.display()));
}

/// The process is gone: its number may be another's now.
pub(crate) fn forget(pid: u32) {
    GUARD.tell(&format!("gone {pid}\n"));
}

/// Where all files of this test process are. Removed with it.
#[must_use]
pub fn root() -> &'static Path {
    &GUARD.root
}

/// A folder of its own below [`root`], removed on drop.
#[must_use]
pub fn folder(prefix: &str) -> TempDir {
    tempfile::Builder::new()
        .prefix(&format!("{prefix}-"))
        .tempdir_in(root())
        .unwrap_or_else(|error| panic!("no folder in {}: {error}", root().display()))
}
