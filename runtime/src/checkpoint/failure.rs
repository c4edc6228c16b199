//! Why CRIU failed: the errors of its log, which hold the reason, and where the log is.

use std::path::Path;

use super::criu::Failed;
use super::image::Directory;

/// How much of the end of a log is looked at, in bytes. A log of a container with many files has megabytes.
const TAIL: u64 = 256 * 1024;
/// How many errors are told: the first of the last ones is the reason, the others what followed from it.
const TOLD: usize = 4;
/// How long one may be, in characters.
const LENGTH: usize = 400;

/// Adds the errors of the log to what CRIU answered. Other errors are left as they are.
pub(super) fn explain(error: anyhow::Error, directory: &Directory, log: &str) -> anyhow::Error {
    if !error.is::<Failed>() {
        return error;
    }
    let place = Path::new(directory.path()).join(log);
    match directory.tail(log, TAIL).map(|tail| errors(&tail)) {
        Ok(errors) if !errors.is_empty() => {
            Failed(format!(": {}; its log is {}", errors.join("; "), place.display())).into()
        }
        Ok(_) => error.context(format!("no errors in its log, {}", place.display())),
        Err(_) => error.context("it wrote no log"),
    }
}

/// The last errors of a log, the oldest first: `(00.0123) Error (criu/file.c:12): what` without the time.
fn errors(log: &[u8]) -> Vec<String> {
    let text = String::from_utf8_lossy(log);
    let mut found: Vec<String> = Vec::new();
    for line in text.lines() {
        let Some(at) = line.find("Error (") else { continue };
        let told = printable(&line[at + "Error (".len()..]);
        // "Dumping FAILED." is what we say ourselves.
        if told.ends_with(" FAILED.") || found.last() == Some(&told) {
            continue;
        }
        found.push(told.replacen("): ", ": ", 1));
    }
    let more = found.len().saturating_sub(TOLD);
    found.split_off(more)
}

/// What comes from a log, which names files of the container: on one line, without control characters, and not too long.
pub(super) fn printable(text: &str) -> String {
    let text = text.trim();
    let end = text
        .char_indices()
        .nth(LENGTH)
        .map_or(text.len(), |(index, _)| index);
    text[..end]
        .chars()
        .flat_map(|c| {
            let escape = c.is_control().then(|| c.escape_default());
            let plain = (!c.is_control()).then_some(c);
            escape.into_iter().flatten().chain(plain)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_errors_are_told_without_their_time() {
        let log = b"(00.01) Dumping\n\
            (00.02) Error (criu/sk-inet.c:191): inet: Connected TCP socket\n\
            (00.02) Warn  (criu/x.c:1): no\n\
            (00.03) Error (criu/cr-dump.c:1669): Dump files (pid: 7) failed with -1\n\
            (00.04) Error (criu/cr-dump.c:2114): Dumping FAILED.\n";
        assert_eq!(
            errors(log),
            [
                "criu/sk-inet.c:191: inet: Connected TCP socket",
                "criu/cr-dump.c:1669: Dump files (pid: 7) failed with -1"
            ]
        );
        assert_eq!(errors(b"").len(), 0);
    }

    #[test]
    fn of_many_errors_the_last_are_told_and_each_is_cut() {
        let mut log = String::new();
        for number in 0..20 {
            log += &format!("Error (a.c:{number}): {}\n", "é".repeat(1000));
        }
        let found = errors(log.as_bytes());
        assert_eq!(found.len(), TOLD);
        assert!(found[3].starts_with("a.c:19: é") && found[3].chars().count() < LENGTH);
    }

    #[test]
    fn names_of_the_container_do_not_reach_a_terminal_as_they_are() {
        let found = errors(b"Error (a.c:1): Can't open \x1b[31mred\x07\n");
        assert_eq!(found, ["a.c:1: Can't open \\u{1b}[31mred\\u{7}"]);
    }
}
