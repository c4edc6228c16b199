//! What a container uses, and its processes, as containerd's messages have it.

mod v1;
mod v2;

use std::path::Path;

use containerd_shim_protos::api::{PidsResponse, ProcessInfo};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use rtc_runtime::cgroup::Cgroup;

use crate::container::Container;
use crate::error::Result;
use crate::events::to_any;
use crate::process::{Phase, Verb};

/// The processes in the container's cgroup, and which of them were started by exec.
///
/// Of a container that has ended and was not deleted, its init: containerd 2 asks when it starts again, deletes a task
/// without processes as one that was never made, and the exit that happened in its absence would be lost.
pub(crate) fn pids(container: &Container) -> Result<PidsResponse> {
    if matches!(container.init.phase(), Phase::Stopped(_)) {
        return Ok(PidsResponse {
            processes: vec![ProcessInfo {
                pid: container.init.pid(),
                ..ProcessInfo::default()
            }],
            ..PidsResponse::default()
        });
    }
    container.init.phase().allows(Verb::Pids)?;
    let execs = container.execs();
    let pids = container.with_cgroup(Cgroup::processes)?;
    let processes = pids.into_iter().map(|pid| {
        let pid = pid.as_raw().cast_unsigned();
        let exec = execs.iter().find(|exec| exec.pid() == pid);
        ProcessInfo {
            pid,
            info: exec.map(|exec| process_details(&exec.exec_id)).into(),
            ..ProcessInfo::default()
        }
    });
    Ok(PidsResponse {
        processes: processes.collect(),
        ..PidsResponse::default()
    })
}

/// `containerd.runc.v1.ProcessDetails`, which has one field: the id of the exec.
fn process_details(exec_id: &str) -> Any {
    let mut value = Vec::with_capacity(exec_id.len() + 3);
    // Field 1, of a length; ids are at most 255 bytes long, so that it takes two bytes at most.
    value.push(0x0a);
    let mut length = exec_id.len();
    while length >= 0x80 {
        value.push((length & 0x7f) as u8 | 0x80);
        length >>= 7;
    }
    value.push(length as u8);
    value.extend_from_slice(exec_id.as_bytes());
    Any {
        type_url: "containerd.runc.v1.ProcessDetails".to_owned(),
        value,
        ..Any::default()
    }
}

/// The metrics of the container's cgroup: `io.containerd.cgroups.v1.Metrics`, or v2's.
///
/// # Errors
///
/// A file of it can't be read or understood; not where it is missing.
pub(crate) fn metrics(container: &Container) -> Result<Any> {
    container.init.phase().allows(Verb::Stats)?;
    container.with_cgroup(of_cgroup)
}

/// The same for any cgroup.
///
/// # Errors
///
/// As [`metrics`].
pub(crate) fn of_cgroup(cgroup: &Cgroup) -> anyhow::Result<Any> {
    let stats = cgroup.stats()?;
    if cgroup.is_v2() {
        let directory = cgroup.path().unwrap_or(Path::new("/"));
        Ok(to_any(
            "io.containerd.cgroups.v2",
            &v2::metrics(&stats, directory),
        ))
    } else {
        let memory = cgroup
            .paths()
            .find(|(controllers, _)| controllers.split(',').any(|name| name == "memory"));
        Ok(to_any(
            "io.containerd.cgroups.v1",
            &v1::metrics(&stats, memory.map(|(_, path)| path)),
        ))
    }
}

/// Lines `key value` of a file, asked for one key; 0 where it is missing.
struct Table(String);

impl Table {
    fn read(directory: &Path, file: &str) -> Self {
        Self(std::fs::read_to_string(directory.join(file)).unwrap_or_default())
    }

    fn of(&self, key: &str) -> u64 {
        let value = |line: &str| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok();
        self.0.lines().find_map(value).unwrap_or(0)
    }
}

/// A file of one number; 0 where it is missing, the largest for `max`.
fn number(directory: &Path, file: &str) -> u64 {
    let text = std::fs::read_to_string(directory.join(file)).unwrap_or_default();
    match text.trim() {
        "max" => u64::MAX,
        number => number.parse().unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_details_of_a_process_are_a_message_with_one_string() {
        assert_eq!(process_details("ab").value, b"\x0a\x02ab");
        let long = "x".repeat(200);
        assert_eq!(process_details(&long).value[..3], [0x0a, 0xc8, 0x01]);
    }

    #[test]
    fn a_key_of_a_table_is_found_by_its_whole_name() {
        let table = Table("oom 1\noom_kill 2\n".to_owned());
        assert_eq!(
            (table.of("oom_kill"), table.of("oom"), table.of("kill")),
            (2, 1, 0)
        );
    }
}
