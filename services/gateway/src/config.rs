//! What can be set.

use std::net::SocketAddr;
use std::path::PathBuf;

/// Serves the HTTP API.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "errand-gateway", version)]
pub struct Config {
    /// What all services take.
    #[command(flatten)]
    pub kit: errand_kit::Args,
    /// Where keys are kept: sqlite://FOLDER or postgres://USER@HOST/DATABASE.
    #[arg(long, env = "ERRAND_STORE", default_value = "sqlite://data")]
    pub store: String,
    /// Where HTTP is served; port 0: any free one.
    #[arg(long, env = "ERRAND_HTTP_LISTEN", default_value = "127.0.0.1:8080")]
    pub listen: SocketAddr,
    /// What links to files begin with: the address that people reach the gateway at. Where it listens unless given.
    #[arg(long, env = "ERRAND_PUBLIC_URL")]
    pub public_url: Option<String>,
    /// A certificate chain in PEM: HTTPS is served, and nothing else.
    #[arg(long, env = "ERRAND_TLS_CERTIFICATE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,
    /// The certificate's private key in PEM.
    #[arg(long, env = "ERRAND_TLS_KEY", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
    /// Requests of one tenant in a window; 0: any number. Each gateway counts for itself.
    #[arg(long, env = "ERRAND_RATE_LIMIT", default_value_t = 200)]
    pub rate_limit: u32,
    /// The window, in seconds.
    #[arg(long, env = "ERRAND_RATE_WINDOW_SECONDS", default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub rate_window_seconds: u64,
    /// A web origin whose pages may call the API, or `*`; may be repeated. None: no page of another origin may.
    #[arg(long = "cors-origin", env = "ERRAND_CORS_ORIGINS", value_delimiter = ',')]
    pub cors_origins: Vec<String>,
    /// Connections at the same time; those beyond wait.
    #[arg(long, env = "ERRAND_MAX_CONNECTIONS", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,
    /// Live streams and waits at the same time.
    #[arg(long, env = "ERRAND_MAX_STREAMS", default_value_t = 4_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_streams: u32,
    /// Of these, those of one tenant.
    #[arg(long, env = "ERRAND_MAX_TENANT_STREAMS", default_value_t = 2_000, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_tenant_streams: u32,
    /// How long a service may take to answer, in milliseconds.
    #[arg(long, env = "ERRAND_DEADLINE_MS", default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    pub deadline_ms: u64,
    /// How long a client may take to send a request's head or body, or to take a part of an answer, in milliseconds.
    #[arg(long, env = "ERRAND_CLIENT_TIMEOUT_MS", default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(10..=600_000))]
    pub client_timeout_ms: u64,
    /// After how long a silent live stream says that it is there, in milliseconds.
    #[arg(long, env = "ERRAND_KEEP_ALIVE_MS", default_value_t = 15_000, value_parser = clap::value_parser!(u64).range(10..=600_000))]
    pub keep_alive_ms: u64,
}
