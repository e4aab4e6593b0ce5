//! A runner that does nothing, at once.

use errand_runner::{Assigned, Control, Ending, Error, Host, SessionId, SessionStart};

#[derive(Debug)]
pub(super) struct Noop;

impl Host for Noop {
    async fn start_session(&self, _session: SessionStart) -> Result<(), Error> {
        Ok(())
    }

    async fn end_session(&self, _id: SessionId) {}

    async fn execute(&self, run: Assigned, _control: Control) -> Ending {
        Ending::Finished(run.input)
    }
}
