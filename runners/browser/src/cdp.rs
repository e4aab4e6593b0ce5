//! The Chrome DevTools Protocol over Chromium's debugging pipe: JSON messages, a zero byte behind each.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// One message: a picture of a long page is the largest.
const MAX_MESSAGE_BYTES: u64 = 128 * 1024 * 1024;

/// Why a command has no result.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum CdpError {
    /// The browser has gone.
    #[error("the browser has gone")]
    Closed,
    /// The page has closed meanwhile.
    #[error("the page has closed")]
    Gone,
    /// It does not do that; its words. Often because what was meant has gone meanwhile.
    #[error("the browser refuses: {0}")]
    Refused(String),
    /// What it says cannot be read.
    #[error("the browser answers strangely: {0}")]
    Strange(&'static str),
}

/// Something that has happened in the browser.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) method: String,
    /// The target's session; empty for the browser's own.
    pub(crate) session: String,
    pub(crate) params: Value,
}

/// A connection. Cheap to clone; it ends with the pipe.
#[derive(Debug, Clone)]
pub(crate) struct Cdp(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Bounded by who waits: each task has one command under way.
    out: mpsc::UnboundedSender<Vec<u8>>,
    waiting: Mutex<HashMap<u64, Waiting>>,
    next: AtomicU64,
    closed: CancellationToken,
}

#[derive(Debug)]
struct Waiting {
    session: String,
    result: oneshot::Sender<Result<Value, CdpError>>,
}

#[derive(Deserialize)]
struct Message {
    id: Option<u64>,
    #[serde(default)]
    method: String,
    #[serde(default, rename = "sessionId")]
    session: String,
    #[serde(default)]
    params: Value,
    #[serde(default)]
    result: Value,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    message: String,
}

impl Cdp {
    /// Speaks over these pipes. `hear` gets every event, in order, and must not wait.
    pub(crate) fn connect(
        input: impl AsyncWrite + Send + Unpin + 'static,
        output: impl AsyncRead + Send + Unpin + 'static,
        hear: impl FnMut(Event) + Send + 'static,
    ) -> Self {
        let (out, lines) = mpsc::unbounded_channel();
        let inner = Inner { out, waiting: Mutex::default(), next: AtomicU64::new(1), closed: CancellationToken::new() };
        let cdp = Self(Arc::new(inner));
        let closed = cdp.0.closed.clone();
        tokio::spawn(async move {
            // The pipe closes with this task: Chromium ends by itself, and its supervisor sees to it.
            tokio::select! {
                _ = write(input, lines) => {}
                () = closed.cancelled() => {}
            }
        });
        let own = cdp.clone();
        tokio::spawn(async move {
            tokio::select! {
                read = own.read(output, hear) => {
                    if let Err(error) = read {
                        tracing::debug!(%error, "a browser's pipe has ended");
                    }
                }
                () = own.0.closed.cancelled() => {}
            }
            own.close();
        });
        cdp
    }

    fn waiting(&self) -> MutexGuard<'_, HashMap<u64, Waiting>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets go of the pipes; whoever waits for a result is told.
    pub(crate) fn close(&self) {
        self.0.closed.cancel();
        self.waiting().clear();
    }

    /// Cancelled when the connection has ended.
    pub(crate) fn closed(&self) -> &CancellationToken {
        &self.0.closed
    }

    /// Sends a command to a target's session, or to the browser where that is empty, and waits for its result.
    pub(crate) async fn call(&self, session: &str, method: &str, params: Value) -> Result<Value, CdpError> {
        let id = self.0.next.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        self.waiting().insert(id, Waiting { session: session.to_owned(), result: sender });
        let _forget = Forget { cdp: self, id };
        let mut message = json!({"id": id, "method": method, "params": params});
        if !session.is_empty() {
            message["sessionId"] = session.into();
        }
        let mut bytes = message.to_string().into_bytes();
        bytes.push(0);
        if self.0.closed.is_cancelled() || self.0.out.send(bytes).is_err() {
            return Err(CdpError::Closed);
        }
        receiver.await.unwrap_or(Err(CdpError::Closed))
    }

    async fn read(&self, output: impl AsyncRead + Unpin, mut hear: impl FnMut(Event)) -> io::Result<()> {
        let mut reader = BufReader::with_capacity(64 * 1024, output);
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            let read = (&mut reader).take(MAX_MESSAGE_BYTES).read_until(0, &mut bytes).await?;
            if bytes.pop() != Some(0) {
                return if read == 0 { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) };
            }
            let message: Message = serde_json::from_slice(&bytes)?;
            match message.id {
                Some(id) => {
                    let result = match message.error {
                        Some(refusal) => Err(CdpError::Refused(refusal.message)),
                        None => Ok(message.result),
                    };
                    if let Some(waiting) = self.waiting().remove(&id) {
                        let _ = waiting.result.send(result);
                    }
                }
                None if message.method == "Target.detachedFromTarget" => {
                    // A page that has closed answers nothing any more.
                    let closed = message.params["sessionId"].as_str().unwrap_or_default();
                    let gone = self.waiting().extract_if(|_, waiting| waiting.session == closed).collect::<Vec<_>>();
                    for (_, waiting) in gone {
                        let _ = waiting.result.send(Err(CdpError::Gone));
                    }
                    hear(Event { method: message.method, session: message.session, params: message.params });
                }
                None => hear(Event { method: message.method, session: message.session, params: message.params }),
            }
            // A picture's buffer is not kept for ever.
            if bytes.capacity() > 1024 * 1024 {
                bytes = Vec::new();
            }
        }
    }
}

/// A command that nobody waits for any more is forgotten.
struct Forget<'a> {
    cdp: &'a Cdp,
    id: u64,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.cdp.waiting().remove(&self.id);
    }
}

async fn write(mut input: impl AsyncWrite + Unpin, mut lines: mpsc::UnboundedReceiver<Vec<u8>>) -> io::Result<()> {
    while let Some(line) = lines.recv().await {
        input.write_all(&line).await?;
        input.flush().await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use tokio::io::duplex;

    use super::*;

    #[tokio::test]
    async fn results_find_who_asked_and_events_come_in_order() {
        let (ours, mut browser) = duplex(1024);
        let (output, mut says) = duplex(1024);
        let (heard, mut events) = mpsc::unbounded_channel();
        let cdp = Cdp::connect(ours, output, move |event| heard.send(event).unwrap());
        let asking = tokio::spawn({
            let cdp = cdp.clone();
            async move { cdp.call("s1", "Page.enable", json!({"a": 1})).await }
        });
        let mut sent = vec![0; 1024];
        let read = browser.read(&mut sent).await.unwrap();
        let sent: Value = serde_json::from_slice(&sent[..read - 1]).unwrap();
        assert_eq!(sent, json!({"id": 1, "method": "Page.enable", "params": {"a": 1}, "sessionId": "s1"}));
        let words = b"{\"method\":\"A\",\"params\":{}}\0{\"method\":\"B\",\"sessionId\":\"s\"}\0{\"id\":1,\"result\":{\"r\":2}}\0";
        says.write_all(words).await.unwrap();
        assert_eq!(asking.await.unwrap(), Ok(json!({"r": 2})));
        assert_eq!(events.recv().await.unwrap().method, "A");
        assert_eq!(events.recv().await.unwrap().session, "s");
        let refused = tokio::spawn({
            let cdp = cdp.clone();
            async move { cdp.call("", "X", json!({})).await }
        });
        says.write_all(b"{\"id\":2,\"error\":{\"code\":1,\"message\":\"no\"}}\0").await.unwrap();
        assert_eq!(refused.await.unwrap(), Err(CdpError::Refused("no".into())));
    }

    #[tokio::test]
    async fn when_the_pipe_ends_everybody_is_told() {
        let (ours, browser) = duplex(1024);
        let (output, says) = duplex(1024);
        let cdp = Cdp::connect(ours, output, |_| {});
        let mut asking = Box::pin(cdp.call("", "X", json!({})));
        assert!(futures::poll!(&mut asking).is_pending());
        drop((browser, says));
        assert_eq!(asking.await, Err(CdpError::Closed));
        cdp.closed().cancelled().await;
        assert_eq!(cdp.call("", "Y", json!({})).await, Err(CdpError::Closed));
    }
}
