//! A connection to systemd: blocking, one thread, a deadline on everything.
//!
//! ```text
//! -> "\0AUTH EXTERNAL <uid>\r\nBEGIN\r\n" + Hello + AddMatch(JobRemoved) + the first call, to a bus in one write
//!                                              <- "OK <guid>\r\n", answers
//! -> StartTransientUnit | StopUnit             <- the job's path
//!         <- JobRemoved(id, path, unit, "done" | "failed" | ...)
//! ```
//!
//! systemd sends `JobRemoved` to whoever has a job queued, so no `Subscribe`. By the system bus, as other runtimes do;
//! where there is none, by systemd's own socket, which speaks the same protocol without a bus in between (its manual
//! page calls it private, so it comes second).

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::unistd::geteuid;

use super::message::{Call, Encoder, Incoming, Kind, Property};

const BUS_SOCKET: &str = "/run/dbus/system_bus_socket";
const PRIVATE_SOCKET: &str = "/run/systemd/private";
const DESTINATION: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const JOB_REMOVED: &str = "type='signal',sender='org.freedesktop.systemd1',path='/org/freedesktop/systemd1',\
    interface='org.freedesktop.systemd1.Manager',member='JobRemoved'";

/// An error that systemd answered, by its D-Bus name.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) name: String,
    text: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.text, self.name)
    }
}

impl std::error::Error for Refused {}

/// A job that ended.
struct Ended {
    sender: String,
    path: String,
    result: String,
}

/// A connection.
pub(super) struct Bus {
    socket: UnixStream,
    received: Vec<u8>,
    /// What is to be sent before the next call.
    greeting: Vec<u8>,
    /// The last serial of the greeting.
    greeted: u32,
    /// Whether the peer has taken us for who we are.
    known: bool,
    serial: u32,
    /// On systemd's own socket nobody is named.
    on_bus: bool,
    ended: Vec<Ended>,
    deadline: Instant,
}

impl Bus {
    /// Connects to systemd.
    pub(super) fn connect(deadline: Instant) -> Result<Self> {
        let (socket, on_bus) = match UnixStream::connect(BUS_SOCKET) {
            Ok(socket) => (socket, true),
            Err(error) => match UnixStream::connect(PRIVATE_SOCKET) {
                Ok(socket) => (socket, false),
                Err(_) => return Err(error).context(format!("connect({BUS_SOCKET:?})")),
            },
        };
        let mut bus = Self {
            socket,
            received: Vec::new(),
            greeting: Vec::new(),
            greeted: 0,
            known: false,
            serial: 0,
            on_bus,
            ended: Vec::new(),
            deadline,
        };
        bus.greet();
        Ok(bus)
    }

    /// Everything up to the first call, which needs no answer to be sent.
    fn greet(&mut self) {
        let uid: String = geteuid()
            .to_string()
            .bytes()
            .map(|digit| format!("{digit:02x}"))
            .collect();
        self.greeting = format!("\0AUTH EXTERNAL {uid}\r\nBEGIN\r\n").into_bytes();
        if !self.on_bus {
            return;
        }
        let mut rule = Encoder::default();
        rule.text(JOB_REMOVED);
        for (member, signature, body) in [("Hello", "", Encoder::default()), ("AddMatch", "s", rule)] {
            let call = Call {
                destination: Some("org.freedesktop.DBus"),
                path: "/org/freedesktop/DBus",
                interface: "org.freedesktop.DBus",
                member,
                signature,
                body,
            };
            self.greeted = self.next_serial();
            self.greeting.extend(call.encode(self.greeted));
        }
    }

    /// Reads the answer to the authentication: a line, before the first message.
    fn be_known(&mut self) -> Result<()> {
        let line = loop {
            if let Some(end) = self.received.windows(2).position(|pair| pair == b"\r\n") {
                break self.received.drain(..end + 2).collect::<Vec<_>>();
            }
            self.receive()?;
        };
        if !line.starts_with(b"OK ") {
            bail!(
                "D-Bus: authentication: refused: {:?}",
                String::from_utf8_lossy(&line).trim_end()
            );
        }
        self.known = true;
        Ok(())
    }

    /// Calls a method of systemd's manager.
    pub(super) fn call(&mut self, member: &str, signature: &str, body: Encoder) -> Result<Incoming> {
        self.call_on(MANAGER, member, signature, body)
            .with_context(|| format!("systemd: {member}"))
    }

    fn call_on(&mut self, interface: &str, member: &str, signature: &str, body: Encoder) -> Result<Incoming> {
        let destination = self.on_bus.then_some(DESTINATION);
        let call = Call {
            destination,
            path: MANAGER_PATH,
            interface,
            member,
            signature,
            body,
        };
        let serial = self.next_serial();
        let mut bytes = std::mem::take(&mut self.greeting);
        if !self.on_bus && !self.known {
            // systemd would not look at a message that came together with BEGIN before the next one comes (seen: 257).
            self.send(&bytes)?;
            bytes.clear();
            self.be_known()?;
        }
        bytes.extend(call.encode(serial));
        self.send(&bytes)?;
        self.answer(serial)
    }

    /// Calls a method that queues a job, and waits for its end.
    pub(super) fn run_job(&mut self, member: &str, signature: &str, body: Encoder) -> Result<()> {
        let answer = self.call(member, signature, body)?;
        let job = answer.body().text()?;
        let result = loop {
            // Only systemd's own word counts, whatever else may send to us.
            let same = |ended: &Ended| ended.path == job && ended.sender == answer.sender;
            if let Some(at) = self.ended.iter().position(same) {
                break self.ended.swap_remove(at).result;
            }
            self.next()
                .with_context(|| format!("systemd: {member}: waiting for its job"))?;
        };
        if result != "done" {
            bail!("systemd: {member}: got `{result}`, not `done`: see `systemctl status`, `journalctl -b`");
        }
        Ok(())
    }

    /// systemd's version, 257 of `257.13-1~deb13u1`.
    pub(super) fn version(&mut self) -> Result<u32> {
        let mut body = Encoder::default();
        body.text(MANAGER);
        body.text("Version");
        let answer = self
            .call_on("org.freedesktop.DBus.Properties", "Get", "ss", body)
            .context("systemd: Get(Version)")?;
        let mut value = answer.body();
        value.signature()?;
        let text = value.text()?;
        let digits = text
            .trim_start_matches('v')
            .split(|letter: char| !letter.is_ascii_digit())
            .next();
        digits
            .unwrap_or_default()
            .parse()
            .with_context(|| format!("systemd: version {text:?}"))
    }

    /// Sets properties of a unit, until the next boot.
    pub(super) fn set_properties(&mut self, unit: &str, properties: &[Property]) -> Result<()> {
        let mut body = Encoder::default();
        body.text(unit);
        body.bool(true);
        body.properties(properties);
        self.call("SetUnitProperties", "sba(sv)", body).map(drop)
    }

    fn next_serial(&mut self) -> u32 {
        self.serial += 1;
        self.serial
    }

    fn answer(&mut self, serial: u32) -> Result<Incoming> {
        loop {
            let Some(message) = self.next()? else { continue };
            // Of the greeting's answers only a refusal is of interest.
            let refused = message.kind == Kind::Error && message.reply_to <= self.greeted;
            if message.reply_to != serial && !refused {
                continue;
            }
            if message.kind == Kind::Error {
                let text = message.body().text().unwrap_or_default();
                return Err(Refused {
                    name: message.error,
                    text,
                }
                .into());
            }
            return Ok(message);
        }
    }

    /// Reads one message; the end of a job is put aside.
    fn next(&mut self) -> Result<Option<Incoming>> {
        if !self.known {
            self.be_known()?;
        }
        let message = loop {
            if let Some(message) = Incoming::take(&mut self.received)? {
                break message;
            }
            self.receive()?;
        };
        match message.kind {
            Kind::Return | Kind::Error => Ok(Some(message)),
            Kind::Signal if message.member == "JobRemoved" => {
                let mut body = message.body();
                body.u32()?;
                let (path, _unit, result) = (body.text()?, body.text()?, body.text()?);
                self.ended.push(Ended {
                    sender: message.sender,
                    path,
                    result,
                });
                Ok(None)
            }
            Kind::Signal | Kind::Other => Ok(None),
        }
    }

    fn left(&self) -> Result<Duration> {
        let left = self.deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            bail!("timed out waiting for systemd");
        }
        Ok(left)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.socket.set_write_timeout(Some(self.left()?))?;
        self.socket.write_all(bytes).context("write to systemd")
    }

    fn receive(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        self.socket.set_read_timeout(Some(self.left()?))?;
        match self.socket.read(&mut buffer) {
            Ok(0) => bail!("systemd has closed the connection"),
            Ok(length) => self.received.extend_from_slice(&buffer[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            Err(error) => return Err(error).context("read from systemd"),
        }
        Ok(())
    }
}
