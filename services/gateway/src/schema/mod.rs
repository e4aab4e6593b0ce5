//! The shapes of requests and answers: requests are read by them, and the OpenAPI document describes both.

#[expect(missing_docs, reason = "the fields' meaning stands in CONTRACT; the document's readers see the examples")]
pub mod answers;
pub mod requests;
