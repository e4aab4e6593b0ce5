//! A proxy that does to TCP connections what networks do to them.

use std::net::Ipv4Addr;
use std::sync::LazyLock;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use crate::wait::pick_port;

/// How long an end that nobody tells of the other's death keeps its connection.
const FORGOTTEN: Duration = Duration::from_secs(120);

/// What happens to the connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Toxic {
    /// Nothing.
    None,
    /// All are reset, and so are new ones.
    Cut,
    /// Every piece takes so much longer.
    Delay(Duration),
    /// Nothing gets through; it arrives when this is over.
    Stall,
    /// Nothing gets through, and it is lost: what was connected meanwhile is reset when this is over.
    Drop,
    /// The client goes on speaking to nobody: the server's end was closed. It stays so when this is over, as far as the
    /// client is concerned: nobody tells it.
    ServerGone,
    /// The server waits for a client that is gone; nobody tells it.
    ClientGone,
    /// When one end closes, the other hears of it so much later.
    SlowClose(Duration),
}

/// A port that leads to another one, through a [`Toxic`]. Gone on drop, with its connections.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    toxic: watch::Sender<Toxic>,
}

// Not a test's own runtime: a test that blocks must not hold up the network.
static NETWORK: LazyLock<Runtime> = LazyLock::new(|| {
    let mut builder = Builder::new_multi_thread();
    builder.worker_threads(1).thread_name("network").enable_all().build().expect("a thread can be started")
});

impl Proxy {
    /// A proxy to this port of this machine.
    ///
    /// # Panics
    /// Where no port is free.
    #[must_use]
    pub fn to(server: u16) -> Self {
        let (toxic, receiver) = watch::channel(Toxic::None);
        for _ in 0..10 {
            let port = pick_port();
            let Ok(listener) = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, port)) else { continue };
            listener.set_nonblocking(true).expect("a socket can be made non-blocking");
            NETWORK.spawn(accept(listener, server, receiver));
            return Self { port, toxic };
        }
        panic!("ten ports were taken by others")
    }

    /// Where to connect to.
    #[must_use]
    pub const fn port(&self) -> u16 {
        self.port
    }

    /// What happens from now on.
    pub fn set(&self, toxic: Toxic) {
        self.toxic.send_replace(toxic);
    }
}

async fn accept(listener: std::net::TcpListener, server: u16, mut toxic: watch::Receiver<Toxic>) {
    let listener = TcpListener::from_std(listener).expect("it is non-blocking");
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            gone = toxic.changed() => match gone {
                Ok(()) => continue,
                Err(_) => return,
            },
        };
        if let Ok((client, _)) = accepted {
            tokio::spawn(carry(client, server, toxic.clone()));
        }
    }
}

/// What is left of a connection: both ends are to be reset, or one is not to learn that the other is gone.
#[derive(Default)]
struct Ends {
    client: Option<TcpStream>,
    server: Option<TcpStream>,
}

async fn carry(client: TcpStream, server: u16, mut toxic: watch::Receiver<Toxic>) {
    let now = *toxic.borrow_and_update();
    match now {
        Toxic::Cut => return reset(client),
        Toxic::ServerGone | Toxic::ClientGone => return forget(client).await,
        Toxic::Drop => {
            let _ = toxic.changed().await;
            return reset(client);
        }
        Toxic::Stall if toxic.wait_for(|toxic| *toxic != Toxic::Stall).await.is_err() => return,
        Toxic::Stall | Toxic::None | Toxic::Delay(_) | Toxic::SlowClose(_) => {}
    }
    let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, server)).await else { return reset(client) };
    for stream in [&client, &server] {
        let _ = stream.set_nodelay(true);
    }
    match between(client, server, toxic).await {
        Ends { client: Some(left), server: None } | Ends { client: None, server: Some(left) } => forget(left).await,
        Ends { client, server } => [client, server].into_iter().flatten().for_each(reset),
    }
}

/// Carries what both say, until both have closed or the connection ends otherwise.
async fn between(client: TcpStream, server: TcpStream, mut toxic: watch::Receiver<Toxic>) -> Ends {
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let mut up = Pump { from: from_client, to: to_server, lost: false };
    let mut down = Pump { from: from_server, to: to_client, lost: false };
    let carried = {
        let both = [toxic.clone(), toxic.clone()];
        let [up_toxic, down_toxic] = both;
        async { tokio::try_join!(up.carry(up_toxic), down.carry(down_toxic)).is_ok() }
    };
    let ends = |toxic: &Toxic| matches!(toxic, Toxic::Cut | Toxic::ServerGone | Toxic::ClientGone);
    let fate = tokio::select! {
        both_have_closed = carried => match both_have_closed {
            true => return Ends::default(),
            false => Toxic::Cut,
        },
        fate = toxic.wait_for(ends) => fate.map_or(Toxic::Cut, |fate| *fate),
    };
    let ends = Ends { client: up.from.reunite(down.to).ok(), server: down.from.reunite(up.to).ok() };
    match fate {
        Toxic::ServerGone => {
            ends.server.into_iter().for_each(reset);
            Ends { client: ends.client, server: None }
        }
        Toxic::ClientGone => {
            ends.client.into_iter().for_each(reset);
            Ends { client: None, server: ends.server }
        }
        _ => ends,
    }
}

/// One direction.
struct Pump {
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    /// Something that was said was swallowed.
    lost: bool,
}

impl Pump {
    /// Carries until the speaker has closed.
    async fn carry(&mut self, mut toxic: watch::Receiver<Toxic>) -> std::io::Result<()> {
        let mut buffer = vec![0; 32 * 1024];
        loop {
            let now = *toxic.borrow_and_update();
            if self.lost && now != Toxic::Drop {
                return Err(std::io::ErrorKind::ConnectionReset.into());
            }
            let read = tokio::select! {
                read = self.from.read(&mut buffer), if now != Toxic::Stall => read?,
                changed = toxic.changed() => {
                    changed.map_err(std::io::Error::other)?;
                    continue;
                }
            };
            match now {
                Toxic::Drop => {
                    self.lost = true;
                    if read == 0 {
                        toxic.changed().await.map_err(std::io::Error::other)?;
                    }
                    continue;
                }
                Toxic::Delay(longer) => tokio::time::sleep(longer).await,
                Toxic::SlowClose(longer) if read == 0 => tokio::time::sleep(longer).await,
                _ => {}
            }
            if read == 0 {
                return self.to.shutdown().await;
            }
            self.to.write_all(&buffer[..read]).await?;
        }
    }
}

/// Keeps it open, and listens to nobody.
async fn forget(mut stream: TcpStream) {
    let mut buffer = vec![0; 32 * 1024];
    let silence = async { while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {} };
    let _ = tokio::time::timeout(FORGOTTEN, silence).await;
    reset(stream);
}

/// Ends it in a way that the other side takes for an error, not for an end.
fn reset(stream: TcpStream) {
    let _ = stream.set_zero_linger();
}
