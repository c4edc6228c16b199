//! The systemd driver: the container's cgroup is a transient scope, which systemd makes around a process that waits.
//!
//! ```text
//! create           the unit's name and path are decided; nothing is made
//! clone            the child waits at the gate, in our own cgroup
//! Cgroup::attach   StartTransientUnit(scope, PIDs=[child], Slice, Delegate, limits, BPFProgram) -> JobRemoved "done"
//! Cgroup::apply    SetUnitProperties (on update), then the files themselves, with the same values
//! Cgroup::remove   StopUnit, ResetFailedUnit, as long as systemd has the unit
//! ```
//!
//! The process is named by its id: it is our child and not collected, so the id can't become another's.
//!
//! # Devices
//!
//! Two programs with the same rules bind a container, and both must allow: one that we attach, and one that is pinned
//! ([`pin`]) and told to systemd as `BPFProgram`. At each `daemon-reload` systemd detaches what it has attached by that
//! property and attaches it again a moment later (257); ours is nothing to it, and holds meanwhile.
//!
//! Not by `DevicePolicy` and `DeviceAllow`: what they can't say (a denied minor, any major) they would deny or allow, and
//! what a hook adds to a container's rules (a GPU) they would deny from the next reload on, as is known of other runtimes.
//!
//! # Machines with cgroup v1
//!
//! are refused: systemd deprecated v1 in 256 and has dropped it since 258, and without `Delegate`, which v1 can't give
//! safely, it may move and reset what it finds in its trees.

mod address;
mod annotations;
mod bus;
mod message;
mod pin;
mod properties;
mod unit;
mod versions;

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::unistd::{Pid, geteuid};
use oci_spec::runtime::{LinuxDeviceCgroup, LinuxResources};

use super::create::{Made, make_v2};
use super::layout::{ROOT, UNIFIED, relative, unified_cgroup_of};
use super::{Cgroup, Driver, Layout, Tree, devices, program};
use crate::log;
use crate::sys::bpf;
use address::Owner;
use bus::{Bus, Refused};
use message::{Encoder, Property, Value};
pub(super) use properties::rounded_quota;
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
    let owner = Owner::of_caller();
    let (default, below) = match owner {
        Owner::Machine => ("system.slice", PathBuf::new()),
        Owner::User => {
            let deadline = Instant::now() + LIMIT;
            let unit = Bus::with(owner, deadline, |bus| bus.manager_property("ControlGroup"))?;
            ("user.slice", relative(Path::new(&unit)))
        }
    };
    let unit = Unit::of(path, id, default)?;
    let cgroup = Cgroup {
        driver: Driver::Systemd,
        unit: Some(unit.name),
        user: owner == Owner::User,
        slice: Some(unit.slice),
        trees: vec![Tree::new(UNIFIED, Path::new(ROOT), &below.join(&unit.path))],
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

/// What a scope is made with.
#[derive(Debug, Default)]
pub struct Scope<'a> {
    /// `linux.resources`: limits, as far as systemd has properties for them.
    pub resources: LinuxResources,
    /// The container's (`org.systemd.property.*`).
    pub annotations: Option<&'a HashMap<String, String>>,
    /// The rules for devices; `None`: its processes may use what they could before.
    pub devices: Option<&'a [LinuxDeviceCgroup]>,
}

impl Cgroup {
    /// Has systemd make the container's scope around a process that waits. With the cgroupfs driver, nothing.
    ///
    /// Limits are set from the start as far as systemd has properties for them; [`Cgroup::apply`] sets the others.
    ///
    /// # Errors
    ///
    /// Where systemd refuses, or does not answer within 30 seconds, or puts the process elsewhere.
    pub fn attach(&self, process: Pid, scope: &Scope<'_>) -> Result<()> {
        let (Some(unit), Some(slice)) = (&self.unit, &self.slice) else {
            return Ok(());
        };
        // From here on there may be a unit to stop, also where it fails.
        self.made.started();
        self.start(unit, slice, process, scope)
            .with_context(|| format!("unable to start unit {unit:?}"))?;
        let place = Path::new(ROOT).join(relative(&unified_cgroup_of(&process.to_string())?));
        let tree = self.main()?;
        if place != tree.path {
            bail!(
                "unit {unit:?}: systemd put the process in {place:?}, not in {:?}",
                tree.path
            );
        }
        if self.stops_processes()? {
            bail!(
                "container's cgroup unexpectedly frozen: {:?} or a parent of it: thaw it first",
                tree.path
            );
        }
        // The controllers that systemd does not know (hugetlb, rdma, misc) it does not pass on either.
        make_v2(tree, &mut Made::default()).map(drop)
    }

    fn owner(&self) -> Owner {
        if self.user { Owner::User } else { Owner::Machine }
    }

    fn start(&self, unit: &str, slice: &str, process: Pid, scope: &Scope<'_>) -> Result<()> {
        let resources = &scope.resources;
        let asked = match scope.annotations {
            Some(annotations) => annotations::properties(annotations)?,
            None => Vec::new(),
        };
        let oom_policy = oom_policy(resources)?;
        let pinned = self.pin_program(unit, scope.devices)?;
        let names: Vec<_> = asked.iter().map(|(name, _)| *name).collect();
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
        ];
        all.extend(asked);
        all.extend(oom_policy);
        all.extend(pinned);
        Bus::with(self.owner(), Instant::now() + LIMIT, |bus| {
            let mut all = all.clone();
            let shared = RefCell::new(&mut *bus);
            all.extend(properties::of_resources(resources, || idle_known(&shared))?);
            match versions::negotiate(&mut all, &names, |properties| start_unit(bus, unit, properties)) {
                // By ourselves: systemd was executed again before it could answer.
                Err(error) if is(&error, "UnitExists") && self.holds(process) => Ok(()),
                started => started,
            }
        })
    }

    /// Whether a process is in the cgroup.
    fn holds(&self, process: Pid) -> bool {
        let own = self.main().map(|tree| tree.path.clone());
        let place = unified_cgroup_of(&process.to_string()).map(|path| Path::new(ROOT).join(relative(&path)));
        matches!((own, place), (Ok(own), Ok(place)) if own == place)
    }

    /// Pins the program for the rules and says how systemd is told; `None` where there is nothing to forbid, or no place
    /// for it. Then the program that we attach is alone.
    fn pin_program(&self, unit: &str, rules: Option<&[LinuxDeviceCgroup]>) -> Result<Option<Property>> {
        let Some(rules) = rules.filter(|_| !self.user) else {
            return Ok(None);
        };
        let instructions = program::emit(&devices::rules(rules)?)?;
        if program::allows_everything(&instructions) {
            return Ok(None);
        }
        let pinned = bpf::load_device_program(&instructions)
            .map_err(anyhow::Error::from)
            .and_then(|program| pin::pin(unit, &program));
        match pinned {
            Ok(path) => {
                let program = ("device".to_owned(), path.to_string_lossy().into_owned());
                Ok(Some(("BPFProgram", Value::Pairs(vec![program]))))
            }
            Err(error) => {
                log::debug(|| format!("systemd is not told of the device rules of {unit}: {error:#}"));
                Ok(None)
            }
        }
    }

    /// Gives systemd another program for its next reload, where it was given one.
    pub(super) fn replace_pinned(&self, instructions: &[bpf::Instruction]) -> Result<()> {
        match &self.unit {
            Some(unit) if !self.user && pin::is_pinned(unit) => {
                // One of its own: the kernel attaches none twice.
                let program = bpf::load_device_program(instructions)?;
                pin::pin(unit, &program).map(drop)
            }
            _ => Ok(()),
        }
    }
}

/// `memory.oom.group` decides what systemd does with the unit when one of its processes was killed for memory.
fn oom_policy(resources: &LinuxResources) -> Result<Option<Property>> {
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

fn idle_known(bus: &RefCell<&mut Bus>) -> Result<bool> {
    Ok(bus.borrow_mut().version()? >= versions::IDLE)
}

fn start_unit(bus: &mut Bus, unit: &str, properties: &[Property]) -> Result<()> {
    let start = |bus: &mut Bus| {
        let mut body = Encoder::default();
        body.text(unit);
        body.text("replace");
        body.properties(properties);
        body.no_units();
        bus.run_job("StartTransientUnit", "ssa(sv)a(sa(sv))", body)
    };
    match start(bus) {
        Err(error) if is(&error, "UnitExists") => {
            // Left over by a container that failed: what systemd forgets can be made again.
            let _ = reset(bus, unit);
            start(bus)
        }
        started => started,
    }
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
    let set = Bus::with(cgroup.owner(), Instant::now() + LIMIT, |bus| {
        let shared = RefCell::new(&mut *bus);
        let mut all = properties::of_resources(resources, || idle_known(&shared))?;
        if all.is_empty() {
            return Ok(());
        }
        versions::negotiate(&mut all, &[], |properties| bus.set_properties(unit, properties))
    });
    set.with_context(|| format!("unable to set properties of unit {unit:?}"))
}

/// Stops the unit, if it is still there, and has systemd forget it.
pub(super) fn stop(cgroup: &Cgroup, deadline: Instant) -> Result<()> {
    let Some(unit) = cgroup.unit.as_deref().filter(|_| !cgroup.made.is_awaited()) else {
        return Ok(());
    };
    pin::unpin(unit);
    let exists = cgroup.exists();
    if !exists && !is_known(unit, cgroup.owner()) {
        // systemd has seen the last process end, and cleaned up by itself.
        return Ok(());
    }
    // Or systemd would ask the processes first, and wait for TimeoutStopSec.
    cgroup.kill()?;
    let deadline = deadline.min(Instant::now() + LIMIT);
    let stopped = Bus::with(cgroup.owner(), deadline, |bus| {
        if exists {
            stop_unit(bus, unit)?;
        }
        // For one that failed. Another's of that name, elsewhere, which runs: this is nothing to it.
        reset(bus, unit)
    });
    // A scope whose last process ended is gone by itself, at any time.
    if let Err(error) = stopped
        && !is(&error, "NoSuchUnit")
    {
        // It will see that the cgroup is gone.
        log::warn(format_args!("unable to stop unit {unit:?}: {error:#}"));
    }
    Ok(())
}

fn stop_unit(bus: &mut Bus, unit: &str) -> Result<()> {
    let mut body = Encoder::default();
    body.text(unit);
    body.text("replace");
    bus.run_job("StopUnit", "ss", body)
}

/// Whether systemd has the transient unit, be it one that failed: it keeps a file for each.
fn is_known(unit: &str, owner: Owner) -> bool {
    let directory = match owner {
        Owner::Machine => PathBuf::from("/run"),
        Owner::User => std::env::var_os("XDG_RUNTIME_DIR").map_or_else(
            || Path::new("/run/user").join(geteuid().to_string()),
            PathBuf::from,
        ),
    };
    directory.join("systemd/transient").join(unit).exists()
}
