//! `tmpcopyup`: a new tmpfs starts as a copy of the directory it covers.
//!
//! Both sides are held by descriptors and walked without following symbolic links.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context as _, Result};
use nix::dir::Dir;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{
    FchmodatFlags, FileStat, Mode, SFlag, UtimensatFlags, fchmodat, fstat, fstatat, mkdirat, mknodat,
    utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, symlinkat};

use crate::sys::Named;

const DIRECTORY: OFlag = OFlag::O_DIRECTORY
    .union(OFlag::O_RDONLY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

/// Copies everything in `from` into `to`: kinds, contents, modes, owners and times. `from` may be an `O_PATH`
/// descriptor. Extended attributes and hard links are not kept. The mode of `to` itself stays: it was given by the
/// option `mode` or taken from `from` when the tmpfs was made.
pub(crate) fn copy(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    let from = openat(from, c".", DIRECTORY, Mode::empty()).call(|| "openat(\".\")".into())?;
    let to = openat(to, c".", DIRECTORY, Mode::empty()).call(|| "openat(\".\")".into())?;
    let own = fstat(&from).call(|| "fstat".into())?;
    copy_entries(from, &to)?;
    copy_owner(&to, c".", &own)?;
    copy_times(&to, c".", &own)
}

fn copy_entries(from: OwnedFd, to: &OwnedFd) -> Result<()> {
    let mut entries = Dir::from_fd(from).call(|| "fdopendir".into())?;
    let mut names = Vec::new();
    for entry in entries.iter() {
        let name = entry.call(|| "readdir".into())?.file_name().to_owned();
        if name.as_c_str() != c"." && name.as_c_str() != c".." {
            names.push(name);
        }
    }
    for name in names {
        copy_entry(&entries, to, &name).with_context(|| format!("{name:?}"))?;
    }
    Ok(())
}

fn copy_entry(from: &Dir, to: &OwnedFd, name: &CStr) -> Result<()> {
    let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW).call(|| "fstatat".into())?;
    let kind = SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits());
    match kind {
        SFlag::S_IFDIR => {
            mkdirat(to, name, Mode::from_bits_truncate(0o700)).call(|| "mkdirat".into())?;
            let inner = openat(to, name, DIRECTORY, Mode::empty()).call(|| "openat".into())?;
            copy_entries(
                openat(from, name, DIRECTORY, Mode::empty()).call(|| "openat".into())?,
                &inner,
            )?;
        }
        SFlag::S_IFREG => copy_file(from, to, name)?,
        SFlag::S_IFLNK => {
            let target = readlinkat(from, name).call(|| "readlinkat".into())?;
            symlinkat(target.as_os_str(), to, name).call(|| "symlinkat".into())?;
        }
        _ => mknodat(to, name, kind, Mode::empty(), stat.st_rdev).call(|| "mknodat".into())?,
    }
    copy_owner(to, name, &stat)?;
    if kind != SFlag::S_IFLNK {
        let mode = Mode::from_bits_truncate(stat.st_mode & 0o7777);
        fchmodat(to, name, mode, FchmodatFlags::FollowSymlink).call(|| "fchmodat".into())?;
    }
    copy_times(to, name, &stat)
}

fn copy_file(from: &Dir, to: &OwnedFd, name: &CStr) -> Result<()> {
    // Not blocking, should something have put a FIFO there since it was looked at.
    let read = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
    let write = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let source = openat(from, name, read, Mode::empty()).call(|| "openat".into())?;
    let copy = openat(to, name, write, Mode::from_bits_truncate(0o600)).call(|| "openat".into())?;
    io::copy(&mut File::from(source), &mut File::from(copy))?;
    Ok(())
}

fn copy_owner(to: impl AsFd, name: &CStr, stat: &FileStat) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid));
    fchownat(&to, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW).call(|| "fchownat".into())?;
    Ok(())
}

fn copy_times(to: impl AsFd, name: &CStr, stat: &FileStat) -> Result<()> {
    let accessed = TimeSpec::new(stat.st_atime, stat.st_atime_nsec);
    let modified = TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec);
    utimensat(&to, name, &accessed, &modified, UtimensatFlags::NoFollowSymlink)
        .call(|| "utimensat".into())?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    #[test]
    fn a_tree_is_copied_with_links_and_modes() {
        let base = std::env::temp_dir().join(format!("rtc-copyup-{}", std::process::id()));
        let (from, to) = (base.join("from"), base.join("to"));
        fs::create_dir_all(from.join("dir")).unwrap();
        fs::create_dir_all(&to).unwrap();
        fs::write(from.join("dir/file"), "text").unwrap();
        fs::set_permissions(from.join("dir/file"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::set_permissions(&from, fs::Permissions::from_mode(0o1777)).unwrap();
        fs::set_permissions(&to, fs::Permissions::from_mode(0o700)).unwrap();
        symlink("/etc/passwd", from.join("link")).unwrap();
        copy(
            &File::open(&from).unwrap().into(),
            &File::open(&to).unwrap().into(),
        )
        .unwrap();
        let file = fs::metadata(to.join("dir/file")).unwrap();
        assert_eq!(fs::read_to_string(to.join("dir/file")).unwrap(), "text");
        assert_eq!(file.mode() & 0o7777, 0o4751);
        assert_eq!(
            fs::read_link(to.join("link")).unwrap().to_str(),
            Some("/etc/passwd")
        );
        assert_eq!(fs::metadata(&to).unwrap().mode() & 0o7777, 0o700);
        assert_eq!(
            file.mtime_nsec(),
            fs::metadata(from.join("dir/file")).unwrap().mtime_nsec()
        );
        fs::remove_dir_all(&base).unwrap();
    }
}
