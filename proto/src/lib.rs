//! The wire format: `errand/v1/*.proto` as prost types ([`v1`]), the conversions between them and the domain types
//! (which refuse unspecified enums and missing fields by name), and the JSON form that people read ([`json`]).

pub mod event;
pub mod json;
mod run;
mod session;
mod storage;
mod task;
mod vault;
mod wire;

pub use run::{Submission, submission};
pub use vault::{failure, verdict};
pub use wire::{batches, id, lease, named, optional_id, page, to_wire_error};

/// The generated types of package `errand.v1`.
#[expect(missing_docs, clippy::large_enum_variant, reason = "generated; the comments stand in the .proto files")]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/errand.v1.rs"));
}
