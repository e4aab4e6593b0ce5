//! errand-dispatcher
