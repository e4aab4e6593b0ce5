//! Owns time: holds every armed deadline and tells the dispatcher when one has passed (DESIGN section 4).

pub mod timers;
