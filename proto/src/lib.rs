//! The wire format: `errand/v1/*.proto` as prost types, and the conversions between them and the domain types.

/// The generated types of package `errand.v1`.
#[expect(missing_docs, reason = "generated; the comments stand in the .proto files")]
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/errand.v1.rs"));
}
