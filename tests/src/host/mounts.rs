//! The mount table: `/proc/PID/mountinfo` (proc(5)).

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// One line of a mount table.
#[derive(Clone, Debug)]
pub(crate) struct Mount {
    /// What part of the file system is mounted.
    pub(crate) root: String,
    /// Mount point.
    pub(crate) target: PathBuf,
    /// Per-mount options (`ro,nosuid,...`).
    pub(crate) options: String,
    /// `shared:N`, `master:N`, ...: empty where private.
    pub(crate) propagation: String,
    /// Type of file system.
    pub(crate) kind: String,
    /// Options of the file system itself.
    pub(crate) super_options: String,
}

impl Mount {
    /// Whether one of the per-mount options is this one.
    pub(crate) fn has(&self, option: &str) -> bool {
        self.options.split(',').any(|each| each == option)
    }
}

/// The mount table of a process (`self`, a pid).
pub(crate) fn of(process: &str) -> Result<Vec<Mount>> {
    let path = format!("/proc/{process}/mountinfo");
    let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
    Ok(parse(&text))
}

/// Reads the text of a mountinfo file; lines that do not parse are left out.
pub(crate) fn parse(text: &str) -> Vec<Mount> {
    text.lines().filter_map(parse_line).collect()
}

fn parse_line(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let mut right = right.split(' ');
    Some(Mount {
        root: unescape(left.get(3)?),
        target: PathBuf::from(unescape(left.get(4)?)),
        options: (*left.get(5)?).to_owned(),
        propagation: left.get(6..)?.join(" "),
        kind: right.next()?.to_owned(),
        super_options: right.nth(1).unwrap_or_default().to_owned(),
    })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    ["\\040 ", "\\011\t", "\\012\n", "\\134\\"]
        .iter()
        .fold(text.to_owned(), |text, pair| text.replace(&pair[..4], &pair[4..]))
}

/// Mounts at or below a directory, or whose source lies there, in this process's mount namespace.
pub(crate) fn under(directory: &Path) -> Result<Vec<Mount>> {
    let name = directory.to_string_lossy().into_owned();
    let mounts = of("self")?.into_iter();
    Ok(mounts
        .filter(|mount| mount.target.starts_with(directory) || mount.root.contains(&name))
        .collect())
}
