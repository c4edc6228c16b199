//! What the container mounts and what the host mounts: where each shows.

use std::thread;

use serde_json::json;

use super::{Bundle, at, bind, leave_the_host, mountinfo, proc_and};
use crate::rootfs::Context;
use crate::rootfs::path::c_string;
use crate::sys::clone::CLONE_NEWNS;
use crate::sys::mount as sys;
use crate::sys::process::unshare;

#[test]
fn rootfs_propagation_is_that_of_the_root_at_the_end() {
    let bundle = Bundle::new();
    for (propagation, expected) in [
        ("rshared", "shared"),
        ("rslave", ""),
        ("private", ""),
        ("unbindable", "unbindable"),
    ] {
        let mut config = proc_and(&[]);
        config["linux"]["rootfsPropagation"] = json!(propagation);
        bundle
            .run(&config, |_| {
                let root = at("/");
                assert!(root.optional.starts_with(expected), "{propagation}: {root:?}");
                assert!(
                    !expected.is_empty() || root.optional.is_empty(),
                    "{propagation}: {root:?}"
                );
            })
            .unwrap();
    }
    let mut config = proc_and(&[]);
    config["linux"]["rootfsPropagation"] = json!("sideways");
    assert!(
        bundle
            .error(&config)
            .starts_with("linux.rootfsPropagation: \"sideways\": must be one of")
    );
}

/// Runs a container with the propagation below a "host" that shares all its mounts, as systemd's does. The container
/// mounts something in its volume. Says whether the host sees that; nothing else may have changed there.
fn host_sees(root: &str, volume: &str) -> bool {
    let bundle = Bundle::new();
    std::fs::create_dir(bundle.path("outside/sub")).unwrap();
    let outside = c_string(bundle.path("outside")).unwrap();
    let mut config = proc_and(&[bind(&bundle.source("outside"), "/vol", &["rbind", volume])]);
    if !root.is_empty() {
        config["linux"]["rootfsPropagation"] = json!(root);
    }
    thread::scope(|scope| {
        let host = scope.spawn(|| {
            leave_the_host();
            sys::mount(Some(c"volume"), &outside, Some(c"tmpfs"), 0, None).unwrap();
            std::fs::create_dir(bundle.path("outside/sub")).unwrap();
            sys::mount(None, c"/", None, sys::MS_REC | sys::MS_SHARED, None).unwrap();
            let before = mountinfo().len();
            let container = scope.spawn(|| {
                unshare(CLONE_NEWNS).unwrap();
                bundle.enter(&config, &Context::default()).unwrap();
                sys::mount(Some(c"new"), c"/vol/sub", Some(c"tmpfs"), 0, None).unwrap();
            });
            container.join().unwrap();
            let new = mountinfo().iter().filter(|line| line.source == "new").count();
            assert_eq!(mountinfo().len(), before + new, "{:#?}", mountinfo());
            new == 1
        });
        host.join().unwrap()
    })
}

#[test]
fn a_mount_in_a_shared_volume_shows_on_the_host() {
    assert!(host_sees("rshared", "rshared"));
    assert!(host_sees("shared", "rshared"));
}

#[test]
fn any_other_mount_of_a_container_stays_in_it() {
    for (root, volume) in [
        ("", "rprivate"),
        ("", "rslave"),
        ("", "rshared"),
        ("rslave", "rshared"),
        ("slave", "rslave"),
        ("rshared", "rslave"),
        ("rprivate", "rprivate"),
        ("private", "rprivate"),
        ("unbindable", "rslave"),
    ] {
        assert!(!host_sees(root, volume), "{root} {volume}");
    }
}
