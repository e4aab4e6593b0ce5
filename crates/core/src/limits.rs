//! Everything has a limit (DESIGN section 5, 9). Sizes in bytes unless the name says otherwise.

/// Input or output of a run, as JSON. Well below the broker's `max_payload`, with room for what travels beside it.
pub const MAX_VALUE_BYTES: usize = 512 * 1024;
/// Nesting of a JSON value or schema.
pub const MAX_JSON_DEPTH: usize = 64;
/// One JSON Schema.
pub const MAX_SCHEMA_BYTES: usize = 64 * 1024;
/// Runs in one submit request.
pub const MAX_SUBMIT_BATCH: usize = 500;
/// Entries of a run's metadata.
pub const MAX_METADATA_ENTRIES: usize = 50;
/// A metadata key, in characters.
pub const MAX_METADATA_KEY: usize = 40;
/// A metadata value, in characters.
pub const MAX_METADATA_VALUE: usize = 500;
/// A task's name, in characters.
pub const MAX_NAME: usize = 128;
/// A task's prompt.
pub const MAX_PROMPT_BYTES: usize = 64 * 1024;
/// A task's program, as JSON.
pub const MAX_PROGRAM_BYTES: usize = 128 * 1024;
/// What a message to people may hold: interaction texts, error messages, review comments.
pub const MAX_MESSAGE_BYTES: usize = 2 * 1024;
/// Fields of one interaction.
pub const MAX_INTERACTION_FIELDS: usize = 20;
/// Options of one interaction field.
pub const MAX_INTERACTION_OPTIONS: usize = 100;
/// Errors kept on one run.
pub const MAX_ERRORS: usize = 10;
/// Priority, both ways from 0.
pub const MAX_PRIORITY: i32 = 100;
/// Longest deadline that a task may set, in seconds: 30 days.
pub const MAX_SECONDS: u32 = 30 * 24 * 3600;
/// Attempts that a task may allow.
pub const MAX_ATTEMPTS: u32 = 10;
/// How long a stopping agent may take before its session is torn down, in seconds.
pub const STOP_GRACE_SECONDS: u32 = 30;
/// An artifact's name, after it was made safe.
pub const MAX_FILE_NAME_BYTES: usize = 200;
/// Default and greatest page of a list.
pub const DEFAULT_PAGE: u32 = 20;
/// Greatest page of a list.
pub const MAX_PAGE: u32 = 100;
/// The address of a source.
pub const MAX_URL_BYTES: usize = 2048;
/// Sources of one tenant.
pub const MAX_SOURCES: u32 = 10_000;
/// Credentials of one tenant.
pub const MAX_CREDENTIALS: u32 = 10_000;
