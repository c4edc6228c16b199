//! Which systemd a container's unit is of, and where it listens.
//!
//! | caller | systemd | tried in this order |
//! |---|---|---|
//! | root | the machine's | `DBUS_SYSTEM_BUS_ADDRESS` alone, where it is set; else the system bus, systemd's own socket |
//! | anybody else, and root of a user namespace that has one | the user's | `DBUS_SESSION_BUS_ADDRESS`, or `bus` in `XDG_RUNTIME_DIR` (default `/run/user/UID`); then `systemd/private` there |
//!
//! By a bus, as other runtimes do. systemd's own socket speaks the same protocol without a bus in between; its manual page
//! calls it private, so it comes last.

use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use nix::unistd::geteuid;

use crate::rootless;
use crate::sys::{Errno, Named as _};

const BUS_SOCKET: &str = "/run/dbus/system_bus_socket";
const PRIVATE_SOCKET: &str = "/run/systemd/private";
/// How long a socket whose queue is full is left alone before it is asked again.
const PAUSE: Duration = Duration::from_millis(10);

/// Whose systemd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    Machine,
    User,
}

/// A socket, and whether a bus is behind it or systemd itself.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    socket: Socket,
    on_bus: bool,
}

#[derive(Debug, PartialEq, Eq)]
enum Socket {
    Path(PathBuf),
    Abstract(Vec<u8>),
}

impl Owner {
    /// Whose systemd this process is to ask. Root of a user namespace (a rootless engine's) asks the user's, where the
    /// environment has one; else it is root of a container with a systemd of its own.
    pub(super) fn of_caller() -> Self {
        let names_one =
            || variable("DBUS_SESSION_BUS_ADDRESS").is_some() || variable("XDG_RUNTIME_DIR").is_some();
        if rootless::ordinary_user().is_some() || names_one() && rootless::in_user_namespace() {
            Self::User
        } else {
            Self::Machine
        }
    }

    /// Connects; whether it is to a bus.
    ///
    /// # Errors
    ///
    /// Says where it was looked for.
    pub(super) fn connect(self, deadline: Instant) -> Result<(UnixStream, bool)> {
        let places = match self {
            Self::Machine => of_machine(variable("DBUS_SYSTEM_BUS_ADDRESS").as_deref())?,
            Self::User => of_user(
                variable("DBUS_SESSION_BUS_ADDRESS").as_deref(),
                variable("XDG_RUNTIME_DIR").map(PathBuf::from),
            )?,
        };
        let mut first = None;
        for Place { socket, on_bus } in places {
            match socket.connect(deadline) {
                Ok(stream) => return Ok((stream, on_bus)),
                Err(error) => drop(first.get_or_insert(error)),
            }
        }
        let error = first.context("D-Bus: no address to connect to")?;
        Err(match self {
            Self::Machine => error,
            Self::User => error.context(format!(
                "no systemd of user {} answers (DBUS_SESSION_BUS_ADDRESS, XDG_RUNTIME_DIR): it needs a login, or `loginctl \
                 enable-linger`; or leave --systemd-cgroup out",
                geteuid()
            )),
        })
    }
}

fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

fn of_machine(address: Option<&str>) -> Result<Vec<Place>> {
    match address {
        Some(address) => parse(address).context("DBUS_SYSTEM_BUS_ADDRESS"),
        None => Ok(vec![bus(BUS_SOCKET.into()), private(PRIVATE_SOCKET.into())]),
    }
}

fn of_user(address: Option<&str>, directory: Option<PathBuf>) -> Result<Vec<Place>> {
    let directory = directory.unwrap_or_else(|| Path::new("/run/user").join(geteuid().to_string()));
    let mut places = match address {
        Some(address) => parse(address).context("DBUS_SESSION_BUS_ADDRESS")?,
        None => vec![bus(directory.join("bus"))],
    };
    places.push(private(directory.join("systemd/private")));
    Ok(places)
}

fn bus(path: PathBuf) -> Place {
    Place {
        socket: Socket::Path(path),
        on_bus: true,
    }
}

fn private(path: PathBuf) -> Place {
    Place {
        socket: Socket::Path(path),
        on_bus: false,
    }
}

/// The Unix sockets of a bus address: `unix:path=/run/bus,guid=1;unix:abstract=x` (D-Bus specification, "Server
/// Addresses").
fn parse(address: &str) -> Result<Vec<Place>> {
    let mut places = Vec::new();
    for one in address.split(';') {
        let Some(keys) = one.strip_prefix("unix:") else {
            continue;
        };
        for key in keys.split(',') {
            let socket = match key.split_once('=') {
                Some(("path", path)) => Socket::Path(PathBuf::from(unescape(path)?)),
                Some(("abstract", name)) => Socket::Abstract(unescape(name)?.into_bytes()),
                _ => continue,
            };
            places.push(Place { socket, on_bus: true });
        }
    }
    if places.is_empty() {
        bail!("{address:?}: must name a Unix socket, like unix:path=/run/user/1000/bus");
    }
    Ok(places)
}

/// `%2f` is a slash.
fn unescape(text: &str) -> Result<String> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let digits = after.get(..2).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok());
        bytes.push(byte.with_context(|| format!("{text:?}: % must be followed by two hexadecimal digits"))?);
        rest = &after[2..];
    }
    String::from_utf8(bytes).with_context(|| format!("{text:?}: must be UTF-8"))
}

impl Socket {
    /// A listener that takes nobody in has a full queue at some time, and connect(2) would wait for it for ever.
    fn connect(&self, deadline: Instant) -> Result<UnixStream> {
        let call = || format!("connect({self})");
        let address = match self {
            Self::Path(path) => UnixAddr::new(path),
            Self::Abstract(name) => UnixAddr::new_abstract(name),
        }
        .call(call)?;
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)
            .call(|| "socket(AF_UNIX)".to_owned())?;
        loop {
            match connect(socket.as_raw_fd(), &address) {
                Err(Errno::EAGAIN) if Instant::now() < deadline => std::thread::sleep(PAUSE),
                connected => break connected.call(call)?,
            }
        }
        let stream = UnixStream::from(socket);
        stream.set_nonblocking(false).context("fcntl(O_NONBLOCK)")?;
        Ok(stream)
    }
}

impl std::fmt::Display for Socket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Path(path) => write!(f, "{path:?}"),
            Self::Abstract(name) => write!(f, "\"@{}\"", String::from_utf8_lossy(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(path: &str, on_bus: bool) -> Place {
        Place {
            socket: Socket::Path(path.into()),
            on_bus,
        }
    }

    #[test]
    fn the_machines_systemd_is_at_its_bus_or_at_its_own_socket() {
        assert_eq!(
            of_machine(None).unwrap(),
            [path(BUS_SOCKET, true), path(PRIVATE_SOCKET, false)]
        );
        assert_eq!(of_machine(Some("unix:path=/x")).unwrap(), [path("/x", true)]);
    }

    #[test]
    fn a_users_systemd_is_where_the_environment_says() {
        assert_eq!(
            of_user(None, Some("/run/user/7".into())).unwrap(),
            [
                path("/run/user/7/bus", true),
                path("/run/user/7/systemd/private", false)
            ]
        );
        let own = format!("/run/user/{}/bus", geteuid());
        assert_eq!(of_user(None, None).unwrap()[0], path(&own, true));
        assert_eq!(
            of_user(Some("unix:path=/a%2db,guid=1;tcp:host=x;unix:abstract=c"), None).unwrap()[..2],
            [
                path("/a-b", true),
                Place {
                    socket: Socket::Abstract(b"c".to_vec()),
                    on_bus: true
                }
            ]
        );
    }

    #[test]
    fn an_address_without_a_unix_socket_is_refused() {
        for address in [
            "tcp:host=localhost",
            "unix:tmpdir=/tmp",
            "x",
            "unix:path=/%2",
            "unix:path=/%zz",
        ] {
            let error = format!("{:#}", of_user(Some(address), None).unwrap_err());
            assert!(error.starts_with("DBUS_SESSION_BUS_ADDRESS: "), "{error}");
        }
    }

    #[test]
    fn a_socket_that_takes_nobody_in_is_given_up_at_the_deadline() {
        let directory = tempfile();
        let path = directory.join("full");
        let socket = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC,
            None,
        )
        .unwrap();
        nix::sys::socket::bind(socket.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        nix::sys::socket::listen(&socket, nix::sys::socket::Backlog::new(0).unwrap()).unwrap();
        let place = Socket::Path(path);
        let soon = || Instant::now() + Duration::from_millis(50);
        let mut taken = Vec::new();
        let error = loop {
            match place.connect(soon()) {
                Ok(stream) => taken.push(stream),
                Err(error) => break error,
            }
            assert!(taken.len() < 10);
        };
        assert!(format!("{error:#}").contains("connect("), "{error:#}");
        std::fs::remove_dir_all(directory).unwrap();
    }

    fn tempfile() -> PathBuf {
        let path = std::env::temp_dir().join(format!("rtc-address-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        path
    }
}
