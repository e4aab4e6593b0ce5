//! Hostile input: whatever is sent to a subject that an installation listens on is answered with an error or kept as a
//! dead letter, nobody falls, and who behaves is served meanwhile ([`malformed`]); and no flood makes anybody's memory
//! grow with it ([`memory`]).

mod malformed;
mod memory;
mod subjects;
mod world;
