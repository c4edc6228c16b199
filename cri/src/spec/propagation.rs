//! How the mount that a path is on propagates (`/proc/self/mountinfo`, proc_pid_mountinfo(5)).

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::error::Result;

/// A mount's peer groups.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Kind {
    #[default]
    Private,
    Slave,
    Shared,
}

/// All mounts, in the order they were made.
#[derive(Debug)]
pub(super) struct Mounts(Vec<(PathBuf, Kind)>);

impl Mounts {
    /// Those of this process.
    ///
    /// # Errors
    ///
    /// `/proc` can't be read.
    pub(super) fn read() -> Result<Self> {
        let text = std::fs::read("/proc/self/mountinfo").context("read /proc/self/mountinfo")?;
        Ok(Self::parse(&text))
    }

    fn parse(text: &[u8]) -> Self {
        let lines = text.split(|byte| *byte == b'\n').filter_map(|line| {
            let mut fields = line.split(|byte| *byte == b' ').skip(4);
            let point = unescape(fields.next()?);
            let optional = fields.skip(1).take_while(|field| *field != b"-");
            let kind = optional.fold(Kind::Private, |kind, field| match field {
                _ if field.starts_with(b"shared:") => Kind::Shared,
                _ if field.starts_with(b"master:") && kind != Kind::Shared => Kind::Slave,
                _ => kind,
            });
            Some((point, kind))
        });
        Self(lines.collect())
    }

    /// Of the mount that the path is on.
    pub(super) fn of(&self, path: &Path) -> Kind {
        self.0
            .iter()
            .filter(|(point, _)| path.starts_with(point))
            // The last of those on the deepest point: it is on top.
            .max_by_key(|(point, _)| point.components().count())
            .map_or(Kind::Private, |(_, kind)| *kind)
    }
}

/// Space, tab, newline and backslash are written in octal.
fn unescape(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, after)) = rest.split_first() {
        let escaped = after
            .get(..3)
            .filter(|_| first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match escaped {
            Some(byte) => {
                path.push(byte);
                rest = &after[3..];
            }
            None => {
                path.push(first);
                rest = after;
            }
        }
    }
    OsString::from_vec(path).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deepest_mount_above_a_path_counts_and_of_two_the_upper_one() {
        let mounts = Mounts::parse(
            b"1 0 0:1 / / rw - ext4 /dev/a rw\n\
              2 1 0:2 / /mnt rw shared:1 - tmpfs x rw\n\
              3 2 0:3 / /mnt/a\\040b rw,nodev master:5 - tmpfs x rw\n\
              4 2 0:4 / /mnt/c rw shared:7 master:6 - tmpfs x rw\n\
              5 4 0:5 / /mnt/c rw - tmpfs x rw\nrubbish\n",
        );
        for (path, kind) in [
            ("/etc", Kind::Private),
            ("/mnt", Kind::Shared),
            ("/mnt/x/y", Kind::Shared),
            ("/mntx", Kind::Private),
            ("/mnt/a b/c", Kind::Slave),
            ("/mnt/c/d", Kind::Private),
        ] {
            assert_eq!(mounts.of(Path::new(path)), kind, "{path}");
        }
    }
}
