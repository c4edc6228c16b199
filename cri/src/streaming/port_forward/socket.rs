//! A connection to a port in a pod's network namespace. A socket stays in the namespace that it was made in: only its making
//! is done there, by a thread that lives no longer.

use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::error::{Error, Kind, Result};

/// What a port has for taking a connection.
const CONNECT_MAX: Duration = Duration::from_secs(10);
/// A thread that makes one socket needs no more stack.
const STACK: usize = 64 << 10;

/// Connects to a port of the pod's loopback: IPv4 first, as `localhost` means it. `netns`: `None` for the host's.
///
/// # Errors
///
/// What both families said.
pub(super) async fn connect(netns: Option<&Path>, port: u16) -> Result<TcpStream> {
    let mut failed = Vec::new();
    for (name, address) in [
        ("IPv4", IpAddr::from(Ipv4Addr::LOCALHOST)),
        ("IPv6", IpAddr::from(Ipv6Addr::LOCALHOST)),
    ] {
        match timeout(CONNECT_MAX, one(netns, SocketAddr::new(address, port))).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => failed.push(format!("{name}: {error:#}")),
            Err(_) => failed.push(format!(
                "{name}: no answer within {} seconds",
                CONNECT_MAX.as_secs()
            )),
        }
    }
    Err(Error::text(Kind::Unavailable, failed.join(", ")))
}

async fn one(netns: Option<&Path>, address: SocketAddr) -> anyhow::Result<TcpStream> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let socket = match netns {
        None => stream_socket(family)?,
        Some(path) => {
            let namespace = File::open(path)
                .with_context(|| format!("the pod's network namespace: {}", path.display()))?;
            within(namespace, family).await?
        }
    };
    let socket = TcpSocket::from_std_stream(socket.into());
    let stream = socket.connect(address).await?;
    // What is forwarded was put together by somebody else.
    let _ = stream.set_nodelay(true);
    Ok(stream)
}

/// Makes a socket in a network namespace.
async fn within(namespace: File, family: AddressFamily) -> anyhow::Result<OwnedFd> {
    let (made, socket) = oneshot::channel();
    let make = move || {
        let socket = setns(&namespace, CloneFlags::CLONE_NEWNET)
            .map_err(io::Error::from)
            .and_then(|()| stream_socket(family));
        // Who asked may be gone.
        let _ = made.send(socket);
    };
    // Never one of a pool: it does not come back from there.
    thread::Builder::new()
        .name("pod-socket".into())
        .stack_size(STACK)
        .spawn(make)
        .context("a thread for the pod's network namespace")?;
    let socket = socket
        .await
        .context("the thread in the pod's network namespace")?;
    socket.context("a socket in the pod's network namespace")
}

fn stream_socket(family: AddressFamily) -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(family, SockType::Stream, flags, None)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_port_is_found_by_ipv4_first_and_then_by_ipv6() {
        let four = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = four.local_addr().unwrap().port();
        let stream = connect(None, port).await.unwrap();
        assert_eq!(
            stream.peer_addr().unwrap(),
            SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port)
        );
        drop((stream, four));
        if let Ok(six) = tokio::net::TcpListener::bind("[::1]:0").await {
            let port = six.local_addr().unwrap().port();
            assert!(connect(None, port).await.unwrap().peer_addr().unwrap().is_ipv6());
        }
    }

    #[tokio::test]
    async fn an_error_says_what_each_family_said() {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = gone.local_addr().unwrap().port();
        drop(gone);
        let error = connect(None, port).await.unwrap_err().to_string();
        assert!(error.starts_with("IPv4: Connection refused"), "{error}");
        assert!(error.contains(", IPv6: "), "{error}");
        let error = connect(Some(Path::new("/none")), 1)
            .await
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("the pod's network namespace: /none: No such file"),
            "{error}"
        );
    }
}
