use std::time::Duration;

use errand_client::{ClientError, v1};
use errand_core::{RunId, StorageId, TaskId};
use errand_tests::{Role, Signal, eventually};
use futures::StreamExt;
use futures::future::join_all;
use nix::sys::signal::kill;
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::on_both;
use crate::theatre::{Place, Theatre, noise, refusal, sha256};

const PATIENCE: Duration = Duration::from_secs(60);

on_both! {
    a_file_comes_and_goes
    what_is_said_twice_or_out_of_order_does_no_harm
    who_has_lost_the_run_keeps_nothing
    limits_are_said_by_name
    equal_files_of_a_task_share_their_bytes
    a_killed_storage_loses_nothing_that_it_said_it_had
}

fn code(error: &ClientError) -> &'static str {
    error.to_error().code.code
}

async fn a_file_comes_and_goes(place: Place) -> anyhow::Result<()> {
    let theatre = Theatre::open(place, &[]).await?;
    let mut events = theatre.bus.subscribe(theatre.bus.subjects().events_of(None)).await?;
    let run = theatre.run(v1::TaskStorage::default());
    for size in [0usize, 10, 3 << 20, 20 << 20] {
        let body = noise(size);
        let artifact = theatre.capture(run, "../bills/june.bin", &body).await?;
        assert_eq!((artifact.size_bytes, &artifact.sha256), (size as u64, &sha256(&body)));
        assert!(theatre.content(&artifact.id).await? == body, "{size}");
        let event = tokio::time::timeout(PATIENCE, events.next()).await?.unwrap();
        let event = <v1::Event as prost::Message>::decode(event.payload)?;
        assert_eq!((event.r#type.as_str(), &event.object_id, event.seq), ("storage.created", &artifact.id, 1));
    }
    let all = theatre.list(run).await?;
    let names: Vec<&str> = all.iter().map(|artifact| artifact.name.as_str()).collect();
    assert_eq!(names, ["june (4).bin", "june (3).bin", "june (2).bin", "june.bin"], "newest first, each its own");
    // Ranges, as a gateway reads them.
    let (large, body): (StorageId, _) = (all[0].id.parse()?, noise(20 << 20));
    assert_eq!(theatre.client.read_artifact(large, 7_000_001, 1000).await?, body[7_000_001..7_001_001]);
    assert!(theatre.client.read_artifact(large, 20 << 20, 1000).await?.is_empty());
    // Links.
    let (_, token) = theatre.client.get_artifact(large).await?;
    assert_eq!(theatre.client.open_artifact(large, token.clone()).await?.tenant, "acme");
    let late = v1::ContentToken { expires: token.expires + 1, ..token.clone() };
    assert_eq!(code(&theatre.client.open_artifact(large, late).await.unwrap_err()), "forbidden");
    let other = theatre.client.open_artifact(all[1].id.parse()?, token).await;
    assert_eq!(code(&other.unwrap_err()), "forbidden");
    // Another tenant's.
    let blue = theatre.client.for_tenant("blue".parse()?);
    assert_eq!(code(&blue.get_artifact(large).await.unwrap_err()), "storage_not_found");
    assert_eq!(code(&blue.read_artifact(large, 0, 0).await.unwrap_err()), "storage_not_found");
    assert_eq!(code(&blue.delete_artifact(large).await.unwrap_err()), "storage_not_found");
    assert_eq!(theatre.objects().await, 4);
    theatre.client.delete_artifact(large).await?;
    assert_eq!(code(&theatre.client.get_artifact(large).await.unwrap_err()), "storage_not_found");
    assert_eq!((theatre.objects().await, theatre.list(run).await?.len()), (3, 3));
    Ok(())
}

async fn what_is_said_twice_or_out_of_order_does_no_harm(place: Place) -> anyhow::Result<()> {
    let theatre = Theatre::open(place, &[]).await?;
    let run = theatre.run(v1::TaskStorage::default());
    let body = noise(100_000);
    let upload = theatre.named(run, "a").await?;
    assert_eq!(theatre.put(&upload, 0, &body[..40_000]).await?.received, 40_000);
    assert_eq!(theatre.put(&upload, 0, &body[..40_000]).await?.received, 40_000, "again");
    assert_eq!(theatre.put(&upload, 30_000, &body[30_000..50_000]).await?.received, 50_000, "half of it again");
    assert_eq!(theatre.put(&upload, 90_000, &body[90_000..]).await?.received, 50_000, "behind a gap");
    let request = v1::BeginUploadRequest { artifact_id: upload.id.to_string(), name: "a".into(), ..Default::default() };
    assert_eq!(theatre.begin(run, request.clone()).await?.begun.received, 50_000, "it goes on");
    assert!(theatre.finish(&upload, &body).await?.unknown, "it is not whole: again from the start");
    let upload = theatre.begin(run, request.clone()).await?;
    assert_eq!(upload.begun.received, 0);
    theatre.put(&upload, 0, &body).await?;
    // Twice at once: one file.
    let (first, second) = tokio::join!(theatre.finish(&upload, &body), theatre.finish(&upload, &body));
    assert_eq!(first?.artifact.unwrap(), second?.artifact.unwrap());
    let done = theatre.begin(run, request.clone()).await?.begun.done.unwrap();
    assert_eq!(done.id, upload.id.to_string());
    assert_eq!((theatre.list(run).await?.len(), theatre.objects().await), (1, 1));
    let other = theatre.run(v1::TaskStorage::default());
    assert_eq!(refusal(theatre.begin(other, request).await), "request/input_invalid");
    Ok(())
}

async fn who_has_lost_the_run_keeps_nothing(place: Place) -> anyhow::Result<()> {
    let theatre = Theatre::open(place, &["--sweep-seconds", "1"]).await?;
    let run = theatre.run(v1::TaskStorage::default());
    let body = noise(1000);
    let kept = theatre.capture(run, "before", &body).await?;
    let upload = theatre.named(run, "during").await?;
    theatre.put(&upload, 0, &body).await?;
    theatre.lease(run, 2);
    assert_eq!(refusal(theatre.finish(&upload, &body).await), "request/forbidden");
    assert_eq!(refusal(theatre.named(run, "behind").await), "request/forbidden");
    let stranger = RunId::from_uuid(Uuid::now_v7());
    assert_eq!(refusal(theatre.named(stranger, "nobody's").await), "request/forbidden");
    assert_eq!(theatre.list(run).await?, [kept], "what was captured before stays");
    eventually("the bytes that nobody needs are swept", PATIENCE, async || {
        (theatre.objects().await == 1).then_some(())
    })
    .await;
    let disabled = theatre.run(v1::TaskStorage { enabled: Some(false), ..v1::TaskStorage::default() });
    assert!(theatre.named(disabled, "a").await?.begun.ignored);
    Ok(())
}

async fn limits_are_said_by_name(place: Place) -> anyhow::Result<()> {
    let limits = ["--max-file-bytes", "1000", "--max-run-files", "3", "--max-run-bytes", "2500", "--max-uploads", "20"];
    let theatre = Theatre::open(place, &limits).await?;
    let run = theatre.run(v1::TaskStorage::default());
    let declared = v1::BeginUploadRequest { size_bytes: Some(1001), ..v1::BeginUploadRequest::default() };
    assert_eq!(refusal(theatre.begin(run, declared).await), "storage/file_too_large");
    let upload = theatre.named(run, "a").await?;
    assert_eq!(refusal(theatre.put(&upload, 0, &noise(1001)).await), "storage/file_too_large");
    theatre.capture(run, "a", &noise(1000)).await?;
    let second = theatre.capture(run, "b", &noise(1000)).await?;
    let upload = theatre.named(run, "c").await?;
    theatre.put(&upload, 0, &noise(600)).await?;
    assert_eq!(refusal(theatre.finish(&upload, &noise(600)).await), "storage/storage_error", "2500 bytes");
    theatre.client.delete_artifact(second.id.parse()?).await?;
    theatre.capture(run, "c", &noise(10)).await?;
    theatre.capture(run, "d", &noise(10)).await?;
    let upload = theatre.named(run, "e").await?;
    theatre.put(&upload, 0, b"x").await?;
    assert_eq!(refusal(theatre.finish(&upload, b"x").await), "storage/storage_error", "3 files");
    let other = theatre.run(v1::TaskStorage::default());
    let begun = join_all((0..16).map(|_| theatre.named(other, "many"))).await;
    assert!(begun.iter().all(Result::is_ok));
    assert_eq!(refusal(theatre.named(other, "one more").await), "api/unavailable", "16 of one run at once");
    Ok(())
}

async fn equal_files_of_a_task_share_their_bytes(place: Place) -> anyhow::Result<()> {
    let theatre = Theatre::open(place, &["--sweep-seconds", "1"]).await?;
    let (task, body) = (TaskId::from_uuid(Uuid::now_v7()), noise(5000));
    let storage = v1::TaskStorage { deduplication: true, ..v1::TaskStorage::default() };
    let runs: Vec<_> = (0..6).map(|_| theatre.run_of(task, storage.clone())).collect();
    let kept = join_all(runs.iter().map(|run| theatre.capture(*run, "same.bin", &body))).await;
    let kept = kept.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let one_object = async |wanted: usize| {
        eventually("the objects are as many as they must be", PATIENCE, async || {
            (theatre.objects().await == wanted).then_some(())
        })
        .await;
    };
    one_object(1).await;
    // Another task's, and one without deduplication, have their own.
    let other = theatre.capture(theatre.run(storage), "same.bin", &body).await?;
    let own = theatre.capture(theatre.run_of(task, v1::TaskStorage::default()), "same.bin", &body).await?;
    one_object(3).await;
    for artifact in &kept[1..] {
        theatre.client.delete_artifact(artifact.id.parse()?).await?;
    }
    assert!(theatre.content(&kept[0].id).await? == body, "the others' deletion takes nothing from it");
    theatre.client.delete_artifact(kept[0].id.parse()?).await?;
    one_object(2).await;
    assert!(theatre.content(&other.id).await? == body && theatre.content(&own.id).await? == body);
    Ok(())
}

/// Every file that was answered as kept is there with its bytes, and in the end nothing else.
async fn a_killed_storage_loses_nothing_that_it_said_it_had(place: Place) -> anyhow::Result<()> {
    let mut theatre = Theatre::open(place, &["--sweep-seconds", "1", "--abandoned-seconds", "5"]).await?;
    let run = theatre.run(v1::TaskStorage::default());
    let mut kept = Vec::new();
    for round in 0..5 {
        let bodies: Vec<Vec<u8>> = (0..8).map(|at| noise(200_000 + at * 131_071)).collect();
        let pid = theatre.stack.service(Role::Storage).process().pid();
        let (killed, wanted) = (CancellationToken::new(), kept.len() + 5 - round);
        let uploads = bodies.iter().map(|body| killed.run_until_cancelled(theatre.capture(run, "file.bin", body)));
        let (answers, ()) = tokio::join!(join_all(uploads), kill_when(&theatre, run, wanted, pid, &killed));
        for (answer, body) in answers.into_iter().zip(&bodies) {
            if let Some(Ok(artifact)) = answer {
                kept.push((artifact, body.clone()));
            }
        }
        theatre.stack.service(Role::Storage).restart();
        theatre.stack.ready().await;
    }
    let listed = theatre.list(run).await?;
    for (artifact, body) in &kept {
        assert!(listed.contains(artifact), "{} was kept, and is gone", artifact.id);
        assert!(theatre.content(&artifact.id).await? == *body, "{} is not what it was", artifact.id);
    }
    for artifact in &listed {
        assert_eq!(sha256(&theatre.content(&artifact.id).await?), artifact.sha256, "{}", artifact.id);
    }
    eventually("what broke off is swept", PATIENCE, async || (theatre.objects().await == listed.len()).then_some(()))
        .await;
    Ok(())
}

/// Kills the process when so many of the run's files are kept, the others in the middle of it.
async fn kill_when(theatre: &Theatre, run: RunId, wanted: usize, pid: u32, killed: &CancellationToken) {
    eventually("some files are kept", PATIENCE, async || {
        let listed = theatre.list(run).await.ok()?;
        (listed.len() >= wanted).then_some(())
    })
    .await;
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
    killed.cancel();
}

const SCHEMA: &str = r#"{"type": "object", "properties": {"rows": {"type": "array"}}, "required": ["rows"]}"#;

/// Files that other programs wrote (openpyxl, reportlab).
const XLSX: &[u8] = include_bytes!("../files/bills.xlsx");
const PDF: &[u8] = include_bytes!("../files/bill.pdf");

/// What extractors make of files, and that hostile ones harm nothing.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_is_extracted_checked_and_bounded() -> anyhow::Result<()> {
    let theatre = Theatre::open(Place::Folder, &[]).await?;
    let on = v1::TaskStorage { extraction: true, ..v1::TaskStorage::default() };
    let checked = v1::TaskStorage { extraction_schema: SCHEMA.into(), ..on.clone() };
    let data =
        |artifact: &v1::Artifact| -> Value { serde_json::from_slice(artifact.data.as_deref().unwrap()).unwrap() };
    let csv = b"number,amount\nBW-1,71.22\n";
    let run = theatre.run(checked.clone());
    let artifact = theatre.capture(run, "bills.csv", csv).await?;
    assert_eq!((artifact.mime_type.as_str(), artifact.errors.len()), ("text/csv", 0));
    assert_eq!(data(&artifact), json!({"rows": [{"number": "BW-1", "amount": "71.22"}]}));
    // The agent's own data is kept as it is, and checked alike.
    for (said, fits) in [(&b"{\"rows\":[1]}"[..], true), (b"{\"rows\":\"hunter2\"}", false), (b"not JSON", false)] {
        let request = v1::BeginUploadRequest { data: Some(said.into()), name: "a.bin".into(), ..Default::default() };
        let artifact = theatre.send(theatre.begin(run, request).await?, b"x").await?;
        assert_eq!(artifact.data.as_deref(), fits.then_some(said));
        let codes: Vec<&str> = artifact.errors.iter().map(|error| error.code.as_str()).collect();
        assert_eq!(codes, if fits { vec![] } else { vec!["extraction_failed"] });
        assert!(!format!("{:?}", artifact.errors).contains("hunter2"));
    }
    let run = theatre.run(on);
    let json = theatre.capture(run, "a.json", br#"{"total": 3}"#).await?;
    assert_eq!(data(&json), json!({"total": 3}));
    let xlsx = theatre.capture(run, "bills", XLSX).await?;
    let sheets = json!([
        {"name": "Bills", "rows": [
            {"Number": "BW-1", "Amount": 71.22, "Issued": "2026-05-01", "Paid": true},
            {"Number": "BW-2", "Amount": 7, "Issued": "2026-06-01T10:30:00", "Paid": false, "Note": "märz"},
        ]},
        // Its only value is a formula's that no program has computed.
        {"name": "Sums", "rows": []},
    ]);
    assert_eq!(data(&xlsx), json!({"sheets": sheets}));
    let pdf = theatre.capture(run, "bill", PDF).await?;
    let fields = json!({"Bill": "BW-1", "Amount": "71.22 EUR", "Due": "2026-06-30", "Page": "2"});
    assert_eq!((pdf.mime_type.as_str(), &data(&pdf)["fields"]), ("application/pdf", &fields));
    let text = theatre.capture(run, "notes.txt", b"nothing to extract").await?;
    assert!(text.data.is_none() && text.errors.is_empty());
    let hostile: [(&str, Vec<u8>); 5] = [
        ("deep.json", "[".repeat(1_000_000).into_bytes()),
        (
            "broken.pdf",
            b"%PDF-1.7\n1 0 obj << /Type /Catalog /Pages 1 0 R >> endobj trailer << /Root 1 0 R >>".to_vec(),
        ),
        ("deep.pdf", [&b"%PDF-1.4\n1 0 obj\n"[..], "[".repeat(500_000).as_bytes()].concat()),
        ("large.csv", "a,b\n".repeat(3_000_000).into_bytes()),
        ("wide.csv", "a,".repeat(1_000_000).into_bytes()),
    ];
    for (name, file) in hostile {
        let artifact = theatre.capture(run, name, &file).await?;
        assert!(artifact.data.is_none(), "{name}");
        assert_eq!(artifact.errors[0].code, "extraction_failed", "{name}");
        assert_eq!(theatre.content(&artifact.id).await?.len(), file.len(), "{name} stays");
    }
    Ok(())
}
