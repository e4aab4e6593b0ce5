//! A runner without its bus, for the simulator: the engine, the reports, the heartbeats and the losses are the real
//! ones, only the line is another. Not a part of the SDK.

use std::sync::Arc;

use errand_core::{Error, RunnerId};
use errand_proto::v1;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::activity::{self, Activities};
use crate::config::RunnerConfig;
use crate::engine::{Engine, Outward};
use crate::host::Host;
use crate::report::{self, Reports};
use crate::run::{Touch, keep_in_touch, tell_losses};
pub use crate::transport::Line;
use crate::transport::{self, Dispatcher, Pool, Shelf};

/// See the module.
pub struct Simulated<H>(Arc<Engine<H>>);

impl<H> Clone for Simulated<H> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<H: Host> Simulated<H> {
    /// Starts a runner on the current runtime; signs of life go to `signs`.
    pub fn start<L: Line>(
        line: L,
        host: H,
        id: RunnerId,
        config: RunnerConfig,
        shutdown: CancellationToken,
        signs: impl Fn(v1::Activity) + Send + Sync + 'static,
    ) -> Self {
        let (reports, waiting) = Reports::new();
        let (activities, told) = Activities::new();
        let (losses, lost) = mpsc::unbounded_channel();
        let outward = Outward { reports, activities, shelf: Shelf::default(), losses, vault: None };
        let engine = Engine::new(host, id, config.capacity as usize, outward);
        let desk = Dispatcher { line: line.clone(), engine: Arc::clone(&engine) };
        tokio::spawn(async move { report::send_all(waiting, &desk, id).await });
        tokio::spawn(activity::publish(told, move |execution, progress| {
            signs(transport::sign_of(&execution, progress));
            std::future::ready(())
        }));
        let pool = Pool { line, id };
        tokio::spawn(tell_losses(pool.clone(), lost));
        let (touched, _) = watch::channel(Touch::default());
        tokio::spawn(keep_in_touch(pool, Arc::clone(&engine), config, touched, shutdown));
        Self(engine)
    }

    /// Whether it drains and has nothing left: then the process ends.
    #[must_use]
    pub fn has_drained(&self) -> bool {
        self.0.draining() && self.0.sessions().is_empty() && self.0.is_idle()
    }

    /// As the bus would ask.
    ///
    /// # Errors
    /// As the bus would be answered.
    pub async fn start_session(&self, request: v1::StartSessionRequest) -> Result<v1::StartSessionResponse, Error> {
        transport::start_session(Arc::clone(&self.0), request).await
    }

    /// As the bus would ask.
    ///
    /// # Errors
    /// As the bus would be answered.
    pub async fn tear_down(&self, request: v1::TearDownSessionRequest) -> Result<v1::TearDownSessionResponse, Error> {
        transport::tear_down_session(Arc::clone(&self.0), request).await
    }

    /// As the bus would ask.
    #[must_use]
    pub fn assign(&self, request: v1::AssignRequest) -> v1::AssignResponse {
        transport::assign(&self.0, request)
    }

    /// As the bus would ask.
    ///
    /// # Errors
    /// As the bus would be answered.
    pub fn stop(&self, request: &v1::StopRequest) -> Result<v1::StopResponse, Error> {
        transport::stop(&self.0, request)
    }

    /// As the bus would ask.
    ///
    /// # Errors
    /// As the bus would be answered.
    pub fn input(&self, request: &v1::InputRequest) -> Result<v1::InputResponse, Error> {
        transport::input(&self.0, request)
    }
}
