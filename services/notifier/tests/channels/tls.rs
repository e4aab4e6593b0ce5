//! Webhooks over TLS.

use std::sync::Arc;

use errand_notifier::channel::{Outside, OutsideArgs, OutsideError};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::helper::{message, open};
use crate::keys::{file, outside};

/// Answers one request after another with 200.
async fn serve(listener: TcpListener) {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let certificate = CertificateDer::from_pem_file(file("cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(file("key.pem")).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let config = config.with_no_client_auth().with_single_cert(vec![certificate], key).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        // One that does not trust us hangs up.
        let Ok(mut stream) = acceptor.accept(stream).await else { continue };
        let mut seen = Vec::new();
        while !String::from_utf8_lossy(&seen).contains("task_run.completed") {
            assert_ne!(stream.read_buf(&mut seen).await.unwrap(), 0);
        }
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
        let _ = stream.shutdown().await;
    }
}

#[tokio::test]
async fn certificates_are_checked_against_the_name() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(serve(listener));
    let send = async |trusts, host: &str| {
        let url = format!("https://{host}:{port}/");
        open("webhook", &json!({"url": url}), &outside(trusts)).send(&message()).await
    };
    assert_eq!(send(true, "tls.example").await.unwrap().status_code, Some(200));
    assert_eq!(send(true, "127.0.0.1").await.unwrap().status_code, Some(200));
    for (trusts, host) in [(true, "other.example"), (false, "tls.example")] {
        let failure = send(trusts, host).await.unwrap_err();
        assert!(failure.message.contains("certificate"), "{failure:?}");
    }
}

#[test]
fn an_operators_file_without_certificates_is_an_error() {
    for name in ["key.pem", "nothing.pem"] {
        let args = OutsideArgs { ca_file: Some(file(name)), ..OutsideArgs::default() };
        let error = Outside::new(&args, None).unwrap_err();
        assert!(matches!(error, OutsideError::Roots { .. }) && error.to_string().contains(name), "{error}");
    }
}
