use std::time::{Duration, Instant};

use errand_tests::StoreKind;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::common::world::task;
use crate::common::{Api, World};

const PATIENCE: Duration = Duration::from_secs(30);

fn world() -> &'static World {
    World::of(StoreKind::Sqlite)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_has_so_many_requests_and_no_more() {
    let gateway = world().gateway(&["--rate-limit", "5", "--rate-window-seconds", "600"]);
    let api = Api { address: gateway.address, ..world().api().await };
    for _ in 0..5 {
        api.get("/v2/task-runs").await.expect(200);
    }
    let answer = api.get("/v2/task-runs").await;
    let wait: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=120).contains(&wait), "{wait}");
    answer.refuses(429, "rate_limit_exceeded");
    let other = Api { address: gateway.address, ..world().api().await };
    other.get("/v2/task-runs").await.expect(200);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_there_says_so_in_the_same_form() {
    let api = world().api().await;
    for path in ["/", "/v2", "/v2/colours", "/v2/task-runs/", "/v3/tasks", "/v2/tasks/x/y/z", "/docs/passwd"] {
        api.get(path).await.refuses(404, "route_not_found");
    }
    for path in ["/v2/tasks/x", "/v2/tasks/trun_01h455vb4pex5vsknk084sn02q", "/v2/tasks/%ff"] {
        assert_eq!(api.get(path).await.status, 404, "{path}");
    }
    let answer = api.send("PUT", "/v2/task-runs", &[], Some("{}".into())).await;
    assert!(answer.headers["allow"].to_str().unwrap().contains("GET"));
    answer.refuses(405, "method_not_allowed");
    // Without a key, too.
    api.with("").send("DELETE", "/v2/task-runs", &[], None).await.refuses(405, "method_not_allowed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_have_limits() {
    let api = world().api().await;
    let task = task(&api, json!({})).await;
    let path = format!("/v2/tasks/{task}/run");
    let large = format!(r#"{{"input":"{}"}}"#, "x".repeat(1024 * 1024));
    api.send("POST", &path, &[], Some(large.into())).await.refuses(413, "body_too_large");
    let input = format!(r#"{{"input":"{}"}}"#, "x".repeat(600 * 1024));
    api.send("POST", &path, &[], Some(input.into())).await.refuses(413, "body_too_large");
    let deep = format!(r#"{{"input":{}1{}}}"#, "[".repeat(5000), "]".repeat(5000));
    api.send("POST", &path, &[], Some(deep.into())).await.refuses(400, "body_invalid");
    let just = format!(r#"{{"input":{}1{}}}"#, "[".repeat(60), "]".repeat(60));
    api.send("POST", &path, &[], Some(just.into())).await.expect(201);
}

async fn raw(api: &Api, text: &str) -> String {
    let mut stream = TcpStream::connect(api.address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // Whoever sends too much may see the connection cut.
    drop(tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.expect("the connection ends"));
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_have_limits_and_slow_clients_are_let_go() {
    let gateway = world().gateway(&["--client-timeout-ms", "400"]);
    let api = Api { address: gateway.address, ..world().api().await };
    let headers = |count: usize| (0..count).map(|number| format!("x-{number}: y\r\n")).collect::<String>();
    let head = "GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n";
    let answer = raw(&api, &format!("{head}{}\r\n", headers(70))).await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("64 headers"), "{answer}");
    let answer = raw(&api, &format!("{head}{}\r\n", headers(500))).await;
    assert!(answer.starts_with("HTTP/1.1 431"), "{answer}");
    let long = |kibibytes: usize| "x".repeat(kibibytes * 1024);
    let answer = raw(&api, &format!("{head}x: {}\r\n\r\n", long(20))).await;
    assert!(answer.starts_with("HTTP/1.1 400") && answer.contains("64 headers"), "{answer}");
    let answer = raw(&api, &format!("{head}x: {}\r\n\r\n", long(1024))).await;
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
    let started = Instant::now();
    // A head that never ends, and a connection that says nothing.
    let (slow, silent) = tokio::join!(raw(&api, "GET /healthz HTTP/1.1\r\nhost:"), raw(&api, ""));
    assert!(silent.is_empty() && !slow.contains("200"), "{slow}");
    let key = &api.key;
    let head = format!("POST /v2/tasks HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\ncontent-length: 100\r\n");
    let answer = raw(&api, &format!("{head}connection: close\r\n\r\n{{\"name\":")).await;
    assert!(answer.contains(" 400 ") && answer.contains("body_invalid"), "{answer}");
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_beyond_the_limit_wait() {
    let gateway = world().gateway(&["--max-connections", "1", "--client-timeout-ms", "30000"]);
    let api = Api { address: gateway.address, key: String::new() };
    let mut held = TcpStream::connect(gateway.address).await.unwrap();
    held.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut byte = [0u8; 1];
    held.read_exact(&mut byte).await.unwrap();
    let waiting = tokio::spawn(async move { api.get("/healthz").await.status });
    assert!(!waiting.is_finished());
    drop(held);
    assert_eq!(waiting.await.unwrap(), 200);
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn browsers_are_told_to_be_careful() {
    let api = world().api().await;
    let plain = api.send("GET", "/v2/task-runs", &[("origin", "https://a.example")], None).await;
    assert!(!plain.headers.contains_key("access-control-allow-origin"));
    for (header, value) in [
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("cache-control", "no-store"),
        ("content-type", "application/json"),
    ] {
        assert_eq!(plain.headers[header], value);
    }
    let gateway = world().gateway(&["--cors-origin", "https://a.example"]);
    let api = Api { address: gateway.address, ..api };
    let ask = [("origin", "https://a.example"), ("access-control-request-method", "POST")];
    let preflight = api.with("").send("OPTIONS", "/v2/tasks", &ask, None).await;
    assert_eq!(
        (preflight.status, &preflight.headers["access-control-allow-origin"]),
        (204, &ask[0].1.parse().unwrap())
    );
    let answer = api.send("GET", "/v2/tasks", &ask[..1], None).await;
    assert_eq!(answer.headers["access-control-allow-origin"], ask[0].1);
    let stranger = api.send("GET", "/v2/tasks", &[("origin", "https://b.example")], None).await;
    assert!(!stranger.headers.contains_key("access-control-allow-origin"));
    gateway.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_page_to_try_it_comes_from_here() {
    let api = Api { address: world().address(), key: String::new() };
    assert_eq!(api.get("/docs").await.status, 308);
    let page = api.get("/docs/").await;
    assert!(page.status == 200 && !page.text.contains("://"), "{}", page.text);
    for name in page.text.split('"').filter(|text| text.ends_with(".js") || text.ends_with(".css")) {
        let file = api.get(&format!("/docs/{name}")).await;
        assert!(file.status == 200 && !file.text.is_empty(), "{name}");
    }
    let document = api.get("/v2/openapi.json").await.expect(200);
    assert_eq!(document["openapi"], "3.1.0");
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            for status in ["401", "404", "429", "503"] {
                assert!(operation["responses"][status].is_object(), "{method} {path} {status}");
            }
        }
    }
    assert_eq!((api.get("/healthz").await.status, api.get("/readyz").await.status), (200, 200));
    let metrics = api.get("/metrics").await.text;
    assert!(metrics.contains("errand_gateway_requests_total"), "{metrics}");
}

/// The certificate is for `localhost`, and nobody's but this test's.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_with_a_certificate_speaks_tls_alone() {
    use errand_gateway::tls;
    use tokio_rustls::rustls::pki_types::pem::PemObject;
    let folder = errand_tests::folder("tls");
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&certificate, include_str!("localhost.pem")).unwrap();
    std::fs::write(&key, include_str!("localhost.key")).unwrap();
    assert!(tls::acceptor(&key, &certificate).is_err());
    let paths = [certificate.to_str().unwrap(), key.to_str().unwrap()];
    let gateway = world().gateway(&["--tls-certificate", paths[0], "--tls-key", paths[1]]);
    let provider = std::sync::Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
    let mut roots = tokio_rustls::rustls::RootCertStore::empty();
    roots.add(tokio_rustls::rustls::pki_types::CertificateDer::from_pem_file(&certificate).unwrap()).unwrap();
    let client = tokio_rustls::rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(client));
    let stream = TcpStream::connect(gateway.address).await.unwrap();
    let mut stream = connector.connect("localhost".try_into().unwrap(), stream).await.unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("strict-transport-security"), "{answer}");
    let plain = raw(&Api { address: gateway.address, key: String::new() }, "GET / HTTP/1.1\r\n\r\n").await;
    assert!(!plain.contains("HTTP/1.1"), "{plain}");
    gateway.stop().await;
}
