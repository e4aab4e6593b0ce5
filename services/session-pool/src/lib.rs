//! errand-session-pool
