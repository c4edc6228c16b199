//! `mounts`.

use anyhow::{Result, bail};
use oci_spec::runtime::{Mount, Spec};

use super::validate::{Warnings, no_nul};
use super::validate_namespaces::{Namespaces, USER, mappings};

/// Checks each mount. Options are not looked at: the module that gives them to the kernel knows them.
pub(super) fn mounts(spec: &Spec, namespaces: Namespaces, warnings: &mut Warnings) -> Result<()> {
    for (i, mount) in spec.mounts().iter().flatten().enumerate() {
        let destination = mount.destination().as_os_str().as_encoded_bytes();
        if destination.is_empty() {
            bail!("mounts[{i}].destination: is empty");
        }
        if destination.contains(&0) {
            no_nul(&format!("mounts[{i}].destination"), destination)?;
        }
        if destination[0] != b'/' {
            warnings.push(format!(
                "mounts[{i}].destination: {:?}: is taken as relative to \"/\"; make it absolute",
                mount.destination()
            ));
        }
        for option in mount.options().iter().flatten() {
            if option.as_bytes().contains(&0) {
                no_nul(&format!("mounts[{i}].options"), option.as_bytes())?;
            }
        }
        if let Some(source) = mount
            .source()
            .as_ref()
            .map(|s| s.as_os_str().as_encoded_bytes())
            .filter(|s| s.contains(&0))
        {
            no_nul(&format!("mounts[{i}].source"), source)?;
        }
        idmap(i, mount, namespaces)?;
        let is_bind = |m: &Mount| m.options().iter().flatten().any(|o| o == "bind" || o == "rbind");
        if mount.source().is_none() && (is_bind(mount) || mount.typ().as_deref() == Some("bind")) {
            bail!(
                "mounts[{i}].source: missing; the bind mount on {:?} needs it",
                mount.destination()
            );
        }
    }
    Ok(())
}

/// Mappings of a mount of its own (`idmap`, `ridmap`): both or none, and what they map is a bind mount.
fn idmap(i: usize, mount: &Mount, namespaces: Namespaces) -> Result<()> {
    let uids = mount.uid_mappings().as_deref().unwrap_or_default();
    let gids = mount.gid_mappings().as_deref().unwrap_or_default();
    if uids.is_empty() != gids.is_empty() {
        let (missing, given) = if uids.is_empty() {
            ("uidMappings", "gidMappings")
        } else {
            ("gidMappings", "uidMappings")
        };
        bail!("mounts[{i}].{missing}: missing; {given} is given");
    }
    mappings(&format!("mounts[{i}].uidMappings"), uids)?;
    mappings(&format!("mounts[{i}].gidMappings"), gids)?;
    let has = |wanted: &dyn Fn(&String) -> bool| mount.options().iter().flatten().any(wanted);
    // crun's form, with a mapping of its own.
    let custom = has(&|o| o.starts_with("idmap=") || o.starts_with("ridmap="));
    if custom && !uids.is_empty() {
        bail!("mounts[{i}]: both uidMappings and an idmap option with a mapping; give one");
    }
    let asked = custom || has(&|o| o == "idmap" || o == "ridmap");
    if asked && !custom && uids.is_empty() && !namespaces.private(USER) {
        bail!(
            "mounts[{i}].options: idmap needs uidMappings and gidMappings, or a namespace of type \"user\""
        );
    }
    let is_bind = mount
        .options()
        .iter()
        .flatten()
        .any(|o| o == "bind" || o == "rbind");
    if (asked || !uids.is_empty()) && !is_bind && mount.typ().as_deref() != Some("bind") {
        bail!(
            "mounts[{i}]: only a bind mount can be idmapped, not one of type {:?}",
            mount.typ().as_deref().unwrap_or("")
        );
    }
    Ok(())
}
