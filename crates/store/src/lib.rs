//! errand-store
