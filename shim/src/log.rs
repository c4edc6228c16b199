//! The shim's messages: lines in logrus' text form on standard error, which is the FIFO `log` of the bundle where
//! containerd made one: it copies the lines into its own log.
//!
//! Never waits: the FIFO is not blocking, and a line that finds no room is lost. It is held open for reading too, so that
//! lines written while containerd restarts wait for it, and nobody gets SIGPIPE.

use std::fmt::{Display, Write as _};
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use nix::libc;

/// A write of up to so many bytes to a FIFO is whole or not at all (pipe(7), `PIPE_BUF`).
const LINE_MAX: usize = 4096;

static DEBUG: AtomicBool = AtomicBool::new(false);
/// What stands behind each message: whose it is.
static FIELDS: OnceLock<String> = OnceLock::new();

/// The FIFO in a bundle, if there is one.
pub(crate) fn fifo(bundle: &Path) -> Option<OwnedFd> {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_NOCTTY)
        .open(bundle.join("log"))
        .ok()?;
    let is_fifo = file.metadata().is_ok_and(|found| found.file_type().is_fifo());
    is_fifo.then(|| file.into())
}

/// Says whose messages these are, and how many are wanted. A panic is one, too.
pub(crate) fn init(namespace: &str, id: &str, debug: bool) {
    DEBUG.store(debug, Ordering::Relaxed);
    let mut fields = String::new();
    for (name, value) in [("id", id), ("namespace", namespace)] {
        let _ = write!(fields, " {name}=\"");
        quote(value, &mut fields);
        fields.push('"');
    }
    // Once in a process.
    let _ = FIELDS.set(fields);
    std::panic::set_hook(Box::new(|info| emit("fatal", &info.to_string())));
}

/// Only where it is asked for.
pub(crate) fn debug<M: Display>(message: impl FnOnce() -> M) {
    if DEBUG.load(Ordering::Relaxed) {
        emit("debug", &message().to_string());
    }
}

/// Something the administrator may want to know.
pub(crate) fn info(message: impl Display) {
    emit("info", &message.to_string());
}

/// Something is not as it should be, and the shim goes on.
pub(crate) fn warn(message: impl Display) {
    emit("warning", &message.to_string());
}

/// Something failed.
pub(crate) fn error(message: impl Display) {
    emit("error", &message.to_string());
}

fn emit(level: &str, message: &str) {
    let now = SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap_or_default();
    let text = line(level, message, FIELDS.get().map_or("", String::as_str), now);
    // Who does not read misses it.
    let _ = std::io::stderr().write(text.as_bytes());
}

fn line(level: &str, message: &str, fields: &str, since_epoch: Duration) -> String {
    let time = rtc_runtime::log::timestamp(SystemTime::UNIX_EPOCH + since_epoch);
    let time = time.trim_end_matches('Z');
    let nanoseconds = since_epoch.subsec_nanos();
    let mut text = format!("time=\"{time}.{nanoseconds:09}Z\" level={level} msg=\"");
    quote(message, &mut text);
    let room = LINE_MAX.saturating_sub(fields.len() + "…\"\n".len());
    if text.len() > room {
        text.truncate(text.floor_char_boundary(room));
        text.push('…');
    }
    text.push('"');
    text.push_str(fields);
    text.push('\n');
    text
}

/// As Go's `%q`: on one line, and harmless to a terminal.
fn quote(message: &str, text: &mut String) {
    for character in message.chars() {
        match character {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            '\r' => text.push_str("\\r"),
            other if other.is_control() => {
                let _ = write!(text, "\\u{:04x}", u32::from(other));
            }
            other => text.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_the_form_of_logrus() {
        let time = Duration::new(1_795_812_231, 5);
        assert_eq!(
            line("warning", "a \"b\"\n\u{1b}", " id=\"x\"", time),
            "time=\"2026-11-27T20:43:51.000000005Z\" level=warning msg=\"a \\\"b\\\"\\n\\u001b\" id=\"x\"\n"
        );
    }

    #[test]
    fn a_long_line_is_cut_so_that_it_is_written_whole() {
        let text = line("info", &"é".repeat(5000), " id=\"x\"", Duration::ZERO);
        assert!(
            text.len() <= LINE_MAX && text.ends_with("…\" id=\"x\"\n"),
            "{}",
            text.len()
        );
    }

    #[test]
    fn what_is_no_fifo_is_no_log() {
        let bundle = std::env::temp_dir().join(format!("rtc-shim-{}-log", std::process::id()));
        std::fs::create_dir_all(&bundle).unwrap();
        assert!(fifo(&bundle).is_none());
        std::fs::write(bundle.join("log"), "").unwrap();
        assert!(fifo(&bundle).is_none());
        std::fs::remove_file(bundle.join("log")).unwrap();
        nix::unistd::mkfifo(&bundle.join("log"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(fifo(&bundle).is_some());
        std::fs::remove_dir_all(bundle).unwrap();
    }
}
