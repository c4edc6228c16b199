//! The format of CRI's logs, as the kubelet reads it. Pure.
//!
//! ```text
//! 2026-11-27T23:49:50.123456789Z stdout F a whole line
//! 2026-11-27T23:49:51.000000001Z stderr P the first 16 KiB of a longer one
//! 2026-11-27T23:49:51.000000001Z stderr F and its end
//! ```
//!
//! Times are in UTC with nine digits, so that lines sort. A last line without an end is partial, as containerd writes it;
//! until its end is known it is kept back. Nothing of a line is changed. Only the carriage return that a terminal puts
//! before each newline, which the program did not write, is taken off again.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Longest head of an entry, in bytes: time, stream and tag, each with a space.
const HEAD_MAX: usize = 48;

/// Which output.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Standard output, or a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// Makes entries of what a stream brings.
#[derive(Debug)]
pub(crate) struct Entries {
    stream: Stream,
    /// The beginning of a line whose end is yet to come. Never longer than `max_line`.
    pending: Vec<u8>,
    max_line: usize,
    from_terminal: bool,
}

impl Entries {
    /// Lines longer than `max_line` bytes (at least 1) are cut.
    pub(crate) fn new(stream: Stream, max_line: usize, from_terminal: bool) -> Self {
        Self {
            stream,
            pending: Vec::new(),
            max_line,
            from_terminal,
        }
    }

    /// Takes bytes that came at a time; each entry that is whole is given to `entry`.
    pub(crate) fn take(&mut self, bytes: &[u8], now: SystemTime, mut entry: impl FnMut(&Entry<'_>)) {
        let stamp = Stamp::new(now);
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            let (mut line, ends) = match part.strip_suffix(b"\n") {
                Some(line) => (line, true),
                None => (part, false),
            };
            while self.pending.len() + line.len() > self.max_line {
                let (first, rest) = line.split_at(self.max_line - self.pending.len());
                self.emit(&stamp, Tag::Partial, first, &mut entry);
                line = rest;
            }
            if ends {
                self.emit(&stamp, Tag::Full, line, &mut entry);
            } else {
                self.pending.extend_from_slice(line);
            }
        }
        if self.pending.is_empty() {
            self.pending.shrink_to(512);
        }
    }

    /// The stream is at its end.
    pub(crate) fn finish(&mut self, now: SystemTime, mut entry: impl FnMut(&Entry<'_>)) {
        if !self.pending.is_empty() {
            self.emit(&Stamp::new(now), Tag::Partial, b"", &mut entry);
        }
    }

    fn emit(&mut self, stamp: &Stamp, tag: Tag, rest: &[u8], entry: &mut impl FnMut(&Entry<'_>)) {
        let mut content = [self.pending.as_slice(), rest];
        if self.from_terminal && tag == Tag::Full {
            let last = usize::from(!rest.is_empty());
            content[last] = content[last].strip_suffix(b"\r").unwrap_or(content[last]);
        }
        entry(&Entry {
            stamp,
            stream: self.stream,
            tag,
            content,
        });
        self.pending.clear();
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tag {
    Full,
    Partial,
}

/// One line of the log.
#[derive(Debug)]
pub(crate) struct Entry<'a> {
    stamp: &'a Stamp,
    stream: Stream,
    tag: Tag,
    content: [&'a [u8]; 2],
}

impl Entry<'_> {
    /// No more bytes than this.
    pub(crate) fn length_max(&self) -> usize {
        HEAD_MAX + self.content[0].len() + self.content[1].len() + 1
    }

    /// Appends it as it is written to the file.
    pub(crate) fn append_to(&self, output: &mut Vec<u8>) {
        output.extend_from_slice(self.stamp.0.as_bytes());
        output.push(b' ');
        output.extend_from_slice(self.stream.name().as_bytes());
        output.extend_from_slice(match self.tag {
            Tag::Full => b" F ",
            Tag::Partial => b" P ",
        });
        output.extend_from_slice(self.content[0]);
        output.extend_from_slice(self.content[1]);
        output.push(b'\n');
    }
}

/// A time, written once for all entries that came at it.
#[derive(Debug)]
struct Stamp(String);

impl Stamp {
    fn new(now: SystemTime) -> Self {
        let since_epoch = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let seconds = rtc_runtime::log::timestamp(now);
        Self(format!(
            "{}.{:09}Z",
            seconds.trim_end_matches('Z'),
            since_epoch.subsec_nanos()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_nanos(nanos)
    }

    fn logged(entries: &mut Entries, bytes: &[u8]) -> String {
        let mut output = Vec::new();
        entries.take(bytes, at(1_795_823_390_000_000_042), |entry| {
            let before = output.len();
            entry.append_to(&mut output);
            assert!(output.len() - before <= entry.length_max());
        });
        String::from_utf8(output).unwrap()
    }

    fn finished(entries: &mut Entries) -> String {
        let mut output = Vec::new();
        entries.finish(at(0), |entry| entry.append_to(&mut output));
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn a_line_is_written_as_the_kubelet_reads_it() {
        let mut entries = Entries::new(Stream::Stdout, 100, false);
        assert_eq!(
            logged(&mut entries, b"hello\n\nworld\r\n"),
            "2026-11-27T23:49:50.000000042Z stdout F hello\n\
             2026-11-27T23:49:50.000000042Z stdout F \n\
             2026-11-27T23:49:50.000000042Z stdout F world\r\n"
        );
    }

    #[test]
    fn a_line_without_an_end_is_kept_back_and_partial_at_the_end() {
        let mut entries = Entries::new(Stream::Stderr, 100, false);
        assert_eq!(logged(&mut entries, b"a"), "");
        assert!(logged(&mut entries, b"b\nc").ends_with(" stderr F ab\n"));
        assert_eq!(
            finished(&mut entries),
            "1970-01-01T00:00:00.000000000Z stderr P c\n"
        );
        assert_eq!(finished(&mut entries), "");
    }

    #[test]
    fn a_line_is_cut_only_where_it_is_longer_than_the_limit() {
        let tags = |bytes: &[u8]| {
            let mut entries = Entries::new(Stream::Stdout, 4, false);
            let mut text = logged(&mut entries, bytes);
            text.push_str(&finished(&mut entries));
            let cut = |line: &str| line.splitn(3, ' ').nth(2).unwrap().to_owned();
            text.lines().map(cut).collect::<Vec<_>>()
        };
        assert_eq!(tags(b"abcd\n"), ["F abcd"]);
        assert_eq!(tags(b"abcde\n"), ["P abcd", "F e"]);
        assert_eq!(tags(b"abcdefgh\n"), ["P abcd", "F efgh"]);
        assert_eq!(tags(b"abcdefghi"), ["P abcd", "P efgh", "P i"]);
        assert_eq!(tags(b"abcd"), ["P abcd"]);
    }

    #[test]
    fn only_a_terminal_s_own_carriage_return_is_taken_off() {
        let mut entries = Entries::new(Stream::Stdout, 100, true);
        assert!(logged(&mut entries, b"50%\r60%\r\r\n").ends_with(" F 50%\r60%\r\n"));
        assert!(logged(&mut entries, b"\r\n").ends_with(" F \n"));
        assert_eq!(logged(&mut entries, b"x\r"), "");
        assert!(logged(&mut entries, b"\n").ends_with(" F x\n"));
    }

    /// What a reader of logs does: `time stream tag content`, partial ones joined. Also whether the last is partial.
    fn read_back(log: &[u8], max_line: usize) -> (Vec<u8>, bool) {
        let (mut bytes, mut partial) = (Vec::new(), false);
        for line in log.split_inclusive(|byte| *byte == b'\n') {
            let line = line.strip_suffix(b"\n").expect("an entry has an end");
            let fields: Vec<&[u8]> = line.splitn(4, |byte| *byte == b' ').collect();
            assert_eq!(fields[0].len(), "2026-11-27T23:49:50.000000042Z".len());
            assert_eq!(fields[1], b"stdout");
            assert!(fields[3].len() <= max_line);
            bytes.extend_from_slice(fields[3]);
            partial = fields[2] == b"P";
            if !partial {
                assert_eq!(fields[2], b"F");
                bytes.push(b'\n');
            }
        }
        (bytes, partial)
    }

    #[test]
    fn what_goes_in_comes_out_however_it_was_cut() {
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let mut random = |limit: usize| {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            (seed >> 11) as usize % limit
        };
        for _ in 0..3000 {
            let max_line = 1 + random(40);
            let alphabet = [b'\n', b'\r', b' ', b'F', b'P', 0, 0xff, b'x', b'x', b'x'];
            let input: Vec<u8> = (0..random(300))
                .map(|_| alphabet[random(alphabet.len())])
                .collect();
            let mut entries = Entries::new(Stream::Stdout, max_line, false);
            let (mut log, mut rest) = (Vec::new(), input.as_slice());
            while !rest.is_empty() {
                let (chunk, others) = rest.split_at(1 + random(rest.len()));
                entries.take(chunk, at(random(1 << 60) as u64), |entry| {
                    entry.append_to(&mut log);
                });
                assert!(entries.pending.len() <= max_line);
                rest = others;
            }
            entries.finish(at(0), |entry| entry.append_to(&mut log));
            let (output, partial) = read_back(&log, max_line);
            assert_eq!(output, input);
            assert_eq!(partial, input.last().is_some_and(|last| *last != b'\n'));
        }
    }
}
