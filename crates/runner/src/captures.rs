//! The files of one execution, sent in the background in their order.

use std::pin::Pin;
use std::time::Duration;

use errand_core::artifact::ArtifactKind;
use errand_core::{Error, ErrorCode, limits};
use tokio::io::{AsyncRead, AsyncSeek};
use tokio::sync::{mpsc, watch};
use tokio_util::task::AbortOnDropHandle;

use crate::control::Control;
use crate::files::{NewFile, NotKept};
use crate::host::Ending;

/// Files that may wait.
const MAX_WAITING: usize = 32;
/// The longest that files may take when the run is to stop.
const MAX_AT_STOP: Duration = Duration::from_secs(10);

trait Source: AsyncRead + AsyncSeek + Send {}
impl<S: AsyncRead + AsyncSeek + Send> Source for S {}

type Captured = (NewFile, Pin<Box<dyn Source>>);

/// Sends the files of an execution while it goes on. Dropped, it gives up what waits; [`Self::end`] waits for all.
pub struct Captures {
    control: Control,
    queue: mpsc::UnboundedSender<Captured>,
    waiting: watch::Sender<usize>,
    worker: AbortOnDropHandle<Vec<Error>>,
}

impl Captures {
    /// Of this execution.
    #[must_use]
    pub fn new(control: Control) -> Self {
        let (queue, captured) = mpsc::unbounded_channel();
        let waiting = watch::Sender::new(0);
        let worker = tokio::spawn(send_all(control.clone(), captured, waiting.clone()));
        Self { control, queue, waiting, worker: AbortOnDropHandle::new(worker) }
    }

    /// Resolves when not too many files wait. Whoever takes files from an agent takes no more until then.
    pub async fn room(&self) {
        // The sender is ours, so it does not go meanwhile.
        let _ = self.waiting.subscribe().wait_for(|waiting| *waiting < MAX_WAITING).await;
    }

    /// Has a file sent. The source must stay as it is until the execution has ended.
    pub fn push<S>(&self, file: NewFile, source: S)
    where
        S: AsyncRead + AsyncSeek + Send + 'static,
    {
        self.waiting.send_modify(|waiting| *waiting += 1);
        // The worker ends only behind the queue.
        let _ = self.queue.send((file, Box::pin(source)));
    }

    /// Waits until all files are kept, or refused: a run whose files were refused has failed, whatever its agent says.
    /// Where the run is to stop, what takes longer is given up.
    pub async fn end(self, ending: Ending) -> Ending {
        let Self { control, queue, worker, .. } = self;
        drop(queue);
        let given_up = async {
            let stop = control.stop().await;
            tokio::time::sleep((stop.grace / 2).min(MAX_AT_STOP)).await;
        };
        tokio::select! {
            errors = worker => join(ending, errors.unwrap_or_default()),
            () = given_up => {
                tracing::warn!(run = %control.run_id(), "files were still on their way when the run had to stop");
                ending
            }
        }
    }
}

fn join(ending: Ending, errors: Vec<Error>) -> Ending {
    match ending {
        ending if errors.is_empty() => ending,
        Ending::Finished(_) => Ending::Failed(errors),
        Ending::Failed(mut all) => {
            all.extend(errors);
            all.truncate(limits::MAX_ERRORS);
            Ending::Failed(all)
        }
        ending @ (Ending::Stopped | Ending::SessionLost(_)) => ending,
    }
}

async fn send_all(
    control: Control,
    mut captured: mpsc::UnboundedReceiver<Captured>,
    waiting: watch::Sender<usize>,
) -> Vec<Error> {
    let mut errors = Vec::new();
    while let Some((file, source)) = captured.recv().await {
        let (kind, name) = (file.kind, control.secret_filter().clean(&file.name));
        let error = match control.upload(file, source).await {
            Ok(_) => None,
            Err(NotKept::Refused(error)) => Some(error),
            Err(NotKept::Unreadable(error)) => {
                Some(ErrorCode::STORAGE_ERROR.with(format!("{name} cannot be read: {}", error.kind())))
            }
            // Nothing of this execution counts any more.
            Err(NotKept::Disowned) => {
                waiting.send_replace(0);
                return Vec::new();
            }
        };
        if let Some(error) = error {
            tracing::warn!(run = %control.run_id(), %kind, %error, "a file was not kept");
            // A run does not fail for want of a picture.
            if kind == ArtifactKind::File && errors.len() < limits::MAX_ERRORS {
                errors.push(error);
            }
        }
        waiting.send_modify(|waiting| *waiting -= 1);
    }
    errors
}
