//! A hundred malformed messages on each subject, while runs go on.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, ensure};
use async_nats::{HeaderMap, Message, Request};
use bytes::Bytes;
use errand_core::ErrorCode;
use errand_proto::v1;
use futures::{StreamExt, TryStreamExt};
use prost::Message as _;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::subjects::{self, dead};
use crate::world::{PATIENCE, World};

/// Messages on each subject; every other one cannot be decoded, whatever it is taken for.
const CASES: usize = 100;
/// Requests under way at once.
const AT_ONCE: usize = 16;
/// An answer that takes longer counts as none.
const ANSWER: Duration = Duration::from_secs(20);

/// What cannot be decoded as any message: its first field is none.
fn undecodable(number: usize, random: &mut StdRng) -> Vec<u8> {
    let mut bytes: Vec<u8> = match number % 10 {
        // Wire types that there are not.
        0 => vec![0x0e],
        1 => vec![0x07],
        // Field 0, and a field beyond all.
        2 => vec![0x02, 0x00],
        3 => vec![0xff, 0xff, 0xff, 0xff, 0x7f],
        // A number that does not end, and one that is too large. Nothing may come behind.
        4 => return vec![0xa0, 0x06, 0xff, 0xff, 0xff],
        5 => vec![0xff; 11],
        // More bytes than there are.
        6 => return vec![0xa2, 0x06, 0xff, 0xff, 0xff, 0x7f, 0x00],
        // Groups: deeper than anybody reads, one that does not end, one that does not begin.
        7 => return [0xa3, 0x06].repeat(5_000),
        8 => return vec![0xa3, 0x06, 0xa0, 0x06, 0x01],
        _ => vec![0xa4, 0x06],
    };
    let more = random.random_range(0..4_000);
    bytes.extend((0..more).map(|_| random.random::<u8>()));
    bytes
}

/// Texts that something may come of, and must not.
fn text(random: &mut StdRng) -> Vec<u8> {
    const TEXTS: [&str; 22] = [
        "",
        "acme",
        "_system",
        "a.b",
        "*",
        ">",
        "name:",
        "name:scripted",
        "../../etc/passwd",
        "trun_01h455vb4pex5vsknk084sn02q",
        "trun_7zzzzzzzzzzzzzzzzzzzzzzzzz",
        "trun_8zzzzzzzzzzzzzzzzzzzzzzzzz",
        "sess_01h455vb4pex5vsknk084sn02q",
        "task_00000000000000000000000000",
        "rnr_01h455vb4pex5vsknk084sn02q",
        "agt_nobody",
        "\0",
        "\u{202e}\u{feff}",
        "{\"a\":1e999}",
        "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "' or 1=1; --",
        "\r\nErrand: x",
    ];
    match random.random_range(0..30) {
        0 => b"[".repeat(10_000),
        1 => "é".repeat(100_000).into_bytes(),
        2 => (0..64).map(|_| random.random()).collect(),
        // A message inside.
        3 | 4 => nonsense(random, 3),
        _ => TEXTS[random.random_range(0..TEXTS.len())].as_bytes().to_vec(),
    }
}

/// Fields as they come: some of them fit, the whole makes no sense.
fn nonsense(random: &mut StdRng, most: usize) -> Vec<u8> {
    use prost::encoding::{WireType, encode_key, encode_varint};
    const NUMBERS: [u64; 10] =
        [0, 1, 2, 99, 127, u32::MAX as u64, i32::MIN as u64, i64::MAX as u64, i64::MIN as u64, u64::MAX];
    let mut bytes = Vec::new();
    for _ in 0..random.random_range(0..=most) {
        let field = random.random_range(1..16);
        if random.random_bool(0.7) {
            let text = text(random);
            encode_key(field, WireType::LengthDelimited, &mut bytes);
            encode_varint(text.len() as u64, &mut bytes);
            bytes.extend(text);
        } else {
            encode_key(field, WireType::Varint, &mut bytes);
            encode_varint(NUMBERS[random.random_range(0..NUMBERS.len())], &mut bytes);
        }
    }
    bytes
}

/// One of the hundred, and whether it must be refused.
fn case(number: usize, random: &mut StdRng) -> (Bytes, bool) {
    if number.is_multiple_of(2) {
        (undecodable(number / 2, random).into(), true)
    } else {
        (nonsense(random, 8).into(), false)
    }
}

fn headers(random: &mut StdRng) -> HeaderMap {
    let mut headers = HeaderMap::new();
    for name in ["traceparent", "tracestate", "Nats-Expected-Stream", "Errand-Event-Id"] {
        let printable: String = text(random).iter().take(300).map(|byte| char::from(b'!' + byte % 90)).collect();
        headers.insert(name, printable.as_str());
    }
    headers
}

/// What an answer with an error must be.
fn is_error(answer: &Message) -> anyhow::Result<bool> {
    let Some(said) = answer.headers.as_ref().and_then(|headers| headers.get("Nats-Service-Error")) else {
        return Ok(false);
    };
    let error = v1::Error::decode(answer.payload.clone())?;
    let known = ErrorCode::find(&error.r#type, &error.code).with_context(|| format!("{error:?} is in no catalogue"))?;
    ensure!(said.as_str() == known.code, "{said} in the header, {error:?} in the body");
    ensure!(!error.message.is_empty() && error.message.len() < 8 * 1024, "{} bytes of message", error.message.len());
    Ok(true)
}

/// A hundred requests to a method: how many were refused.
async fn ask(world: &World, method: &str, seed: u64) -> anyhow::Result<usize> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut cases = Vec::new();
    for number in 0..CASES {
        let (payload, refused) = case(number, &mut random);
        let request = Request::new().payload(payload).headers(headers(&mut random)).timeout(Some(ANSWER));
        cases.push((number, request, refused));
    }
    let asked = futures::stream::iter(cases).map(|(number, request, refused)| async move {
        let answer = world.nats.send_request(method.to_owned(), request).await;
        let what = || format!("case {number} of {method}");
        let error = is_error(&answer.with_context(what)?).with_context(what)?;
        ensure!(error || !refused, "{} was taken", what());
        anyhow::Ok(usize::from(error))
    });
    asked.buffer_unordered(AT_ONCE).try_fold(0, |sum, one| std::future::ready(Ok(sum + one))).await
}

/// Messages to a subject that nobody answers on, or whose answers nobody waits for.
async fn tell(world: &World, subject: &str, seed: u64, count: usize) -> anyhow::Result<()> {
    let mut random = StdRng::seed_from_u64(seed);
    for number in 0..count {
        let headers = headers(&mut random);
        world.nats.publish_with_headers(subject.to_owned(), headers, case(number, &mut random).0).await?;
    }
    Ok(())
}

/// A hundred messages into a stream, each with the broker's yes.
async fn store(world: &World, subject: &str, seed: u64) -> anyhow::Result<()> {
    let stream = async_nats::jetstream::new(world.nats.clone());
    let mut random = StdRng::seed_from_u64(seed);
    let payloads: Vec<Bytes> = (0..CASES).map(|number| case(number, &mut random).0).collect();
    let published = futures::stream::iter(payloads).map(|payload| async {
        stream.publish(subject.to_owned(), payload).await?.await?;
        anyhow::Ok(())
    });
    published.buffer_unordered(AT_ONCE).try_collect().await
}

/// As large as the broker takes: each is refused, too, and what is kept of it has to fit into a message again.
async fn largest(world: &World, methods: &[&String]) -> anyhow::Result<()> {
    let largest: Bytes = vec![0x0e; world.nats.server_info().max_payload].into();
    for method in methods {
        let request = Request::new().payload(largest.clone()).timeout(Some(ANSWER));
        let answer = world.nats.send_request((*method).clone(), request).await.with_context(|| (*method).clone())?;
        ensure!(is_error(&answer)?, "{method} took a message that cannot be read");
    }
    let stream = async_nats::jetstream::new(world.nats.clone());
    for subject in ["submit.acme", "event.acme.task_run.queued.whoever"] {
        stream.publish(format!("{}.{subject}", world.stack.prefix()), largest.clone()).await?.await?;
    }
    Ok(())
}

/// A hundred times no HTTP: each is refused, or the connection is closed.
async fn knock(world: &World) -> anyhow::Result<()> {
    const HEADS: [&str; 8] = [
        "GET / HTTP/9.9\r\n\r\n",
        "POST /v2/tasks HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        "POST /v2/tasks HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        "POST /v2/tasks HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nffffffffffffffffff\r\n",
        "GET /v2/%00%ff?limit=%zz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
        "GET /v2/task-runs HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer \u{1}\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "\u{16}\u{3}\u{1}\u{2}\0\u{1}\0\u{1}",
    ];
    let mut random = StdRng::seed_from_u64(7);
    for number in 0..CASES {
        let mut connection = TcpStream::connect(("127.0.0.1", world.http)).await?;
        let junk: Vec<u8> = (0..random.random_range(1..2_000)).map(|_| random.random()).collect();
        let head = HEADS.get(number % (HEADS.len() + 4)).map_or(junk, |head| head.as_bytes().to_vec());
        // What is refused early may be closed before all of it was sent.
        let _ = connection.write_all(&head).await;
        let _ = connection.shutdown().await;
        let mut answer = Vec::new();
        let read = tokio::time::timeout(PATIENCE, connection.read_to_end(&mut answer)).await;
        let _ = read.with_context(|| format!("case {number} over HTTP was left waiting"))?;
        let text = String::from_utf8_lossy(&answer);
        ensure!(!text.starts_with("HTTP/1.1 2") && !text.starts_with("HTTP/1.1 5"), "case {number}: {text}");
    }
    Ok(())
}

async fn attack(world: &World) -> anyhow::Result<()> {
    let methods = subjects::methods(world).await?;
    let names: BTreeSet<&str> = methods.keys().map(String::as_str).collect();
    let wanted =
        ["dispatcher", "errand-runner", "gateway", "notifier", "session-pool", "storage", "timeout-watcher", "vault"];
    ensure!(names == BTreeSet::from(wanted), "those that serve are {names:?}");
    let told = subjects::told(world, &methods).await?;
    let all: Vec<&String> = methods.values().flatten().collect();
    println!("{} methods; told without an answer: {told:?}", all.len());
    let refused = futures::stream::iter(all.iter().enumerate()).map(|(seed, method)| async move {
        // Nobody waits for these answers.
        tell(world, method, 1_000 + seed as u64, CASES / 10).await?;
        ask(world, method, seed as u64).await
    });
    let refused = refused.buffer_unordered(8).try_fold(0, |sum, one| std::future::ready(Ok(sum + one))).await?;
    println!("{refused} of {} requests were refused", all.len() * CASES);
    for (seed, subject) in told.iter().enumerate() {
        tell(world, subject, 2_000 + seed as u64, CASES).await?;
    }
    let prefix = world.stack.prefix();
    store(world, &format!("{prefix}.submit.acme"), 3_000).await?;
    store(world, &format!("{prefix}.submit._system"), 3_001).await?;
    store(world, &format!("{prefix}.event.acme.task_run.queued.whoever"), 3_002).await?;
    store(world, &format!("{prefix}.event.whatever"), 3_003).await?;
    largest(world, &all).await?;
    knock(world).await?;
    dead(world, "submit", 2 * CASES + 1).await;
    dead(world, "notifier", 2 * CASES + 1).await;
    // Of each method half of what was asked and told, and the largest.
    dead(world, "request", all.len() * (CASES / 2 + CASES / 20 + 1)).await;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_malformed_messages_on_each_subject_harm_nobody() -> anyhow::Result<()> {
    let mut world = World::start().await?;
    let pids = world.pids();
    let stop = CancellationToken::new();
    let attacking = async {
        let attacked = attack(&world).await;
        stop.cancel();
        attacked
    };
    let (attacked, good) = tokio::join!(attacking, world.good_runs(&stop));
    attacked?;
    let good = good?;
    println!("{good} runs completed meanwhile; dead letters: {:?}", subjects::dead_letters(&world).await?);
    assert!(good > 0);
    world.good_run(0).await?;
    assert_eq!(world.pids(), pids);
    world.all_live()
}
