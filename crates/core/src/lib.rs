//! The decisions of Errand, pure: ids, the run and session state machines, deadlines, limits and the error
//! catalogue. No I/O, no clock, no randomness: what time it is and which id a thing gets are arguments.

pub mod credential;
pub mod error;
pub mod id;
pub mod limits;
pub mod run;
pub mod session;
pub mod source;
pub mod task;
mod time;

pub use error::{Error, ErrorCode};
pub use id::{
    AgentId, ApiKeyId, CredentialId, DeliveryId, DestinationId, EventId, RequestId, RunId, RunnerId, SessionId,
    SourceId, TaskId, Tenant,
};
pub use time::Timestamp;
