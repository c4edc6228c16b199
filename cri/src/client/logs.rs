//! `rtc-cri pod logs`: reads a container's log in CRI's format.
//!
//! ```text
//! 2026-11-28T07:00:00.000000000Z stdout F a whole line
//! 2026-11-28T07:00:00.000000000Z stderr P the first part of one that goes on
//! ```
//!
//! Who rotates a log renames it, and a new file has its name: the old one is read to its end, then the new one.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use rtc_cri::proto::ContainerState;

use super::arguments::{Arguments, Flag};
use super::connection::Server;
use super::{Verb, find};

pub(super) const LOGS: Verb = Verb {
    object: "pod",
    name: "logs",
    operands: "POD",
    about: "Prints what a container wrote: standard output to standard output, standard error to standard error.",
    flags: &[
        Flag::switch("follow", Some('f'), "go on until the container ends"),
        Flag::value(
            "container",
            Some('c'),
            "NAME",
            "default: the first that is no init container",
        ),
        Flag::value("tail", None, "LINES", "only the last lines"),
        Flag::switch("timestamps", None, "the time in front of each line"),
    ],
};

/// How often a log that is followed is looked at, and its container.
const LOOK: Duration = Duration::from_millis(100);
const LOOK_AT_CONTAINER: Duration = Duration::from_millis(500);
/// Longest line of a log, in bytes: writers split what is longer.
const LINE_MAX: usize = 1 << 20;

/// `pod logs`.
pub(super) async fn logs(server: Server, arguments: &Arguments) -> Result<ExitCode> {
    let tail = arguments.number("tail")?.map(|lines| lines as usize);
    let pod = find::pod(&server, arguments.one("POD")?).await?;
    let container = find::container(&server, &pod, arguments.value("container")).await?;
    let status = find::status(&server, &container.id).await?;
    ensure!(
        !status.log_path.is_empty(),
        "container {:?}: has no log: its pod was made without a log directory",
        find::container_name(&container)
    );
    let follow = arguments.has("follow");
    let mut log = Log::new(PathBuf::from(&status.log_path));
    let mut show = Show::new(arguments.has("timestamps"));
    // One that was never started may have no file yet.
    if !log.open()? && !follow {
        return Ok(ExitCode::SUCCESS);
    }
    let mut tail = tail.map(Tail::new);
    let first = log.read(|line| match &mut tail {
        Some(tail) => {
            tail.push(line);
            true
        }
        None => show.line(line),
    })?;
    let mut goes_on = first && tail.is_none_or(|tail| tail.lines.iter().all(|line| show.line(line)));
    if follow && goes_on {
        goes_on = self::follow(&server, &container.id, &mut log, &mut show).await?;
    }
    if goes_on {
        show.end();
    }
    Ok(ExitCode::SUCCESS)
}

/// Until the container has ended; `false`: nobody reads any more.
async fn follow(server: &Server, id: &str, log: &mut Log, show: &mut Show) -> Result<bool> {
    let mut looked: Option<Instant> = None;
    loop {
        let mut ended = false;
        if looked.is_none_or(|looked| looked.elapsed() >= LOOK_AT_CONTAINER) {
            looked = Some(Instant::now());
            // One that was removed has ended, too.
            let status = find::status(server, id).await;
            ended = status.map_or(true, |status| {
                status.state == i32::from(ContainerState::ContainerExited)
            });
        }
        // After that: what it wrote last is there.
        if !log.read(|line| show.line(line))? {
            return Ok(false);
        }
        while log.rotated()? {
            if !log.read(|line| show.line(line))? {
                return Ok(false);
            }
        }
        if ended {
            return Ok(true);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// The last lines of a log, as text; nothing where there is none.
pub(super) fn last(path: &Path, lines: usize) -> String {
    let mut log = Log::new(path.to_owned());
    let mut tail = Tail::new(lines);
    if log.open().unwrap_or(false) {
        let _ = log.read(|line| {
            tail.push(line);
            true
        });
    }
    let mut text = String::new();
    for line in &tail.lines {
        let entry = Entry::parse(line);
        text.push_str(&String::from_utf8_lossy(entry.text));
        if entry.whole {
            text.push('\n');
        }
    }
    text
}

/// A file that is written, and may be renamed.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: Option<File>,
    /// A line that is not whole yet.
    rest: Vec<u8>,
}

impl Log {
    fn new(path: PathBuf) -> Self {
        Self {
            path,
            file: None,
            rest: Vec::new(),
        }
    }

    /// Opens what has the name now; `false`: nothing has.
    fn open(&mut self) -> Result<bool> {
        match File::open(&self.path) {
            Ok(file) => {
                self.file = Some(file);
                self.rest.clear();
                Ok(true)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error).with_context(|| self.path.display().to_string()),
        }
    }

    /// Gives all lines that there are, without their ends; `false`: the taker wants no more.
    fn read(&mut self, mut take: impl FnMut(&[u8]) -> bool) -> Result<bool> {
        let Some(file) = &mut self.file else {
            return Ok(true);
        };
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = file
                .read(&mut buffer)
                .with_context(|| self.path.display().to_string())?;
            if count == 0 {
                return Ok(true);
            }
            self.rest.extend_from_slice(&buffer[..count]);
            let mut begin = 0;
            while let Some(length) = self.rest[begin..].iter().position(|byte| *byte == b'\n') {
                if !take(&self.rest[begin..begin + length]) {
                    return Ok(false);
                }
                begin += length + 1;
            }
            self.rest.drain(..begin);
            if self.rest.len() > LINE_MAX {
                let line = std::mem::take(&mut self.rest);
                if !take(&line) {
                    return Ok(false);
                }
            }
        }
    }

    /// Turns to the file that has the name now, where it is another; or to the beginning of one that was cut.
    fn rotated(&mut self) -> Result<bool> {
        let Some(file) = &mut self.file else {
            return self.open();
        };
        let (Ok(now), own) = (std::fs::metadata(&self.path), file.metadata()?) else {
            // Between the renaming and the new one.
            return Ok(false);
        };
        if (now.dev(), now.ino()) != (own.dev(), own.ino()) {
            // What was written before the writer turned to the new one.
            let more = own.len() > file.stream_position()?;
            return if more { Ok(true) } else { self.open() };
        }
        if own.len() < file.stream_position()? {
            file.seek(SeekFrom::Start(0))?;
            self.rest.clear();
            return Ok(true);
        }
        Ok(false)
    }
}

/// A line of a log.
#[derive(Debug, PartialEq)]
struct Entry<'a> {
    time: &'a [u8],
    error: bool,
    /// The line ends here (`F`).
    whole: bool,
    text: &'a [u8],
}

impl<'a> Entry<'a> {
    /// A line that is none of CRI's is shown as it is.
    fn parse(line: &'a [u8]) -> Self {
        let mut parts = line.splitn(4, |byte| *byte == b' ');
        let (time, stream, tags, text) = (parts.next(), parts.next(), parts.next(), parts.next());
        if let (Some(time), Some(stream @ (b"stdout" | b"stderr")), Some(tags)) = (time, stream, tags) {
            // Further tags stand behind a colon.
            let tag = tags.split(|byte| *byte == b':').next();
            return Self {
                time,
                error: stream == b"stderr",
                whole: tag != Some(b"P"),
                text: text.unwrap_or_default(),
            };
        }
        Self {
            time: b"",
            error: false,
            whole: true,
            text: line,
        }
    }
}

/// The last lines: those that go on count as one.
#[derive(Debug)]
struct Tail {
    wanted: usize,
    lines: VecDeque<Vec<u8>>,
    whole: usize,
}

impl Tail {
    fn new(wanted: usize) -> Self {
        Self {
            wanted,
            lines: VecDeque::new(),
            whole: 0,
        }
    }

    fn push(&mut self, line: &[u8]) {
        self.lines.push_back(line.to_owned());
        self.whole += usize::from(Entry::parse(line).whole);
        while self.whole > self.wanted {
            while let Some(first) = self.lines.pop_front()
                && !Entry::parse(&first).whole
            {}
            self.whole -= 1;
        }
        if self.wanted == 0 {
            self.lines.clear();
        }
    }
}

/// Writes entries where they belong.
#[derive(Debug)]
struct Show {
    timestamps: bool,
    /// In the middle of a line: of standard output, of standard error.
    inside: [bool; 2],
}

impl Show {
    fn new(timestamps: bool) -> Self {
        Self {
            timestamps,
            inside: [false; 2],
        }
    }

    /// `false`: nobody reads any more.
    fn line(&mut self, line: &[u8]) -> bool {
        let entry = Entry::parse(line);
        let mut out = Vec::with_capacity(line.len() + 1);
        let inside = &mut self.inside[usize::from(entry.error)];
        if self.timestamps && !*inside && !entry.time.is_empty() {
            out.extend_from_slice(entry.time);
            out.push(b' ');
        }
        out.extend_from_slice(entry.text);
        if entry.whole {
            out.push(b'\n');
        }
        *inside = !entry.whole;
        let written = if entry.error {
            std::io::stderr().write_all(&out)
        } else {
            std::io::stdout().write_all(&out)
        };
        written.is_ok()
    }

    fn end(&self) {
        let _ = std::io::stdout().flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(log: &mut Log) -> Vec<String> {
        let mut lines = Vec::new();
        log.read(|line| {
            lines.push(String::from_utf8_lossy(line).into_owned());
            true
        })
        .unwrap();
        lines
    }

    #[test]
    fn an_entry_has_a_time_a_stream_and_a_tag() {
        let entry = Entry::parse(b"2026 stderr P a b ");
        assert_eq!((entry.time, entry.text), (&b"2026"[..], &b"a b "[..]));
        assert!(entry.error && !entry.whole);
        let entry = Entry::parse(b"2026 stdout F:x ");
        assert!(!entry.error && entry.whole && entry.text.is_empty());
        assert_eq!(
            Entry::parse(b"something else entirely F").text,
            b"something else entirely F"
        );
    }

    #[test]
    fn the_last_lines_are_counted_by_their_ends() {
        let mut tail = Tail::new(2);
        for line in [
            "t stdout F 1",
            "t stdout P 2",
            "t stdout F 2",
            "t stdout P 3",
            "t stdout P 3",
            "t stdout F 3",
        ] {
            tail.push(line.as_bytes());
        }
        assert_eq!(tail.lines.len(), 5);
        assert_eq!(tail.lines[0], b"t stdout P 2");
        let mut none = Tail::new(0);
        none.push(b"t stdout P 1");
        assert!(none.lines.is_empty());
    }

    #[test]
    fn a_log_that_is_rotated_is_read_to_its_end_and_then_the_new_one() {
        let directory = std::env::temp_dir().join(format!("rtc-cri-{}-log", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("0.log");
        let mut log = Log::new(path.clone());
        assert!(!log.open().unwrap());
        let mut old = File::create(&path).unwrap();
        old.write_all(b"one\ntw").unwrap();
        assert!(log.rotated().unwrap());
        assert_eq!(read(&mut log), ["one"]);
        std::fs::rename(&path, directory.join("0.log.1")).unwrap();
        assert!(!log.rotated().unwrap());
        old.write_all(b"o\n").unwrap();
        std::fs::write(&path, "three\n").unwrap();
        assert!(log.rotated().unwrap());
        assert_eq!(read(&mut log), ["two"]);
        assert!(log.rotated().unwrap());
        assert_eq!(read(&mut log), ["three"]);
        assert!(!log.rotated().unwrap());
        File::create(&path).unwrap();
        assert!(log.rotated().unwrap());
        std::fs::remove_dir_all(directory).unwrap();
    }
}
