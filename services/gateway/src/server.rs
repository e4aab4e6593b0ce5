//! Connections: how many, how slow, how they end.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// Bytes of a request's head.
const MAX_HEAD: usize = 32 * 1024;
/// How long requests may take to end when the service does.
const DRAIN: Duration = Duration::from_secs(10);
/// Pause where no connection can be accepted: no file descriptor is free, say.
const PAUSE: Duration = Duration::from_millis(100);

/// What connections are served with.
pub struct Server {
    /// Where.
    pub listener: TcpListener,
    /// For HTTPS.
    pub tls: Option<TlsAcceptor>,
    /// How many connections.
    pub max_connections: u32,
    /// How long a client may take for a head, a handshake, or to take what is sent.
    pub client_timeout: Duration,
    /// To count them.
    pub metrics: Arc<Metrics>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("listener", &self.listener).field("tls", &self.tls.is_some()).finish()
    }
}

impl Server {
    /// Serves until shutdown, then lets what is under way end, for a while.
    ///
    /// # Errors
    /// None so far.
    pub async fn serve(self, router: Router, shutdown: CancellationToken) -> anyhow::Result<()> {
        let permits = Arc::new(Semaphore::new(self.max_connections as usize));
        let graceful = GracefulShutdown::new();
        let server = Arc::new(self);
        loop {
            // The permit first: connections beyond the limit wait in the system's queue.
            let permit = tokio::select! {
                permit = Arc::clone(&permits).acquire_owned() => permit?,
                () = shutdown.cancelled() => break,
            };
            let accepted = tokio::select! {
                accepted = server.listener.accept() => accepted,
                () = shutdown.cancelled() => break,
            };
            match accepted {
                Ok((stream, peer)) => {
                    let (server, router, watcher) = (Arc::clone(&server), router.clone(), graceful.watcher());
                    tokio::spawn(async move { server.connection(stream, peer, router, watcher, permit).await });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be accepted");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        drop(server);
        if tokio::time::timeout(DRAIN, graceful.shutdown()).await.is_err() {
            tracing::warn!("requests were still under way when the gateway stopped");
        }
        Ok(())
    }

    async fn connection(
        &self,
        stream: TcpStream,
        peer: SocketAddr,
        router: Router,
        watcher: hyper_util::server::graceful::Watcher,
        _permit: OwnedSemaphorePermit,
    ) {
        self.metrics.connections.inc();
        // Answers are small and go at once.
        drop(stream.set_nodelay(true));
        let stream = Patient::new(stream, self.client_timeout);
        let ended = match &self.tls {
            None => self.http(stream, router, watcher).await,
            Some(tls) => match tokio::time::timeout(self.client_timeout, tls.accept(stream)).await {
                Ok(Ok(stream)) => self.http(stream, router, watcher).await,
                Ok(Err(error)) => Err(error.into()),
                Err(_) => Err(anyhow::anyhow!("the TLS handshake took too long")),
            },
        };
        if let Err(error) = ended {
            tracing::debug!(%error, %peer, "a connection ended");
        }
        self.metrics.connections.dec();
    }

    async fn http(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        router: Router,
        watcher: hyper_util::server::graceful::Watcher,
    ) -> anyhow::Result<()> {
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(self.client_timeout)
            .max_buf_size(MAX_HEAD)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
        Ok(watcher.watch(connection).await?)
    }
}

/// A stream whose peer may take so long to take what is written, and no longer.
#[derive(Debug)]
struct Patient<S> {
    inner: S,
    patience: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    const fn new(inner: S, patience: Duration) -> Self {
        Self { inner, patience, waiting: None }
    }

    fn bounded<T>(&mut self, cx: &mut Context<'_>, polled: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if polled.is_ready() {
            self.waiting = None;
            return polled;
        }
        let patience = self.patience;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(tokio::time::sleep(patience)));
        match waiting.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client takes nothing"))),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        self.bounded(cx, polled)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_flush(cx);
        self.bounded(cx, polled)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.inner).poll_shutdown(cx);
        self.bounded(cx, polled)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write_vectored(cx, bufs);
        self.bounded(cx, polled)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }
}
