//! The stream that AMQP runs over: connected by the guard, TLS by us.

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;

use super::super::{Failure, Outside};
use super::Config;

/// Ends the connection when dropped. lapin does not let go of a server that does not answer: neither when who waits for
/// the connection gives up, nor when it is to be closed.
#[derive(Debug)]
pub(super) struct Cut(std::net::TcpStream);

impl Drop for Cut {
    fn drop(&mut self) {
        // One that has ended already is no failure.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// The stream, and what cuts it.
pub(super) fn with_cut(stream: TcpStream) -> io::Result<(TcpStream, Cut)> {
    let stream = stream.into_std()?;
    let cut = Cut(stream.try_clone()?);
    Ok((TcpStream::from_std(stream)?, cut))
}

/// Connects to where the guard lets it go.
pub(super) async fn connect(outside: &Outside, config: &Config) -> Result<TcpStream, Failure> {
    let stream = outside.guard.connect(&config.host, config.port).await;
    let stream = stream.map_err(|error| Failure::new(error.to_string()))?;
    if !config.tls {
        return Ok(stream);
    }
    let no_tls = |error: io::Error| Failure::new(format!("no TLS with {}: {error}", config.host));
    let name = ServerName::try_from(config.host.clone()).map_err(|error| no_tls(io::Error::other(error)))?;
    let connector = TlsConnector::from(Arc::new(outside.tls.client()));
    let mut encrypted = connector.connect(name, stream).await.map_err(no_tls)?;
    let (ours, mut theirs) = pair().map_err(no_tls)?;
    // Ends with either side: lapin's when the connection is dropped.
    tokio::spawn(async move { copy_bidirectional(&mut theirs, &mut encrypted).await });
    Ok(ours)
}

/// lapin takes tokio's TCP streams and nothing else, and its own TLS brings forty crates for key files that nobody has
/// here. So it gets one end of a socket pair: for the system a stream socket is a stream socket.
fn pair() -> io::Result<(TcpStream, UnixStream)> {
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    theirs.set_nonblocking(true)?;
    let ours = std::net::TcpStream::from(OwnedFd::from(ours));
    Ok((TcpStream::from_std(ours)?, UnixStream::from_std(theirs)?))
}
