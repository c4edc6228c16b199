//! The server's messages, a line each on standard error: journald and a person read the same.
//!
//! Under systemd (`JOURNAL_STREAM`) a line begins with its priority, `<4>`, which journald takes off (sd-daemon(3)).

use std::fmt::Display;
use std::io::Write as _;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

static DEBUG: AtomicBool = AtomicBool::new(false);
static JOURNAL: OnceLock<bool> = OnceLock::new();

/// Says how many messages are wanted.
pub(crate) fn init(debug: bool) {
    DEBUG.store(debug, Ordering::Relaxed);
}

/// Only where it is asked for.
pub(crate) fn debug<M: Display>(message: impl FnOnce() -> M) {
    if DEBUG.load(Ordering::Relaxed) {
        emit(7, "debug", &message());
    }
}

/// Something the administrator may want to know.
pub(crate) fn info(message: impl Display) {
    emit(6, "info", &message);
}

/// Something is not as it should be, and the server goes on.
pub(crate) fn warn(message: impl Display) {
    emit(4, "warning", &message);
}

/// Something failed.
pub(crate) fn error(message: impl Display) {
    emit(3, "error", &message);
}

fn emit(priority: u8, level: &str, message: &dyn Display) {
    let journal = *JOURNAL.get_or_init(|| std::env::var_os("JOURNAL_STREAM").is_some());
    let time = (!journal).then(|| rtc_runtime::log::timestamp(std::time::SystemTime::now()));
    let text = line(priority, level, time.as_deref(), &message.to_string());
    // Who does not read misses it.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// One line, harmless to a terminal, whatever a peer's error says.
fn line(priority: u8, level: &str, time: Option<&str>, message: &str) -> String {
    let mut text = match time {
        Some(time) => format!("{time} {level}: "),
        None => format!("<{priority}>{level}: "),
    };
    for character in message.chars() {
        if character.is_control() {
            text.extend(character.escape_default());
        } else {
            text.push(character);
        }
    }
    text.push('\n');
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_and_harmless() {
        assert_eq!(
            line(4, "warning", None, "a\nb\u{1b}[31m \"c\""),
            "<4>warning: a\\nb\\u{1b}[31m \"c\"\n"
        );
        assert_eq!(
            line(4, "warning", Some("2026-11-28T00:00:00Z"), "x"),
            "2026-11-28T00:00:00Z warning: x\n"
        );
    }
}
