//! CRIU's messages (its `rpc.proto`), as far as we send and read them: protocol buffers, encoded by hand.
//!
//! A request is a dozen numbers and strings, an answer half of that. A library for it would be larger than all of this
//! module, in a program that reads them in one verb of twenty.
//!
//! ```text
//! field  = varint(number << 3 | wire type) value
//! value  = varint                        wire type 0: numbers, booleans, enumerations
//!        | varint(length) bytes          wire type 2: strings, messages
//! ```

use anyhow::{Context, Result, bail};

/// What is asked for, and what an answer is to (`criu_req_type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// Write the processes to files.
    Dump = 1,
    /// Make them again.
    Restore = 2,
    /// Write their memory, and let them go on.
    PreDump = 4,
    /// Not an answer: CRIU tells where it is, and waits.
    Notify = 6,
    /// What this CRIU can do on this kernel.
    FeatureCheck = 9,
    /// Which CRIU it is.
    Version = 10,
}

/// Fields of `criu_req`.
mod request {
    pub(super) const TYPE: u32 = 1;
    pub(super) const OPTIONS: u32 = 2;
    pub(super) const NOTIFY_SUCCESS: u32 = 3;
    pub(super) const FEATURES: u32 = 5;
}

/// Fields of `criu_opts`.
pub(super) mod option {
    pub(crate) const IMAGES_DIR_FD: u32 = 1;
    pub(crate) const PID: u32 = 2;
    pub(crate) const LEAVE_RUNNING: u32 = 3;
    pub(crate) const EXT_UNIX_SK: u32 = 4;
    pub(crate) const TCP_ESTABLISHED: u32 = 5;
    pub(crate) const EVASIVE_DEVICES: u32 = 6;
    pub(crate) const SHELL_JOB: u32 = 7;
    pub(crate) const FILE_LOCKS: u32 = 8;
    pub(crate) const LOG_LEVEL: u32 = 9;
    pub(crate) const LOG_FILE: u32 = 10;
    pub(crate) const PAGE_SERVER: u32 = 11;
    pub(crate) const NOTIFY_SCRIPTS: u32 = 12;
    pub(crate) const ROOT: u32 = 13;
    pub(crate) const PARENT_IMG: u32 = 14;
    pub(crate) const TRACK_MEM: u32 = 15;
    pub(crate) const AUTO_DEDUP: u32 = 16;
    pub(crate) const WORK_DIR_FD: u32 = 17;
    pub(crate) const LINK_REMAP: u32 = 18;
    pub(crate) const EXT_MNT: u32 = 23;
    pub(crate) const MANAGE_CGROUPS: u32 = 24;
    pub(crate) const CG_ROOT: u32 = 25;
    pub(crate) const RST_SIBLING: u32 = 26;
    pub(crate) const INHERIT_FD: u32 = 27;
    pub(crate) const MANAGE_CGROUPS_MODE: u32 = 34;
    pub(crate) const EXTERNAL: u32 = 37;
    pub(crate) const EMPTY_NS: u32 = 38;
    pub(crate) const JOIN_NS: u32 = 39;
    pub(crate) const FREEZE_CGROUP: u32 = 44;
    pub(crate) const TCP_SKIP_IN_FLIGHT: u32 = 46;
    pub(crate) const LAZY_PAGES: u32 = 48;
    pub(crate) const ORPHAN_PTS_MASTER: u32 = 50;
    pub(crate) const CONFIG_FILE: u32 = 51;
    pub(crate) const LSM_PROFILE: u32 = 53;
    pub(crate) const LSM_MOUNT_CONTEXT: u32 = 63;
}

/// A message that is being written.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(super) struct Message(Vec<u8>);

impl Message {
    /// Adds a number, or an enumeration.
    pub(super) fn number(mut self, field: u32, value: u64) -> Self {
        self.varint(u64::from(field) << 3);
        self.varint(value);
        self
    }

    /// Adds a boolean that is true; false is what is left out.
    pub(super) fn flag(self, field: u32, value: bool) -> Self {
        if value { self.number(field, 1) } else { self }
    }

    /// Adds a string. A path need not be UTF-8: CRIU is a C program.
    pub(super) fn text(mut self, field: u32, value: impl AsRef<[u8]>) -> Self {
        let value = value.as_ref();
        self.varint(u64::from(field) << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
        self
    }

    /// Adds a string where there is one.
    pub(super) fn text_if(self, field: u32, value: Option<impl AsRef<[u8]>>) -> Self {
        match value {
            Some(value) => self.text(field, value),
            None => self,
        }
    }

    /// Adds a message.
    pub(super) fn message(self, field: u32, message: &Self) -> Self {
        self.text(field, &message.0)
    }

    /// Adds a pair of strings, as `ext_mount_map`, `join_namespace` and `cgroup_root` are.
    pub(super) fn pair(self, field: u32, first: impl AsRef<[u8]>, second: impl AsRef<[u8]>) -> Self {
        self.message(field, &Self::default().text(1, first).text(2, second))
    }

    /// Adds an `inherit_fd`: what the image calls `key` is the descriptor of this number.
    pub(super) fn inherit(self, key: &str, descriptor: u64) -> Self {
        self.message(
            option::INHERIT_FD,
            &Self::default().text(1, key).number(2, descriptor),
        )
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// A whole request.
pub(super) fn request(kind: Kind, options: &Message) -> Vec<u8> {
    let request = Message::default().number(request::TYPE, kind as u64);
    request.message(request::OPTIONS, options).0
}

/// Asks which CRIU it is.
pub(super) fn version_request() -> Vec<u8> {
    Message::default().number(request::TYPE, Kind::Version as u64).0
}

/// Asks for the features that this module knows.
pub(super) fn feature_request() -> Vec<u8> {
    let all = Message::default().number(1, 1).number(2, 1);
    let request = Message::default().number(request::TYPE, Kind::FeatureCheck as u64);
    request.message(request::FEATURES, &all).0
}

/// Answers a notification: whether CRIU is to go on.
pub(super) fn notified(success: bool) -> Vec<u8> {
    let answer = Message::default().number(request::TYPE, Kind::Notify as u64);
    answer.number(request::NOTIFY_SUCCESS, success.into()).0
}

/// What CRIU says (`criu_resp`).
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Response {
    /// What it is an answer to, by CRIU's number ([`Kind`]).
    pub(super) kind: u64,
    /// Whether that was done.
    pub(super) success: bool,
    /// The notification, by the name of the action script of the same moment.
    pub(super) notification: String,
    /// The process a notification is about, in CRIU's PID namespace; 0 for none.
    pub(super) pid: i32,
    /// An errno; 0 for none.
    pub(super) errno: i32,
    /// Why it was not done, where CRIU can say it in one line (CRIU 3.17).
    pub(super) message: String,
    /// Whether the kernel tracks which pages of memory are written.
    pub(super) tracks_memory: bool,
    /// Whether memory can be restored when it is first used.
    pub(super) lazy_pages: bool,
    /// Major and minor number and sublevel of the version.
    pub(super) version: (u64, u64, u64),
}

impl Response {
    /// Whether it is of this kind.
    pub(super) fn is(&self, kind: Kind) -> bool {
        self.kind == kind as u64
    }

    /// Reads a response. Fields that are not known are left out, so that a newer CRIU may say more.
    ///
    /// # Errors
    ///
    /// The bytes are no message.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let mut response = Self::default();
        let mut fields = Fields(bytes);
        while let Some((field, value)) = fields.next().context("an answer of CRIU")? {
            match (field, value) {
                (1, Value::Number(number)) => response.kind = number,
                (2, Value::Number(number)) => response.success = number != 0,
                (5, Value::Bytes(notify)) => {
                    response.notification = text(find(notify, 1)?.bytes());
                    response.pid = find(notify, 2)?.number() as i32;
                }
                (7, Value::Number(number)) => response.errno = number as i32,
                (8, Value::Bytes(features)) => {
                    response.tracks_memory = find(features, 1)?.number() != 0;
                    response.lazy_pages = find(features, 2)?.number() != 0;
                }
                (9, Value::Bytes(message)) => response.message = text(message),
                (10, Value::Bytes(version)) => {
                    response.version = (
                        find(version, 1)?.number(),
                        find(version, 2)?.number(),
                        find(version, 4)?.number(),
                    );
                }
                _ => {}
            }
        }
        Ok(response)
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The last value of a field in a message; `None` where it is not there.
fn find(message: &[u8], wanted: u32) -> Result<Value<'_>> {
    let mut found = Value::None;
    let mut fields = Fields(message);
    while let Some((field, value)) = fields.next().context("an answer of CRIU")? {
        if field == wanted {
            found = value;
        }
    }
    Ok(found)
}

/// The value of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value<'a> {
    None,
    Number(u64),
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    fn number(self) -> u64 {
        match self {
            Self::Number(number) => number,
            _ => 0,
        }
    }

    fn bytes(self) -> &'a [u8] {
        match self {
            Self::Bytes(bytes) => bytes,
            _ => &[],
        }
    }
}

/// The fields of a message that are not read yet.
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn next(&mut self) -> Result<Option<(u32, Value<'a>)>> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let field = u32::try_from(tag >> 3).context("a field's number")?;
        let value = match tag & 7 {
            0 => Value::Number(self.varint()?),
            1 => self.take(8).map(|_| Value::None)?,
            2 => {
                let length = usize::try_from(self.varint()?).context("a field's length")?;
                Value::Bytes(self.take(length)?)
            }
            5 => self.take(4).map(|_| Value::None)?,
            other => bail!("wire type {other} of field {field} is not known"),
        };
        Ok(Some((field, value)))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length).context("it is cut off")?;
        self.0 = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        bail!("a number of more than 64 bits")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_bytes_of_its_fields() {
        let options = Message::default()
            .number(option::IMAGES_DIR_FD, 300)
            .flag(option::LEAVE_RUNNING, true)
            .flag(option::SHELL_JOB, false)
            .text(option::LOG_FILE, "dump.log")
            .pair(option::EXT_MNT, "/a", "/b");
        let mut expected = vec![0x08, 1, 0x12, 0];
        expected.extend([0x08, 0xac, 0x02, 0x18, 1, 0x52, 8]);
        expected.extend(b"dump.log");
        expected.extend([0xba, 0x01, 8, 0x0a, 2, b'/', b'a', 0x12, 2, b'/', b'b']);
        expected[3] = (expected.len() - 4) as u8;
        assert_eq!(request(Kind::Dump, &options), expected);
    }

    #[test]
    fn an_answer_is_read_back_with_what_is_not_known_left_out() {
        let notify = Message::default().text(1, "post-restore").number(2, 4711);
        let version = Message::default()
            .number(1, 4)
            .number(2, 1)
            .text(3, "gitid")
            .number(4, 2);
        let bytes = Message::default()
            .number(1, Kind::Notify as u64)
            .number(2, 1)
            .message(5, &notify)
            .number(7, 13)
            .text(9, "why")
            .message(10, &version)
            .text(77, "later")
            .0;
        let response = Response::parse(&bytes).unwrap();
        assert!(response.is(Kind::Notify) && response.success);
        assert_eq!(
            (response.notification.as_str(), response.pid),
            ("post-restore", 4711)
        );
        assert_eq!((response.errno, response.message.as_str()), (13, "why"));
        assert_eq!(response.version, (4, 1, 2));
    }

    #[test]
    fn bytes_that_are_no_message_are_refused() {
        for bytes in [
            &[0x08][..],
            &[0x0a, 5, 1],
            &[0x0b],
            &[0xff; 11],
            &[0x2a, 2, 0x0a, 9],
        ] {
            assert!(Response::parse(bytes).is_err(), "{bytes:?}");
        }
        assert_eq!(Response::parse(&[]).unwrap(), Response::default());
    }
}
