//! errand-timeout-watcher
