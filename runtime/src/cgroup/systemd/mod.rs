//! The systemd driver: the container's cgroup is a transient scope, which systemd makes around a process that waits.
//!
//! ```text
//! create           the unit's name and path are decided; nothing is made
//! clone            the child waits at the gate, in our own cgroup
//! Cgroup::attach   StartTransientUnit(scope, PIDs=[child], Slice, Delegate, limits) -> JobRemoved "done"
//! Cgroup::apply    SetUnitProperties (on update), then the files themselves, with exact values
//! Cgroup::remove   StopUnit, ResetFailedUnit, where systemd has not noticed by itself that all have ended
//! ```
//!
//! The process is named by its id: it is our child and not collected, so the id can't become another's.

mod annotations;
mod bus;
mod message;
mod properties;
mod unit;

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::unistd::Pid;
use oci_spec::runtime::LinuxResources;

use super::create::{Made, make_v2};
use super::layout::{ROOT, UNIFIED, relative, unified_cgroup_of};
use super::{Cgroup, Driver, Layout, Tree};
use bus::{Bus, Refused};
use message::{Encoder, Value};
use unit::Unit;

/// How long systemd may take for a call and its job (runc: 30 s).
const LIMIT: Duration = Duration::from_secs(30);
/// Where systemd is the init system (sd_booted(3)).
const BOOTED: &str = "/run/systemd/system";

/// Decides which unit the container gets, and where it will be.
pub(super) fn place(path: Option<&Path>, id: &str, layout: &Layout) -> Result<Cgroup> {
    if !matches!(layout, Layout::V2) {
        bail!("--systemd-cgroup: needs cgroup v2, and this machine has v1: leave the option out");
    }
    if !Path::new(BOOTED).is_dir() {
        bail!(
            "--systemd-cgroup: systemd is not running on this machine ({BOOTED} is missing): leave the option out"
        );
    }
    let unit = Unit::of(path, id)?;
    let cgroup = Cgroup {
        driver: Driver::Systemd,
        unit: Some(unit.name),
        slice: Some(unit.slice),
        trees: vec![Tree::new(UNIFIED, Path::new(ROOT), &unit.path)],
        made: Made::awaited(),
    };
    // runc's check: a unit of that name may be another container's.
    let found = cgroup.processes()?.len();
    if found > 0 {
        bail!(
            "container's cgroup is not empty: {found} process(es) found in {:?}",
            cgroup.main()?.path
        );
    }
    Ok(cgroup)
}

impl Cgroup {
    /// Has systemd make the container's scope around a process that waits. With the cgroupfs driver, nothing.
    ///
    /// Limits are set from the start as far as systemd has properties for them; [`Cgroup::apply`] sets the others and
    /// the exact values. `annotations` are the container's (`org.systemd.property.*`).
    ///
    /// # Errors
    ///
    /// Where systemd refuses, or does not answer within 30 seconds, or puts the process elsewhere.
    pub fn attach(
        &self,
        process: Pid,
        resources: &LinuxResources,
        annotations: Option<&HashMap<String, String>>,
    ) -> Result<()> {
        let (Some(unit), Some(slice)) = (&self.unit, &self.slice) else {
            return Ok(());
        };
        // From here on there may be a unit to stop, also where it fails.
        self.made.started();
        self.start(unit, slice, process, resources, annotations)
            .with_context(|| format!("unable to start unit {unit:?}"))?;
        let place = Path::new(ROOT).join(relative(&unified_cgroup_of(&process.to_string())?));
        let tree = self.main()?;
        if place != tree.path {
            bail!(
                "unit {unit:?}: systemd put the process in {place:?}, not in {:?}",
                tree.path
            );
        }
        // The controllers that systemd does not know (hugetlb, rdma, misc) it does not pass on either.
        make_v2(tree, &mut Made::default()).map(drop)
    }

    fn start(
        &self,
        unit: &str,
        slice: &str,
        process: Pid,
        resources: &LinuxResources,
        annotations: Option<&HashMap<String, String>>,
    ) -> Result<()> {
        let bus = RefCell::new(Bus::connect(Instant::now() + LIMIT)?);
        let mut all = vec![
            ("Description", Value::Text(format!("container {unit}"))),
            ("Slice", Value::Text(slice.to_owned())),
            ("Delegate", Value::Bool(true)),
            ("PIDs", Value::Uints(vec![process.as_raw().unsigned_abs()])),
            ("MemoryAccounting", Value::Bool(true)),
            ("CPUAccounting", Value::Bool(true)),
            ("IOAccounting", Value::Bool(true)),
            ("TasksAccounting", Value::Bool(true)),
            ("DefaultDependencies", Value::Bool(false)),
            // A unit that failed (a process was killed for memory) is forgotten like any other, without being asked.
            ("CollectMode", Value::Text("inactive-or-failed".to_owned())),
        ];
        if let Some(annotations) = annotations {
            all.extend(annotations::properties(annotations)?);
        }
        all.extend(oom_policy(resources)?);
        all.extend(properties::of_resources(resources, || idle_known(&bus))?);
        let body = || {
            let mut body = Encoder::default();
            body.text(unit);
            body.text("replace");
            body.properties(&all);
            body.no_units();
            body
        };
        let mut bus = bus.borrow_mut();
        match bus.run_job("StartTransientUnit", "ssa(sv)a(sa(sv))", body()) {
            Err(error) if is(&error, "UnitExists") => {
                // Left over by a container that failed: what systemd forgets can be made again.
                let _ = reset(&mut bus, unit);
                bus.run_job("StartTransientUnit", "ssa(sv)a(sa(sv))", body())
            }
            started => started,
        }
    }
}

/// `memory.oom.group` decides what systemd does with the unit when one of its processes was killed for memory.
fn oom_policy(resources: &LinuxResources) -> Result<Option<message::Property>> {
    let value = resources
        .unified()
        .as_ref()
        .and_then(|files| files.get("memory.oom.group"));
    Ok(match value.map(|value| value.trim()) {
        Some("0") => Some(("OOMPolicy", Value::Text("continue".to_owned()))),
        Some("1") => Some(("OOMPolicy", Value::Text("kill".to_owned()))),
        Some(other) => bail!(
            "linux.resources.unified[\"memory.oom.group\"]: unified resource \"memory.oom.group\" value \
             conversion error: {other:?}: must be 0 or 1"
        ),
        None => None,
    })
}

fn idle_known(bus: &RefCell<Bus>) -> Result<bool> {
    Ok(bus.borrow_mut().version()? >= properties::VERSION_OF_IDLE)
}

fn is(error: &anyhow::Error, name: &str) -> bool {
    error
        .downcast_ref::<Refused>()
        .is_some_and(|refused| refused.name.ends_with(name))
}

fn reset(bus: &mut Bus, unit: &str) -> Result<()> {
    let mut body = Encoder::default();
    body.text(unit);
    bus.call("ResetFailedUnit", "s", body).map(drop)
}

/// Tells systemd of new limits. In a scope that was just started with them, there is nothing to tell.
pub(super) fn set(cgroup: &Cgroup, resources: &LinuxResources) -> Result<()> {
    let Some(unit) = cgroup.unit.as_deref().filter(|_| !cgroup.made.is_new_unit()) else {
        return Ok(());
    };
    let bus = RefCell::new(Bus::connect(Instant::now() + LIMIT)?);
    let all = properties::of_resources(resources, || idle_known(&bus))?;
    if all.is_empty() {
        return Ok(());
    }
    let set = bus.borrow_mut().set_properties(unit, &all);
    set.with_context(|| format!("unable to set properties of unit {unit:?}"))
}

/// Stops the unit, if it is still there, and has systemd forget it.
pub(super) fn stop(cgroup: &Cgroup, deadline: Instant) -> Result<()> {
    let Some(unit) = cgroup.unit.as_deref() else {
        return Ok(());
    };
    if cgroup.made.is_awaited() {
        return Ok(());
    }
    if !cgroup.exists() {
        // systemd has seen the last process end, and cleaned up by itself.
        return Ok(());
    }
    // Or systemd would ask the processes first, and wait for TimeoutStopSec.
    cgroup.kill()?;
    let mut bus = Bus::connect(deadline.min(Instant::now() + LIMIT))?;
    let mut body = Encoder::default();
    body.text(unit);
    body.text("replace");
    match bus.run_job("StopUnit", "ss", body) {
        // A scope whose last process ended is gone by itself.
        Err(error) if is(&error, "NoSuchUnit") => return Ok(()),
        stopped => stopped.with_context(|| format!("unable to stop unit {unit:?}"))?,
    }
    match reset(&mut bus, unit) {
        Err(error) if is(&error, "NoSuchUnit") => Ok(()),
        forgotten => forgotten,
    }
}
