//! Addresses of hosts, by `/etc/hosts` and the servers of `/etc/resolv.conf`, without NSS: glibc's `getaddrinfo` loads
//! libraries of the machine, which a static program can't do safely.

use std::future::Future;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::pin::Pin;
use std::task::{Context, Poll};

use hickory_resolver::TokioResolver;
use hickory_resolver::config::{LookupIpStrategy, NameServerConfig, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hyper_util::client::legacy::connect::dns::Name;

/// Resolves names; made for one pull, so that it knows the configuration of now.
#[derive(Clone)]
pub(super) struct Names(TokioResolver);

impl Names {
    /// Reads the system's configuration.
    ///
    /// # Errors
    ///
    /// It can't be understood.
    pub(super) fn new() -> anyhow::Result<Self> {
        let mut builder = TokioResolver::builder_tokio().unwrap_or_else(|_| {
            // No file, or no server in it: the machine's own, as resolv.conf(5) has it.
            let itself = NameServerConfig::udp_and_tcp(IpAddr::V4(Ipv4Addr::LOCALHOST));
            let config = ResolverConfig::from_parts(None, Vec::new(), vec![itself]);
            TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
        });
        builder.options_mut().ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
        Ok(Self(builder.build()?))
    }
}

impl tower_service::Service<Name> for Names {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = std::io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let resolver = self.0.clone();
        Box::pin(async move {
            if name.as_str() == "localhost" {
                let loopback = [
                    IpAddr::from([127, 0, 0, 1]),
                    IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
                ];
                return Ok(loopback
                    .map(|address| SocketAddr::new(address, 0))
                    .to_vec()
                    .into_iter());
            }
            let found = resolver
                .lookup_ip(name.as_str())
                .await
                .map_err(|error| std::io::Error::other(format!("name {:?}: {error}", name.as_str())))?;
            let addresses: Vec<_> = found.iter().map(|address| SocketAddr::new(address, 0)).collect();
            Ok(addresses.into_iter())
        })
    }
}
