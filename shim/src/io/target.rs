//! What a stream of a request names: nothing, a FIFO, or a logger. Pure.
//!
//! As containerd has it (`pkg/cio`, `core/runtime/v2`): a path without a scheme is a FIFO; the query of `binary://` is the
//! logger's arguments, a key and its value being two. `cri://` is ours.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use crate::error::{self, Error, Kind};

/// A line of the log of CRI is cut where it is longer, in bytes (containerd's `max_container_log_line_size`).
pub(crate) const LINE_MAX: usize = 16 * 1024;
/// A line may be set to be cut at this length, in bytes.
const LINE_LIMITS: std::ops::RangeInclusive<u64> = 64..=256 * 1024;
/// How many files a log that is rotated by size has, the current one included (the kubelet's `containerLogMaxFiles`).
const FILES_MAX: u64 = 5;

/// Where a stream goes to or comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// Nowhere.
    Null,
    /// A FIFO that the client made.
    Fifo(PathBuf),
    /// Programs that write a log.
    Logger(Logger),
}

/// What takes the output of a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Logger {
    /// A program that is run.
    Binary(Binary),
    /// The bytes as they come, appended to a file.
    File(PathBuf),
    /// A log of CRI.
    Cri(CriLog),
}

/// A logger that is run for a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Binary {
    /// The program.
    pub(crate) program: PathBuf,
    /// Its arguments: the query, in order.
    pub(crate) arguments: Vec<OsString>,
    /// It has to write a byte before it closes descriptor 5 (`binary-v2`, containerd 2.3); else closing it is enough.
    pub(crate) says_ready: bool,
}

/// A log of CRI: `cri:///var/log/pods/.../0.log?max-size=BYTES&max-files=N&max-line=BYTES`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CriLog {
    /// The file.
    pub(crate) path: PathBuf,
    /// It is rotated before it gets longer, in bytes; `None`: never, whoever collects the logs does it.
    pub(crate) max_size: Option<u64>,
    /// How many files there are when it is rotated by size, this one included.
    pub(crate) max_files: usize,
    /// Lines longer than this are cut into partial ones, in bytes.
    pub(crate) max_line: usize,
}

impl Target {
    /// Reads the value of a field.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`, with the field and the value: a relative path, an unknown scheme or option, a host, a broken
    /// escape, a NUL.
    pub(crate) fn parse(field: &str, value: &str) -> error::Result<Self> {
        parse(value)
            .map_err(|why| Error::text(Kind::InvalidArgument, format_args!("{field}: {value:?}: {why}")))
    }
}

fn parse(value: &str) -> Result<Target, String> {
    if value.is_empty() {
        return Ok(Target::Null);
    }
    if value.contains('\0') {
        return Err("a path can't contain a NUL".into());
    }
    let Some((scheme, rest)) = value.split_once("://").filter(|_| !value.starts_with('/')) else {
        return absolute(value.into()).map(Target::Fifo);
    };
    if rest.contains('#') {
        return Err("a # is written %23".into());
    }
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let query = pairs(query)?;
    let path = || {
        if path.is_empty() {
            return Err(format!("{scheme}:// needs a path, as in {scheme}:///path"));
        }
        if !path.starts_with('/') {
            return Err(format!(
                "there is a host where none can be; a path has three slashes: {scheme}:///path"
            ));
        }
        unescape(path, false).map(PathBuf::from)
    };
    let without_options = |target| match query.first() {
        None => Ok(target),
        Some((key, _)) => Err(format!("{scheme} has no options, as {key:?}")),
    };
    match scheme {
        "fifo" => without_options(Target::Fifo(path()?)),
        "file" => without_options(Target::Logger(Logger::File(path()?))),
        "binary" | "binary-v2" => Ok(Target::Logger(Logger::Binary(Binary {
            program: path()?,
            arguments: query.into_iter().flat_map(|(key, value)| [key, value]).collect(),
            says_ready: scheme == "binary-v2",
        }))),
        "cri" => Ok(Target::Logger(Logger::Cri(cri_log(path()?, &query)?))),
        _ => Err(format!(
            "the scheme {scheme:?} is unknown; there are fifo, file, binary, binary-v2 and cri"
        )),
    }
}

fn absolute(path: PathBuf) -> Result<PathBuf, String> {
    if path.is_absolute() {
        Ok(path)
    } else {
        Err("a FIFO is given by its absolute path".into())
    }
}

fn cri_log(path: PathBuf, query: &[(OsString, OsString)]) -> Result<CriLog, String> {
    if path.file_name().is_none() || path.as_os_str().as_encoded_bytes().ends_with(b"/") {
        return Err("the path names no file".into());
    }
    let mut log = CriLog {
        path,
        max_size: None,
        max_files: FILES_MAX as usize,
        max_line: LINE_MAX,
    };
    for (key, value) in query {
        let number = || {
            let number = value.to_str().and_then(|text| text.parse::<u64>().ok());
            number.ok_or_else(|| format!("the option {key:?} wants a number, not {value:?}"))
        };
        let within = |limits: std::ops::RangeInclusive<u64>| match number()? {
            number if limits.contains(&number) => Ok(number as usize),
            number => Err(format!(
                "the option {key:?} is {number}, and must be from {} to {}",
                limits.start(),
                limits.end()
            )),
        };
        match key.to_str() {
            Some("max-size") => log.max_size = Some(number()?).filter(|size| *size > 0),
            Some("max-files") => log.max_files = within(2..=1000)?,
            Some("max-line") => log.max_line = within(LINE_LIMITS)?,
            _ => {
                return Err(format!(
                    "the option {key:?} is unknown; there are max-size, max-files and max-line"
                ));
            }
        }
    }
    Ok(log)
}

/// The pairs of a query in order, only the first one of a key, as in containerd.
fn pairs(query: &str) -> Result<Vec<(OsString, OsString)>, String> {
    let mut pairs: Vec<(OsString, OsString)> = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let key = unescape(key, true)?;
        if pairs.iter().all(|(known, _)| *known != key) {
            pairs.push((key, unescape(value, true)?));
        }
    }
    Ok(pairs)
}

/// Reads `%41`, and `+` as a space where it is a query.
fn unescape(text: &str, query: bool) -> Result<OsString, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, others @ ..] = rest {
        rest = others;
        let byte = match first {
            b'%' => {
                let digits = others.get(..2).and_then(|digits| str::from_utf8(digits).ok());
                let byte = digits
                    .filter(|digits| !digits.starts_with('+'))
                    .and_then(|digits| u8::from_str_radix(digits, 16).ok());
                rest = others.get(2..).unwrap_or_default();
                byte.ok_or("a % is written %25, or is followed by two hexadecimal digits")?
            }
            b'+' if query => b' ',
            other => *other,
        };
        if byte == 0 {
            return Err("a path or an argument can't contain a NUL".into());
        }
        bytes.push(byte);
    }
    Ok(OsString::from_vec(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(value: &str) -> String {
        let error = Target::parse("stdout", value).expect_err(value);
        assert_eq!(error.kind, Kind::InvalidArgument, "{value}");
        let text = error.to_string();
        assert!(
            text.starts_with(&format!("stdout: {value:?}: ")),
            "names field and value: {text}"
        );
        text
    }

    fn binary(value: &str) -> Binary {
        match Target::parse("stdout", value).unwrap() {
            Target::Logger(Logger::Binary(binary)) => binary,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn each_scheme_is_read() {
        let parse = |value| Target::parse("stdout", value).unwrap();
        assert_eq!(parse(""), Target::Null);
        assert_eq!(
            parse("/run/fifo/a%20b?c#d"),
            Target::Fifo("/run/fifo/a%20b?c#d".into())
        );
        assert_eq!(parse("/run/a://b"), Target::Fifo("/run/a://b".into()));
        assert_eq!(parse("fifo:///run/a%20b"), Target::Fifo("/run/a b".into()));
        assert_eq!(
            parse("file:///var/log/x"),
            Target::Logger(Logger::File("/var/log/x".into()))
        );
        assert_eq!(
            parse("cri:///var/log/pods/0.log?max-size=10&max-line=100"),
            Target::Logger(Logger::Cri(CriLog {
                path: "/var/log/pods/0.log".into(),
                max_size: Some(10),
                max_files: 5,
                max_line: 100,
            }))
        );
    }

    #[test]
    fn the_arguments_of_a_logger_are_its_query_in_order() {
        let binary = binary("binary:///usr/bin/log%20it?b=1&a=x+y%2B&flag&b=2");
        assert_eq!(binary.program, PathBuf::from("/usr/bin/log it"));
        assert_eq!(binary.arguments, ["b", "1", "a", "x y+", "flag", ""]);
        assert!(!binary.says_ready);
        assert!(self::binary("binary-v2:///l").says_ready);
    }

    #[test]
    fn what_can_not_be_meant_is_refused_with_field_and_value() {
        for value in [
            "relative/path",
            "ftp:///x",
            "binary://",
            "binary://logger",
            "binary://host/logger",
            "fifo://",
            "file://relative",
            "file:///x?a=b",
            "cri://",
            "cri:///",
            "cri:///dir/",
            "cri:///log?max-size=-1",
            "cri:///log?max-size=1M",
            "cri:///log?max-files=1",
            "cri:///log?max-line=1",
            "cri:///log?size=1",
            "file:///a%",
            "file:///a%4",
            "file:///a%zz",
            "file:///a%+1",
            "file:///a%00b",
            "file:///a#b",
            "nul\0",
            "://x",
            "FIFO:///x",
        ] {
            refused(value);
        }
        assert!(refused("ftp:///x").contains("the scheme \"ftp\" is unknown"));
        assert!(refused("binary://").contains("binary:///path"));
    }

    /// Numbers that look random and are the same each time (xorshift64).
    fn random(seed: &mut u64) -> usize {
        *seed ^= *seed << 13;
        *seed ^= *seed >> 7;
        *seed ^= *seed << 17;
        (*seed >> 11) as usize
    }

    #[test]
    fn any_text_is_read_or_refused_and_a_path_is_absolute_and_without_nul() {
        let parts = [
            "binary", "cri", "file", "fifo", "://", ":", "/", "//", "?", "&", "=", "%", "%2f", "%00", "+",
            "#", "é", "\0", "max-size", "9", "-1", "a", " ", "..", "-v2",
        ];
        let mut seed = 0x9e37_79b9_7f4a_7c15;
        let (mut read, mut refused_ones) = (0, 0);
        for _ in 0..100_000 {
            let value: String = (0..random(&mut seed) % 9)
                .map(|_| parts[random(&mut seed) % parts.len()])
                .collect();
            let path = match Target::parse("stderr", &value) {
                Ok(Target::Null) => {
                    assert_eq!(value, "");
                    continue;
                }
                Ok(Target::Fifo(path) | Target::Logger(Logger::File(path))) => path,
                Ok(Target::Logger(Logger::Binary(binary))) => binary.program,
                Ok(Target::Logger(Logger::Cri(log))) => log.path,
                Err(error) => {
                    refused_ones += 1;
                    assert!(error.to_string().starts_with(&format!("stderr: {value:?}: ")));
                    continue;
                }
            };
            read += 1;
            assert!(path.is_absolute(), "{value:?}");
            assert!(!path.as_os_str().as_encoded_bytes().contains(&0), "{value:?}");
        }
        assert!(read > 500 && refused_ones > 500, "{read} {refused_ones}");
    }

    #[test]
    fn what_is_escaped_comes_out_as_it_was() {
        let mut seed = 7;
        for _ in 0..2000 {
            let name: Vec<u8> = (0..1 + random(&mut seed) % 20)
                .map(|_| 1 + (random(&mut seed) % 255) as u8)
                .collect();
            let escaped: String = name.iter().map(|byte| format!("%{byte:02x}")).collect();
            let binary = binary(&format!("binary:///{escaped}?{escaped}={escaped}"));
            let name = OsString::from_vec(name);
            let mut path = OsString::from("/");
            path.push(&name);
            assert_eq!(binary.program, PathBuf::from(path));
            assert_eq!(binary.arguments, [name.clone(), name]);
        }
    }
}
