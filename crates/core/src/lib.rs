//! The decisions of Errand, pure: ids, the run and session state machines, deadlines, limits and the error
//! catalogue. No I/O, no clock, no randomness: what time it is and which id a thing gets are arguments.

pub mod artifact;
pub mod credential;
pub mod error;
pub mod id;
pub mod invariant;
pub mod limits;
#[cfg(feature = "mutations")]
pub mod mutation;
pub mod run;
pub mod session;
pub mod source;
pub mod task;
mod time;

pub use error::{Error, ErrorCode};
pub use id::{
    AgentId, ApiKeyId, CredentialId, DeliveryId, DestinationId, EventId, RequestId, RunId, RunnerId, SessionId,
    SourceId, StorageId, TaskId, Tenant,
};
pub use time::Timestamp;

/// Whether a deliberate fault is on: `false`, unless this is compiled for the simulator (see the feature `mutations`).
#[cfg(not(feature = "mutations"))]
#[macro_export]
macro_rules! mutated {
    ($mutation:ident) => {
        false
    };
}

/// Whether a deliberate fault is on in this thread.
#[cfg(feature = "mutations")]
#[macro_export]
macro_rules! mutated {
    ($mutation:ident) => {
        $crate::mutation::is_active($crate::mutation::Mutation::$mutation)
    };
}

#[cfg(test)]
mod testing {
    use std::fmt::Debug;

    /// Columns, subjects and filters hold `as_str`, documents and events what serde makes: the two are one word.
    pub(crate) fn is_one_word<T: Copy + Debug + serde::Serialize>(all: &[T], as_str: fn(T) -> &'static str) {
        for value in all {
            assert_eq!(serde_json::to_value(value).unwrap(), as_str(*value), "{value:?}");
        }
    }
}
