//! What runners that start processes on their machine share: a supervisor above each process that ends it when the
//! runner dies, the folders of a runner and the reaper of what dead ones left in them, and agents as programs that
//! speak JSON lines over stdin and stdout (docs/exec-agents.md).
//!
//! A binary that hosts such a runner calls [`supervise_main`] before anything else when its first argument is
//! [`SUPERVISE`]: each process runs below such a one.

mod conversation;
mod lines;
mod process;
#[cfg(target_os = "linux")]
mod procfs;
mod programs;
mod protocol;
mod supervisor;
mod work;

pub use process::Supervised;
pub use programs::{Extra, Programs, Session, Settings};
pub use protocol::Program;
pub use supervisor::{SUPERVISE, supervise_main};
pub use work::{RunFolders, SESSION_VARIABLE, Work};
