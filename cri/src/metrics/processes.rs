//! What the processes of a container hold: descriptors, sockets, limits. A container can have as many as it likes, so what is
//! looked at is bounded.

use std::fs;

use nix::fcntl::{OFlag, open, readlinkat};
use nix::sys::stat::Mode;

/// So many descriptors of a container are looked at, to tell sockets from others.
const LINKS_MAX: u64 = 10_000;

/// Open descriptors.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Open {
    pub(super) descriptors: u64,
    pub(super) sockets: u64,
}

/// Of these processes together. One that has ended meanwhile has none.
pub(super) fn open_by(processes: &[u32]) -> Open {
    let mut all = Open::default();
    for process in processes {
        let path = format!("/proc/{process}/fd");
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let (Ok(entries), Ok(directory)) = (fs::read_dir(&path), open(path.as_str(), flags, Mode::empty()))
        else {
            continue;
        };
        for entry in entries.flatten() {
            all.descriptors += 1;
            if all.descriptors <= LINKS_MAX {
                let target = readlinkat(&directory, entry.file_name().as_os_str());
                all.sockets +=
                    u64::from(target.is_ok_and(|target| target.as_encoded_bytes().starts_with(b"socket:")));
            }
        }
    }
    all
}

/// How many descriptors a process may have (`RLIMIT_NOFILE`, the soft one); `None`: no limit, or no process.
pub(super) fn descriptors_max(process: u32) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{process}/limits")).ok()?;
    let line = limits
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_are_told_from_other_descriptors() {
        let before = open_by(&[std::process::id()]);
        let _pair = std::os::unix::net::UnixStream::pair().unwrap();
        let after = open_by(&[std::process::id()]);
        // Other tests open and close some of their own.
        assert!(
            after.descriptors > 0 && after.sockets > 0 && after.sockets <= after.descriptors,
            "{before:?} {after:?}"
        );
        assert_eq!(open_by(&[u32::MAX]), Open::default());
        assert!(descriptors_max(std::process::id()).is_some());
    }
}
