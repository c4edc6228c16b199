//! What CDI devices add, put into the configuration: where both say something, the device's word counts.

use oci_spec::runtime::{Hook, HookBuilder, Hooks, Mount, Spec};

use super::cdi::{self, Edits};
use super::devices::{device_of, rule};
use super::process::Environment;
use crate::error::{Error, Result};

/// Puts them in.
///
/// # Errors
///
/// `InvalidArgument`: a hook of no known name.
pub(super) fn apply(edits: &[Edits], spec: &mut Spec) -> Result<()> {
    for edits in edits {
        process(edits, spec);
        devices(edits, spec);
        mounts(edits, spec);
        hooks(edits, spec)?;
    }
    Ok(())
}

fn process(edits: &Edits, spec: &mut Spec) {
    let Some(process) = spec.process_mut() else { return };
    let mut env = Environment::of(process.env().clone().unwrap_or_default());
    for variable in &edits.env {
        env.set(variable.clone());
    }
    process.set_env(Some(env.list()));
    let user = process.user_mut();
    let mut groups = user.additional_gids().clone().unwrap_or_default();
    // Root's group would be more than a device needs: the library of the field leaves it out, too.
    groups.extend(edits.additional_gids.iter().filter(|gid| **gid != 0));
    groups.sort_unstable();
    groups.dedup();
    user.set_additional_gids(Some(groups));
}

fn devices(edits: &Edits, spec: &mut Spec) {
    let user = spec
        .process()
        .as_ref()
        .map(|process| process.user().clone())
        .unwrap_or_default();
    let Some(linux) = spec.linux_mut() else { return };
    let mut nodes = linux.devices().clone().unwrap_or_default();
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    for device in &edits.device_nodes {
        let node = device.node(user.uid(), user.gid());
        nodes.retain(|known| *known.path() != node.path);
        nodes.push(device_of(&node));
        let access = match &*device.permissions {
            "" => "rwm",
            // CDI's word for none.
            "none" => continue,
            given => given,
        };
        rules.push(rule(true, Some(&node), access));
    }
    resources.set_devices(Some(rules));
    linux.set_devices(Some(nodes)).set_resources(Some(resources));
}

fn mounts(edits: &Edits, spec: &mut Spec) {
    if edits.mounts.is_empty() {
        return;
    }
    let linux = spec.linux().as_ref();
    let users = linux.is_some_and(|linux| linux.uid_mappings().is_some());
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in &edits.mounts {
        mounts.retain(|known| *known.destination() != mount.container_path);
        mounts.push(as_oci(mount, users));
    }
    // Stable: an upper one first, else it hides those below it.
    mounts.sort_by_key(|mount| mount.destination().components().count());
    spec.set_mounts(Some(mounts));
}

fn as_oci(mount: &cdi::Mount, users: bool) -> Mount {
    let mut options = mount.options.clone();
    let bind = options.iter().any(|option| option == "bind" || option == "rbind");
    if users
        && bind
        && !options
            .iter()
            .any(|option| option == "idmap" || option == "ridmap")
    {
        options.push("idmap".into());
    }
    let mut made = Mount::default();
    made.set_destination(mount.container_path.clone())
        .set_source(Some(mount.host_path.clone()))
        .set_options(Some(options))
        .set_typ(Some(mount.kind.clone()).filter(|kind| !kind.is_empty()));
    made
}

fn hooks(edits: &Edits, spec: &mut Spec) -> Result<()> {
    if edits.hooks.is_empty() {
        return Ok(());
    }
    let mut hooks: Hooks = spec.hooks().clone().unwrap_or_default();
    for asked in &edits.hooks {
        let list = match &*asked.hook_name {
            "prestart" => hooks.prestart_mut(),
            "createRuntime" => hooks.create_runtime_mut(),
            "createContainer" => hooks.create_container_mut(),
            "startContainer" => hooks.start_container_mut(),
            "poststart" => hooks.poststart_mut(),
            "poststop" => hooks.poststop_mut(),
            other => {
                return Err(Error::invalid(format_args!(
                    "config.CDI_devices: hookName: {other:?}: is no kind of hook"
                )));
            }
        };
        list.get_or_insert_default().push(hook(asked)?);
    }
    spec.set_hooks(Some(hooks));
    Ok(())
}

fn hook(asked: &cdi::Hook) -> Result<Hook> {
    let mut hook = HookBuilder::default().path(asked.path.clone());
    if !asked.args.is_empty() {
        hook = hook.args(asked.args.clone());
    }
    if !asked.env.is_empty() {
        hook = hook.env(asked.env.clone());
    }
    if let Some(timeout) = asked.timeout {
        hook = hook.timeout(timeout);
    }
    hook.build()
        .map_err(|error| Error::invalid(format_args!("config.CDI_devices: hooks: {error}")))
}
