//! Where the files of a run go.

use std::collections::HashSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use errand_core::artifact::ArtifactKind;
use errand_core::{Error, ErrorCode};
use errand_process::{RunFolders, Work};
use errand_runner::{Captures, Control, Ending, NewFile};
use serde_json::{Value, json};

/// One file.
pub(crate) const MAX_FILE_BYTES: u64 = 100 * 1024 * 1024;
/// Files of one run.
const MAX_FILES: usize = 1000;
/// A file's name, in bytes.
const MAX_NAME: usize = 120;

/// A file that a run has captured, complete.
#[derive(Debug)]
pub(crate) struct Captured {
    /// Where it is; it is moved away from there.
    pub(crate) path: PathBuf,
    /// What it would be called. Whatever a source says: it is made safe.
    pub(crate) name: String,
    pub(crate) kind: ArtifactKind,
    /// Facts about it.
    pub(crate) data: Option<Value>,
}

/// Takes the files of one run: keeps them in the run's folder, as the exec runner does, with a list of them beside,
/// and sends them to the storage.
pub(crate) struct Files {
    folder: Folder,
    captures: Captures,
    names: Arc<Mutex<HashSet<String>>>,
}

/// The run's folder, tidied up when all is over.
struct Folder {
    work: Arc<Work>,
    folders: RunFolders,
}

impl Files {
    pub(crate) fn new(work: Arc<Work>, folders: RunFolders, control: &Control) -> Self {
        let captures = Captures::new(control.clone());
        Self { folder: Folder { work, folders }, captures, names: Arc::default() }
    }

    /// Takes one; the name that it has got in the run's folder.
    pub(crate) async fn take(&self, file: Captured) -> Result<String, Error> {
        let not_kept = |why: &str| ErrorCode::STORAGE_ERROR.with(format!("a file could not be kept: {why}"));
        // Who captures faster than files are kept waits.
        self.captures.room().await;
        let (files, log) = (self.folder.folders.files.clone(), self.folder.folders.log.clone());
        let names = Arc::clone(&self.names);
        let new = NewFile { kind: file.kind, name: safe(&file.name), data: file.data.clone() };
        let keeping = tokio::task::spawn_blocking(move || {
            let name = {
                let mut names = names.lock().unwrap_or_else(PoisonError::into_inner);
                if names.len() == MAX_FILES {
                    return Err(ErrorCode::STORAGE_ERROR.with(format!("a run may capture {MAX_FILES} files")));
                }
                let name = unique(&safe(&file.name), &names);
                names.insert(name.clone());
                name
            };
            keep(&files, &log, &name, &file).map_err(|error| not_kept(&error.kind().to_string()))?;
            let kept = fs::File::open(files.join(&name)).map_err(|error| not_kept(&error.kind().to_string()))?;
            Ok((name, kept))
        });
        let (name, kept) = keeping.await.unwrap_or_else(|_| Err(not_kept("its task was stopped")))?;
        self.captures.push(new, tokio::fs::File::from_std(kept));
        Ok(name)
    }

    /// How the run ends once all of its files are kept, or refused.
    pub(crate) async fn end(self, ending: Ending) -> Ending {
        let Self { folder, captures, .. } = self;
        let ending = captures.end(ending).await;
        drop(folder);
        ending
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = self.work.end_run(&self.folders) {
            tracing::warn!(%error, "a run's folder could not be tidied up");
        }
    }
}

fn keep(files: &Path, log: &Path, name: &str, file: &Captured) -> io::Result<()> {
    let to = files.join(name);
    // Within one file system it is moved.
    if fs::rename(&file.path, &to).is_err() {
        fs::copy(&file.path, &to)?;
        fs::remove_file(&file.path)?;
    }
    let kind = file.kind.as_str();
    let bytes = fs::metadata(&to)?.len();
    let line = json!({"type": "file", "path": name, "kind": kind, "bytes": bytes, "data": file.data});
    let mut log = fs::OpenOptions::new().create(true).append(true).open(log)?;
    writeln!(log, "{line}")
}

/// A name without anything that a file system or a shell would understand.
fn safe(name: &str) -> String {
    let name: String = name
        .rsplit(['/', '\\'])
        .next()
        .unwrap_or_default()
        .chars()
        .map(|c| if c.is_alphanumeric() || matches!(c, '.' | '-' | '_' | ' ' | '(' | ')') { c } else { '_' })
        .collect();
    let name = name.trim_matches([' ', '.']);
    if name.is_empty() {
        return "file".to_owned();
    }
    let (stem, end) = split(name);
    let room = MAX_NAME - end.len();
    format!("{}{end}", &stem[..stem.floor_char_boundary(room)])
}

/// The stem and the ending with its dot, where that is a short one.
fn split(name: &str) -> (&str, &str) {
    match name.rfind('.') {
        Some(at) if at > 0 && name.len() - at <= 16 => name.split_at(at),
        _ => (name, ""),
    }
}

fn unique(name: &str, taken: &HashSet<String>) -> String {
    if !taken.contains(name) {
        return name.to_owned();
    }
    let (stem, end) = split(name);
    (2..).map(|number| format!("{stem} ({number}){end}")).find(|name| !taken.contains(name)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_safe_and_unique() {
        for (name, expected) in [
            ("bill.pdf", "bill.pdf"),
            ("../../etc/passwd", "passwd"),
            ("..\\..\\x.exe", "x.exe"),
            (".", "file"),
            ("", "file"),
            (".bashrc", "bashrc"),
            ("a\0b\nc;rm.txt", "a_b_c_rm.txt"),
            ("Rechnung Jänner (1).pdf", "Rechnung Jänner (1).pdf"),
        ] {
            assert_eq!(safe(name), expected);
        }
        let long = safe(&format!("{}.pdf", "é".repeat(200)));
        assert!(long.len() <= MAX_NAME && long.ends_with("é.pdf"), "{long}");
        let taken = ["a.pdf", "a (2).pdf", "b"].map(str::to_owned).into();
        assert_eq!(unique("a.pdf", &taken), "a (3).pdf");
        assert_eq!(unique("b", &taken), "b (2)");
        assert_eq!(unique("c", &taken), "c");
    }
}
