//! CNI: a pod's network, by plugins (CNI specification 1.1).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::config::Config;
use crate::error::{Error, Kind, Result};
use crate::proto::{DnsConfig, PortMapping};

/// The networks of the node: the configuration directory, read again when it changes.
#[derive(Debug)]
pub(crate) struct Cni {}

/// What plugins are told of a pod.
#[derive(Debug, Clone)]
pub(crate) struct Pod<'a> {
    pub(crate) id: &'a str,
    pub(crate) name: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) uid: &'a str,
    pub(crate) netns: &'a Path,
    pub(crate) port_mappings: &'a [PortMapping],
    pub(crate) dns: Option<&'a DnsConfig>,
    pub(crate) cgroup_parent: &'a str,
    /// For `kubernetes.io/ingress-bandwidth` and its kind.
    pub(crate) annotations: &'a BTreeMap<String, String>,
}

/// What a pod has: addresses of its `eth0`, the first one is the pod's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Addresses {
    pub(crate) ips: Vec<IpAddr>,
}

impl Cni {
    /// # Errors
    ///
    /// Its directories can't be used; a missing or wrong network is no error here (`ready`).
    pub(crate) fn open(_config: &Config) -> Result<Self> {
        Ok(Self {})
    }

    /// Whether a pod can be made now (NetworkReady), or why not: no configuration, or STATUS of a plugin.
    ///
    /// # Errors
    ///
    /// The reason, for whoever looks at the node.
    pub(crate) async fn ready(&self) -> Result<()> {
        Err(Error::text(Kind::Unavailable, "no network: not yet"))
    }

    /// ADD. Recorded before it is begun.
    ///
    /// # Errors
    ///
    /// DEL was called: nothing is left, or it is tried again later.
    pub(crate) async fn add(&self, _pod: &Pod<'_>) -> Result<Addresses> {
        Err(Error::text(Kind::Unimplemented, "networks: not yet"))
    }

    /// DEL with what was cached of ADD, once: a pod that has none is what is wanted. `netns` may be gone.
    ///
    /// # Errors
    ///
    /// A plugin failed: it is still recorded, call again.
    pub(crate) async fn delete(&self, _pod: &str) -> Result<()> {
        Ok(())
    }
}
