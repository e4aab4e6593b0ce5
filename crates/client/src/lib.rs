//! errand-client
