//! Capabilities: the usual ones, and what is added and dropped.

use std::collections::HashSet;

use oci_spec::runtime::{Capability, LinuxCapabilities};

use super::Facts;
use crate::error::{Error, Result};
use crate::proto::LinuxContainerSecurityContext;

/// What every container has that does not say otherwise: Docker's list, which the field has kept.
const USUAL: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// The sets of the process. Privileged, and `ALL`, are all that this node has itself; one that it has not is left out, as
/// runc does. Inheritable are the ambient ones only (CVE-2022-24769).
///
/// # Errors
///
/// `InvalidArgument`: not the name of a capability.
pub(super) fn of(facts: &Facts, context: &LinuxContainerSecurityContext) -> Result<LinuxCapabilities> {
    let mut set = facts.capabilities.clone();
    let mut ambient = HashSet::new();
    if !context.privileged {
        let asked = context.capabilities.clone().unwrap_or_default();
        let add = Names::parse("add_capabilities", &asked.add_capabilities)?;
        let drop = Names::parse("drop_capabilities", &asked.drop_capabilities)?;
        if !add.all {
            set.retain(|capability| USUAL.contains(capability));
        }
        if drop.all {
            set.clear();
        }
        set.extend(add.named.intersection(&facts.capabilities));
        // One that is named in both is dropped.
        set.retain(|capability| !drop.named.contains(capability));
        let raised = Names::parse("add_ambient_capabilities", &asked.add_ambient_capabilities)?;
        ambient = if raised.all { set.clone() } else { raised.named };
        ambient
            .retain(|capability| facts.capabilities.contains(capability) && !drop.named.contains(capability));
        set.extend(&ambient);
    }
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(set.clone()))
        .set_effective(Some(set.clone()))
        .set_permitted(Some(set))
        .set_inheritable(Some(ambient.clone()))
        .set_ambient(Some(ambient));
    Ok(sets)
}

/// Capabilities as CRI names them.
struct Names {
    all: bool,
    named: HashSet<Capability>,
}

impl Names {
    /// `NET_ADMIN`, `cap_net_admin` and `ALL` are all known.
    fn parse(field: &str, names: &[String]) -> Result<Self> {
        let mut parsed = Self {
            all: false,
            named: HashSet::new(),
        };
        for name in names {
            let upper = name.to_ascii_uppercase();
            if upper == "ALL" {
                parsed.all = true;
                continue;
            }
            let capability = upper
                .strip_prefix("CAP_")
                .unwrap_or(&upper)
                .parse()
                .map_err(|_| {
                    Error::invalid(format_args!(
                        "config.linux.security_context.capabilities.{field}: {name:?}: is no capability"
                    ))
                })?;
            parsed.named.insert(capability);
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto;

    fn sets(held: &[Capability], asked: proto::Capability, privileged: bool) -> LinuxCapabilities {
        let facts = Facts {
            capabilities: held.iter().copied().collect(),
            ..Facts::for_tests()
        };
        let context = LinuxContainerSecurityContext {
            capabilities: Some(asked),
            privileged,
            ..Default::default()
        };
        of(&facts, &context).unwrap()
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    const HELD: [Capability; 4] = [
        Capability::Chown,
        Capability::Kill,
        Capability::NetAdmin,
        Capability::SysAdmin,
    ];

    fn bounding(sets: &LinuxCapabilities) -> HashSet<Capability> {
        sets.bounding().clone().unwrap()
    }

    #[test]
    fn the_usual_ones_are_had_as_far_as_the_node_has_them() {
        let sets = sets(&HELD, proto::Capability::default(), false);
        assert_eq!(
            bounding(&sets),
            HashSet::from([Capability::Chown, Capability::Kill])
        );
        assert_eq!(sets.effective(), sets.bounding());
        assert_eq!(sets.permitted(), sets.bounding());
    }

    #[test]
    fn adding_and_dropping_know_all_and_both_forms_of_names() {
        let asked = proto::Capability {
            add_capabilities: names(&["ALL"]),
            drop_capabilities: names(&["cap_chown"]),
            ..Default::default()
        };
        let all = sets(&HELD, asked, false);
        assert_eq!(
            bounding(&all),
            HashSet::from([Capability::Kill, Capability::NetAdmin, Capability::SysAdmin])
        );
        let asked = proto::Capability {
            add_capabilities: names(&["net_admin", "SYS_TIME"]),
            drop_capabilities: names(&["all"]),
            ..Default::default()
        };
        assert_eq!(
            bounding(&sets(&HELD, asked, false)),
            HashSet::from([Capability::NetAdmin])
        );
    }

    #[test]
    fn privileged_is_all_that_the_node_has_and_no_more() {
        let asked = proto::Capability {
            drop_capabilities: names(&["ALL"]),
            ..Default::default()
        };
        assert_eq!(bounding(&sets(&HELD, asked, true)), HashSet::from(HELD));
    }

    #[test]
    fn ambient_ones_are_in_all_sets_and_nothing_else_is_inheritable() {
        let asked = proto::Capability {
            add_ambient_capabilities: names(&["NET_ADMIN", "SYS_TIME"]),
            ..Default::default()
        };
        let ambient = sets(&HELD, asked, false);
        let only = HashSet::from([Capability::NetAdmin]);
        assert_eq!(ambient.ambient().clone().unwrap(), only);
        assert_eq!(ambient.inheritable().clone().unwrap(), only);
        assert!(bounding(&ambient).is_superset(&only));
        let none = sets(&HELD, proto::Capability::default(), false);
        assert_eq!(none.inheritable().clone().unwrap(), HashSet::new());
    }

    #[test]
    fn a_name_that_is_none_is_refused() {
        let context = LinuxContainerSecurityContext {
            capabilities: Some(proto::Capability {
                add_capabilities: names(&["ROOT"]),
                ..Default::default()
            }),
            ..Default::default()
        };
        let error = of(&Facts::for_tests(), &context).unwrap_err();
        assert!(
            error.to_string().contains("add_capabilities: \"ROOT\""),
            "{error}"
        );
    }
}
