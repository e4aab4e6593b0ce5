//! TLS as all channels speak it: rustls with ring, over the system's roots and the operator's own.

use std::path::Path;
use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::OutsideError;

/// What a TLS client trusts.
#[derive(Debug, Clone)]
pub(super) struct Tls {
    provider: Arc<CryptoProvider>,
    roots: Arc<RootCertStore>,
}

impl Tls {
    /// The system's roots, and those in `own`, a PEM file.
    pub(super) fn new(own: Option<&Path>) -> Result<Self, OutsideError> {
        let mut roots = RootCertStore::empty();
        let system = rustls_native_certs::load_native_certs();
        for error in &system.errors {
            tracing::warn!(%error, "some of the system's certificates cannot be read");
        }
        roots.add_parsable_certificates(system.certs);
        if let Some(file) = own {
            let bad = |what: String| OutsideError::Roots { file: file.to_owned(), what };
            let before = roots.len();
            for certificate in CertificateDer::pem_file_iter(file).map_err(|error| bad(error.to_string()))? {
                let certificate = certificate.map_err(|error| bad(error.to_string()))?;
                roots.add(certificate).map_err(|error| bad(error.to_string()))?;
            }
            if roots.len() == before {
                return Err(bad("there are none".into()));
            }
        }
        if roots.is_empty() {
            tracing::warn!("the system has no root certificates: deliveries over TLS will fail");
        }
        Ok(Self { provider: Arc::new(rustls::crypto::ring::default_provider()), roots: Arc::new(roots) })
    }

    /// For a client that connects by name.
    pub(super) fn client(&self) -> ClientConfig {
        let builder = ClientConfig::builder_with_provider(Arc::clone(&self.provider));
        let builder = builder.with_safe_default_protocol_versions().expect("ring speaks TLS 1.2 and 1.3");
        builder.with_root_certificates(Arc::clone(&self.roots)).with_no_client_auth()
    }

    /// For a client that connects to the address of `name` and thinks that this is the name. None where nothing is
    /// trusted.
    pub(super) fn client_of(&self, name: ServerName<'static>) -> Option<ClientConfig> {
        let roots = Arc::clone(&self.roots);
        let verifier = WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&self.provider));
        let verifier = Arc::new(OfName { name, inner: verifier.build().ok()? });
        let mut config = self.client();
        config.dangerous().set_certificate_verifier(verifier);
        Some(config)
    }
}

/// Holds the certificate against this name, whatever the client calls the server.
#[derive(Debug)]
struct OfName {
    name: ServerName<'static>,
    inner: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for OfName {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.inner.verify_server_cert(end_entity, intermediates, &self.name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
