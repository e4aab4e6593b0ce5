//! What happens now: one follower of the event stream for all of a gateway's listeners, and the streams that it feeds;
//! pictures of sessions, for those who watch.

mod hub;
mod sse;
mod view;
mod wait;

pub use hub::{Heard, Hub, Limits, Listener, Topic};
pub(crate) use sse::away;
pub use sse::{all_events, find, fits, is_wanted, last_event_id, run_events};
pub use view::session_frames;
pub use wait::final_run;
