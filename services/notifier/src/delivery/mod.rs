//! An event's way to a destination: what an attempt's outcome makes of it, and which may go out next. Pure.

mod id;
mod schedule;
mod window;

pub use id::{delivery_id, position_of};
pub(crate) use schedule::left_alone;
pub use schedule::{Health, MAX_RETRY_AFTER, Next, Probing, Schedule, exhausts};
pub use window::{Due, Window};

/// Where a delivery stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// Waits for its first or next attempt.
    Pending = 0,
    /// Taken.
    Delivered = 1,
    /// A dead letter.
    Failed = 2,
}

/// Why there is a delivery.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The event happened.
    Event = 0,
    /// Somebody asked for what there was.
    Replay = 1,
    /// Somebody asked whether it works.
    Test = 2,
}

impl Origin {
    /// As the API has it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Event => "event",
            Self::Replay => "replay",
            Self::Test => "test",
        }
    }
}

#[cfg(test)]
mod tests;
