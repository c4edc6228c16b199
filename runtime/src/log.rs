//! Where messages go: standard error for people, `--log FILE` for the engine that called us.
//!
//! | | no `--log` | `--log FILE` |
//! |---|---|---|
//! | error | stderr: `rtc: text` | stderr and the file |
//! | warning | stderr: `rtc: warning: text` | the file |
//! | debug (`--debug`) | stderr: `time=... level=debug msg=...` | the file |
//!
//! With `--log-format json` every line is `{"level":..,"msg":..,"time":..}`, the form in which containerd's shim,
//! CRI-O and Podman look for the last error. Errors on stderr stay plain where a file is given, as runc's do.
//!
//! A message is one `write(2)` to a descriptor opened once (`O_APPEND`, `O_CLOEXEC`, `O_NONBLOCK`), so it can be
//! used between `clone3` and `execve` too, by a child that inherits the descriptor. A write that fails is dropped: a full
//! disk or a reader that went away must never end a container. A child that closes descriptors by range calls
//! [`disable`] first, so that no message lands in a file that later took the number.

use std::fmt::{Display, Write as _};
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::RawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

use crate::sys::{Named as _, fd};

/// How a line is written (`--log-format`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `time="..." level=error msg="..."`.
    #[default]
    Text,
    /// `{"level":"error","msg":"...","time":"..."}`.
    Json,
}

/// Importance of a message, in logrus's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// The command failed; exactly one per command, reported by `main`.
    Error,
    /// Something in the input is not done as asked, and the command goes on.
    Warning,
    /// Only with `--debug`.
    Debug,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Error => "error",
            Level::Warning => "warning",
            Level::Debug => "debug",
        }
    }
}

/// What the command line says about logging.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `--log`; none means standard error.
    pub file: Option<PathBuf>,
    /// `--log-format`.
    pub format: Format,
    /// `--debug`.
    pub debug: bool,
}

struct Logger {
    /// None: standard error.
    file: Option<File>,
    format: Format,
}

static LOGGER: OnceLock<Logger> = OnceLock::new();
static DEBUG: AtomicBool = AtomicBool::new(false);
static DISABLED: AtomicBool = AtomicBool::new(false);
/// Where a worker's messages go: its channel to the shim; none: -1.
static DIVERTED: AtomicI32 = AtomicI32::new(-1);

/// Sets the destination, once per process; the library logs to standard error until then. Fails if the log file
/// cannot be opened.
pub fn init(options: &Options) -> Result<()> {
    let file = match &options.file {
        Some(path) if path != Path::new("/dev/stderr") => Some(open(path)?),
        _ => None,
    };
    DEBUG.store(options.debug, Ordering::Relaxed);
    // A second call is a program that uses the library twice: the first destination stays.
    LOGGER
        .set(Logger {
            file,
            format: options.format,
        })
        .ok();
    Ok(())
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o644)
        // A FIFO without a reader is an error instead of a hang; regular files ignore the flag.
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .call(|| format!("open({path:?})"))
        .context("--log")
}

/// Drops every later message of this process: for a child about to close its descriptors.
pub fn disable() {
    DISABLED.store(true, Ordering::Relaxed);
}

/// In a worker: its messages become reports to the shim, by the number of its channel. Its standard error is a container's,
/// and the log file is closed.
pub(crate) fn divert(channel: RawFd) {
    DIVERTED.store(channel, Ordering::Relaxed);
}

/// Whether `--debug` is on.
pub fn debugging() -> bool {
    DEBUG.load(Ordering::Relaxed)
}

/// Logs what `message` returns, which is only called with `--debug`.
pub fn debug<M: Display>(message: impl FnOnce() -> M) {
    if debugging() {
        emit(Level::Debug, &message().to_string());
    }
}

/// Logs a warning: the command goes on.
pub fn warn(message: impl Display) {
    emit(Level::Warning, &message.to_string());
}

/// Logs the error that ends the command. For `main` only.
pub fn error(message: impl Display) {
    emit(Level::Error, &message.to_string());
}

fn emit(level: Level, message: &str) {
    if DISABLED.load(Ordering::Relaxed) {
        return;
    }
    let channel = DIVERTED.load(Ordering::Relaxed);
    if channel != -1 {
        // A shim that has gone needs no message.
        let _ = fd::write_raw(channel, &fd::text_message(b'W', message));
        return;
    }
    let logger = LOGGER.get();
    let format = logger.map_or(Format::Text, |l| l.format);
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    match logger.and_then(|l| l.file.as_ref()) {
        Some(mut file) => {
            file.write_all(line(format, level, message, now).as_bytes()).ok();
            if level == Level::Error {
                std::io::stderr().write_all(plain(level, message).as_bytes()).ok();
            }
        }
        None => {
            let text = match format {
                Format::Text if level != Level::Debug => plain(level, message),
                _ => line(format, level, message, now),
            };
            std::io::stderr().write_all(text.as_bytes()).ok();
        }
    }
}

/// The line for a person at a terminal.
fn plain(level: Level, message: &str) -> String {
    let mut out = String::with_capacity(message.len() + 16);
    out.push_str("rtc: ");
    if level == Level::Warning {
        out.push_str("warning: ");
    }
    escape_controls(message, &mut out);
    out.push('\n');
    out
}

/// The line for a program.
fn line(format: Format, level: Level, message: &str, since_epoch: Duration) -> String {
    let time = rfc3339(since_epoch);
    let mut out = String::with_capacity(message.len() + 80);
    match format {
        Format::Text => {
            let _ = write!(out, "time=\"{time}\" level={} msg=\"", level.name());
            quote(message, &mut out);
            out.push_str("\"\n");
        }
        Format::Json => {
            let _ = write!(out, "{{\"level\":\"{}\",\"msg\":\"", level.name());
            quote(message, &mut out);
            let _ = writeln!(out, "\",\"time\":\"{time}\"}}");
        }
    }
    out
}

/// JSON string escaping, which is also valid in logrus's text form.
fn quote(message: &str, out: &mut String) {
    for c in message.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\t' => out.push_str("\\t"),
            '\r' => out.push_str("\\r"),
            c if hides_text(c) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
}

/// Makes hostile bytes (of a config, an id, a program's name) harmless to a terminal.
fn escape_controls(message: &str, out: &mut String) {
    for c in message.chars() {
        if hides_text(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
}

/// Control characters, and the Unicode marks that reorder or hide what follows them.
fn hides_text(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// A time as RFC 3339 in UTC, to the second: what records and log lines have.
#[must_use]
pub fn timestamp(time: SystemTime) -> String {
    rfc3339(time.duration_since(UNIX_EPOCH).unwrap_or_default())
}

/// `2026-11-27T20:43:51Z`, from the time since the Unix epoch.
fn rfc3339(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let (year, month, day) = civil_from_days(seconds / 86_400);
    let rest = seconds % 86_400;
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}Z",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

/// Year, month and day of the proleptic Gregorian calendar, from days since 1970-01-01.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    // Years that begin on 1 March put the leap day last, so a month's length depends on its number alone.
    let days = days + 719_468;
    let (era, of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    (year_of_era + era * 400 + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_line_has_the_fields_engines_read() {
        let text = line(
            Format::Json,
            Level::Error,
            "a \"b\"\n\u{1b}[31m",
            Duration::from_secs(1_795_812_231),
        );
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["level"], "error");
        assert_eq!(value["msg"], "a \"b\"\n\u{1b}[31m");
        assert_eq!(value["time"], "2026-11-27T20:43:51Z");
        assert!(text.ends_with("}\n") && text.matches('\n').count() == 1);
    }

    #[test]
    fn a_text_line_is_the_form_of_logrus() {
        let text = line(Format::Text, Level::Debug, "x \"y\"", Duration::ZERO);
        assert_eq!(
            text,
            "time=\"1970-01-01T00:00:00Z\" level=debug msg=\"x \\\"y\\\"\"\n"
        );
    }

    #[test]
    fn control_and_bidi_characters_do_not_reach_a_terminal() {
        assert_eq!(
            plain(Level::Error, "a\u{1b}[2Jb\nc\u{202e}é"),
            "rtc: a\\u{1b}[2Jb\\nc\\u{202e}é\n"
        );
        assert_eq!(plain(Level::Warning, "x"), "rtc: warning: x\n");
    }

    #[test]
    fn dates_around_leap_days_are_right() {
        for (days, date) in [
            (0, (1970, 1, 1)),
            (11_016, (2000, 2, 29)),
            (11_017, (2000, 3, 1)),
            (19_781, (2024, 2, 28)),
            (47_540, (2100, 2, 28)),
            (47_541, (2100, 3, 1)),
        ] {
            assert_eq!(civil_from_days(days), date);
        }
    }

    #[test]
    fn a_log_file_that_is_a_fifo_without_reader_is_an_error_not_a_hang() {
        let path = std::env::temp_dir().join(format!("rtc-log-fifo-{}", std::process::id()));
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let error = open(&path);
        std::fs::remove_file(&path).unwrap();
        assert!(format!("{:#}", error.unwrap_err()).starts_with("--log: open("));
    }
}
