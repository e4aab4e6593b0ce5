//! Keys and certificates, made anew for each test process.

use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, LazyLock};

use errand_notifier::channel::guard::Lookup;
use errand_notifier::channel::{Outside, OutsideArgs};
use futures::future::BoxFuture;
use tempfile::TempDir;

use crate::helper::{args, project, tool};

static FOLDER: LazyLock<TempDir> = LazyLock::new(|| {
    let folder = errand_tests::folder("keys");
    let script = project("services/notifier/tests/channels/keys.py");
    let made = Command::new(tool("test-venv/bin/python")).arg(script).arg(folder.path()).status();
    assert!(made.expect("Python runs").success());
    folder
});

/// `account.pem`, `account.der`, `ca.pem`, `cert.pem` or `key.pem`.
pub(crate) fn file(name: &str) -> PathBuf {
    FOLDER.path().join(name)
}

/// Says that every name is this machine.
#[derive(Debug)]
struct Here;

impl Lookup for Here {
    fn lookup<'a>(&'a self, _: &'a str) -> BoxFuture<'a, std::io::Result<Vec<std::net::IpAddr>>> {
        Box::pin(async { Ok(vec![[127, 0, 0, 1].into()]) })
    }
}

/// May reach this machine under any name, and trusts the certificates made here where told so.
pub(crate) fn outside(trusts: bool) -> Outside {
    let args = OutsideArgs { ca_file: trusts.then(|| file("ca.pem")), ..args(&["127.0.0.0/8"]) };
    Outside::with_lookup(&args, None, Arc::new(Here)).expect("an outside")
}
