//! Killing a process with all that it started, where no cgroup of its own holds them (cgroup v1, a container that
//! manages its cgroup itself).
//!
//! Each is stopped before its children are looked for, so that it makes no more. A child whose parent has ended already
//! belongs to the container's init, and is not found: it lives on until the container ends.

use std::os::fd::OwnedFd;

use nix::libc::{SIGKILL, SIGSTOP};
use nix::unistd::Pid;
use rtc_runtime::sys::process::{pidfd_open, pidfd_send_signal};

/// More than a container has; a tree that grows faster than it is stopped ends here.
const MOST: usize = 16 * 1024;

/// Kills a child of this process, which was not collected yet, and its descendants.
pub(crate) fn kill(pid: Pid) {
    let mut found: Vec<OwnedFd> = Vec::new();
    let mut parents = vec![pid];
    while let Some(parent) = parents.pop() {
        if found.len() >= MOST {
            break;
        }
        // Gone, which is what is wanted. A pid that became another's was one of the container's either way: its parent is
        // stopped, and can't have collected it.
        let Ok(pidfd) = pidfd_open(parent) else { continue };
        if pidfd_send_signal(&pidfd, SIGSTOP).is_ok() {
            parents.extend(children(parent));
        }
        found.push(pidfd);
    }
    for pidfd in found {
        // One that has ended is what is wanted.
        let _ = pidfd_send_signal(&pidfd, SIGKILL);
    }
}

/// The children of all threads of a process.
fn children(pid: Pid) -> Vec<Pid> {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task"));
    let threads = threads.into_iter().flatten().flatten();
    threads
        .filter_map(|thread| std::fs::read_to_string(thread.path().join("children")).ok())
        .flat_map(|list| {
            list.split_ascii_whitespace()
                .filter_map(|pid| pid.parse().ok().map(Pid::from_raw))
                .collect::<Vec<_>>()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::process::{Command, Stdio};

    #[test]
    fn a_whole_tree_ends_with_its_root() {
        let mut root = Command::new("/bin/sh")
            .args(["-c", "(sleep 1000 & sleep 1000) & echo ready; wait"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut output = root.stdout.take().unwrap();
        output.read_exact(&mut [0; 6]).unwrap();
        kill(Pid::from_raw(root.id().cast_signed()));
        root.wait().unwrap();
        // Everybody who had it open has ended.
        assert_eq!(output.read_to_end(&mut Vec::new()).unwrap(), 0);
    }
}
