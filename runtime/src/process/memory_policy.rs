//! `linux.memoryPolicy`: on which memory nodes a process' pages are (set_mempolicy(2)). Children inherit it.

use anyhow::{Context, Result};
use oci_spec::runtime::{LinuxMemoryPolicy, MemoryPolicyFlagType as Flag, MemoryPolicyModeType as Mode};

use crate::process::identity::cpu_mask;
use crate::sys::memory::set_mempolicy;
use crate::sys::{Errno, Error};

/// A policy as the kernel takes it.
#[derive(Debug, PartialEq, Eq)]
pub struct MemoryPolicy {
    /// Mode and flags of linux/mempolicy.h.
    mode: i32,
    /// Bit n of word n / 64 for node n.
    nodes: Vec<u64>,
    /// What to say where the kernel does not know it.
    since: &'static str,
}

impl MemoryPolicy {
    /// From a checked `linux.memoryPolicy`.
    ///
    /// # Errors
    ///
    /// Nodes that are no list.
    pub fn new(policy: &LinuxMemoryPolicy) -> Result<Self> {
        let (mode, since) = match policy.mode() {
            Mode::MpolDefault => (0, ""),
            Mode::MpolPreferred => (1, ""),
            Mode::MpolBind => (2, ""),
            Mode::MpolInterleave => (3, ""),
            Mode::MpolLocal => (4, ""),
            Mode::MpolPreferredMany => (5, "; MPOL_PREFERRED_MANY needs Linux 5.15"),
            Mode::MpolWeightedInterleave => (6, "; MPOL_WEIGHTED_INTERLEAVE needs Linux 6.9"),
        };
        let (mut flags, mut needs) = (0, since);
        for flag in policy.flags().iter().flatten() {
            flags |= match flag {
                Flag::MpolFNumaBalancing => {
                    needs = "; MPOL_F_NUMA_BALANCING needs Linux 5.12 and goes with MPOL_BIND, or MPOL_PREFERRED_MANY";
                    1 << 13
                }
                Flag::MpolFRelativeNodes => 1 << 14,
                Flag::MpolFStaticNodes => 1 << 15,
            };
        }
        let list = policy
            .nodes()
            .as_deref()
            .map(str::trim)
            .filter(|list| !list.is_empty());
        let nodes = list
            .map(cpu_mask)
            .transpose()
            .context("linux.memoryPolicy.nodes")?;
        Ok(Self {
            mode: mode | flags,
            nodes: nodes.unwrap_or_default(),
            since: needs,
        })
    }

    /// Gives this process the policy.
    ///
    /// # Errors
    ///
    /// A kernel without memory nodes, or without this mode; a node that it does not have or the cpuset does not allow.
    pub fn apply(&self) -> Result<()> {
        set_mempolicy(self.mode, &self.nodes).map_err(|mut error: Error| {
            error.call.push_str(&match error.errno {
                Errno::ENOSYS => " (this kernel is built without CONFIG_NUMA)".to_owned(),
                Errno::EINVAL => format!(
                    " (the nodes must be on this machine and in the container's cpuset{})",
                    self.since
                ),
                _ => String::new(),
            });
            anyhow::Error::from(error).context("linux.memoryPolicy")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(json: &str) -> MemoryPolicy {
        MemoryPolicy::new(&serde_json::from_str(json).unwrap()).unwrap()
    }

    #[test]
    fn modes_and_flags_have_the_numbers_of_the_kernel() {
        let bind = policy(r#"{"mode":"MPOL_BIND","nodes":"0-1,64","flags":["MPOL_F_STATIC_NODES"]}"#);
        assert_eq!((bind.mode, bind.nodes), (2 | 1 << 15, vec![3, 1]));
        let local = policy(r#"{"mode":"MPOL_LOCAL","nodes":""}"#);
        assert_eq!((local.mode, local.nodes), (4, vec![]));
        let both =
            policy(r#"{"mode":"MPOL_WEIGHTED_INTERLEAVE","nodes":"3","flags":["MPOL_F_RELATIVE_NODES"]}"#);
        assert_eq!((both.mode, both.nodes), (6 | 1 << 14, vec![8]));
    }
}
