//! The vault's arguments.

/// The vault's arguments.
#[derive(Debug, Clone, clap::Parser)]
#[command(name = "errand-vault", version, about = "Owns sources and credentials, and hands these to who may have them")]
pub struct Config {
    /// What all services take.
    #[command(flatten)]
    pub kit: errand_kit::Args,
    /// Where sources and credentials are kept: sqlite://FOLDER or postgres://USER@HOST/DATABASE.
    #[arg(long, env = "ERRAND_STORE", default_value = "sqlite://data")]
    pub store: String,
    /// What seals the secrets there.
    #[command(flatten)]
    pub master_key: errand_kit::master_key::MasterKeyArgs,
}
