//! The only way out of a session's browser: a SOCKS5 server on the loopback interface, one per session, to which
//! Chromium hands every connection with the host's name.
//!
//! It looks the name up, keeps the addresses that the rules admit, and connects to one of *those*: a name that resolves
//! to something else the next time gains nothing, and redirects, frames, workers, web sockets and downloads all pass
//! here. Interception over CDP would see fewer of them, and would check another look-up than the one that is used.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream, lookup_host};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

use crate::net::Rules;

/// Connections of one session at the same time.
const MAX_CONNECTIONS: usize = 512;
/// How long a connection may take to come about.
const CONNECT: Duration = Duration::from_secs(20);
/// How long the browser may take to say where it wants to go.
const HELLO: Duration = Duration::from_secs(10);
/// Refusals that are remembered.
const KEPT: usize = 64;
/// The head of a proxy's answer.
const MAX_HEAD: usize = 8 * 1024;

/// A proxy that stands between this machine and the internet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Upstream {
    kind: UpstreamKind,
    /// `host:port`
    address: String,
    user: Option<(String, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum UpstreamKind {
    Http,
    Socks,
}

impl FromStr for Upstream {
    type Err = String;

    /// The error holds none of it: there may be a password in it.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || "a proxy must be http://[user:password@]host:port or socks5://[user:password@]host:port".to_owned();
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let kind = match scheme {
            "http" => UpstreamKind::Http,
            "socks5" | "socks5h" => UpstreamKind::Socks,
            _ => return Err(wrong()),
        };
        let rest = rest.trim_end_matches('/');
        let (user, address) = match rest.rsplit_once('@') {
            None => (None, rest),
            Some((user, address)) => {
                let (name, password) = user.split_once(':').ok_or_else(wrong)?;
                if [name, password].iter().any(|part| !(1..=255).contains(&part.len())) {
                    return Err(wrong());
                }
                (Some((name.to_owned(), password.to_owned())), address)
            }
        };
        let port = address.rsplit_once(':').and_then(|(host, port)| Some((host, port.parse::<u16>().ok()?)));
        if port.is_none_or(|(host, port)| host.is_empty() || port == 0) {
            return Err(wrong());
        }
        Ok(Self { kind, address: address.to_owned(), user })
    }
}

/// Why a host was not reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It is in a network that the runner does not allow.
    Private,
    /// Its name is not known.
    Unknown,
    /// It does not answer.
    Silent,
}

/// One session's way out. It closes when this is dropped.
#[derive(Debug)]
pub(crate) struct Egress {
    port: u16,
    refusals: Arc<Refusals>,
    _serving: AbortOnDropHandle<()>,
}

type Refusals = Mutex<VecDeque<(String, Refusal)>>;

/// Looks a name up.
type Lookup = fn(String, u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>;

fn of_system(host: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
    async move { Ok(lookup_host((host, port)).await?.collect()) }.boxed()
}

struct Gate {
    rules: Rules,
    upstream: Option<Upstream>,
    lookup: Lookup,
    refusals: Arc<Refusals>,
}

impl Egress {
    pub(crate) async fn open(rules: Rules, upstream: Option<Upstream>) -> io::Result<Self> {
        Self::with(rules, upstream, of_system).await
    }

    async fn with(rules: Rules, upstream: Option<Upstream>, lookup: Lookup) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let port = listener.local_addr()?.port();
        let refusals = Arc::new(Refusals::default());
        let gate = Arc::new(Gate { rules, upstream, lookup, refusals: Arc::clone(&refusals) });
        let serving = AbortOnDropHandle::new(tokio::spawn(serve(listener, gate)));
        Ok(Self { port, refusals, _serving: serving })
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Why this host was not reached the last time, where it was not.
    pub(crate) fn refusal(&self, host: &str) -> Option<Refusal> {
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        refusals.iter().rev().find(|(refused, _)| refused == host).map(|(_, why)| *why)
    }
}

async fn serve(listener: TcpListener, gate: Arc<Gate>) {
    let permits = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    // Dropped with this future, and all connections with it.
    let mut connections = tokio::task::JoinSet::new();
    while let Ok(permit) = Arc::clone(&permits).acquire_owned().await {
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((client, _)) => {
                let gate = Arc::clone(&gate);
                connections.spawn(async move {
                    if let Err(error) = gate.pass(client).await {
                        tracing::trace!(%error, "a connection of a browser has ended");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a browser's way out accepts no connection; trying again");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

impl Gate {
    async fn pass(&self, mut client: TcpStream) -> io::Result<()> {
        client.set_nodelay(true)?;
        let hello = timeout(HELLO, wanted(&mut client)).await.map_err(|_| io::ErrorKind::TimedOut)?;
        let (host, port) = hello?;
        let reached = timeout(CONNECT, self.connect(&host, port)).await.unwrap_or(Err(Refusal::Silent));
        let mut server = match reached {
            Ok(server) => server,
            Err(why) => {
                let code = match why {
                    Refusal::Private => 2,
                    Refusal::Unknown => 4,
                    Refusal::Silent => 5,
                };
                self.note(host, why);
                return client.write_all(&[5, code, 0, 1, 0, 0, 0, 0, 0, 0]).await;
            }
        };
        client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
        copy_bidirectional(&mut client, &mut server).await.map(|_| ())
    }

    fn note(&self, host: String, why: Refusal) {
        let mut refusals = self.refusals.lock().unwrap_or_else(PoisonError::into_inner);
        if refusals.len() == KEPT {
            refusals.pop_front();
        }
        refusals.push_back((host, why));
    }

    async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, Refusal> {
        let literal: Option<IpAddr> = host.parse().ok();
        if literal.is_some_and(|address| !self.rules.admits(address)) {
            return Err(Refusal::Private);
        }
        if let Some(upstream) = &self.upstream {
            // The proxy looks names up. This machine's own are not for it.
            let own = host == "localhost" || host.ends_with(".localhost");
            if own && !self.rules.admits(Ipv4Addr::LOCALHOST.into()) {
                return Err(Refusal::Private);
            }
            return upstream.connect(host, port).await.map_err(|error| {
                tracing::debug!(%error, "the proxy does not connect");
                Refusal::Silent
            });
        }
        let found: Vec<SocketAddr> = match literal {
            Some(address) => vec![SocketAddr::new(address, port)],
            None => (self.lookup)(host.to_owned(), port).await.map_err(|_| Refusal::Unknown)?,
        };
        if found.is_empty() {
            return Err(Refusal::Unknown);
        }
        let admitted = found.into_iter().filter(|address| self.rules.admits(address.ip()));
        let mut why = Refusal::Private;
        for address in admitted {
            match TcpStream::connect(address).await {
                Ok(server) => {
                    let _ = server.set_nodelay(true);
                    return Ok(server);
                }
                Err(_) => why = Refusal::Silent,
            }
        }
        Err(why)
    }
}

/// Reads a SOCKS5 client's wish: RFC 1928, no authentication, CONNECT only.
async fn wanted(client: &mut TcpStream) -> io::Result<(String, u16)> {
    let wrong = || io::Error::from(io::ErrorKind::InvalidData);
    let mut head = [0; 2];
    client.read_exact(&mut head).await?;
    let mut methods = vec![0; head[1].into()];
    client.read_exact(&mut methods).await?;
    if head[0] != 5 || !methods.contains(&0) {
        client.write_all(&[5, 0xff]).await?;
        return Err(wrong());
    }
    client.write_all(&[5, 0]).await?;
    let mut request = [0; 4];
    client.read_exact(&mut request).await?;
    let host = match request[3] {
        1 => Ipv4Addr::from_bits(client.read_u32().await?).to_string(),
        3 => {
            let mut name = vec![0; client.read_u8().await?.into()];
            client.read_exact(&mut name).await?;
            String::from_utf8(name).map_err(|_| wrong())?
        }
        4 => Ipv6Addr::from_bits(client.read_u128().await?).to_string(),
        _ => return Err(wrong()),
    };
    let port = client.read_u16().await?;
    if request[0] != 5 || request[1] != 1 {
        client.write_all(&[5, 7, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
        return Err(wrong());
    }
    Ok((host, port))
}

impl Upstream {
    async fn connect(&self, host: &str, port: u16) -> io::Result<TcpStream> {
        let mut server = TcpStream::connect(&self.address).await?;
        server.set_nodelay(true)?;
        match self.kind {
            UpstreamKind::Http => self.http(&mut server, host, port).await?,
            UpstreamKind::Socks => self.socks(&mut server, host, port).await?,
        }
        Ok(server)
    }

    async fn http(&self, server: &mut TcpStream, host: &str, port: u16) -> io::Result<()> {
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let mut head = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n");
        if let Some((user, password)) = &self.user {
            let both = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
            head.push_str(&format!("Proxy-Authorization: Basic {both}\r\n"));
        }
        head.push_str("\r\n");
        server.write_all(head.as_bytes()).await?;
        let mut answer = Vec::new();
        // Byte by byte: what follows the head is the server's, not the proxy's.
        while !answer.ends_with(b"\r\n\r\n") {
            if answer.len() == MAX_HEAD {
                return Err(io::ErrorKind::InvalidData.into());
            }
            answer.push(server.read_u8().await?);
        }
        let status = answer.split(|byte| *byte == b' ').nth(1);
        if status == Some(b"200") { Ok(()) } else { Err(io::ErrorKind::ConnectionRefused.into()) }
    }

    async fn socks(&self, server: &mut TcpStream, host: &str, port: u16) -> io::Result<()> {
        let refused = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let method = if self.user.is_some() { 2 } else { 0 };
        server.write_all(&[5, 1, method]).await?;
        let mut answer = [0; 2];
        server.read_exact(&mut answer).await?;
        if answer != [5, method] {
            return Err(refused());
        }
        if let Some((user, password)) = &self.user {
            let mut login = vec![1];
            for part in [user, password] {
                login.push(u8::try_from(part.len()).map_err(|_| refused())?);
                login.extend(part.as_bytes());
            }
            server.write_all(&login).await?;
            server.read_exact(&mut answer).await?;
            if answer[1] != 0 {
                return Err(refused());
            }
        }
        let mut wish = vec![5, 1, 0, 3, u8::try_from(host.len()).map_err(|_| refused())?];
        wish.extend(host.as_bytes());
        wish.extend(port.to_be_bytes());
        server.write_all(&wish).await?;
        let mut head = [0; 4];
        server.read_exact(&mut head).await?;
        if head[1] != 0 {
            return Err(refused());
        }
        let rest = match head[3] {
            1 => 4,
            3 => server.read_u8().await?.into(),
            _ => 16,
        };
        let mut bound = vec![0; rest + 2];
        server.read_exact(&mut bound).await.map(|_| ())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(port: u16, host: &str, to: u16) -> (u8, TcpStream) {
        let mut proxy = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap();
        proxy.write_all(&[5, 1, 0]).await.unwrap();
        let mut hello = [0; 2];
        proxy.read_exact(&mut hello).await.unwrap();
        let mut wish = vec![5, 1, 0, 3, host.len() as u8];
        wish.extend(host.as_bytes());
        wish.extend(to.to_be_bytes());
        proxy.write_all(&wish).await.unwrap();
        let mut answer = [0; 10];
        proxy.read_exact(&mut answer).await.unwrap();
        (answer[1], proxy)
    }

    /// A server that says `hi` to whoever connects.
    async fn server() -> u16 {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((mut client, _)) = listener.accept().await {
                client.write_all(b"hi").await.unwrap();
            }
        });
        port
    }

    fn loopback() -> Rules {
        Rules { allowed: vec!["127.0.0.0/8".parse().unwrap()] }
    }

    #[tokio::test]
    async fn addresses_and_names_of_private_networks_are_refused() {
        let port = server().await;
        let egress = Egress::open(Rules::default(), None).await.unwrap();
        for host in ["127.0.0.1", "localhost", "::1", "169.254.169.254", "0.0.0.0", "::ffff:127.0.0.1"] {
            assert_eq!(ask(egress.port(), host, port).await.0, 2, "{host}");
            assert_eq!(egress.refusal(host), Some(Refusal::Private), "{host}");
        }
        assert_eq!(ask(egress.port(), "no-such-name.invalid", port).await.0, 4);
        assert_eq!(egress.refusal("no-such-name.invalid"), Some(Refusal::Unknown));
        assert_eq!(egress.refusal("other"), None);
    }

    #[tokio::test]
    async fn a_name_that_is_rebound_reaches_nothing_within() {
        use std::sync::atomic::{AtomicU16, Ordering};

        static LOOKS: AtomicU16 = AtomicU16::new(0);
        const OUTSIDE: Ipv4Addr = Ipv4Addr::LOCALHOST;
        const WITHIN: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

        /// Outside at first, then within, then both.
        fn rebinding(_host: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
            let found: &[Ipv4Addr] = match LOOKS.fetch_add(1, Ordering::SeqCst) {
                0 => &[OUTSIDE],
                1 => &[WITHIN],
                _ => &[WITHIN, OUTSIDE],
            };
            let found = found.iter().map(|address| SocketAddr::new((*address).into(), port)).collect();
            std::future::ready(Ok(found)).boxed()
        }

        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let rules = Rules { allowed: vec!["127.0.0.1".parse().unwrap()] };
        let egress = Egress::with(rules, None, rebinding).await.unwrap();
        for (expected, looks) in [(0, 1), (2, 2), (0, 3)] {
            let (code, stream) = ask(egress.port(), "rebound.example", port).await;
            // One look for each connection: what was checked is what is connected to.
            assert_eq!((code, LOOKS.load(Ordering::SeqCst)), (expected, looks));
            if code == 0 {
                let (reached, _) = listener.accept().await.unwrap();
                assert_eq!(reached.local_addr().unwrap().ip(), IpAddr::from(OUTSIDE));
            }
            drop(stream);
        }
        assert_eq!(egress.refusal("rebound.example"), Some(Refusal::Private));
    }

    #[tokio::test]
    async fn what_is_allowed_is_reached_also_through_a_proxy_of_either_kind() {
        let port = server().await;
        let outer = Egress::open(loopback(), None).await.unwrap();
        let upstream = format!("socks5://127.0.0.1:{}", outer.port()).parse().unwrap();
        let inner = Egress::open(loopback(), Some(upstream)).await.unwrap();
        for way in [&outer, &inner] {
            let (code, mut stream) = ask(way.port(), "localhost", port).await;
            let mut said = [0; 2];
            stream.read_exact(&mut said).await.unwrap();
            assert_eq!((code, &said), (0, b"hi"));
        }
        let proxy = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let upstream = format!("http://me:secret@127.0.0.1:{}", proxy.local_addr().unwrap().port()).parse().unwrap();
        let way = Egress::open(loopback(), Some(upstream)).await.unwrap();
        let asking = tokio::spawn(async move { ask(way.port(), "example.com", 443).await.0 });
        let (mut client, _) = proxy.accept().await.unwrap();
        let mut head = vec![0; 4096];
        let read = client.read(&mut head).await.unwrap();
        let head = String::from_utf8_lossy(&head[..read]).into_owned();
        assert!(head.starts_with("CONNECT example.com:443 HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("Proxy-Authorization: Basic bWU6c2VjcmV0\r\n"), "{head}");
        client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
        assert_eq!(asking.await.unwrap(), 0);
    }

    #[test]
    fn a_proxy_is_read_and_what_is_wrong_with_it_holds_no_password() {
        for right in ["http://proxy:3128", "socks5://u:p@[::1]:1080", "http://u:p:q@h:1/"] {
            assert!(right.parse::<Upstream>().is_ok(), "{right}");
        }
        for wrong in
            ["https://u:secret@h:1", "h:1", "http://h", "http://h:0", "http://secret@h:1", "socks5://:secret@h:1"]
        {
            let error = wrong.parse::<Upstream>().unwrap_err();
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
