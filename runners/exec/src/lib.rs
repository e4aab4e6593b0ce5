//! errand-exec
