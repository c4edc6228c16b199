//! A tunnel to the kubelet's own server: what speaks TLS there speaks plainly here, so that clients that know no TLS
//! (`cri/spdy.rs`, `cri/websocket.rs`) and can say what is wrong reach it.
//!
//! ```text
//! client ──plain──> 127.0.0.1:PORT ──TLS──> 127.0.0.1:10250, the kubelet
//! ```
//!
//! The kubelet's certificate is checked: it signs one for itself at its first start, and it is read from its directory.

use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;

use anyhow::{Context, ensure};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::registry::Result;

/// The kubelet's port for those who may do something.
const KUBELET: &str = "127.0.0.1:10250";
/// Its certificate, and that of the authority that it made for it.
const CERTIFICATES: &str = "/var/lib/kubelet/pki/kubelet.crt";

/// Opens a tunnel, which lives as long as the test; where it begins.
///
/// # Errors
///
/// The kubelet has no certificate yet.
pub(super) fn open(name: &'static str) -> Result<SocketAddr> {
    let connector = TlsConnector::from(Arc::new(trust()?));
    let name = ServerName::try_from(name).context("the kubelet's name")?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    listener.set_nonblocking(true)?;
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    std::thread::spawn(move || {
        tokio.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener of this runtime");
            while let Ok((client, _)) = listener.accept().await {
                let (connector, name) = (connector.clone(), name.clone());
                tokio::spawn(async move {
                    if let Err(error) = carry(client, &connector, name).await {
                        eprintln!("tunnel to the kubelet: {error:#}");
                    }
                });
            }
        });
    });
    Ok(address)
}

async fn carry(mut client: TcpStream, connector: &TlsConnector, name: ServerName<'static>) -> Result {
    client.set_nodelay(true)?;
    let server = TcpStream::connect(KUBELET).await.context(KUBELET)?;
    server.set_nodelay(true)?;
    let mut server = connector.connect(name, server).await.context("TLS")?;
    // How either hangs up is what its test is about.
    let _ = copy_bidirectional(&mut client, &mut server).await;
    Ok(())
}

fn trust() -> Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_file_iter(CERTIFICATES).context(CERTIFICATES)? {
        roots.add_parsable_certificates([certificate.context(CERTIFICATES)?]);
    }
    ensure!(!roots.is_empty(), "{CERTIFICATES}: no certificate");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    Ok(ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth())
}
