//! errand-tests
