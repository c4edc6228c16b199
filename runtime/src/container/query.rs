//! What can be asked about containers: `state`, `list`, `ps`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::cgroup::{Cgroup, Stats};
use crate::container::id::ContainerId;
use crate::container::state::{Directory, Record, StateRoot, Status};
use crate::log;
use crate::resctrl::Group;

/// A container as `state` and `list` show it, with runc's fields in runc's order.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StateReport {
    /// Version of the specification that the bundle names.
    pub oci_version: String,
    /// The id.
    pub id: String,
    /// Pid of init; 0 where it has ended.
    pub pid: i32,
    /// `creating`, `created`, `running`, `paused` or `stopped`.
    pub status: String,
    /// The bundle's path.
    pub bundle: PathBuf,
    /// The path of the root filesystem.
    pub rootfs: PathBuf,
    /// RFC 3339, UTC.
    pub created: String,
    /// Name of the user that created it, or the number.
    pub owner: String,
    /// Annotations of the bundle.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// The state of a container.
///
/// # Errors
///
/// It does not exist, or its record is broken.
pub fn state(root: &StateRoot, id: &ContainerId) -> Result<StateReport> {
    let directory = root.open(id)?;
    let record = directory.complete_record()?;
    report(&directory, record, &mut Owners::default())
}

fn report(directory: &Directory, record: Record, owners: &mut Owners) -> Result<StateReport> {
    let status = directory.status(&record)?;
    Ok(StateReport {
        oci_version: record.oci_version,
        id: directory.id().to_string(),
        pid: if status == Status::Stopped { 0 } else { record.pid },
        status: status.to_string(),
        bundle: record.bundle,
        rootfs: record.rootfs,
        created: record.created,
        owner: owners.name(record.owner),
        annotations: record.annotations,
    })
}

/// The state of all containers. One that is broken, or vanishes meanwhile, is left out; a broken one with a warning.
///
/// # Errors
///
/// The state root can't be read.
pub fn list(root: &StateRoot) -> Result<Vec<StateReport>> {
    let mut reports = Vec::new();
    let mut owners = Owners::default();
    for id in root.ids()? {
        let Ok(directory) = root.open(&id) else { continue };
        match directory.record().and_then(|record| {
            record
                .map(|record| report(&directory, record, &mut owners))
                .transpose()
        }) {
            Ok(found) => reports.extend(found),
            Err(error) => log::warn(format_args!("container {id}: {error:#}")),
        }
    }
    Ok(reports)
}

/// The pids of all processes of a container, in the runtime's PID namespace.
///
/// # Errors
///
/// Its cgroup can't be read.
pub fn processes(root: &StateRoot, id: &ContainerId) -> Result<Vec<i32>> {
    let directory = root.open(id)?;
    let record = directory.complete_record()?;
    if directory.status(&record)? == Status::Stopped && !record.cgroup.exists() {
        return Ok(Vec::new());
    }
    let pids = record.processes().context("the container's processes")?;
    Ok(pids.into_iter().map(nix::unistd::Pid::as_raw).collect())
}

/// Where it is counted what a container uses.
#[derive(Debug)]
pub struct Meters {
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// Its resctrl group, where it has one.
    intel_rdt: Option<Group>,
}

impl Meters {
    /// What it has used up to now.
    ///
    /// # Errors
    ///
    /// As [`Cgroup::stats`], [`Group::stats`].
    pub fn stats(&self) -> Result<Stats> {
        let mut stats = self.cgroup.stats()?;
        if let Some(group) = &self.intel_rdt {
            stats.intel_rdt = group.stats()?;
        }
        Ok(stats)
    }
}

/// The meters of a container that has not ended: for `events`.
///
/// # Errors
///
/// The container does not exist or has ended.
pub fn meters(root: &StateRoot, id: &ContainerId) -> Result<Meters> {
    let directory = root.open(id)?;
    let record = directory.complete_record()?;
    if directory.status(&record)? == Status::Stopped {
        bail!("container {id} is not running");
    }
    Ok(Meters {
        cgroup: record.cgroup,
        intel_rdt: record.intel_rdt,
    })
}

/// Names of users, each looked up once.
#[derive(Debug, Default)]
struct Owners(BTreeMap<u32, String>);

impl Owners {
    fn name(&mut self, uid: u32) -> String {
        self.0.entry(uid).or_insert_with(|| user_name(uid)).clone()
    }
}

/// The name of a user in `/etc/passwd`: a static program has no other name service.
fn user_name(uid: u32) -> String {
    let passwd = std::fs::read_to_string("/etc/passwd").unwrap_or_default();
    let name = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| uid.to_string())
}
