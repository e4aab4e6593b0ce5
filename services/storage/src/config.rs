//! The storage's arguments.

use std::path::PathBuf;
use std::time::Duration;

use errand_core::limits::MAX_SECONDS;

/// The storage's arguments.
#[derive(Debug, Clone, clap::Parser)]
#[command(
    name = "errand-storage",
    version,
    about = "Owns files: takes what runs capture, keeps it, gives it to readers"
)]
pub struct Config {
    /// What all services take.
    #[command(flatten)]
    pub kit: errand_kit::Args,
    /// Where it is written down what there is: sqlite://FOLDER or postgres://USER@HOST/DATABASE.
    #[arg(long, env = "ERRAND_STORE", default_value = "sqlite://data")]
    pub store: String,
    /// Where the bytes are: file://FOLDER or s3://BUCKET[/PREFIX]. A bucket's keys, region and so on are taken from the
    /// environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION ...) or from the machine's role.
    #[arg(long, env = "ERRAND_FILES", default_value = "file://data/files")]
    pub files: String,
    /// Another S3 than Amazon's: its address.
    #[arg(long, env = "ERRAND_S3_ENDPOINT")]
    pub s3_endpoint: Option<String>,
    /// The bucket's region.
    #[arg(long, env = "ERRAND_S3_REGION")]
    pub s3_region: Option<String>,
    /// Where uploads are gathered; the system's folder for temporary files unless given. They leave nothing behind.
    #[arg(long, env = "ERRAND_STORAGE_STAGING")]
    pub staging: Option<PathBuf>,
    /// What one file may hold, in bytes.
    #[arg(long, env = "ERRAND_MAX_FILE_BYTES", default_value_t = 100 * 1024 * 1024,
          value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    pub max_file_bytes: u64,
    /// Files of one run.
    #[arg(long, env = "ERRAND_MAX_RUN_FILES", default_value_t = 1000,
          value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_run_files: u32,
    /// What the files of one run may hold together, in bytes.
    #[arg(long, env = "ERRAND_MAX_RUN_BYTES", default_value_t = 1024 * 1024 * 1024,
          value_parser = clap::value_parser!(u64).range(1..=1 << 44))]
    pub max_run_bytes: u64,
    /// Uploads that may be under way at once.
    #[arg(long, env = "ERRAND_MAX_UPLOADS", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_uploads: u32,
    /// After how many days files are deleted; 0: never.
    #[arg(long, env = "ERRAND_FILE_RETENTION_DAYS", default_value_t = 30)]
    pub retention_days: u32,
    /// After how long a file whose keeping broke off is swept.
    #[arg(long, env = "ERRAND_STORAGE_ABANDONED_SECONDS", default_value_t = 3600,
          value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub abandoned_seconds: u32,
    /// How often it is looked for what is to be deleted.
    #[arg(long, env = "ERRAND_STORAGE_SWEEP_SECONDS", default_value_t = 60,
          value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub sweep_seconds: u32,
    /// The key that download links are signed with: at least 32 characters, the same for all instances. Links made with
    /// another one are refused.
    #[arg(long, env = "ERRAND_STORAGE_LINK_KEY", hide_env_values = true)]
    pub link_key: Option<String>,
    /// A file that holds that key; made where it is missing. Read where no key is given.
    #[arg(long, env = "ERRAND_STORAGE_LINK_KEY_FILE", default_value = "data/storage-link.key")]
    pub link_key_file: PathBuf,
    /// How long a download link is good for, unless its asker says otherwise.
    #[arg(long, env = "ERRAND_STORAGE_LINK_SECONDS", default_value_t = 900,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_SECONDS)))]
    pub link_seconds: u32,
    /// The binary that reads files: one whose main calls `extract_main`; this one unless given.
    #[arg(skip)]
    pub extractor: Option<PathBuf>,
}

impl Config {
    /// How long files are kept; none: for ever.
    #[must_use]
    pub fn retention(&self) -> Option<Duration> {
        (self.retention_days > 0).then(|| Duration::from_secs(u64::from(self.retention_days) * 24 * 3600))
    }
}
