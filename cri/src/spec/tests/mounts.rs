use std::os::unix::fs::symlink;

use super::*;
use crate::proto::{ImageSpec, Mount, MountPropagation, NamespaceMode};
use crate::spec::propagation;

fn mount(container: &str, host: &str) -> Mount {
    Mount {
        container_path: container.into(),
        host_path: host.into(),
        ..Default::default()
    }
}

fn case(mounts: Vec<Mount>) -> Case {
    let mut case = Case::new();
    case.found.sources = mounts
        .iter()
        .map(|mount| Source {
            path: mount.host_path.clone().into(),
            ..Default::default()
        })
        .collect();
    case.config.mounts = mounts;
    case
}

/// Destination, type, source and options of each, in order.
fn all(case: &Case) -> Vec<(String, String, String, String)> {
    let spec = case.spec();
    let text = |path: &Path| path.to_string_lossy().into_owned();
    let line = |mount: &oci_spec::runtime::Mount| {
        (
            text(mount.destination()),
            mount.typ().clone().unwrap_or_default(),
            mount.source().as_deref().map(text).unwrap_or_default(),
            mount.options().clone().unwrap_or_default().join(","),
        )
    };
    spec.mounts().iter().flatten().map(line).collect()
}

fn at(case: &Case, destination: &str) -> (String, String, String) {
    let found: Vec<_> = all(case)
        .into_iter()
        .filter(|mount| mount.0 == destination)
        .collect();
    assert_eq!(found.len(), 1, "{destination}: {found:?}");
    let (_, kind, source, options) = found.into_iter().next().unwrap();
    (kind, source, options)
}

fn options_at(case: &Case, destination: &str) -> String {
    at(case, destination).2
}

#[test]
fn every_container_has_the_usual_mounts() {
    let case = case(Vec::new());
    let destinations: Vec<String> = all(&case).into_iter().map(|mount| mount.0).collect();
    assert_eq!(
        destinations,
        [
            "/proc",
            "/dev",
            "/dev/pts",
            "/dev/shm",
            "/dev/mqueue",
            "/sys",
            "/sys/fs/cgroup"
        ]
    );
    assert!(options_at(&case, "/sys").ends_with("ro"));
    assert!(options_at(&case, "/sys/fs/cgroup").ends_with("ro"));
}

#[test]
fn sys_and_cgroup_are_writable_for_the_privileged_and_the_cgroup_where_the_handler_says_so() {
    let privileged = case(Vec::new()).privileged();
    assert!(options_at(&privileged, "/sys").ends_with("rw"));
    assert!(options_at(&privileged, "/sys/fs/cgroup").ends_with("rw"));
    let mut handler = case(Vec::new());
    handler.handler.cgroup_writable = true;
    assert!(options_at(&handler, "/sys").ends_with("ro"));
    assert!(options_at(&handler, "/sys/fs/cgroup").ends_with("rw"));
}

#[test]
fn the_hosts_shm_and_sys_are_bound_where_the_namespaces_are_the_hosts() {
    let mut case = case(Vec::new());
    let host = NamespaceOption {
        ipc: NamespaceMode::Node.into(),
        ..Default::default()
    };
    case.pod_context.namespace_options = Some(host.clone());
    case.context.namespace_options = Some(host);
    assert_eq!(at(&case, "/dev/shm").0, "bind");
}

#[test]
fn a_mount_that_is_asked_for_replaces_the_usual_one() {
    let case = case(vec![mount("/dev/shm/", "/a"), mount("//sys/./fs/cgroup", "/b")]);
    assert_eq!(at(&case, "/dev/shm").1, "/a");
    assert_eq!(at(&case, "/sys/fs/cgroup").1, "/b");
    let dev = self::case(vec![mount("/dev", "/dev")]);
    assert!(!all(&dev).iter().any(|mount| mount.0.starts_with("/dev/")));
}

#[test]
fn upper_mounts_come_before_those_below_them() {
    let case = case(vec![
        mount("/a/b/c", "/1"),
        mount("/a", "/2"),
        mount("/x/y", "/3"),
        mount("/a/b", "/4"),
    ]);
    let order: Vec<String> = all(&case).into_iter().skip(7).map(|mount| mount.0).collect();
    assert_eq!(order, ["/a", "/x/y", "/a/b", "/a/b/c"]);
}

#[test]
fn access_is_rw_ro_or_all_of_it_ro() {
    let access = |readonly, recursive_read_only, propagation: MountPropagation| {
        let mut case = case(vec![Mount {
            readonly,
            recursive_read_only,
            propagation: propagation.into(),
            ..mount("/m", "/h")
        }]);
        case.found.sources[0].propagation = propagation::Kind::Shared;
        case.translate().map(|_| options_at(&case, "/m"))
    };
    use MountPropagation::{PropagationHostToContainer, PropagationPrivate};
    assert_eq!(
        access(false, false, PropagationPrivate).unwrap(),
        "rbind,rprivate,rw"
    );
    assert_eq!(
        access(true, false, PropagationPrivate).unwrap(),
        "rbind,rprivate,ro"
    );
    assert_eq!(
        access(true, true, PropagationPrivate).unwrap(),
        "rbind,rprivate,rro"
    );
    assert_eq!(
        access(true, false, PropagationHostToContainer).unwrap(),
        "rbind,rslave,ro"
    );
    for refused in [
        access(false, true, PropagationPrivate),
        access(true, true, PropagationHostToContainer),
    ] {
        assert!(
            refused
                .unwrap_err()
                .to_string()
                .contains("mounts[0].recursive_read_only")
        );
    }
}

#[test]
fn propagation_needs_a_mount_that_propagates() {
    let propagate = |mode: MountPropagation, kind| {
        let mut case = case(vec![Mount {
            propagation: mode.into(),
            ..mount("/m", "/h")
        }]);
        case.found.sources[0].propagation = kind;
        case.translate()
            .map(|made| made.spec.linux().as_ref().unwrap().rootfs_propagation().clone())
    };
    use MountPropagation::{PropagationBidirectional, PropagationHostToContainer};
    let of = |propagation: Result<Option<String>>| propagation.unwrap().unwrap();
    assert_eq!(
        of(propagate(PropagationBidirectional, propagation::Kind::Shared)),
        "rshared"
    );
    assert_eq!(
        of(propagate(PropagationHostToContainer, propagation::Kind::Slave)),
        "rslave"
    );
    assert!(propagate(PropagationBidirectional, propagation::Kind::Slave).is_err());
    let error = propagate(PropagationHostToContainer, propagation::Kind::Private).unwrap_err();
    assert_eq!(error.kind, crate::error::Kind::FailedPrecondition);
    assert!(error.to_string().contains("make-rshared"), "{error}");
}

#[test]
fn the_root_propagates_as_its_mounts_do_whatever_their_order() {
    let both = [
        MountPropagation::PropagationBidirectional,
        MountPropagation::PropagationHostToContainer,
    ];
    for modes in [both, [both[1], both[0]]] {
        let mounts = modes.iter().zip(["/a", "/b"]);
        let mounts = mounts.map(|(mode, path)| Mount {
            propagation: (*mode).into(),
            ..mount(path, "/h")
        });
        let mut case = case(mounts.collect());
        case.found
            .sources
            .iter_mut()
            .for_each(|source| source.propagation = propagation::Kind::Shared);
        let spec = case.spec();
        assert_eq!(
            spec.linux().as_ref().unwrap().rootfs_propagation().as_deref(),
            Some("rshared")
        );
    }
}

#[test]
fn destinations_that_can_not_be_are_refused() {
    for path in ["", "/", "/..", ".", "/a\0b"] {
        assert!(
            case(vec![mount(path, "/h")])
                .refused()
                .contains("mounts[0].container_path"),
            "{path:?}"
        );
    }
    assert_eq!(at(&case(vec![mount("data/../x", "/h")]), "/x").1, "/h");
}

#[test]
fn volumes_of_images_are_read_only_and_have_no_host_path() {
    let image = |readonly, host: &str| Mount {
        readonly,
        image: Some(ImageSpec {
            image: "img".into(),
            ..Default::default()
        }),
        ..mount("/m", host)
    };
    let mut good = case(vec![image(true, "")]);
    good.found.sources[0].path = "/volumes/1".into();
    assert_eq!(
        at(&good, "/m"),
        ("bind".into(), "/volumes/1".into(), "rbind,rprivate,ro".into())
    );
    assert!(case(vec![image(true, "/h")]).refused().contains("host_path"));
    assert!(case(vec![image(false, "")]).refused().contains("readonly"));
    assert!(case(vec![image(true, "")]).refused().contains("not mounted"));
}

#[test]
fn id_mapped_volumes_have_both_maps() {
    let map = vec![proto::IdMapping {
        host_id: 5,
        container_id: 0,
        length: 10,
    }];
    let both = Mount {
        uid_mappings: map.clone(),
        gid_mappings: map.clone(),
        ..mount("/m", "/h")
    };
    let spec = case(vec![both]).spec();
    let last = spec.mounts().as_ref().unwrap().last().unwrap();
    assert_eq!(last.uid_mappings().as_ref().unwrap()[0].host_id(), 5);
    let one = Mount {
        uid_mappings: map,
        ..mount("/m", "/h")
    };
    assert!(case(vec![one]).refused().contains("both or none"));
}

#[test]
fn host_paths_are_resolved_and_made() {
    let directory = std::env::temp_dir().join(format!("rtc-cri-spec-mounts-{}", std::process::id()));
    std::fs::create_dir_all(directory.join("real")).unwrap();
    symlink("real", directory.join("link")).unwrap();
    symlink("nowhere", directory.join("dangling")).unwrap();
    let path = |name: &str| directory.join(name).to_string_lossy().into_owned();
    let look = |host: String| {
        let case = case(vec![mount("/m", &host)]);
        case.with(|_, asked| Source::look(asked))
            .map(|mut found| found.remove(0).path)
    };
    let real = directory.canonicalize().unwrap();
    assert_eq!(look(path("link")).unwrap(), real.join("real"));
    assert_eq!(look(path("new/below")).unwrap(), real.join("new/below"));
    assert!(directory.join("new/below").is_dir());
    for bad in [
        String::new(),
        "relative".into(),
        path("dangling"),
        "/dev/null/x".into(),
    ] {
        assert!(
            look(bad.clone())
                .unwrap_err()
                .to_string()
                .contains("mounts[0].host_path"),
            "{bad}"
        );
    }
    std::fs::remove_dir_all(directory).unwrap();
}
