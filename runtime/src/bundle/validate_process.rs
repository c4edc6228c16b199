//! `process`: of a configuration, and of `exec --process FILE`.

use anyhow::{Result, bail};
use oci_spec::runtime::{
    Capabilities, ExecCPUAffinity, IOPriorityClass, LinuxIOPriority, LinuxSchedulerPolicy, PosixRlimit,
    Process, Scheduler,
};

use super::validate::{Warnings, environment, no_nul};

/// Checks a process whose fields are named with `prefix` (`process.` or nothing); returns the warnings.
pub(super) fn process(process: &Process, prefix: &str) -> Result<Warnings> {
    let mut warnings = Warnings::new();
    command(process, prefix)?;
    user(process, prefix)?;
    capabilities(process, prefix, &mut warnings);
    rlimits(process.rlimits().as_deref().unwrap_or_default(), prefix)?;
    if let Some(adjustment) = process.oom_score_adj().filter(|a| !(-1000..=1000).contains(a)) {
        bail!("{prefix}oomScoreAdj: {adjustment}: must be between -1000 and 1000");
    }
    for (field, label) in [
        ("apparmorProfile", process.apparmor_profile()),
        ("selinuxLabel", process.selinux_label()),
    ] {
        if let Some(label) = label {
            no_nul(&format!("{prefix}{field}"), label.as_bytes())?;
        }
    }
    if let Some(s) = process.scheduler() {
        scheduler(s, prefix)?;
    }
    if let Some(io) = process.io_priority() {
        io_priority(io, prefix)?;
    }
    if let Some(affinity) = process.exec_cpu_affinity() {
        cpu_affinity(affinity, prefix)?;
    }
    console(process, prefix, &mut warnings)?;
    Ok(warnings)
}

/// Arguments, environment and working directory.
fn command(process: &Process, prefix: &str) -> Result<()> {
    let args = process.args().as_deref().unwrap_or_default();
    match args.first() {
        None => bail!("{prefix}args: is empty; it names the program to run"),
        Some(program) if program.is_empty() => {
            bail!("{prefix}args[0]: is empty; it names the program to run")
        }
        Some(_) => {}
    }
    for (i, arg) in args.iter().enumerate() {
        if arg.as_bytes().contains(&0) {
            no_nul(&format!("{prefix}args[{i}]"), arg.as_bytes())?;
        }
    }
    for (i, variable) in process.env().iter().flatten().enumerate() {
        environment(variable, || format!("{prefix}env[{i}]"))?;
    }
    if process.cwd().as_os_str().is_empty() {
        bail!("{prefix}cwd: is empty; use \"/\"");
    }
    if !process.cwd().is_absolute() {
        bail!("{prefix}cwd: {:?}: must be absolute", process.cwd());
    }
    no_nul(
        &format!("{prefix}cwd"),
        process.cwd().as_os_str().as_encoded_bytes(),
    )
}

/// Ids are `u32` by type, so that none overflows into root's; 4294967295 means "unchanged" to the kernel.
fn user(process: &Process, prefix: &str) -> Result<()> {
    let user = process.user();
    let gids = user.additional_gids().as_deref().unwrap_or_default();
    let refuse = |field: String, id: u32| -> Result<()> {
        if id == u32::MAX {
            bail!("{prefix}user.{field}: {id}: must be below 4294967295");
        }
        Ok(())
    };
    refuse("uid".into(), user.uid())?;
    refuse("gid".into(), user.gid())?;
    for (i, &gid) in gids.iter().enumerate() {
        refuse(format!("additionalGids[{i}]"), gid)?;
    }
    // NGROUPS_MAX, include/uapi/linux/limits.h.
    if gids.len() > 65_536 {
        bail!(
            "{prefix}user.additionalGids: {} entries: must be at most 65536",
            gids.len()
        );
    }
    if let Some(umask) = user.umask().filter(|umask| *umask > 0o777) {
        bail!("{prefix}user.umask: {umask}: must be at most 511 (octal 0777)");
    }
    Ok(())
}

/// What the kernel would drop in silence: ambient capabilities need to be permitted and inheritable.
fn capabilities(process: &Process, prefix: &str, warnings: &mut Warnings) {
    let Some(sets) = process.capabilities() else {
        return;
    };
    let lacks =
        |set: &Option<Capabilities>, capability| set.as_ref().is_none_or(|set| !set.contains(capability));
    let ambient = sets.ambient().iter().flatten();
    let mut dropped: Vec<_> = ambient
        .filter(|&capability| lacks(sets.permitted(), capability) || lacks(sets.inheritable(), capability))
        .map(|capability| format!("CAP_{capability}"))
        .collect();
    if !dropped.is_empty() {
        // One line: `podman build` asks for fourteen, for each step.
        dropped.sort_unstable();
        warnings.push(format!(
            "{prefix}capabilities.ambient: can't raise ambient capability {}: it must be in permitted and inheritable too",
            dropped.join(", ")
        ));
    }
}

fn rlimits(rlimits: &[PosixRlimit], prefix: &str) -> Result<()> {
    for (i, rlimit) in rlimits.iter().enumerate() {
        if rlimit.soft() > rlimit.hard() {
            bail!(
                "{prefix}rlimits[{i}].soft: {}: must not be above hard, {} ({})",
                rlimit.soft(),
                rlimit.hard(),
                rlimit.typ()
            );
        }
        if rlimits[..i].iter().any(|earlier| earlier.typ() == rlimit.typ()) {
            bail!(
                "{prefix}rlimits[{i}].type: {:?} is already there; name each rlimit once",
                rlimit.typ().to_string()
            );
        }
    }
    Ok(())
}

/// `sched_setattr(2)` would say EINVAL to each of these.
fn scheduler(scheduler: &Scheduler, prefix: &str) -> Result<()> {
    use LinuxSchedulerPolicy::{SchedDeadline, SchedFifo, SchedIso, SchedRr};
    let policy = *scheduler.policy();
    let field = |key: &str| format!("{prefix}scheduler.{key}");
    if policy == SchedIso {
        bail!(
            "{}: \"SCHED_ISO\": is reserved but not implemented in Linux",
            field("policy")
        );
    }
    if let Some(nice) = scheduler.nice().filter(|nice| !(-20..=19).contains(nice)) {
        bail!("{}: {nice}: must be between -20 and 19", field("nice"));
    }
    let priority = scheduler.priority().unwrap_or(0);
    match policy {
        SchedFifo | SchedRr if !(1..=99).contains(&priority) => {
            bail!(
                "{}: {priority}: must be between 1 and 99 for {policy}",
                field("priority")
            )
        }
        SchedFifo | SchedRr => {}
        _ if priority != 0 => {
            bail!(
                "{}: {priority}: only SCHED_FIFO and SCHED_RR have a priority, not {policy}",
                field("priority")
            )
        }
        _ => {}
    }
    let times = [
        ("runtime", scheduler.runtime()),
        ("deadline", scheduler.deadline()),
        ("period", scheduler.period()),
    ];
    for (key, value) in times {
        if let Some(value) = value.filter(|v| *v != 0 && policy != SchedDeadline) {
            bail!(
                "{}: {value}: only SCHED_DEADLINE has it, not {policy}",
                field(key)
            );
        }
    }
    if policy == SchedDeadline {
        let [runtime, deadline, period] = times.map(|(_, value)| value.unwrap_or(0));
        let period = if period == 0 { deadline } else { period };
        if runtime == 0 || runtime > deadline || deadline > period {
            bail!(
                "{prefix}scheduler: SCHED_DEADLINE needs 0 < runtime <= deadline <= period, in nanoseconds"
            );
        }
    }
    Ok(())
}

fn io_priority(io: &LinuxIOPriority, prefix: &str) -> Result<()> {
    let (class, priority) = (io.class(), io.priority());
    if !(0..=7).contains(&priority) {
        bail!("{prefix}ioPriority.priority: {priority}: must be between 0 and 7");
    }
    if class == IOPriorityClass::IoprioClassIdle && priority != 0 {
        bail!("{prefix}ioPriority.priority: {priority}: must be 0 for IOPRIO_CLASS_IDLE");
    }
    Ok(())
}

fn cpu_affinity(affinity: &ExecCPUAffinity, prefix: &str) -> Result<()> {
    for (key, list) in [
        ("initial", affinity.initial()),
        ("final", affinity.cpu_affinity_final()),
    ] {
        if let Some(list) = list.as_deref() {
            cpu_list(list)
                .map_err(|what| anyhow::anyhow!("{prefix}execCPUAffinity.{key}: {list:?}: {what}"))?;
        }
    }
    Ok(())
}

/// Checks a list of CPUs or memory nodes in the form of `cpuset(7)`: `0-3,7`.
pub(super) fn cpu_list(list: &str) -> Result<(), &'static str> {
    const FORM: &str = "must be a list such as 0-3,7";
    for range in list.trim().split(',') {
        let (first, last) = range
            .trim()
            .split_once('-')
            .unwrap_or((range.trim(), range.trim()));
        let number = |text: &str| -> Result<u32, &'static str> {
            if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
                Err(FORM)
            } else {
                text.parse().map_err(|_| FORM)
            }
        };
        if number(first)? > number(last)? {
            return Err("a range must not begin above its end");
        }
    }
    Ok(())
}

/// `struct winsize` has 16 bits for each side.
fn console(process: &Process, prefix: &str, warnings: &mut Warnings) -> Result<()> {
    let Some(size) = process.console_size() else {
        return Ok(());
    };
    for (key, value) in [("height", size.height()), ("width", size.width())] {
        if value > u64::from(u16::MAX) {
            bail!("{prefix}consoleSize.{key}: {value}: must be at most 65535");
        }
    }
    if !process.terminal().unwrap_or(false) && (size.height(), size.width()) != (0, 0) {
        warnings.push(format!(
            "{prefix}consoleSize: ignored, {prefix}terminal is not true"
        ));
    }
    Ok(())
}
