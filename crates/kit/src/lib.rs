//! errand-kit
