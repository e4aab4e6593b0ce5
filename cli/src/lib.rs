//! errand-cli
