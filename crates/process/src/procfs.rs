//! Linux's list of processes, as far as it is needed to find what an agent has left behind.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn pids() -> impl Iterator<Item = u32> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Parent and state of a process: `pid (name) state ppid ...`, where the name may hold anything.
fn parent_and_state(pid: u32) -> Option<(u32, char)> {
    let stat = fs::read(format!("/proc/{pid}/stat")).ok()?;
    let stat = String::from_utf8_lossy(&stat);
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((fields.next()?.parse().ok()?, state))
}

/// Whether this process has no child at all, which is quickly seen; none where the kernel does not tell.
fn is_childless() -> Option<bool> {
    for task in fs::read_dir("/proc/self/task").ok()?.flatten() {
        if !fs::read(task.path().join("children")).ok()?.is_empty() {
            return Some(false);
        }
    }
    Some(true)
}

/// Every process below this one that is not dead yet, parents before children.
pub(crate) fn living_descendants() -> Vec<u32> {
    if is_childless() == Some(true) {
        return Vec::new();
    }
    let root = std::process::id();
    let mut children: HashMap<u32, Vec<(u32, char)>> = HashMap::new();
    for pid in pids() {
        if let Some((parent, state)) = parent_and_state(pid) {
            children.entry(parent).or_default().push((pid, state));
        }
    }
    let (mut seen, mut found, mut next) = (HashSet::from([root]), Vec::new(), vec![root]);
    while let Some(pid) = next.pop() {
        for (child, state) in children.remove(&pid).unwrap_or_default() {
            if seen.insert(child) {
                next.push(child);
                if !matches!(state, 'Z' | 'X') {
                    found.push(child);
                }
            }
        }
    }
    found
}

/// Every process whose environment has this variable with a value below this folder.
pub(crate) fn marked(variable: &str, folder: &Path) -> Vec<u32> {
    let is_below = |value: &[u8]| Path::new(OsStr::from_bytes(value)).starts_with(folder);
    pids()
        .filter(|pid| {
            let environment = fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            environment.split(|byte| *byte == 0).any(|entry| {
                let value = entry.strip_prefix(variable.as_bytes()).and_then(|rest| rest.strip_prefix(b"="));
                value.is_some_and(is_below)
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn children_and_their_marks_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let mut child = Command::new("sleep")
            .arg("60")
            .env("ERRAND_TEST_MARK", folder.path().join("deeper"))
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        // Its environment is there when it has become `sleep`.
        while marked("ERRAND_TEST_MARK", folder.path()).is_empty() {
            std::thread::yield_now();
        }
        assert_eq!(marked("ERRAND_TEST_MARK", folder.path()), [child.id()]);
        assert_eq!(marked("ERRAND_TEST_MARK", &folder.path().join("deep")), [0u32; 0], "a folder, not a prefix");
        assert!(living_descendants().contains(&child.id()));
        child.kill().unwrap();
        // A zombie until it is waited for.
        while living_descendants().contains(&child.id()) {
            std::thread::yield_now();
        }
        child.wait().unwrap();
    }
}
