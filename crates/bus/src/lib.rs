//! errand-bus
