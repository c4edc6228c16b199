//! `linux.netDevices`, `linux.memoryPolicy`, `linux.intelRdt`: what a container gets of the machine itself.

use std::collections::BTreeMap;

use anyhow::{Result, bail};
use oci_spec::runtime::{
    Linux, LinuxIntelRdt, LinuxMemoryPolicy, MemoryPolicyFlagType as Flag, MemoryPolicyModeType as Mode,
};

use super::validate::{Warnings, no_nul};
use super::validate_namespaces::{NETWORK, Namespaces};
use super::validate_process::cpu_list;

/// Numbers of memory nodes are below this (`CONFIG_NODES_SHIFT` is at most 10).
const NODES_MAX: u32 = 1024;

/// What is in the root of a resctrl file system besides groups.
const RESCTRL_OWN: [&str; 3] = ["info", "mon_data", "mon_groups"];

/// Checks the three sections.
pub(super) fn machine(linux: &Linux, namespaces: Namespaces, warnings: &mut Warnings) -> Result<()> {
    net_devices(linux, namespaces)?;
    if let Some(policy) = linux.memory_policy() {
        memory_policy(policy)?;
    }
    if let Some(rdt) = linux.intel_rdt() {
        intel_rdt(rdt, warnings)?;
    }
    Ok(())
}

/// Names as the kernel takes them, each new one once, and a namespace to put them into.
fn net_devices(linux: &Linux, namespaces: Namespaces) -> Result<()> {
    let devices: BTreeMap<_, _> = linux.net_devices().iter().flatten().collect();
    if devices.is_empty() {
        return Ok(());
    }
    if !namespaces.private(NETWORK) {
        bail!("linux.netDevices: needs a namespace of type \"network\" in linux.namespaces");
    }
    let mut taken: BTreeMap<&str, &str> = BTreeMap::new();
    for (name, device) in devices {
        if let Err(what) = device_name(name) {
            bail!("linux.netDevices[{name:?}]: the name {what}");
        }
        let new_name = device
            .name()
            .as_deref()
            .filter(|name| !name.is_empty())
            .unwrap_or(name);
        // A template: the number is found when the device is moved.
        let (pure, template) = match new_name.split_once("%d") {
            Some((before, after)) => (format!("{before}{after}"), true),
            None => (new_name.to_owned(), false),
        };
        if pure.contains('%') {
            bail!(
                "linux.netDevices[{name:?}].name: {new_name:?}: \"%\" stands only in \"%d\", once, for a number"
            );
        }
        let example = if template {
            new_name.replace("%d", "0")
        } else {
            pure
        };
        if let Err(what) = device_name(&example) {
            bail!("linux.netDevices[{name:?}].name: {new_name:?}: {what}");
        }
        if let (false, Some(other)) = (template, taken.insert(new_name, name)) {
            bail!("linux.netDevices[{name:?}].name: {new_name:?}: is the new name of {other:?} too");
        }
    }
    Ok(())
}

/// As `dev_valid_name` of the kernel.
fn device_name(name: &str) -> Result<(), &'static str> {
    if name.is_empty() {
        return Err("is empty");
    }
    if name.len() > 15 {
        return Err("must be at most 15 bytes");
    }
    if name == "." || name == ".." {
        return Err("must not be . or ..");
    }
    let bad = |c: char| c == '/' || c == ':' || c == '\0' || c.is_ascii_whitespace() || c == '\u{b}';
    if name.contains(bad) {
        return Err("must not contain \"/\", \":\" or blanks");
    }
    Ok(())
}

/// Which modes take nodes is in set_mempolicy(2); the words are runc's.
fn memory_policy(policy: &LinuxMemoryPolicy) -> Result<()> {
    const FIELD: &str = "linux.memoryPolicy";
    let text = policy.nodes().as_deref().unwrap_or_default().trim();
    let nodes = if text.is_empty() { 0 } else { count(text)? };
    match policy.mode() {
        Mode::MpolDefault | Mode::MpolLocal if nodes != 0 => {
            bail!(
                "{FIELD}.nodes: {text:?}: memory policy mode requires 0 nodes but got {nodes}: {}",
                policy.mode()
            )
        }
        Mode::MpolBind | Mode::MpolInterleave | Mode::MpolPreferredMany | Mode::MpolWeightedInterleave
            if nodes == 0 =>
        {
            bail!(
                "{FIELD}.nodes: memory policy mode requires at least one node but got 0: {}",
                policy.mode()
            )
        }
        _ => {}
    }
    let flags = policy.flags().as_deref().unwrap_or_default();
    if flags.contains(&Flag::MpolFStaticNodes) && flags.contains(&Flag::MpolFRelativeNodes) {
        bail!("{FIELD}.flags: MPOL_F_STATIC_NODES and MPOL_F_RELATIVE_NODES exclude each other");
    }
    Ok(())
}

fn count(nodes: &str) -> Result<usize> {
    if let Err(what) = cpu_list(nodes) {
        bail!("linux.memoryPolicy.nodes: {nodes:?}: invalid memory policy nodes: {what}");
    }
    let mut set = std::collections::BTreeSet::new();
    for range in nodes.split(',').map(str::trim) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let number = |text: &str| text.trim().parse::<u32>().unwrap_or(u32::MAX);
        let last = number(last);
        if last >= NODES_MAX {
            bail!(
                "linux.memoryPolicy.nodes: {nodes:?}: invalid memory policy nodes: the last node is {}",
                NODES_MAX - 1
            );
        }
        set.extend(number(first)..=last);
    }
    Ok(set.len())
}

/// The form of names and lines; what the machine has is asked when the container is made.
fn intel_rdt(rdt: &LinuxIntelRdt, warnings: &mut Warnings) -> Result<()> {
    const FIELD: &str = "linux.intelRdt";
    if let Some(name) = rdt.clos_id().as_deref().filter(|name| *name != "/") {
        no_nul(&format!("{FIELD}.closID"), name.as_bytes())?;
        if name == "." || name == ".." || name.contains('/') || RESCTRL_OWN.contains(&name) {
            bail!(
                "{FIELD}.closID: {name:?}: must be the name of a group: no path, and none of resctrl's own names; \"/\" is the default group"
            );
        }
        if name.len() > 255 {
            bail!("{FIELD}.closID: {name:?}: must be at most 255 bytes");
        }
    }
    let one_line = |field: &str, line: &str| -> Result<()> {
        no_nul(field, line.as_bytes())?;
        if line.contains('\n') {
            bail!("{field}: {line:?}: must be one line");
        }
        Ok(())
    };
    if let Some(schema) = rdt.l3_cache_schema() {
        no_nul(&format!("{FIELD}.l3CacheSchema"), schema.as_bytes())?;
        // Two lines were the only way to tell code from data before there was `schemata`.
        if !schema.is_empty() && !schema.lines().all(|line| line.starts_with("L3")) {
            warnings.push(format!(
                "{FIELD}.l3CacheSchema: {schema:?}: should start with \"L3:\""
            ));
        }
    }
    if let Some(schema) = rdt.mem_bw_schema().as_deref().filter(|schema| !schema.is_empty()) {
        one_line(&format!("{FIELD}.memBwSchema"), schema)?;
        if !schema.starts_with("MB:") {
            bail!("{FIELD}.memBwSchema: {schema:?}: must start with \"MB:\"");
        }
    }
    for (i, line) in rdt.schemata().iter().flatten().enumerate() {
        one_line(&format!("{FIELD}.schemata[{i}]"), line)?;
        if !line.contains(':') {
            bail!("{FIELD}.schemata[{i}]: {line:?}: must be a line such as \"L3:0=f;1=f\"");
        }
    }
    Ok(())
}
