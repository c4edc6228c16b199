//! A container's device program, pinned where systemd finds it: `BPFProgram=device:/sys/fs/bpf/rtc/NAME`.
//!
//! So systemd knows the rules, shows them, and attaches them again after it was reloaded. Names there have no dots, hence
//! `+2e` for one; a unit's name has no `+`.

use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::sys::statfs::statfs;
use nix::unistd::geteuid;

use crate::sys::{Named as _, bpf};

const FILE_SYSTEM: &str = "/sys/fs/bpf";
const DIRECTORY: &str = "/sys/fs/bpf/rtc";
/// `BPF_FS_MAGIC`.
const MAGIC: i64 = 0xcafe_4a11;

/// Where a unit's program is.
pub(super) fn path(unit: &str) -> PathBuf {
    let mut name = String::with_capacity(unit.len() + 4);
    for letter in unit.chars() {
        if letter.is_ascii_alphanumeric() || "-_:@".contains(letter) {
            name.push(letter);
        } else {
            name.push_str(&format!("+{:02x}", u32::from(letter)));
        }
    }
    Path::new(DIRECTORY).join(name)
}

/// Pins a program for a unit, in the place of one that is there.
///
/// # Errors
///
/// Where no file system for it is mounted (systemd mounts it where the kernel has it), or the directory is another's.
pub(super) fn pin(unit: &str, program: &OwnedFd) -> Result<PathBuf> {
    let kind = statfs(FILE_SYSTEM).call(|| format!("statfs({FILE_SYSTEM:?})"))?;
    if kind.filesystem_type().0 != MAGIC {
        bail!("{FILE_SYSTEM}: no bpf file system is mounted there");
    }
    match std::fs::DirBuilder::new().mode(0o700).create(DIRECTORY) {
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            let found = std::fs::symlink_metadata(DIRECTORY).context(DIRECTORY)?;
            if !found.is_dir() || found.uid() != geteuid().as_raw() {
                bail!("{DIRECTORY}: must be a directory of user {}", geteuid());
            }
        }
        made => made.context(DIRECTORY)?,
    }
    let path = path(unit);
    // First beside it: systemd finds the one or the other.
    let beside = beside(&path);
    let _ = std::fs::remove_file(&beside);
    bpf::pin(program, &beside)?;
    if let Err(error) = std::fs::rename(&beside, &path) {
        let _ = std::fs::remove_file(&beside);
        return Err(error).with_context(|| format!("rename({beside:?}, {path:?})"));
    }
    Ok(path)
}

/// Where it is made. One name for each unit, so that `unpin` finds what a runtime that was killed has left.
fn beside(path: &Path) -> PathBuf {
    let mut beside = path.to_owned().into_os_string();
    beside.push("~");
    beside.into()
}

/// Whether a program is pinned for a unit.
pub(super) fn is_pinned(unit: &str) -> bool {
    path(unit).symlink_metadata().is_ok()
}

/// Removes what is pinned for a unit, if anything is.
pub(super) fn unpin(unit: &str) {
    // What is left is harmless, and the next container of this name takes its place.
    let path = path(unit);
    for pinned in [beside(&path), path] {
        let _ = std::fs::remove_file(pinned);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_has_a_name_of_its_own_without_dots() {
        let name = |unit| path(unit).file_name().unwrap().to_str().unwrap().to_owned();
        assert_eq!(name("rtc-web.scope"), "rtc-web+2escope");
        assert_eq!(name(r"a\x2db@c:d.scope"), "a+5cx2db@c:d+2escope");
    }
}
