//! Counters of pods' network interfaces, without forking: a thread of its own goes from namespace to namespace, and ends.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

use nix::sched::{CloneFlags, setns};

/// What an interface counted.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Interface {
    pub(crate) name: String,
    pub(crate) received: Counters,
    pub(crate) sent: Counters,
}

/// In one direction.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) bytes: u64,
    pub(crate) packets: u64,
    pub(crate) errors: u64,
    pub(crate) dropped: u64,
}

/// The interfaces in each of these network namespaces but for loopback; none where it can't be looked into. Blocks.
pub(crate) fn interfaces(namespaces: Vec<PathBuf>) -> Vec<Vec<Interface>> {
    if namespaces.is_empty() {
        return Vec::new();
    }
    let many = namespaces.len();
    // The thread is in another namespace from its first step on: nothing else may ever run in it.
    let thread = std::thread::Builder::new()
        .name("network-stats".into())
        .stack_size(64 << 10)
        .spawn(move || {
            let mut text = String::new();
            namespaces
                .iter()
                .map(|namespace| {
                    let entered = File::open(namespace)
                        .is_ok_and(|file| setns(&file, CloneFlags::CLONE_NEWNET).is_ok());
                    text.clear();
                    let read = entered
                        && File::open("/proc/thread-self/net/dev")
                            .is_ok_and(|mut file| file.read_to_string(&mut text).is_ok());
                    if read { parse(&text) } else { Vec::new() }
                })
                .collect()
        });
    match thread.map(std::thread::JoinHandle::join) {
        Ok(Ok(all)) => all,
        Ok(Err(_)) | Err(_) => vec![Vec::new(); many],
    }
}

/// `/proc/net/dev` (proc_net_dev(5)): two lines of titles, then `name: 8 numbers received, 8 numbers sent`.
fn parse(text: &str) -> Vec<Interface> {
    let mut interfaces: Vec<Interface> = text
        .lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(':')?;
            let numbers: Vec<u64> = rest
                .split_ascii_whitespace()
                .map_while(|number| number.parse().ok())
                .collect();
            let counters = |first: usize| {
                Some(Counters {
                    bytes: *numbers.get(first)?,
                    packets: *numbers.get(first + 1)?,
                    errors: *numbers.get(first + 2)?,
                    dropped: *numbers.get(first + 3)?,
                })
            };
            Some(Interface {
                name: name.trim().to_owned(),
                received: counters(0)?,
                sent: counters(8)?,
            })
        })
        .filter(|interface| interface.name != "lo")
        .collect();
    interfaces.sort_by(|one, other| one.name.cmp(&other.name));
    interfaces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_read_in_both_directions_but_for_loopback() {
        let text = "Inter-|   Receive                                                |  Transmit\n \
                    face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
                    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0\n  \
                    eth0: 1234      12    1    2    0     0          0         0     5678      34    3    4    0     0       0          0\n";
        let counters = |bytes, packets, errors, dropped| Counters {
            bytes,
            packets,
            errors,
            dropped,
        };
        assert_eq!(
            parse(text),
            [Interface {
                name: "eth0".into(),
                received: counters(1234, 12, 1, 2),
                sent: counters(5678, 34, 3, 4),
            }]
        );
    }

    #[test]
    fn a_namespace_that_is_not_there_has_no_interfaces() {
        assert_eq!(interfaces(vec!["/nonexistent".into()]), [Vec::new()]);
    }
}
