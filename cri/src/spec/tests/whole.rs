use oci_spec::runtime::LinuxNamespaceType;

use super::*;
use crate::proto::{IdMapping, NamespaceMode, SecurityProfile, UserNamespace};

fn namespaces(spec: &Spec) -> HashMap<String, Option<String>> {
    let all = spec.linux().as_ref().unwrap().namespaces().as_ref().unwrap();
    all.iter()
        .map(|one| {
            let path = one
                .path()
                .as_ref()
                .map(|path| path.to_string_lossy().into_owned());
            (
                serde_json::to_value(one.typ())
                    .unwrap()
                    .as_str()
                    .unwrap()
                    .to_owned(),
                path,
            )
        })
        .collect()
}

#[test]
fn a_container_has_the_namespaces_of_its_pod_by_the_paths_that_its_shim_knows() {
    let all = namespaces(&Case::new().spec());
    assert_eq!(all["network"].as_deref(), Some("/proc/77/ns/net"));
    assert_eq!(all["ipc"].as_deref(), Some("/proc/77/ns/ipc"));
    assert_eq!(all["uts"].as_deref(), Some("/proc/77/ns/uts"));
    assert_eq!(all["pid"].as_deref(), Some("/proc/77/ns/pid"));
    assert_eq!(all["mount"], None);
    assert_eq!(all["cgroup"], None);
    assert!(!all.contains_key("user"));
}

#[test]
fn the_pid_namespace_is_the_pods_its_own_or_another_containers() {
    let mut case = Case::new();
    case.context.namespace_options = Some(options(NamespaceMode::Container));
    assert_eq!(namespaces(&case.spec())["pid"], None);
    case.context.namespace_options = Some(options(NamespaceMode::Node));
    assert_eq!(
        namespaces(&case.spec())["pid"].as_deref(),
        Some("/proc/77/ns/pid")
    );
    case.context.namespace_options = Some(options(NamespaceMode::Target));
    assert!(case.refused().contains("target_id"));
    case.target_pid = Some(4242);
    assert_eq!(
        namespaces(&case.spec())["pid"].as_deref(),
        Some("/proc/4242/ns/pid")
    );
    case.context.namespace_options = Some(NamespaceOption {
        pid: 9,
        ..Default::default()
    });
    assert!(case.refused().contains("namespace_options.pid"));
}

#[test]
fn a_cgroup_namespace_is_for_v2_and_not_for_the_privileged() {
    assert!(!namespaces(&Case::new().privileged().spec()).contains_key("cgroup"));
    let mut case = Case::new();
    case.facts = Some(Facts {
        cgroup2: false,
        ..Facts::for_tests()
    });
    assert!(!namespaces(&case.spec()).contains_key("cgroup"));
}

fn users(maps: usize) -> UserNamespace {
    let map = IdMapping {
        host_id: 100_000,
        container_id: 0,
        length: 65_536,
    };
    UserNamespace {
        mode: NamespaceMode::Pod.into(),
        uids: vec![map; maps],
        gids: vec![map; maps],
    }
}

fn with_users(container: Option<UserNamespace>, pod: Option<UserNamespace>) -> Case {
    let mut case = Case::new();
    case.context.namespace_options = Some(NamespaceOption {
        userns_options: container,
        ..Default::default()
    });
    case.pod_context.namespace_options = Some(NamespaceOption {
        userns_options: pod,
        ..Default::default()
    });
    case
}

#[test]
fn a_user_namespace_is_the_pods_with_its_maps() {
    let spec = with_users(Some(users(1)), Some(users(1))).spec();
    assert_eq!(namespaces(&spec)["user"].as_deref(), Some("/proc/77/ns/user"));
    let linux = spec.linux().as_ref().unwrap();
    assert_eq!(linux.uid_mappings().as_ref().unwrap()[0].host_id(), 100_000);
    let node = UserNamespace {
        mode: NamespaceMode::Node.into(),
        ..Default::default()
    };
    let spec = with_users(Some(node.clone()), None).spec();
    assert!(!namespaces(&spec).contains_key("user"));
}

#[test]
fn a_user_namespace_that_is_not_the_pods_or_has_not_one_map_is_refused() {
    assert!(
        with_users(Some(users(1)), None)
            .refused()
            .contains("must be the pod's")
    );
    assert!(
        with_users(None, Some(users(1)))
            .refused()
            .contains("must be the pod's")
    );
    assert!(
        with_users(Some(users(2)), Some(users(2)))
            .refused()
            .contains("must be one")
    );
    assert!(
        with_users(Some(users(0)), Some(users(0)))
            .refused()
            .contains("must be one")
    );
    let mut long = users(1);
    long.uids[0].length = u32::MAX;
    assert!(
        with_users(Some(long.clone()), Some(long))
            .refused()
            .contains("userns_options.uids")
    );
    let mut container = users(1);
    container.mode = NamespaceMode::Container.into();
    assert!(
        with_users(Some(container), None)
            .refused()
            .contains("POD or NODE")
    );
}

#[test]
fn privileged_takes_every_restriction_off_and_needs_a_privileged_sandbox() {
    let mut case = Case::new().privileged();
    case.context.masked_paths = vec!["/proc/kcore".into()];
    case.context.readonly_paths = vec!["/proc/sys".into()];
    case.context.seccomp = Some(SecurityProfile::default());
    case.context.apparmor = Some(SecurityProfile::default());
    let spec = case.spec();
    let linux = spec.linux().as_ref().unwrap();
    assert_eq!(linux.masked_paths().as_deref(), Some(&[][..]));
    assert_eq!(linux.readonly_paths().as_deref(), Some(&[][..]));
    assert_eq!(linux.seccomp(), &None);
    assert_eq!(spec.process().as_ref().unwrap().apparmor_profile(), &None);
    case.pod_context.privileged = false;
    assert!(case.refused().contains("make both privileged"));
}

#[test]
fn paths_are_protected_as_the_request_says() {
    let mut case = Case::new();
    case.context.masked_paths = vec!["/proc/kcore".into()];
    case.context.readonly_paths = vec!["/proc/sys".into()];
    let spec = case.spec();
    let linux = spec.linux().as_ref().unwrap();
    assert_eq!(linux.masked_paths().as_ref().unwrap(), &["/proc/kcore"]);
    assert_eq!(linux.readonly_paths().as_ref().unwrap(), &["/proc/sys"]);
}

#[test]
fn seccomp_is_what_is_asked_for_and_nothing_said_is_unconfined() {
    use crate::proto::security_profile::ProfileType;
    let profile = |case: &Case| case.spec().linux().as_ref().unwrap().seccomp().clone();
    let asked = |kind: ProfileType, path: &str| {
        let mut case = Case::new();
        case.context.seccomp = Some(SecurityProfile {
            profile_type: kind.into(),
            localhost_ref: path.into(),
        });
        case
    };
    assert_eq!(profile(&Case::new()), None);
    assert_eq!(profile(&asked(ProfileType::Unconfined, "")), None);
    assert!(profile(&asked(ProfileType::RuntimeDefault, "")).is_some());
    let mut file = asked(ProfileType::Localhost, "/p/web.json");
    file.files.seccomp = Some(br#"{"defaultAction": "SCMP_ACT_KILL"}"#.to_vec());
    let kill = oci_spec::runtime::LinuxSeccompAction::ScmpActKill;
    assert_eq!(profile(&file).unwrap().default_action(), kill);
    file.files.seccomp = Some(b"{".to_vec());
    assert!(file.refused().contains("/p/web.json"));
    assert!(
        asked(ProfileType::Localhost, "web.json")
            .refused()
            .contains("absolute")
    );
    assert!(
        asked(ProfileType::Unconfined, "/x")
            .refused()
            .contains("Localhost only")
    );
    let mut none = asked(ProfileType::RuntimeDefault, "");
    none.facts = Some(Facts {
        seccomp: false,
        ..Facts::for_tests()
    });
    assert!(none.refused().contains("CONFIG_SECCOMP_FILTER"));
}

#[test]
fn the_old_names_of_seccomp_profiles_are_known() {
    let named = |name: &str| {
        let mut case = Case::new();
        #[expect(deprecated, reason = "as old clients say it")]
        case.context.seccomp_profile_path.push_str(name);
        case.files.seccomp = Some(br#"{"defaultAction": "SCMP_ACT_KILL"}"#.to_vec());
        case.translate()
            .map(|made| made.spec.linux().as_ref().unwrap().seccomp().is_some())
    };
    assert!(named("runtime/default").unwrap() && named("docker/default").unwrap());
    assert!(named("localhost//p/web.json").unwrap());
    assert!(!named("unconfined").unwrap() && !named("").unwrap());
    assert!(named("web.json").is_err());
}

#[test]
fn a_seccomp_profile_brings_the_calls_of_added_capabilities() {
    let mut case = Case::new();
    case.context.seccomp = Some(SecurityProfile::default());
    let allows_mount = |case: &Case| {
        let spec = case.spec();
        let profile = spec.linux().as_ref().unwrap().seccomp().clone().unwrap();
        profile
            .syscalls()
            .iter()
            .flatten()
            .any(|rule| rule.names().iter().any(|name| name == "mount"))
    };
    assert!(!allows_mount(&case));
    case.context.capabilities = Some(proto::Capability {
        add_capabilities: vec!["SYS_ADMIN".into()],
        ..Default::default()
    });
    assert!(allows_mount(&case));
}

#[test]
fn cve_2024_3154_no_annotation_reaches_the_runtime_but_those_that_are_allowed() {
    let mut case = Case::new();
    case.pod.annotations = text_map(&[
        ("org.systemd.property.ExecStartPre", "['/bin/evil']"),
        ("run.oci.keep_original_groups", "1"),
        ("io.kubernetes.cri.sandbox-id", "other"),
        ("example.com/a", "pod"),
    ]);
    case.config.annotations = text_map(&[("org.systemd.property.Delegate", "true"), ("example.com/b", "c")]);
    case.image
        .labels
        .insert("org.systemd.property.X".into(), "1".into());
    let ours = case.spec().annotations().clone().unwrap();
    assert!(
        ours.keys().all(|key| key.starts_with("io.kubernetes.cri.")),
        "{ours:?}"
    );
    assert_eq!(ours["io.kubernetes.cri.sandbox-id"], "p1");
    assert_eq!(ours["io.kubernetes.cri.container-type"], "container");
    assert_eq!(ours["io.kubernetes.cri.sandbox-name"], "web");
    case.handler.pod_annotations = vec!["example.com/*".into(), "io.kubernetes.cri.*".into()];
    case.handler.container_annotations = vec!["example.com/b".into()];
    let passed = case.spec().annotations().clone().unwrap();
    assert_eq!(
        (&*passed["example.com/a"], &*passed["example.com/b"]),
        ("pod", "c")
    );
    assert_eq!(passed["io.kubernetes.cri.sandbox-id"], "p1");
    assert_eq!(passed.len(), ours.len() + 2);
}

#[test]
fn the_process_is_who_and_what_was_asked_for() {
    let mut case = Case::new();
    case.config.tty = true;
    case.pod.hostname = "web-0".into();
    case.context.no_new_privs = true;
    case.context.readonly_rootfs = true;
    case.image.user = "5:6".into();
    let made = case.translate().unwrap();
    let process = made.spec.process().clone().unwrap();
    assert_eq!(process.terminal(), Some(true));
    assert_eq!(process.no_new_privileges(), Some(true));
    assert_eq!((process.user().uid(), process.user().gid()), (5, 6));
    assert_eq!(process.user().additional_gids().as_deref(), Some(&[6][..]));
    assert!(
        process
            .env()
            .as_ref()
            .unwrap()
            .iter()
            .any(|variable| variable == "HOSTNAME=web-0")
    );
    assert_eq!(process.rlimits(), &None);
    let root = made.spec.root().clone().unwrap();
    assert_eq!(
        (root.path().to_str(), root.readonly()),
        (Some("rootfs"), Some(true))
    );
    assert_eq!(made.user.linux.unwrap().uid, 5);
    assert_eq!((made.stop_signal, &*made.cgroup), (15, "/rtc/c1"));
    assert_eq!(made.spec.hostname(), &None);
}

/// Whatever oci-spec's `Default` has, as its masked paths, is not ours.
#[test]
fn nothing_is_in_a_configuration_that_was_not_put_there() {
    let spec = Case::new().spec();
    let linux = spec.linux().clone().unwrap();
    assert_eq!(
        (linux.sysctl(), linux.seccomp(), linux.uid_mappings()),
        (&None, &None, &None)
    );
    assert_eq!((linux.rootfs_propagation(), linux.mount_label()), (&None, &None));
    let count = |kind| {
        let all = linux.namespaces().as_ref().unwrap();
        all.iter().filter(|one| one.typ() == kind).count()
    };
    assert_eq!(count(LinuxNamespaceType::Time), 0);
    assert_eq!(count(LinuxNamespaceType::Mount), 1);
    assert!(spec.hooks().is_none());
}

#[test]
fn the_runtime_takes_what_is_made() {
    let text = serde_json::to_string(&Case::new().privileged().spec()).unwrap();
    let spec: Spec = serde_json::from_str(&text).unwrap();
    assert_eq!(spec, Case::new().privileged().spec());
}
