//! One file a command.

pub(crate) mod agents;
pub(crate) mod bench;
pub(crate) mod completions;
pub(crate) mod demo;
pub(crate) mod dev;
pub(crate) mod dev_key;
pub(crate) mod doctor;
pub(crate) mod events;
pub(crate) mod follow;
pub(crate) mod interact;
pub(crate) mod keys;
pub(crate) mod review;
pub(crate) mod run;
pub(crate) mod runners;
pub(crate) mod runs;
pub(crate) mod sessions;
pub(crate) mod show;
pub(crate) mod task;
