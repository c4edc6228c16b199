//! TLS of a host: rustls, the system's certificate authorities and those of `hosts.toml`.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use rustls::client::ResolvesClientCert;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

use super::hosts::TlsFiles;

/// The configuration for a host. It reads files: not on a thread of the runtime.
///
/// # Errors
///
/// A file that can't be read or has no certificate or key: its path.
pub(super) fn configuration(files: &TlsFiles) -> anyhow::Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder =
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = if files.skip_verify == Some(true) {
        let verifier = Arc::new(Unverified(Arc::clone(&provider)));
        builder.dangerous().with_custom_certificate_verifier(verifier)
    } else {
        builder.with_root_certificates(roots(files)?)
    };
    if files.client.is_empty() {
        return Ok(builder.with_no_client_auth());
    }
    let pairs = files
        .client
        .iter()
        .map(|(certificate, key)| certified(certificate, key, &provider))
        .collect::<anyhow::Result<_>>()?;
    Ok(builder.with_client_cert_resolver(Arc::new(ClientCertificates(pairs))))
}

/// The system's that can be read, and all of the host's own.
fn roots(files: &TlsFiles) -> anyhow::Result<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    for path in &files.ca {
        let found = certificates(path)?;
        let (added, _) = roots.add_parsable_certificates(found);
        anyhow::ensure!(added > 0, "ca {}: has no certificate", path.display());
    }
    Ok(roots)
}

fn certificates(path: &Path) -> anyhow::Result<Vec<CertificateDer<'static>>> {
    CertificateDer::pem_file_iter(path)
        .and_then(Iterator::collect)
        .with_context(|| format!("{}: certificates", path.display()))
}

fn certified(certificate: &Path, key: &Path, provider: &CryptoProvider) -> anyhow::Result<Arc<CertifiedKey>> {
    let chain = certificates(certificate)?;
    anyhow::ensure!(
        !chain.is_empty(),
        "client {}: has no certificate",
        certificate.display()
    );
    let private =
        PrivateKeyDer::from_pem_file(key).with_context(|| format!("{}: private key", key.display()))?;
    let pair = CertifiedKey::from_der(chain, private, provider)
        .with_context(|| format!("client {} with {}", certificate.display(), key.display()))?;
    Ok(Arc::new(pair))
}

/// Several certificates of ours: the first that can sign what the server takes.
#[derive(Debug)]
struct ClientCertificates(Vec<Arc<CertifiedKey>>);

impl ResolvesClientCert for ClientCertificates {
    fn resolve(&self, _issuers: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.0
            .iter()
            .find(|pair| pair.key.choose_scheme(schemes).is_some())
            .cloned()
    }

    fn has_certs(&self) -> bool {
        !self.0.is_empty()
    }
}

/// `skip_verify`: whoever answers is taken for the host. Its signatures are still checked: it has the key it shows.
#[derive(Debug)]
struct Unverified(Arc<CryptoProvider>);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
