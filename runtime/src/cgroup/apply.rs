//! Setting limits: performs the writes that [`limits`] makes of `linux.resources`.

use anyhow::{Error, Result, anyhow, bail};
use oci_spec::runtime::LinuxResources;

use super::Cgroup;
use super::dir::{Dir, write_call};
use super::layout::ROOT;
use super::limits::{self, Memory, Otherwise, Write};
use crate::sys::{self, Errno};

impl Cgroup {
    /// Sets the limits, at creation and on update: all of `resources` but the devices
    /// ([`Cgroup::apply_devices`]). What is not said stays as it is.
    ///
    /// # Errors
    ///
    /// Names the field of config.json, and the write that failed, with what can be done about it.
    pub fn apply(&self, resources: &LinuxResources) -> Result<()> {
        if self.is_absent() {
            return self.refuse_limits(resources);
        }
        let completed = self.completed(resources)?;
        let resources = completed.as_ref().unwrap_or(resources);
        let rounded = self.rounded(resources);
        let resources = rounded.as_ref().unwrap_or(resources);
        let writes = if self.is_v2() {
            self.check_before_update(resources)?;
            limits::v2::writes(resources)?
        } else {
            limits::v1::writes(resources, || self.memory_limit_now())?
        };
        if self.driver == super::Driver::Systemd {
            // First, or a reload of systemd would take its own values back.
            super::systemd::set(self, resources)?;
        }
        self.perform(&writes)
    }

    /// Without a cgroup, limits can't be had.
    fn refuse_limits(&self, resources: &LinuxResources) -> Result<()> {
        let writes = limits::v2::writes(resources)?;
        // What v2 has no file for, v1 may have.
        let others = limits::v1::writes(resources, || u64::MAX).unwrap_or_default();
        let Some(write) = writes
            .iter()
            .chain(&others)
            .find(|write| write.otherwise != Otherwise::Skip)
        else {
            return Ok(());
        };
        bail!(
            "{}: cannot set {} limit: container could not join or create cgroup: rootless needs no limits + no \
             cgrouppath when no permission is granted for cgroups: {}",
            write.field,
            write.controller,
            self.made.refused().unwrap_or("it was created without one")
        )
    }

    /// On update, what v2 keeps in one file and v1 in two is filled in from what is set now: the quota's period and
    /// the reverse, and the memory limit that swap is counted with.
    fn completed(&self, resources: &LinuxResources) -> Result<Option<LinuxResources>> {
        if !self.is_v2() || self.made.contains(&self.main()?.path) {
            return Ok(None);
        }
        let mut completed = resources.clone();
        let mut changed = false;
        if let Some(cpu) = completed.cpu_mut()
            && set(cpu.quota()).is_some() != set(cpu.period()).is_some()
        {
            let now = self.main()?.read("cpu.max").unwrap_or_default();
            let (quota, period) = now.trim().split_once(' ').unwrap_or(("max", ""));
            if set(cpu.quota()).is_none() {
                cpu.set_quota(Some(quota.parse().unwrap_or(-1)));
            } else {
                cpu.set_period(period.parse().ok());
            }
            changed = true;
        }
        if let Some(memory) = completed.memory_mut()
            && memory.swap().is_some_and(|swap| swap > 0)
            && set(memory.limit()).is_none()
        {
            let now = self.main()?.dir().and_then(|dir| dir.read_number("memory.max"));
            memory.set_limit(now.ok().map(|limit| i64::try_from(limit).unwrap_or(-1)));
            changed = true;
        }
        Ok(changed.then_some(completed))
    }

    /// With the quota that systemd makes of it.
    fn rounded(&self, resources: &LinuxResources) -> Option<LinuxResources> {
        if self.driver != super::Driver::Systemd {
            return None;
        }
        let quota = super::systemd::rounded_quota(resources.cpu().as_ref()?)?;
        let mut rounded = resources.clone();
        rounded.cpu_mut().as_mut()?.set_quota(Some(quota));
        Some(rounded)
    }

    pub(super) fn check_before_update(&self, resources: &LinuxResources) -> Result<()> {
        let Some(memory) = resources
            .memory()
            .as_ref()
            .filter(|memory| memory.check_before_update() == Some(true))
        else {
            return Ok(());
        };
        // As in runc: where it can't be read (no such cgroup yet), nothing is used.
        let used = self
            .main()?
            .dir()
            .and_then(|dir| dir.read_number("memory.current"))
            .unwrap_or(0);
        Memory::of(memory)?.check_before_update(used)
    }

    /// The v1 limit that is set now. A new cgroup has none.
    fn memory_limit_now(&self) -> u64 {
        let Ok(tree) = self.tree("memory") else {
            return u64::MAX;
        };
        if self.made.contains(&tree.path) {
            return u64::MAX;
        }
        tree.dir()
            .and_then(|dir| dir.read_number("memory.limit_in_bytes"))
            .unwrap_or(u64::MAX)
    }

    fn perform(&self, writes: &[Write]) -> Result<()> {
        let mut again: Vec<&Write> = Vec::new();
        for (index, write) in writes.iter().enumerate() {
            let dir = self.dir_for(write)?;
            if let Err(error) = dir.write(&write.file, &write.value) {
                self.settle(write, dir, error, &mut again)?;
            }
            let last_of_controller = writes
                .get(index + 1)
                .is_none_or(|next| next.controller != write.controller);
            if last_of_controller {
                for write in again.drain(..) {
                    let dir = self.dir_for(write)?;
                    dir.write(&write.file, &write.value)
                        .map_err(|error| self.explain(write, dir, error))?;
                }
            }
        }
        Ok(())
    }

    /// Decides what a failed write means.
    fn settle<'a>(
        &self,
        write: &'a Write,
        dir: &Dir,
        error: sys::Error,
        again: &mut Vec<&'a Write>,
    ) -> Result<()> {
        match (&write.otherwise, error.errno) {
            (Otherwise::Skip | Otherwise::AgainOrSkip, Errno::ENOENT) => Ok(()),
            (Otherwise::Again | Otherwise::AgainOrSkip, Errno::EINVAL) => {
                again.push(write);
                Ok(())
            }
            (Otherwise::Instead(file, value), Errno::ENOENT) => dir.write(file, value).map_err(|error| {
                let instead = Write::new(write.controller, *file, value, write.field.clone());
                self.explain(&instead, dir, error)
            }),
            _ => Err(self.explain(write, dir, error)),
        }
    }

    fn dir_for(&self, write: &Write) -> Result<&Dir> {
        let tree = if self.is_v2() {
            self.main()
        } else {
            self.tree(write.controller)
        };
        match tree {
            Ok(tree) => Ok(tree.dir()?),
            Err(_) if self.made.refused().is_some() => Err(anyhow!(
                "{}: cannot set {} limit: container could not join or create cgroup: {}",
                write.field,
                write.controller,
                self.made.refused().unwrap_or_default()
            )),
            Err(_) => Err(anyhow!(
                "{}: cannot set {} limit: container could not join or create cgroup: \
                 the {} controller is not mounted on this machine: leave the limit out, or mount it below {ROOT}",
                write.field,
                write.controller,
                write.controller
            )),
        }
    }

    /// The error of a limit: its field, the write, and what can be done.
    fn explain(&self, write: &Write, dir: &Dir, error: sys::Error) -> Error {
        let unified = write.field.starts_with(limits::v2::UNIFIED);
        let hint = match error.errno {
            Errno::ENOENT if self.is_v2() => {
                let controller = write.file.split('.').next().unwrap_or_default();
                let enabled = dir.read("cgroup.controllers").unwrap_or_default();
                if controller == "cgroup" || enabled.split_ascii_whitespace().any(|name| name == controller) {
                    format!(": this kernel has no {}", write.file)
                } else {
                    not_passed_on(controller, unified.then_some(&*write.file))
                }
            }
            Errno::ENOENT if write.file.starts_with("memory.memsw") => {
                ": this kernel does not count swap: boot with swapaccount=1, or leave the limit out"
                    .to_owned()
            }
            Errno::ENOENT => format!(": this kernel has no {}", write.file),
            Errno::EBUSY if write.file == "memory.limit_in_bytes" => {
                let number = |name| dir.read_number(name).unwrap_or(0);
                format!(
                    ": unable to set memory limit to {} (current usage: {}, peak usage: {})",
                    write.value,
                    number("memory.usage_in_bytes"),
                    number("memory.max_usage_in_bytes")
                )
            }
            Errno::ENODEV => ": no device has this number".to_owned(),
            Errno::EINVAL => format!(
                ": not a value {} takes, or more than a parent cgroup has",
                write.file
            ),
            _ => String::new(),
        };
        let call = write_call(&write.file, &write.value);
        let prefix = if unified {
            format!("unable to set unified resource {:?}: ", write.file)
        } else {
            String::new()
        };
        anyhow!(
            "{}: {prefix}{call}: {}{hint} (cgroup {:?})",
            write.field,
            error.errno.desc(),
            dir.path()
        )
    }
}

/// A number that is set: 0 means that it is not.
fn set<N: PartialEq + Default>(number: Option<N>) -> Option<N> {
    number.filter(|number| *number != N::default())
}

/// Why a controller's files are missing on v2.
fn not_passed_on(controller: &str, unified: Option<&str>) -> String {
    let machine_has_it = std::fs::read_to_string(format!("{ROOT}/cgroup.controllers"))
        .is_ok_and(|all| all.split_ascii_whitespace().any(|name| name == controller));
    let unified = unified.map_or(String::new(), |file| {
        format!(": unified resource {file:?} can't be set: controller {controller:?} not available")
    });
    if machine_has_it {
        format!(
            "{unified}: the {controller} controller is not passed on to this cgroup: \
             a parent has processes of its own, or does not list it in cgroup.subtree_control"
        )
    } else {
        format!("{unified}: this machine has no {controller} controller")
    }
}
