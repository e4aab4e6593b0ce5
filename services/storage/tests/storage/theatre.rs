//! The storage's own process, with a dispatcher that says what the test wants, and runners that the test plays.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use errand_bus::{Bus, RequestError, Service};
use errand_client::{Client, v1};
use errand_core::{RunId, StorageId, TaskId};
use errand_tests::{Role, S3, Stack, StoreKind};
use futures::TryStreamExt;
use object_store::ObjectStore;
use uuid::Uuid;

/// SQLite and a folder, or Postgres and a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Folder,
    Bucket,
}

impl Place {
    pub(crate) fn store(self) -> StoreKind {
        match self {
            Self::Folder => StoreKind::Sqlite,
            Self::Bucket => StoreKind::Postgres,
        }
    }
}

/// Runs by id: the lease that holds each, and its task.
type Runs = Arc<Mutex<HashMap<String, (u64, v1::GetHolderResponse)>>>;

pub(crate) struct Theatre {
    pub stack: Stack,
    pub bus: Bus,
    pub client: Client,
    runs: Runs,
    s3: Option<S3>,
    _dispatcher: Service,
}

pub(crate) fn sha256(bytes: &[u8]) -> Bytes {
    Bytes::copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref())
}

/// Bytes that no compression and no repetition helps.
pub(crate) fn noise(size: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ size as u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3]
    };
    (0..size).map(|_| next()).collect()
}

async fn dispatcher(bus: &Bus, runs: &Runs) -> anyhow::Result<Service> {
    let runs = Arc::clone(runs);
    let holder = move |request: v1::GetHolderRequest| {
        let runs = runs.lock().unwrap();
        let held = runs.get(&request.run_id).filter(|(token, _)| *token == request.lease_token);
        std::future::ready(Ok(held.map(|(_, answer)| answer.clone()).unwrap_or_default()))
    };
    let service = Service::builder(bus, "dispatcher", "a fake");
    Ok(service.endpoint("holder", bus.subjects().run("holder"), 64, holder).start().await?)
}

/// A file on its way.
pub(crate) struct Upload {
    pub id: StorageId,
    pub token: u64,
    pub begun: v1::BeginUploadResponse,
}

impl Theatre {
    pub(crate) async fn open(place: Place, more: &[&str]) -> anyhow::Result<Self> {
        let mut stack = Stack::new(place.store());
        let s3 = (place == Place::Bucket).then(S3::start);
        let mut args: Vec<String> = more.iter().map(ToString::to_string).collect();
        let mut env = Vec::new();
        if let Some(s3) = &s3 {
            args.extend(["--files".into(), format!("s3://{}/some/where", s3.bucket())]);
            args.extend(["--s3-endpoint".into(), s3.endpoint()]);
            env.extend(s3.environment());
        }
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        stack.start_with(Role::Storage, &args, &env);
        stack.ready().await;
        let (bus, runs) = (stack.bus().await, Runs::default());
        let dispatcher = dispatcher(&bus, &runs).await?;
        let client = Client::new(bus.clone(), "acme".parse()?);
        Ok(Self { stack, bus, client, runs, s3, _dispatcher: dispatcher })
    }

    /// A run of acme's, held by lease 1.
    pub(crate) fn run(&self, storage: v1::TaskStorage) -> RunId {
        self.run_of(TaskId::from_uuid(Uuid::now_v7()), storage)
    }

    pub(crate) fn run_of(&self, task: TaskId, storage: v1::TaskStorage) -> RunId {
        let run = RunId::from_uuid(Uuid::now_v7());
        let holder = v1::GetHolderResponse {
            holds: true,
            tenant: "acme".into(),
            task_id: task.to_string(),
            task_version: 1,
            attempt: 1,
            storage: Some(storage),
            traceparent: String::new(),
        };
        self.runs.lock().unwrap().insert(run.to_string(), (1, holder));
        run
    }

    /// Another lease holds the run now.
    pub(crate) fn lease(&self, run: RunId, token: u64) {
        self.runs.lock().unwrap().get_mut(&run.to_string()).unwrap().0 = token;
    }

    pub(crate) async fn begin(&self, run: RunId, request: v1::BeginUploadRequest) -> Result<Upload, RequestError> {
        let id = match request.artifact_id.parse() {
            Ok(id) => id,
            Err(_) => StorageId::from_uuid(Uuid::now_v7()),
        };
        let token = request.lease_token.max(1);
        let kind = if request.kind == 0 { v1::ArtifactKind::File.into() } else { request.kind };
        let request = v1::BeginUploadRequest {
            artifact_id: id.to_string(),
            run_id: run.to_string(),
            lease_token: token,
            kind,
            ..request
        };
        let begun = self.bus.request(self.bus.subjects().storage("begin"), &request).await?;
        Ok(Upload { id, token, begun })
    }

    pub(crate) async fn named(&self, run: RunId, name: &str) -> Result<Upload, RequestError> {
        self.begin(run, v1::BeginUploadRequest { name: name.into(), ..v1::BeginUploadRequest::default() }).await
    }

    pub(crate) async fn put(
        &self,
        upload: &Upload,
        offset: u64,
        data: &[u8],
    ) -> Result<v1::PutChunkResponse, RequestError> {
        let request = v1::PutChunkRequest {
            artifact_id: upload.id.to_string(),
            lease_token: upload.token,
            offset,
            data: Bytes::copy_from_slice(data),
        };
        self.bus.request(self.bus.subjects().storage_instance(&upload.begun.instance, "put"), &request).await
    }

    pub(crate) async fn finish(&self, upload: &Upload, body: &[u8]) -> Result<v1::FinishUploadResponse, RequestError> {
        let request = v1::FinishUploadRequest {
            artifact_id: upload.id.to_string(),
            lease_token: upload.token,
            size_bytes: body.len() as u64,
            sha256: sha256(body),
        };
        let subject = self.bus.subjects().storage_instance(&upload.begun.instance, "finish");
        self.bus.request_within(subject, &request, Duration::from_secs(60)).await
    }

    /// A whole file, as a runner that has no trouble sends it.
    pub(crate) async fn send(&self, upload: Upload, body: &[u8]) -> Result<v1::Artifact, RequestError> {
        let chunk = upload.begun.chunk_bytes as usize;
        for (at, data) in body.chunks(chunk).enumerate() {
            self.put(&upload, (at * chunk) as u64, data).await?;
        }
        Ok(self.finish(&upload, body).await?.artifact.unwrap())
    }

    pub(crate) async fn capture(&self, run: RunId, name: &str, body: &[u8]) -> anyhow::Result<v1::Artifact> {
        Ok(self.send(self.named(run, name).await?, body).await?)
    }

    pub(crate) async fn content(&self, id: &str) -> anyhow::Result<Vec<u8>> {
        let chunks: Vec<Bytes> = self.client.content(id.parse()?, 0).try_collect().await?;
        Ok(chunks.concat())
    }

    pub(crate) async fn list(&self, run: RunId) -> anyhow::Result<Vec<v1::Artifact>> {
        Ok(self.client.artifacts(run, Vec::new()).try_collect().await?)
    }

    /// How many objects there are where the bytes are; in a folder files of any kind, half written ones too.
    pub(crate) async fn objects(&self) -> usize {
        let Some(s3) = &self.s3 else { return files_below(&self.stack.folder().join("files")) };
        let builder = object_store::aws::AmazonS3Builder::new().with_bucket_name(s3.bucket());
        let builder = builder.with_endpoint(s3.endpoint()).with_allow_http(true).with_region("us-east-1");
        let _ = rustls::crypto::ring::default_provider().install_default();
        let store = builder.with_access_key_id("tests").with_secret_access_key("tests").build().unwrap();
        store.list(None).try_collect::<Vec<_>>().await.unwrap().len()
    }
}

fn files_below(folder: &Path) -> usize {
    // A file may go while we look.
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| if entry.path().is_dir() { files_below(&entry.path()) } else { 1 }).sum()
}

/// `type/code` of a refusal.
pub(crate) fn refusal<T>(answer: Result<T, RequestError>) -> String {
    match answer {
        Err(RequestError::Service(error)) => format!("{}/{}", error.code.kind, error.code.code),
        Err(error) => panic!("no refusal: {error}"),
        Ok(_) => panic!("it was not refused"),
    }
}
