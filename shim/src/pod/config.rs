//! What a pod is to be: CreateSandboxRequest, checked once.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;

use containerd_shim_protos::sandbox_api::CreateSandboxRequest;
use protobuf::Message as _;
use protobuf::well_known_types::any::Any;

use crate::error::{Error, Kind, Result};

#[expect(
    nonstandard_style,
    unreachable_pub,
    unused,
    clippy::all,
    clippy::semicolon_if_nothing_returned,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated from proto/pod_sandbox.proto"
)]
mod pod_sandbox {
    include!(concat!(env!("OUT_DIR"), "/pod_sandbox/pod_sandbox.rs"));
}

use pod_sandbox::{
    DNSConfig, IDMapping, LinuxPodSandboxConfig, NamespaceMode, NamespaceOption, PodSandboxConfig,
};

/// The name of what CRI hands over.
const CRI_CONFIG: &str = "runtime.v1.PodSandboxConfig";
/// The longest host name, in bytes (sethostname(2)).
const HOSTNAME_MAX: usize = 64;
/// The most lines of an id map (user_namespaces(7), Linux 4.15).
const MAPPINGS_MAX: usize = 340;

/// A pod's network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Network {
    /// The host's; so is the host name.
    Host,
    /// Made by containerd, for CNI.
    At(PathBuf),
    /// Made for the pod, with a loopback interface.
    Own,
}

/// Which processes those of a container see, where it asks for the pod's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pids {
    /// Those of all containers of the pod.
    Shared,
    /// There are none of the pod: each container has its own.
    OfContainer,
    /// All of the host.
    Host,
}

/// A line of an id map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mapping {
    /// First id inside.
    pub(crate) inside: u32,
    /// First id on the host.
    pub(crate) host: u32,
    /// How many.
    pub(crate) length: u32,
}

/// The ids of a pod's user namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Users {
    pub(crate) uids: Vec<Mapping>,
    pub(crate) gids: Vec<Mapping>,
}

/// What resolv.conf says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Dns {
    pub(crate) servers: Vec<String>,
    pub(crate) searches: Vec<String>,
    pub(crate) options: Vec<String>,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PodConfig {
    /// Empty: as the host's.
    pub(crate) hostname: String,
    /// `None`: as the host's.
    pub(crate) dns: Option<Dns>,
    pub(crate) network: Network,
    /// Whether System V IPC, message queues and `/dev/shm` are the host's.
    pub(crate) host_ipc: bool,
    pub(crate) pids: Pids,
    /// `None`: the host's.
    pub(crate) users: Option<Users>,
    pub(crate) sysctls: BTreeMap<String, String>,
    /// Above the containers' cgroups: a path, or with systemd the name of a slice. Empty where it is not told.
    pub(crate) cgroup_parent: String,
    /// Whether the containers are given the pod's `/etc/hostname`, `/etc/hosts`, `/etc/resolv.conf` and `/dev/shm`: CRI
    /// leaves that to the sandbox.
    pub(crate) has_files: bool,
}

impl PodConfig {
    /// From the request. Without a configuration of CRI, all namespaces are the pod's own but those of users and PIDs.
    ///
    /// # Errors
    ///
    /// `InvalidArgument`, with the field, its value and what to do.
    pub(crate) fn parse(request: &CreateSandboxRequest) -> Result<Self> {
        let cri = request.options.as_ref().map(decode).transpose()?;
        let has_files = cri.is_some();
        let config = cri.unwrap_or_else(without_cri);
        let hostname = checked_hostname(&config.hostname)?;
        let dns = config.dns_config.as_ref().map(checked_dns).transpose()?;
        let linux: &LinuxPodSandboxConfig = &config.linux;
        let namespaces: &NamespaceOption = &linux.security_context.namespace_options;
        let network = network(namespaces, &request.netns_path)?;
        let users = users(namespaces)?;
        let sysctls = linux.sysctls.clone().into_iter().collect();
        let mut pod = Self {
            hostname,
            dns,
            network,
            host_ipc: mode(namespaces.ipc, "ipc", &[NamespaceMode::POD, NamespaceMode::NODE])?
                == NamespaceMode::NODE,
            pids: pids(namespaces)?,
            users,
            sysctls,
            cgroup_parent: linux.cgroup_parent.clone(),
            has_files,
        };
        if has_files {
            pod.add_defaults();
        }
        Ok(pod)
    }

    /// What containerd 2 sets for its own sandboxes (`enable_unprivileged_ports` and `_icmp`, on unless configured
    /// otherwise), and can't tell a shim.
    fn add_defaults(&mut self) {
        if self.network == Network::Host {
            return;
        }
        let mut default = |name: &str, value: &str| {
            self.sysctls
                .entry(name.to_owned())
                .or_insert_with(|| value.to_owned());
        };
        default("net.ipv4.ip_unprivileged_port_start", "0");
        if self.users.is_none() {
            default("net.ipv4.ping_group_range", "0 2147483647");
        }
    }
}

fn invalid(field: &str, value: impl Display, advice: &str) -> Error {
    Error::text(Kind::InvalidArgument, format_args!("{field}: {value}: {advice}"))
}

fn decode(options: &Any) -> Result<PodSandboxConfig> {
    let name = options
        .type_url
        .rsplit_once('/')
        .map_or(&*options.type_url, |(_, name)| name);
    if name != CRI_CONFIG {
        return Err(invalid(
            "options",
            format_args!("{name:?}"),
            &format!("must be a {CRI_CONFIG}"),
        ));
    }
    PodSandboxConfig::parse_from_bytes(&options.value)
        .map_err(|error| invalid("options", error, &format!("is no {CRI_CONFIG}")))
}

fn without_cri() -> PodSandboxConfig {
    let mut config = PodSandboxConfig::new();
    let linux = config.linux.mut_or_insert_default();
    let security = linux.security_context.mut_or_insert_default();
    security.namespace_options.mut_or_insert_default().pid = NamespaceMode::CONTAINER.into();
    config
}

fn checked_hostname(hostname: &str) -> Result<String> {
    if hostname.len() > HOSTNAME_MAX {
        return Err(invalid(
            "hostname",
            format_args!("{hostname:?}"),
            "must have at most 64 bytes",
        ));
    }
    if !hostname.chars().all(is_plain) {
        return Err(invalid(
            "hostname",
            format_args!("{hostname:?}"),
            "must be letters, digits, '-' and '.'",
        ));
    }
    Ok(hostname.to_owned())
}

/// Nothing that could begin a word or a line of its own in a file.
fn is_plain(letter: char) -> bool {
    !letter.is_whitespace() && !letter.is_control()
}

fn checked_dns(dns: &DNSConfig) -> Result<Dns> {
    let plain = |field: &str, words: &[String]| {
        for (i, word) in words.iter().enumerate() {
            if word.is_empty() || !word.chars().all(is_plain) {
                let field = format!("dns_config.{field}[{i}]");
                return Err(invalid(&field, format_args!("{word:?}"), "must be one word"));
            }
        }
        Ok(words.to_vec())
    };
    Ok(Dns {
        servers: plain("servers", &dns.servers)?,
        searches: plain("searches", &dns.searches)?,
        options: plain("options", &dns.options)?,
    })
}

type Mode = protobuf::EnumOrUnknown<NamespaceMode>;

fn mode(given: Mode, field: &str, possible: &[NamespaceMode]) -> Result<NamespaceMode> {
    match given.enum_value() {
        Ok(mode) if possible.contains(&mode) => Ok(mode),
        _ => Err(invalid(
            &format!("linux.security_context.namespace_options.{field}"),
            format_args!("{given:?}"),
            &format!("must be one of {possible:?}"),
        )),
    }
}

fn network(namespaces: &NamespaceOption, path: &str) -> Result<Network> {
    let possible = [NamespaceMode::POD, NamespaceMode::NODE];
    let host = mode(namespaces.network, "network", &possible)? == NamespaceMode::NODE;
    match (host, path) {
        (true, "") => Ok(Network::Host),
        (true, path) => Err(invalid(
            "netns_path",
            format_args!("{path:?}"),
            "must be empty: namespace_options.network says NODE",
        )),
        (false, "") => Ok(Network::Own),
        (false, path) if path.starts_with('/') => Ok(Network::At(path.into())),
        (false, path) => Err(invalid(
            "netns_path",
            format_args!("{path:?}"),
            "must be an absolute path",
        )),
    }
}

fn pids(namespaces: &NamespaceOption) -> Result<Pids> {
    let possible = [NamespaceMode::POD, NamespaceMode::CONTAINER, NamespaceMode::NODE];
    Ok(match mode(namespaces.pid, "pid", &possible)? {
        NamespaceMode::POD => Pids::Shared,
        NamespaceMode::NODE => Pids::Host,
        _ => Pids::OfContainer,
    })
}

fn users(namespaces: &NamespaceOption) -> Result<Option<Users>> {
    let Some(given) = namespaces.userns_options.as_ref() else {
        return Ok(None);
    };
    let possible = [NamespaceMode::POD, NamespaceMode::NODE];
    if mode(given.mode, "userns_options.mode", &possible)? == NamespaceMode::NODE {
        return Ok(None);
    }
    Ok(Some(Users {
        uids: mappings("uids", &given.uids)?,
        gids: mappings("gids", &given.gids)?,
    }))
}

fn mappings(field: &str, given: &[IDMapping]) -> Result<Vec<Mapping>> {
    let name = |i: usize| format!("linux.security_context.namespace_options.userns_options.{field}[{i}]");
    if given.is_empty() || given.len() > MAPPINGS_MAX {
        return Err(invalid(
            &name(0),
            format_args!("{} of them", given.len()),
            &format!("must be 1 to {MAPPINGS_MAX}"),
        ));
    }
    let checked = given.iter().enumerate().map(|(i, mapping)| {
        let mapping = Mapping {
            inside: mapping.container_id,
            host: mapping.host_id,
            length: mapping.length,
        };
        let ends = [mapping.inside, mapping.host].map(|first| first.checked_add(mapping.length));
        if mapping.length == 0 || ends.contains(&None) {
            return Err(invalid(
                &name(i),
                format_args!("{mapping:?}"),
                "must have ids, and end below 2^32",
            ));
        }
        Ok(mapping)
    });
    checked.collect()
}

#[cfg(test)]
mod tests {
    use super::pod_sandbox::{LinuxSandboxSecurityContext, UserNamespace};
    use super::*;

    fn cri(config: &PodSandboxConfig) -> CreateSandboxRequest {
        let mut request = CreateSandboxRequest::new();
        request.options = Some(Any {
            type_url: CRI_CONFIG.into(),
            value: config.write_to_bytes().unwrap(),
            ..Any::default()
        })
        .into();
        request
    }

    fn with(options: NamespaceOption) -> PodSandboxConfig {
        PodSandboxConfig {
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(options).into(),
                    ..Default::default()
                })
                .into(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        }
    }

    fn refused(config: &PodSandboxConfig) -> String {
        let error = PodConfig::parse(&cri(config)).unwrap_err();
        assert_eq!(error.kind, Kind::InvalidArgument);
        error.to_string()
    }

    #[test]
    fn a_pod_of_cri_shares_pids_unless_it_says_otherwise() {
        let pod = PodConfig::parse(&cri(&PodSandboxConfig::new())).unwrap();
        assert!(pod.has_files && !pod.host_ipc);
        assert_eq!(pod.pids, Pids::Shared);
        assert_eq!(pod.network, Network::Own);
        assert_eq!(pod.sysctls["net.ipv4.ip_unprivileged_port_start"], "0");
        let pod = PodConfig::parse(&CreateSandboxRequest::new()).unwrap();
        assert!(!pod.has_files && pod.sysctls.is_empty());
        assert_eq!(pod.pids, Pids::OfContainer);
    }

    #[test]
    fn on_the_hosts_network_nothing_of_it_is_set() {
        let host = with(NamespaceOption {
            network: NamespaceMode::NODE.into(),
            ipc: NamespaceMode::NODE.into(),
            pid: NamespaceMode::NODE.into(),
            ..Default::default()
        });
        let pod = PodConfig::parse(&cri(&host)).unwrap();
        assert_eq!(pod.network, Network::Host);
        assert!(pod.host_ipc && pod.sysctls.is_empty());
        assert_eq!(pod.pids, Pids::Host);
        let mut request = cri(&host);
        request.netns_path = "/run/netns/x".into();
        let error = PodConfig::parse(&request).unwrap_err().to_string();
        assert!(
            error.starts_with("netns_path: \"/run/netns/x\": must be empty"),
            "{error}"
        );
    }

    #[test]
    fn a_user_namespace_needs_ids() {
        let mapping = |length| IDMapping {
            host_id: 100_000,
            length,
            ..Default::default()
        };
        let config = |uids: Vec<IDMapping>| {
            with(NamespaceOption {
                userns_options: Some(UserNamespace {
                    uids,
                    gids: vec![mapping(65536)],
                    ..Default::default()
                })
                .into(),
                ..Default::default()
            })
        };
        let pod = PodConfig::parse(&cri(&config(vec![mapping(65536)]))).unwrap();
        assert_eq!(
            pod.users.unwrap().uids,
            [Mapping {
                inside: 0,
                host: 100_000,
                length: 65536
            }]
        );
        assert!(!pod.sysctls.contains_key("net.ipv4.ping_group_range"));
        assert!(refused(&config(vec![])).contains("userns_options.uids[0]: 0 of them"));
        assert!(refused(&config(vec![mapping(0)])).contains("must have ids"));
        assert!(refused(&config(vec![mapping(u32::MAX)])).contains("must have ids"));
    }

    #[test]
    fn what_is_written_into_files_is_one_word() {
        let mut config = PodSandboxConfig::new();
        config.hostname = "a\nb".into();
        assert!(refused(&config).starts_with("hostname: \"a\\nb\""));
        config.hostname = "x".repeat(65);
        assert!(refused(&config).contains("at most 64 bytes"));
        config.hostname = "web-0".into();
        config.dns_config.mut_or_insert_default().searches = vec!["a".into(), "b\nnameserver 6.6.6.6".into()];
        assert!(refused(&config).starts_with("dns_config.searches[1]"));
    }

    #[test]
    fn other_options_are_refused_by_their_name() {
        let mut request = CreateSandboxRequest::new();
        request.options = Some(Any {
            type_url: "type.googleapis.com/x.Y".into(),
            ..Any::default()
        })
        .into();
        let error = PodConfig::parse(&request).unwrap_err().to_string();
        assert_eq!(error, "options: \"x.Y\": must be a runtime.v1.PodSandboxConfig");
        let mut garbage = cri(&PodSandboxConfig::new());
        garbage.options.mut_or_insert_default().value = vec![0xff; 5];
        assert!(PodConfig::parse(&garbage).is_err());
    }
}
