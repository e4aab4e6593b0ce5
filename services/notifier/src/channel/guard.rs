//! Which addresses may be connected to. What is checked is what is connected to: names are resolved here, the answers
//! filtered, and only what is left is handed to whoever connects, so that a name cannot change its mind in between
//! (DNS rebinding), and no way of writing an address gets round the check.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use ipnet::IpNet;
use tokio::net::TcpStream;
use url::{Host, Url};

/// How long a connection may take to be made, with the resolution of the name.
pub(super) const CONNECT: Duration = Duration::from_secs(5);
/// Addresses of one name that are looked at.
const MAX_ADDRESSES: usize = 32;

/// Why an address is not connected to, unless the operator allows its network. None: it is an ordinary public one.
#[must_use]
pub fn refusal(address: IpAddr) -> Option<&'static str> {
    match address {
        IpAddr::V4(address) => refusal_v4(address),
        IpAddr::V6(address) => refusal_v6(address),
    }
}

/// IANA's registry of special addresses, and what clouds answer secrets on.
const fn refusal_v4(address: Ipv4Addr) -> Option<&'static str> {
    Some(match address.octets() {
        [0, ..] => "unspecified",
        [127, ..] => "loopback",
        [10, ..] | [172, 16..=31, ..] | [192, 168, ..] => "private",
        [100, 64..=127, ..] => "shared by a carrier's customers",
        [169, 254, 169, 254] | [168, 63, 129, 16] => "a cloud's metadata",
        [169, 254, ..] => "link-local",
        [192, 0, 0, _] | [192, 88, 99, _] => "reserved",
        [192, 0, 2, _] | [198, 51, 100, _] | [203, 0, 113, _] => "for documentation",
        [198, 18..=19, ..] => "for benchmarks",
        [224..=239, ..] => "multicast",
        [255, 255, 255, 255] => "broadcast",
        [240..=255, ..] => "reserved",
        _ => return None,
    })
}

/// Only 2000::/3 is handed out, so all else is refused - but for the two forms that stand for an IPv4 address and are
/// how a host without one of its own gets there: mapped, and translated (RFC 6052).
fn refusal_v6(address: Ipv6Addr) -> Option<&'static str> {
    if let Some(embedded) = embedded_v4(address) {
        return refusal_v4(embedded);
    }
    Some(match address.segments() {
        [0, 0, 0, 0, 0, 0, 0, 0] => "unspecified",
        [0, 0, 0, 0, 0, 0, 0, 1] => "loopback",
        [0, 0, 0, 0, 0, 0, ..] => "an IPv4 address in a form that is no longer used",
        [0x64, 0xff9b, 1, ..] => "of a private translator",
        [0xfc00..=0xfdff, ..] => "private",
        [0xfe80..=0xfebf, ..] => "link-local",
        [0xfec0..=0xfeff, ..] => "site-local",
        [0xff00..=0xffff, ..] => "multicast",
        // 2001::/23 holds Teredo, benchmarks and ORCHIDs; with 6to4 all of them may stand for addresses within.
        [0x2001, 0..=0x1ff, ..] | [0x2002, ..] => "of a tunnel or for a special use",
        [0x2001, 0xdb8, ..] | [0x3fff, 0..=0xfff, ..] => "for documentation",
        [0x2000..=0x3fff, ..] => return None,
        _ => "reserved",
    })
}

fn embedded_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    if let [0x64, 0xff9b, 0, 0, 0, 0, high, low] = address.segments() {
        return Some(Ipv4Addr::from_bits(u32::from(high) << 16 | u32::from(low)));
    }
    address.to_ipv4_mapped()
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum GuardError {
    /// All its addresses are refused. It does not say which they are: names within would be told to those outside.
    #[error("{host} is not reached from here: its address is {why}, and the operator has not allowed that network")]
    Refused {
        /// As it was asked for.
        host: String,
        /// What [`refusal`] says of the first one.
        why: &'static str,
    },
    /// The name has no address, or nobody could say.
    #[error("the address of {host} is not known: {what}")]
    Unknown {
        /// As it was asked for.
        host: String,
        /// What the system says.
        what: String,
    },
    /// It did not work out.
    #[error("cannot connect to {host}: {what}")]
    Connect {
        /// As it was asked for.
        host: String,
        /// What the system says.
        what: String,
    },
}

/// Asks for the addresses of a name; tests answer themselves.
pub trait Lookup: std::fmt::Debug + Send + Sync {
    /// All addresses of `host`, which is no address itself.
    fn lookup<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>>;
}

/// As the system resolves names.
#[derive(Debug, Clone, Copy)]
pub struct System;

impl Lookup for System {
    fn lookup<'a>(&'a self, host: &'a str) -> BoxFuture<'a, io::Result<Vec<IpAddr>>> {
        Box::pin(async move {
            let addresses = tokio::net::lookup_host((host, 0)).await?;
            Ok(addresses.take(MAX_ADDRESSES).map(|address| address.ip()).collect())
        })
    }
}

/// Stands between the channels and the network. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Guard {
    allowed: Arc<[IpNet]>,
    lookup: Arc<dyn Lookup>,
}

impl Guard {
    /// Public addresses, and what is in one of these networks.
    #[must_use]
    pub fn new(allowed: &[IpNet], lookup: Arc<dyn Lookup>) -> Self {
        Self { allowed: allowed.into(), lookup }
    }

    /// Whether it may be connected to; else why not.
    ///
    /// # Errors
    /// What [`refusal`] says.
    pub fn check(&self, address: IpAddr) -> Result<(), &'static str> {
        let Some(why) = refusal(address) else { return Ok(()) };
        // `::ffff:10.0.0.1` is connected to as 10.0.0.1, so 10.0.0.0/8 speaks for it.
        let forms = [Some(address), Some(address.to_canonical())];
        let within = |address| self.allowed.iter().any(|network| network.contains(&address));
        if forms.into_iter().flatten().any(within) { Ok(()) } else { Err(why) }
    }

    /// The addresses of a name that may be connected to: at least one.
    ///
    /// # Errors
    /// [`GuardError::Unknown`], [`GuardError::Refused`].
    pub async fn resolve(&self, host: &str) -> Result<Vec<IpAddr>, GuardError> {
        let found = match host.parse() {
            Ok(address) => vec![address],
            Err(_) => self.look_up(host).await?,
        };
        let mut why = None;
        let mut allowed = Vec::new();
        for address in found.into_iter().take(MAX_ADDRESSES) {
            match self.check(address) {
                Ok(()) => allowed.push(address),
                Err(refused) => why = why.or(Some(refused)),
            }
        }
        match why {
            _ if !allowed.is_empty() => Ok(allowed),
            Some(why) => Err(GuardError::Refused { host: host.into(), why }),
            None => Err(GuardError::Unknown { host: host.into(), what: "it has none".into() }),
        }
    }

    async fn look_up(&self, host: &str) -> Result<Vec<IpAddr>, GuardError> {
        self.lookup
            .lookup(host)
            .await
            .map_err(|error| GuardError::Unknown { host: host.into(), what: error.to_string() })
    }

    /// Checks the host of a URL where it is an address: HTTP clients resolve names only. The parser that made the URL
    /// has read all ways of writing one (`0x7f.1`, `2130706433`, full-width digits) as the address that it is.
    ///
    /// # Errors
    /// [`GuardError::Refused`].
    pub fn check_url(&self, url: &Url) -> Result<(), GuardError> {
        let address = match url.host() {
            Some(Host::Ipv4(address)) => IpAddr::V4(address),
            Some(Host::Ipv6(address)) => IpAddr::V6(address),
            Some(Host::Domain(_)) | None => return Ok(()),
        };
        self.check(address).map_err(|why| GuardError::Refused { host: address.to_string(), why })
    }

    /// A connection to one of the host's allowed addresses, in their order.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn connect(&self, host: &str, port: u16) -> Result<TcpStream, GuardError> {
        let failed = |what: String| GuardError::Connect { host: host.into(), what };
        let connecting = async {
            let mut last = None;
            for address in self.resolve(host).await? {
                match TcpStream::connect(SocketAddr::new(address, port)).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = Some(error.to_string()),
                }
            }
            Err(failed(last.unwrap_or_default()))
        };
        let connected = tokio::time::timeout(CONNECT, connecting).await;
        let stream = connected.map_err(|_| failed(format!("not within {CONNECT:?}")))??;
        stream.set_nodelay(true).map_err(|error| failed(error.to_string()))?;
        Ok(stream)
    }
}

impl reqwest::dns::Resolve for Guard {
    fn resolve(&self, name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let guard = self.clone();
        Box::pin(async move {
            let addresses = Self::resolve(&guard, name.as_str()).await?;
            // The port is the URL's.
            let addresses = addresses.into_iter().map(|address| SocketAddr::new(address, 0));
            Ok(Box::new(addresses) as reqwest::dns::Addrs)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (why, addresses): each is refused for this reason.
    const REFUSED: &[(&str, &[&str])] = &[
        ("unspecified", &["0.0.0.0", "0.1.2.3", "::", "::ffff:0.0.0.0"]),
        ("loopback", &["127.0.0.1", "127.255.255.254", "::1", "::ffff:127.0.0.1", "64:ff9b::127.0.0.1"]),
        (
            "private",
            &[
                "10.0.0.0",
                "10.255.255.255",
                "172.16.0.1",
                "172.31.255.255",
                "192.168.0.1",
                "fc00::1",
                "fd12:3456::1",
                "fd00:ec2::254",
                "fd20:ce::254",
                "::ffff:10.0.0.1",
                "64:ff9b::192.168.1.1",
            ],
        ),
        ("shared by a carrier's customers", &["100.64.0.1", "100.127.255.255", "100.100.100.200"]),
        ("a cloud's metadata", &["169.254.169.254", "168.63.129.16", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe"]),
        ("link-local", &["169.254.0.1", "169.254.170.2", "fe80::1", "febf:ffff::1"]),
        ("site-local", &["fec0::1", "feff::1"]),
        ("multicast", &["224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1"]),
        ("broadcast", &["255.255.255.255"]),
        (
            "reserved",
            &[
                "240.0.0.1",
                "254.1.1.1",
                "192.0.0.192",
                "192.88.99.1",
                "100::1",
                "64:ff9a::1",
                "64:ff9b:0:1::1",
                "::ffff:0:10.0.0.1",
                "4000::1",
                "5f00::1",
                "fe00::1",
            ],
        ),
        ("for documentation", &["192.0.2.1", "198.51.100.1", "203.0.113.1", "2001:db8::1", "3fff::1"]),
        ("for benchmarks", &["198.18.0.1", "198.19.255.255"]),
        ("an IPv4 address in a form that is no longer used", &["::127.0.0.1", "::10.0.0.1", "::8.8.8.8"]),
        ("of a private translator", &["64:ff9b:1::1", "64:ff9b:1:ffff::8.8.8.8"]),
        (
            "of a tunnel or for a special use",
            &[
                "2002:7f00:1::",
                "2002:a00:1::1",
                "2002:808:808::1",
                "2001::1",
                "2001:0:a00:1::1",
                "2001:2::1",
                "2001:20::1",
            ],
        ),
    ];

    const PUBLIC: &[&str] = &[
        "1.1.1.1",
        "8.8.8.8",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.1",
        "169.253.255.255",
        "172.15.255.255",
        "172.32.0.0",
        "192.0.1.1",
        "192.167.255.255",
        "198.17.255.255",
        "198.20.0.0",
        "223.255.255.255",
        "::ffff:8.8.8.8",
        "64:ff9b::8.8.8.8",
        "2001:200::1",
        "2001:4860:4860::8888",
        "2003::1",
        "2606:4700::1111",
        "3ffe::1",
    ];

    fn guard(allowed: &[&str]) -> Guard {
        let allowed: Vec<IpNet> = allowed.iter().map(|network| network.parse().unwrap()).collect();
        Guard::new(&allowed, Arc::new(System))
    }

    #[test]
    fn special_addresses_are_refused_and_public_ones_are_not() {
        for (why, addresses) in REFUSED {
            for address in *addresses {
                assert_eq!(refusal(address.parse().unwrap()), Some(*why), "{address}");
            }
        }
        for address in PUBLIC {
            assert_eq!(refusal(address.parse().unwrap()), None, "{address}");
        }
        assert!(REFUSED.iter().map(|(_, addresses)| addresses.len()).sum::<usize>() >= 40);
    }

    #[test]
    fn what_the_operator_allows_is_let_through_and_nothing_beside_it() {
        let guard = guard(&["10.1.0.0/16", "fd00:1::/32", "64:ff9b:1::/48"]);
        for address in ["10.1.2.3", "::ffff:10.1.2.3", "fd00:1::5", "64:ff9b:1::5", "8.8.8.8"] {
            assert_eq!(guard.check(address.parse().unwrap()), Ok(()), "{address}");
        }
        for address in ["10.2.0.1", "::ffff:10.2.0.1", "fd00:2::5", "64:ff9b::10.1.2.3", "127.0.0.1"] {
            assert!(guard.check(address.parse().unwrap()).is_err(), "{address}");
        }
    }
}
