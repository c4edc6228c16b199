//! `rtc events`: what a container uses, and its out-of-memory events, one JSON object per line.
//!
//! ```text
//! {"type":"stats","id":"web","data":{...}}    at once, then after each interval; once only with --stats
//! {"type":"oom","id":"web"}                   the kernel killed a process of the container for want of memory
//! ```
//!
//! It ends when the container does, or when nobody reads its output any more.

use std::io::{ErrorKind, Write as _};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rtc_runtime::cgroup::{OomEvent, Stats};
use rtc_runtime::container::{self, Meters};
use serde::Serialize;

use super::arguments::{Flag, Parsed};
use super::{Command, Global, ON_ONE_CONTAINER};

pub(super) static COMMAND: Command = Command {
    name: "events",
    summary: "display container events such as OOM notifications, cpu, memory, and IO usage statistics",
    flags: &[
        Flag::value(
            "interval",
            "time between statistics, such as 5s or 500ms (default: 5s)",
        ),
        Flag::switch("stats", "display the container's stats then exit"),
    ],
    run,
    ..ON_ONE_CONTAINER
};

/// One line.
#[derive(Serialize)]
struct Event<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<&'a Stats>,
}

/// Whether somebody still reads.
#[derive(Debug, PartialEq, Eq)]
enum Reader {
    There,
    Gone,
}

fn run(global: &Global, parsed: &Parsed) -> Result<i32> {
    let interval = interval(parsed.text("interval")?.unwrap_or("5s"))?;
    let id = super::id(parsed)?;
    let meters = container::meters(&global.state_root(), &id)?;
    if parsed.is_on("stats") {
        let stats = meters.stats()?;
        write(&Event {
            kind: "stats",
            id: id.as_str(),
            data: Some(&stats),
        })?;
        return Ok(0);
    }
    follow(id.as_str(), &meters, interval)?;
    Ok(0)
}

fn follow(id: &str, meters: &Meters, interval: Duration) -> Result<()> {
    // Before the first statistics: what happens after them is not missed.
    let mut watch = meters.cgroup.oom_watch()?;
    let mut due = Instant::now();
    loop {
        let reader = match watch.wait(due.saturating_duration_since(Instant::now()))? {
            OomEvent::End => return Ok(()),
            OomEvent::Oom => write(&Event {
                kind: "oom",
                id,
                data: None,
            })?,
            OomEvent::Timeout => {
                due = Instant::now() + interval;
                match meters.stats() {
                    Ok(stats) => write(&Event {
                        kind: "stats",
                        id,
                        data: Some(&stats),
                    })?,
                    Err(_) if !meters.cgroup.exists() => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
        };
        if reader == Reader::Gone {
            return Ok(());
        }
    }
}

fn write(event: &Event<'_>) -> Result<Reader> {
    let line = serde_json::to_string(event)? + "\n";
    match std::io::stdout().lock().write_all(line.as_bytes()) {
        Ok(()) => Ok(Reader::There),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Reader::Gone),
        Err(error) => Err(error).context("write to standard output"),
    }
}

/// A time as Go writes it: numbers with units, `1m30s`, `1.5s`; above zero.
fn interval(text: &str) -> Result<Duration> {
    match duration(text) {
        Some(time) if !time.is_zero() => Ok(time),
        _ => bail!("--interval: {text:?}: must be a time above zero, such as 5s or 500ms"),
    }
}

fn duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 7] = [
        ("h", 3600.0),
        ("ms", 1e-3),
        ("m", 60.0),
        ("s", 1.0),
        ("us", 1e-6),
        ("µs", 1e-6),
        ("ns", 1e-9),
    ];
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .filter(|n| *n > 0)?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let (unit, seconds) = UNITS.iter().find(|(unit, _)| rest.starts_with(unit))?;
        rest = &rest[unit.len()..];
        total = total.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
    }
    // Longer than any container lives, and short enough to add to a point in time.
    (total < Duration::from_secs(u64::from(u32::MAX))).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_written_as_in_go() {
        for (text, milliseconds) in [
            ("5s", 5000),
            ("500ms", 500),
            ("1m30s", 90_000),
            ("1.5s", 1500),
            ("1h", 3_600_000),
        ] {
            assert_eq!(
                interval(text).unwrap(),
                Duration::from_millis(milliseconds),
                "{text}"
            );
        }
        for text in [
            "",
            "0s",
            "5",
            "-5s",
            "s",
            "5x",
            "1..5s",
            "5s6",
            "1e3s",
            "99999999999999h",
            " 5s",
        ] {
            assert!(interval(text).is_err(), "{text}");
        }
    }

    #[test]
    fn lines_are_what_callers_of_runc_parse() {
        let oom = Event {
            kind: "oom",
            id: "web",
            data: None,
        };
        assert_eq!(
            serde_json::to_string(&oom).unwrap(),
            r#"{"type":"oom","id":"web"}"#
        );
        let stats = Stats::default();
        let line = serde_json::to_value(Event {
            kind: "stats",
            id: "web",
            data: Some(&stats),
        })
        .unwrap();
        for key in ["cpu", "memory", "pids", "blkio"] {
            assert!(line["data"].get(key).is_some(), "{key}");
        }
    }
}
