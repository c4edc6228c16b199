//! What RunPodSandbox is asked for, looked at before anything is made: errors name the field, its value and what to do.

use std::net::IpAddr;
use std::path::{Component, Path};

use nix::libc::{CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWUSER, CLONE_NEWUTS};

use crate::error::{Error, Result};
use crate::proto::*;

/// The longest host name, in bytes (sethostname(2)).
const HOSTNAME_MAX: usize = 64;
/// What Kubernetes gives as the longest name of a thing, in bytes.
const NAME_MAX: usize = 253;
/// The largest user or group id (the highest means "none").
const ID_MAX: i64 = u32::MAX as i64 - 1;
const NAMESPACES: &str = "config.linux.security_context.namespace_options";

/// Checks a pod's configuration. `systemd`: cgroup parents are slices.
///
/// # Errors
///
/// `InvalidArgument`.
pub(crate) fn config(config: &PodSandboxConfig, systemd: bool) -> Result<()> {
    metadata(config.metadata.as_ref())?;
    hostname(&config.hostname)?;
    log_directory(&config.log_directory)?;
    if let Some(dns_config) = &config.dns_config {
        dns(dns_config)?;
    }
    for (i, mapping) in config.port_mappings.iter().enumerate() {
        port_mapping(mapping).map_err(|error| error.context(format!("config.port_mappings[{i}]")))?;
    }
    if let Some(linux) = &config.linux {
        cgroup_parent(&linux.cgroup_parent, systemd)?;
        if let Some(context) = &linux.security_context {
            security_context(context)?;
        }
        let options = linux
            .security_context
            .as_ref()
            .and_then(|context| context.namespace_options.clone());
        sysctls(linux, &options.unwrap_or_default())?;
    }
    Ok(())
}

fn metadata(metadata: Option<&PodSandboxMetadata>) -> Result<()> {
    let metadata = metadata.ok_or_else(|| Error::invalid("config.metadata: must be given"))?;
    for (field, value) in [
        ("name", &metadata.name),
        ("namespace", &metadata.namespace),
        ("uid", &metadata.uid),
    ] {
        let wrong = match value.as_str() {
            "" => "must not be empty",
            value if value.len() > NAME_MAX => "must have at most 253 bytes",
            value if value.chars().any(char::is_control) => "must have no control characters",
            _ => continue,
        };
        return Err(Error::invalid(format_args!(
            "config.metadata.{field}: {value:?}: {wrong}"
        )));
    }
    Ok(())
}

/// Nothing that could begin a word or a line of its own in a file.
fn is_plain(letter: char) -> bool {
    !letter.is_whitespace() && !letter.is_control()
}

fn hostname(hostname: &str) -> Result<()> {
    let wrong = if hostname.len() > HOSTNAME_MAX {
        "must have at most 64 bytes"
    } else if !hostname
        .bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
    {
        "must be letters, digits, '-', '.' and '_'"
    } else {
        return Ok(());
    };
    Err(Error::invalid(format_args!(
        "config.hostname: {hostname:?}: {wrong}"
    )))
}

fn log_directory(directory: &str) -> Result<()> {
    let path = Path::new(directory);
    let wrong = if directory.is_empty() {
        return Ok(());
    } else if !path.is_absolute() {
        "must be an absolute path"
    } else if path.components().any(|part| part == Component::ParentDir) {
        "must have no \"..\""
    } else {
        return Ok(());
    };
    Err(Error::invalid(format_args!(
        "config.log_directory: {directory:?}: {wrong}"
    )))
}

fn dns(dns: &DnsConfig) -> Result<()> {
    for (field, words) in [
        ("servers", &dns.servers),
        ("searches", &dns.searches),
        ("options", &dns.options),
    ] {
        let wrong = words
            .iter()
            .enumerate()
            .find(|(_, word)| word.is_empty() || !word.chars().all(is_plain));
        if let Some((i, word)) = wrong {
            return Err(Error::invalid(format_args!(
                "config.dns_config.{field}[{i}]: {word:?}: must be one word"
            )));
        }
    }
    Ok(())
}

fn port_mapping(mapping: &PortMapping) -> Result<()> {
    if Protocol::try_from(mapping.protocol).is_err() {
        return Err(Error::invalid(format_args!(
            "protocol: {}: must be 0 (TCP), 1 (UDP) or 2 (SCTP)",
            mapping.protocol
        )));
    }
    // Without a port on the host there is nothing to map.
    for (field, port) in [
        ("container_port", mapping.container_port),
        ("host_port", mapping.host_port),
    ] {
        if !(0..=65535).contains(&port) || (port == 0 && field == "container_port" && mapping.host_port != 0)
        {
            return Err(Error::invalid(format_args!(
                "{field}: {port}: must be 1 to 65535"
            )));
        }
    }
    if !mapping.host_ip.is_empty() && mapping.host_ip.parse::<IpAddr>().is_err() {
        return Err(Error::invalid(format_args!(
            "host_ip: {:?}: must be an IPv4 or IPv6 address",
            mapping.host_ip
        )));
    }
    Ok(())
}

fn cgroup_parent(parent: &str, systemd: bool) -> Result<()> {
    let path = Path::new(parent);
    let wrong = if parent.is_empty() {
        return Ok(());
    } else if parent.contains('\0') || path.components().any(|part| part == Component::ParentDir) {
        "must have no \"..\""
    } else if systemd && !parent.ends_with(".slice") {
        // The kubelet gives the whole path: /kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1.slice.
        "must be a slice, by its name or its path, as kubepods-burstable.slice: the cgroup driver is systemd (is the \
         kubelet's, too? `cgroupDriver`)"
    } else if !systemd && !path.is_absolute() {
        "must be an absolute path, as /kubepods/burstable: the cgroup driver is cgroupfs (is the kubelet's, too? \
         `cgroupDriver`)"
    } else {
        return Ok(());
    };
    Err(Error::invalid(format_args!(
        "config.linux.cgroup_parent: {parent:?}: {wrong}"
    )))
}

fn security_context(context: &LinuxSandboxSecurityContext) -> Result<()> {
    const FIELD: &str = "config.linux.security_context";
    if let Some(options) = &context.namespace_options {
        namespaces(options)?;
    }
    let id = |field: &str, id: i64| {
        if (0..=ID_MAX).contains(&id) {
            return Ok(());
        }
        Err(Error::invalid(format_args!(
            "{FIELD}.{field}: {id}: must be 0 to {ID_MAX}"
        )))
    };
    if let Some(user) = context.run_as_user {
        id("run_as_user", user.value)?;
    }
    if let Some(group) = context.run_as_group {
        id("run_as_group", group.value)?;
        if context.run_as_user.is_none() {
            return Err(Error::invalid(format_args!(
                "{FIELD}.run_as_group: {}: needs run_as_user",
                group.value
            )));
        }
    }
    for group in &context.supplemental_groups {
        id("supplemental_groups", *group)?;
    }
    if SupplementalGroupsPolicy::try_from(context.supplemental_groups_policy).is_err() {
        return Err(Error::invalid(format_args!(
            "{FIELD}.supplemental_groups_policy: {}: must be 0 (Merge) or 1 (Strict)",
            context.supplemental_groups_policy
        )));
    }
    for (field, profile) in [("seccomp", &context.seccomp), ("apparmor", &context.apparmor)] {
        if let Some(profile) = profile {
            security_profile(profile).map_err(|error| error.context(format!("{FIELD}.{field}")))?;
        }
    }
    Ok(())
}

fn security_profile(profile: &SecurityProfile) -> Result<()> {
    use security_profile::ProfileType;
    match ProfileType::try_from(profile.profile_type) {
        Err(_) => Err(Error::invalid(format_args!(
            "profile_type: {}: must be 0 (RuntimeDefault), 1 (Unconfined) or 2 (Localhost)",
            profile.profile_type
        ))),
        Ok(ProfileType::Localhost) if profile.localhost_ref.is_empty() => {
            Err(Error::invalid("localhost_ref: must be given with Localhost"))
        }
        Ok(_) => Ok(()),
    }
}

fn namespaces(options: &NamespaceOption) -> Result<()> {
    mode(
        "network",
        options.network,
        &[NamespaceMode::Pod, NamespaceMode::Node],
    )?;
    mode(
        "pid",
        options.pid,
        &[NamespaceMode::Pod, NamespaceMode::Container, NamespaceMode::Node],
    )?;
    mode("ipc", options.ipc, &[NamespaceMode::Pod, NamespaceMode::Node])?;
    match &options.userns_options {
        Some(users) => user_namespace(users, options),
        None => Ok(()),
    }
}

fn mode(field: &str, value: i32, possible: &[NamespaceMode]) -> Result<NamespaceMode> {
    let mode = NamespaceMode::try_from(value)
        .ok()
        .filter(|mode| possible.contains(mode));
    mode.ok_or_else(|| {
        let possible: Vec<_> = possible
            .iter()
            .map(|mode| format!("{} ({})", *mode as i32, mode.as_str_name()))
            .collect();
        Error::invalid(format_args!(
            "{NAMESPACES}.{field}: {value}: must be {}",
            possible.join(" or ")
        ))
    })
}

fn user_namespace(users: &UserNamespace, options: &NamespaceOption) -> Result<()> {
    let mode = mode(
        "userns_options.mode",
        users.mode,
        &[NamespaceMode::Pod, NamespaceMode::Node],
    )?;
    let mappings = [("uids", &users.uids), ("gids", &users.gids)];
    if mode == NamespaceMode::Node {
        let given = mappings.iter().find(|(_, lines)| !lines.is_empty());
        return match given {
            Some((field, _)) => Err(Error::invalid(format_args!(
                "{NAMESPACES}.userns_options.{field}: must be empty with mode NODE"
            ))),
            None => Ok(()),
        };
    }
    if options.network == NamespaceMode::Node as i32 {
        return Err(Error::invalid(format_args!(
            "{NAMESPACES}: a user namespace of the pod's own (userns_options.mode POD) needs a network of its own \
             (network POD)"
        )));
    }
    for (field, lines) in mappings {
        id_mapping(lines).map_err(|error| error.context(format!("{NAMESPACES}.userns_options.{field}")))?;
    }
    Ok(())
}

fn id_mapping(lines: &[IdMapping]) -> Result<()> {
    let [line] = lines else {
        return Err(Error::invalid(format_args!(
            "{} of them: must be one",
            lines.len()
        )));
    };
    if line.container_id != 0 {
        return Err(Error::invalid(format_args!(
            "container_id: {}: must be 0: what runs as root needs an id",
            line.container_id
        )));
    }
    if line.length == 0 || line.host_id.checked_add(line.length).is_none() {
        return Err(Error::invalid(format_args!(
            "{} ids from {}: must be at least one, and end before {}",
            line.length,
            line.host_id,
            u32::MAX
        )));
    }
    Ok(())
}

fn sysctls(linux: &LinuxPodSandboxConfig, options: &NamespaceOption) -> Result<()> {
    let node = NamespaceMode::Node as i32;
    let users = options
        .userns_options
        .as_ref()
        .is_some_and(|users| users.mode != node);
    // A pod in the host's network has the host's name.
    let own = [
        (options.network != node, CLONE_NEWNET | CLONE_NEWUTS),
        (options.ipc != node, CLONE_NEWIPC),
        (users, CLONE_NEWUSER),
    ]
    .iter()
    .filter(|(own, _)| *own)
    .fold(0, |flags, (_, flag)| flags | flag);
    for (name, value) in &linux.sysctls {
        rtc_runtime::bundle::check_sysctl(name, value, own).map_err(|error| {
            Error::invalid(format_args!(
                "config.linux.sysctls[{name:?}]: {error:#} (what the pod shares with the host is the host's)"
            ))
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: "web".into(),
                uid: "1-2".into(),
                namespace: "default".into(),
                attempt: 0,
            }),
            ..PodSandboxConfig::default()
        }
    }

    fn with_options(options: NamespaceOption) -> PodSandboxConfig {
        PodSandboxConfig {
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(options),
                    ..LinuxSandboxSecurityContext::default()
                }),
                ..LinuxPodSandboxConfig::default()
            }),
            ..pod()
        }
    }

    fn refused(change: impl FnOnce(&mut PodSandboxConfig)) -> String {
        let mut pod = pod();
        change(&mut pod);
        config(&pod, false).unwrap_err().to_string()
    }

    #[test]
    fn a_pod_needs_its_metadata_and_no_more() {
        config(&pod(), false).unwrap();
        config(&pod(), true).unwrap();
        assert_eq!(
            refused(|pod| pod.metadata = None),
            "config.metadata: must be given"
        );
        for field in ["name", "namespace", "uid"] {
            let error = refused(|pod| {
                let metadata = pod.metadata.as_mut().unwrap();
                match field {
                    "name" => metadata.name.clear(),
                    "namespace" => metadata.namespace.clear(),
                    _ => metadata.uid.clear(),
                }
            });
            assert_eq!(error, format!("config.metadata.{field}: \"\": must not be empty"));
        }
    }

    #[test]
    fn nothing_can_begin_a_line_of_its_own_in_a_file_of_the_pod() {
        assert!(refused(|pod| pod.hostname = "a\nb".into()).starts_with("config.hostname: \"a\\nb\""));
        assert!(refused(|pod| pod.hostname = "a/b".into()).contains("\"a/b\""));
        assert!(refused(|pod| pod.hostname = "x".repeat(65)).contains("at most 64 bytes"));
        let error = refused(|pod| {
            pod.dns_config = Some(DnsConfig {
                searches: vec!["a".into(), "b\nnameserver 6.6.6.6".into()],
                ..DnsConfig::default()
            });
        });
        assert!(error.starts_with("config.dns_config.searches[1]"), "{error}");
    }

    #[test]
    fn a_port_is_one_and_an_address_too() {
        let mapping = |mapping: PortMapping| refused(|pod| pod.port_mappings = vec![mapping]);
        let base = PortMapping {
            container_port: 80,
            host_port: 8080,
            ..PortMapping::default()
        };
        let error = mapping(PortMapping {
            host_port: 70000,
            ..base.clone()
        });
        assert_eq!(
            error,
            "config.port_mappings[0]: host_port: 70000: must be 1 to 65535"
        );
        let error = mapping(PortMapping {
            container_port: 0,
            ..base.clone()
        });
        assert!(error.contains("container_port: 0"), "{error}");
        assert!(
            mapping(PortMapping {
                protocol: 7,
                ..base.clone()
            })
            .contains("protocol: 7")
        );
        let error = mapping(PortMapping {
            host_ip: "localhost".into(),
            ..base
        });
        assert!(error.contains("host_ip: \"localhost\""), "{error}");
        let mut unmapped = pod();
        unmapped.port_mappings = vec![PortMapping::default()];
        config(&unmapped, false).unwrap();
    }

    #[test]
    fn a_cgroup_parent_is_in_the_form_of_the_driver() {
        let parent = |parent: &str, systemd| {
            let mut pod = pod();
            pod.linux = Some(LinuxPodSandboxConfig {
                cgroup_parent: parent.into(),
                ..LinuxPodSandboxConfig::default()
            });
            config(&pod, systemd).map_err(|error| error.to_string())
        };
        parent("/kubepods/pod1", false).unwrap();
        parent("kubepods-pod1.slice", true).unwrap();
        parent("/kubepods.slice/kubepods-pod1.slice", true).unwrap();
        assert!(
            parent("/kubepods/pod1", true)
                .unwrap_err()
                .contains("cgroup driver is systemd")
        );
        assert!(
            parent("kubepods-pod1.slice", false)
                .unwrap_err()
                .contains("cgroup driver is cgroupfs")
        );
        assert!(parent("/a/../b", false).unwrap_err().contains("no \"..\""));
    }

    #[test]
    fn modes_that_a_sandbox_has_not_are_refused() {
        let options = |network, pid, ipc| NamespaceOption {
            network,
            pid,
            ipc,
            ..NamespaceOption::default()
        };
        config(&with_options(options(2, 2, 2)), false).unwrap();
        config(&with_options(options(0, 1, 0)), false).unwrap();
        for (given, field) in [
            (options(1, 0, 0), "network: 1"),
            (options(0, 3, 0), "pid: 3"),
            (options(0, 0, 1), "ipc: 1"),
            (options(0, 9, 0), "pid: 9"),
        ] {
            let error = config(&with_options(given), false).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }

    #[test]
    fn a_user_namespace_has_one_line_from_zero() {
        let line = |container_id, host_id, length| IdMapping {
            host_id,
            container_id,
            length,
        };
        let users = |network, uids: Vec<IdMapping>| {
            let gids = vec![line(0, 100_000, 65536)];
            with_options(NamespaceOption {
                network,
                userns_options: Some(UserNamespace { mode: 0, uids, gids }),
                ..NamespaceOption::default()
            })
        };
        let good = line(0, 100_000, 65536);
        config(&users(0, vec![good]), false).unwrap();
        for (pod, text) in [
            (users(0, vec![]), "uids: 0 of them: must be one"),
            (users(0, vec![good, good]), "uids: 2 of them: must be one"),
            (users(0, vec![line(1, 5, 5)]), "container_id: 1: must be 0"),
            (users(0, vec![line(0, 5, 0)]), "0 ids from 5"),
            (users(0, vec![line(0, u32::MAX, 2)]), "must be at least one"),
            (users(2, vec![good]), "needs a network of its own"),
        ] {
            let error = config(&pod, false).unwrap_err().to_string();
            assert!(error.contains(text), "{error}");
        }
    }

    #[test]
    fn what_would_change_the_host_is_refused() {
        let sysctl = |options: NamespaceOption, name: &str| {
            let mut pod = with_options(options);
            pod.linux.as_mut().unwrap().sysctls = [(name.to_owned(), "1".to_owned())].into();
            config(&pod, false)
        };
        let own = NamespaceOption::default;
        sysctl(own(), "net.ipv4.ip_forward").unwrap();
        sysctl(own(), "kernel.shm_rmid_forced").unwrap();
        let host = NamespaceOption {
            network: 2,
            ipc: 2,
            ..own()
        };
        assert!(sysctl(host.clone(), "net.ipv4.ip_forward").is_err());
        assert!(sysctl(host, "kernel.shm_rmid_forced").is_err());
        let error = sysctl(own(), "kernel.panic").unwrap_err().to_string();
        assert!(
            error.starts_with("config.linux.sysctls[\"kernel.panic\"]"),
            "{error}"
        );
    }

    #[test]
    fn a_group_needs_a_user_and_a_profile_of_the_node_its_name() {
        let context = |context: LinuxSandboxSecurityContext| {
            refused(|pod| {
                pod.linux = Some(LinuxPodSandboxConfig {
                    security_context: Some(context),
                    ..LinuxPodSandboxConfig::default()
                });
            })
        };
        let error = context(LinuxSandboxSecurityContext {
            run_as_group: Some(Int64Value { value: 5 }),
            ..LinuxSandboxSecurityContext::default()
        });
        assert!(error.contains("run_as_group: 5: needs run_as_user"), "{error}");
        let error = context(LinuxSandboxSecurityContext {
            run_as_user: Some(Int64Value { value: -1 }),
            ..LinuxSandboxSecurityContext::default()
        });
        assert!(error.contains("run_as_user: -1"), "{error}");
        let error = context(LinuxSandboxSecurityContext {
            seccomp: Some(SecurityProfile {
                profile_type: 2,
                localhost_ref: String::new(),
            }),
            ..LinuxSandboxSecurityContext::default()
        });
        assert!(error.contains("seccomp: localhost_ref"), "{error}");
    }
}
