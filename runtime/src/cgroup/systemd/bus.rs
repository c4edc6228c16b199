//! A connection to systemd: blocking, one thread, a deadline on everything.
//!
//! ```text
//! -> "\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n" + Hello + AddMatch(JobRemoved) + the first call, to a bus in one write
//!                                              <- "DATA\r\nOK <guid>\r\n", answers
//! -> StartTransientUnit | StopUnit             <- the job's path
//!         <- JobRemoved(id, path, unit, "done" | "failed" | ...)
//! ```
//!
//! systemd sends `JobRemoved` to whoever has a job queued, so no `Subscribe`. The user's id is left to the kernel to tell:
//! seen from a user namespace it is another than what the bus sees.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::address::Owner;
use super::message::{Call, Encoder, Incoming, Kind, Property};

const DESTINATION: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";
const JOB_REMOVED: &str = "type='signal',sender='org.freedesktop.systemd1',path='/org/freedesktop/systemd1',\
    interface='org.freedesktop.systemd1.Manager',member='JobRemoved'";

/// How often, and how long after, systemd is spoken to again after it went away. It is back after 100 to 800 ms.
const AGAIN: u32 = 20;
const PAUSE: Duration = Duration::from_millis(100);
/// A server's line has a keyword and an id.
const LONGEST_LINE: usize = 4096;

/// An error that systemd answered, by its D-Bus name.
#[derive(Debug)]
pub(super) struct Refused {
    pub(super) name: String,
    pub(super) text: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.text, self.name)
    }
}

impl std::error::Error for Refused {}

/// systemd or its bus has closed the connection.
#[derive(Debug)]
struct Closed;

impl std::fmt::Display for Closed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("systemd has closed the connection")
    }
}

impl std::error::Error for Closed {}

/// Whether systemd went away while it was spoken to. (A bus would start it, which is an error of its own.)
fn is_gone(error: &anyhow::Error) -> bool {
    const NAMES: [&str; 4] = [
        "org.freedesktop.DBus.Error.NoReply",
        "org.freedesktop.DBus.Error.Disconnected",
        "org.freedesktop.DBus.Error.ServiceUnknown",
        "org.freedesktop.DBus.Error.NameHasNoOwner",
    ];
    let refused = error.downcast_ref::<Refused>();
    refused.is_some_and(|refused| NAMES.contains(&refused.name.as_str()))
        || error.downcast_ref::<Closed>().is_some()
}

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
    /// Talks to systemd; from the start again where it goes away meanwhile: it may just be executed again (an upgrade,
    /// `daemon-reexec`). `talk` must be such that a second time does no harm.
    ///
    /// # Errors
    ///
    /// Where there is no systemd, and those of `talk`.
    pub(super) fn with<T>(
        owner: Owner,
        deadline: Instant,
        mut talk: impl FnMut(&mut Self) -> Result<T>,
    ) -> Result<T> {
        for _ in 0..AGAIN {
            let error = match Self::connect(owner, deadline).and_then(|mut bus| talk(&mut bus)) {
                Err(error) if is_gone(&error) => error,
                talked => return talked,
            };
            if Instant::now() + PAUSE >= deadline {
                return Err(error);
            }
            std::thread::sleep(PAUSE);
        }
        Self::connect(owner, deadline).and_then(|mut bus| talk(&mut bus))
    }

    /// Connects to systemd.
    ///
    /// # Errors
    ///
    /// Where there is none, or it takes nobody in until the deadline.
    fn connect(owner: Owner, deadline: Instant) -> Result<Self> {
        let (socket, on_bus) = owner.connect(deadline)?;
        Ok(Self::over(socket, on_bus, deadline))
    }

    fn over(socket: UnixStream, on_bus: bool, deadline: Instant) -> Self {
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
        bus
    }

    /// Everything up to the first call, which needs no answer to be sent.
    fn greet(&mut self) {
        self.greeting = b"\0AUTH EXTERNAL\r\nDATA\r\nBEGIN\r\n".to_vec();
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

    /// Reads the answer to the authentication: two lines, before the first message.
    fn be_known(&mut self) -> Result<()> {
        if self.line()? != b"DATA" || !self.line()?.starts_with(b"OK ") {
            bail!("D-Bus: authentication as the user of this process was refused");
        }
        self.known = true;
        Ok(())
    }

    fn line(&mut self) -> Result<Vec<u8>> {
        loop {
            if let Some(end) = self.received.windows(2).position(|pair| pair == b"\r\n") {
                let mut line: Vec<u8> = self.received.drain(..end + 2).collect();
                line.truncate(end);
                return Ok(line);
            }
            if self.received.len() > LONGEST_LINE {
                bail!("D-Bus: a line of the authentication is too long");
            }
            self.receive()?;
        }
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
        let text = self.manager_property("Version")?;
        let digits = text
            .trim_start_matches('v')
            .split(|letter: char| !letter.is_ascii_digit())
            .next();
        digits
            .unwrap_or_default()
            .parse()
            .with_context(|| format!("systemd: version {text:?}"))
    }

    /// A property of systemd itself that is a text.
    pub(super) fn manager_property(&mut self, name: &str) -> Result<String> {
        let mut body = Encoder::default();
        body.text(MANAGER);
        body.text(name);
        let answer = self
            .call_on("org.freedesktop.DBus.Properties", "Get", "ss", body)
            .with_context(|| format!("systemd: Get({name})"))?;
        let mut value = answer.body();
        value.signature()?;
        value.text()
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
            bail!(
                "timed out waiting for systemd: it does not answer; see `systemctl status`, `journalctl -b`"
            );
        }
        Ok(left)
    }

    fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.socket.set_write_timeout(Some(self.left()?))?;
        match self.socket.write_all(bytes) {
            Err(error) if error.kind() == ErrorKind::BrokenPipe => Err(Closed.into()),
            written => written.context("write to systemd"),
        }
    }

    fn receive(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        self.socket.set_read_timeout(Some(self.left()?))?;
        match self.socket.read(&mut buffer) {
            Ok(0) => return Err(Closed.into()),
            Ok(length) => self.received.extend_from_slice(&buffer[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => {}
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return Err(Closed.into()),
            Err(error) => return Err(error).context("read from systemd"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::thread::{JoinHandle, spawn};

    use super::super::message::incoming;
    use super::*;

    /// systemd by its own socket, which answers with `answers` after the first call; and a bus to it.
    fn systemd(answers: Vec<u8>) -> (Bus, JoinHandle<()>) {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let server = spawn(move || {
            let mut received = [0; 4096];
            theirs.write_all(b"DATA\r\nOK 0123\r\n").unwrap();
            let mut seen = Vec::new();
            while !seen.windows(6).any(|text| text == b"org.fr") {
                let length = theirs.read(&mut received).unwrap();
                assert_ne!(length, 0);
                seen.extend_from_slice(&received[..length]);
            }
            theirs.write_all(&answers).unwrap();
        });
        (
            Bus::over(ours, false, Instant::now() + Duration::from_secs(5)),
            server,
        )
    }

    fn text(text: &str) -> Encoder {
        let mut body = Encoder::default();
        body.text(text);
        body
    }

    fn removed(path: &str, result: &str) -> Vec<u8> {
        let mut body = Encoder::default();
        body.u32(7);
        for word in [path, "web.scope", result] {
            body.text(word);
        }
        incoming(4, 0, "JobRemoved", "uoss", &body)
    }

    #[test]
    fn a_job_is_waited_for_also_where_its_end_is_told_first() {
        let answer = incoming(2, 1, "", "o", &text("/job/7"));
        let other = removed("/job/6", "failed");
        for parts in [
            [other.clone(), answer.clone(), removed("/job/7", "done")],
            [other, removed("/job/7", "done"), answer],
        ] {
            let (mut bus, server) = systemd(parts.concat());
            bus.run_job("StopUnit", "s", text("web.scope")).unwrap();
            server.join().unwrap();
        }
    }

    #[test]
    fn a_job_that_is_not_done_is_an_error() {
        let answers = [
            incoming(2, 1, "", "o", &text("/job/7")),
            removed("/job/7", "failed"),
        ];
        let (mut bus, server) = systemd(answers.concat());
        let error = format!("{:#}", bus.run_job("StopUnit", "s", text("x")).unwrap_err());
        assert!(error.contains("got `failed`, not `done`"), "{error}");
        server.join().unwrap();
    }

    #[test]
    fn a_refusal_has_its_name_and_what_systemd_says() {
        let refusal = incoming(
            3,
            1,
            "org.freedesktop.systemd1.NoSuchUnit",
            "s",
            &text("Unit x not loaded."),
        );
        let (mut bus, server) = systemd(refusal);
        let error = bus.call("ResetFailedUnit", "s", text("x")).unwrap_err();
        assert_eq!(
            format!("{error:#}"),
            "systemd: ResetFailedUnit: Unit x not loaded. (org.freedesktop.systemd1.NoSuchUnit)"
        );
        assert!(!is_gone(&error));
        server.join().unwrap();
    }

    #[test]
    fn a_systemd_that_goes_away_is_told_from_one_that_refuses() {
        let gone = incoming(3, 1, "org.freedesktop.DBus.Error.NoReply", "s", &text("x"));
        for answers in [gone, Vec::new()] {
            let (mut bus, server) = systemd(answers);
            let error = bus.call("ResetFailedUnit", "s", text("x")).unwrap_err();
            assert!(is_gone(&error), "{error:#}");
            server.join().unwrap();
        }
    }

    #[test]
    fn the_version_is_the_number_that_its_text_begins_with() {
        for version in ["257.13-1~deb13u1", "v257-rc1", "257"] {
            let mut body = Encoder::default();
            body.signature("s");
            body.text(version);
            let (mut bus, server) = systemd(incoming(2, 1, "", "v", &body));
            assert_eq!(bus.version().unwrap(), 257);
            server.join().unwrap();
        }
    }

    #[test]
    fn one_that_does_not_answer_is_given_up_at_the_deadline() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let mut bus = Bus::over(ours, true, Instant::now() + Duration::from_millis(50));
        let error = format!("{:#}", bus.call("StopUnit", "s", text("x")).unwrap_err());
        assert!(error.contains("timed out waiting for systemd"), "{error}");
    }
}
