//! errand-runner
