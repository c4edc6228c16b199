//! `linux`, except namespaces and resources.

use std::path::Path;

use anyhow::{Result, bail};
use oci_spec::runtime::{Linux, LinuxDevice, LinuxDeviceType, LinuxSeccomp};

use super::validate::{Warnings, no_nul};
use super::validate_namespaces::{MOUNT, Namespaces};
use super::{validate_machine, validate_resources, validate_sysctl};

/// Checks the section.
pub(super) fn linux(linux: &Linux, namespaces: Namespaces, warnings: &mut Warnings) -> Result<()> {
    validate_machine::machine(linux, namespaces, warnings)?;
    for (name, value) in linux.sysctl().iter().flatten() {
        validate_sysctl::sysctl(name, value, namespaces)?;
    }
    for (i, device) in linux.devices().iter().flatten().enumerate() {
        self::device(i, device)?;
    }
    paths(linux, namespaces, warnings)?;
    propagation(linux)?;
    if let Some(path) = linux.cgroups_path() {
        no_nul("linux.cgroupsPath", path.as_os_str().as_encoded_bytes())?;
    }
    if let Some(label) = linux.mount_label() {
        no_nul("linux.mountLabel", label.as_bytes())?;
    }
    if let Some(personality) = linux.personality()
        && personality
            .flags()
            .as_ref()
            .is_some_and(|flags| !flags.is_empty())
    {
        // The specification defines no flag so far.
        bail!("linux.personality.flags: no flag is defined");
    }
    if let Some(resources) = linux.resources() {
        validate_resources::resources(resources, "linux.resources.")?;
    }
    if let Some(seccomp) = linux.seccomp() {
        self::seccomp(seccomp)?;
    }
    Ok(())
}

fn device(i: usize, device: &LinuxDevice) -> Result<()> {
    let path = device.path();
    if path.as_os_str().is_empty() {
        bail!("linux.devices[{i}].path: is empty");
    }
    if !path.is_absolute() {
        bail!("linux.devices[{i}].path: {path:?}: must be absolute");
    }
    no_nul(
        &format!("linux.devices[{i}].path"),
        path.as_os_str().as_encoded_bytes(),
    )?;
    match device.typ() {
        LinuxDeviceType::A => bail!("linux.devices[{i}].type: \"a\": must be c, b, u or p"),
        LinuxDeviceType::P => {}
        _ => {
            // dev_t of the kernel: 12 bits of major, 20 of minor.
            for (key, value, limit) in [
                ("major", device.major(), 4095),
                ("minor", device.minor(), 1_048_575),
            ] {
                if !(0..=limit).contains(&value) {
                    bail!("linux.devices[{i}].{key}: {value}: must be between 0 and {limit}");
                }
            }
        }
    }
    if let Some(mode) = device.file_mode().filter(|mode| mode & !0o177_777 != 0) {
        bail!("linux.devices[{i}].fileMode: {mode}: must be at most 4095 (octal 07777)");
    }
    Ok(())
}

/// `maskedPaths` and `readonlyPaths`.
fn paths(linux: &Linux, namespaces: Namespaces, warnings: &mut Warnings) -> Result<()> {
    for (field, list) in [
        ("maskedPaths", linux.masked_paths()),
        ("readonlyPaths", linux.readonly_paths()),
    ] {
        let list = list.as_deref().unwrap_or_default();
        if !list.is_empty() && !namespaces.private(MOUNT) {
            bail!("linux.{field}: needs a namespace of type \"mount\" in linux.namespaces");
        }
        for (i, path) in list.iter().enumerate() {
            if !Path::new(path).is_absolute() {
                warnings.push(format!(
                    "linux.{field}[{i}]: {path:?}: is taken as relative to \"/\"; make it absolute"
                ));
            }
            if path.as_bytes().contains(&0) {
                no_nul(&format!("linux.{field}[{i}]"), path.as_bytes())?;
            }
        }
    }
    Ok(())
}

fn propagation(linux: &Linux) -> Result<()> {
    const KNOWN: [&str; 9] = [
        "",
        "private",
        "rprivate",
        "shared",
        "rshared",
        "slave",
        "rslave",
        "unbindable",
        "runbindable",
    ];
    match linux.rootfs_propagation().as_deref() {
        Some(value) if !KNOWN.contains(&value) => {
            bail!(
                "linux.rootfsPropagation: {value:?}: use one of {}",
                KNOWN[1..].join(", ")
            )
        }
        _ => Ok(()),
    }
}

/// The shape of the rules; names and actions are known by type, the rest is the compiler's.
fn seccomp(seccomp: &LinuxSeccomp) -> Result<()> {
    for (i, rule) in seccomp.syscalls().iter().flatten().enumerate() {
        if rule.names().is_empty() {
            bail!("linux.seccomp.syscalls[{i}].names: is empty");
        }
        for (j, arg) in rule.args().iter().flatten().enumerate() {
            if arg.index() > 5 {
                bail!(
                    "linux.seccomp.syscalls[{i}].args[{j}].index: {}: must be between 0 and 5",
                    arg.index()
                );
            }
        }
    }
    Ok(())
}
