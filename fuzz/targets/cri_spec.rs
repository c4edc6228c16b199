//! CreateContainer from an enemy, with an image of another: whatever they say, an error of one line, or a configuration that
//! grants no more than was asked for and that the runtime takes.

#![no_main]
#![allow(dead_code, reason = "what the server uses of these modules")]

use std::path::PathBuf;

use libfuzzer_sys::fuzz_target;
use oci_spec::runtime::Capability;
use serde::Deserialize;

#[path = "../../cri/src/error.rs"]
mod error;
#[path = "../../cri/src/spec/mod.rs"]
mod spec;

mod proto {
    include!(concat!(env!("OUT_DIR"), "/runtime.v1.rs"));
}

/// What of the server's configuration matters.
mod config {
    #[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
    pub(crate) enum CgroupDriver {
        Systemd,
        Cgroupfs,
    }

    #[derive(Debug, Default)]
    pub(crate) struct Handler {
        pub(crate) pod_annotations: Vec<String>,
        pub(crate) container_annotations: Vec<String>,
        pub(crate) privileged_without_host_devices: bool,
        pub(crate) cgroup_writable: bool,
    }

    #[derive(Debug)]
    pub(crate) struct Config {
        pub(crate) cgroup_driver: Option<CgroupDriver>,
    }
}

/// What of the image store matters.
mod image {
    use std::path::Path;

    #[derive(Debug, Default, serde::Deserialize)]
    #[serde(default)]
    pub(crate) struct Untrusted {
        pub(crate) user: String,
        pub(crate) env: Vec<String>,
        pub(crate) entrypoint: Vec<String>,
        pub(crate) cmd: Vec<String>,
        pub(crate) working_dir: String,
        pub(crate) stop_signal: String,
        pub(crate) volumes: Vec<String>,
    }

    pub(crate) struct Image;
    pub(crate) struct Images;

    impl Images {
        pub(crate) async fn read_file(
            &self,
            _: &Image,
            _: &Path,
            _: u64,
        ) -> crate::error::Result<Option<Vec<u8>>> {
            Ok(None)
        }
    }
}

/// The input, as JSON: seeds and findings can be read.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Input {
    systemd: bool,
    config: proto::ContainerConfig,
    pod: proto::PodSandboxConfig,
    image: image::Untrusted,
    passwd: String,
    group: String,
    seccomp: String,
    target_pid: Option<u32>,
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(input) = serde_json::from_slice::<Input>(bytes) else {
        return;
    };
    let driver = if input.systemd {
        config::CgroupDriver::Systemd
    } else {
        config::CgroupDriver::Cgroupfs
    };
    let facts = facts(driver);
    let files = spec::Files {
        passwd: Some(input.passwd.clone().into_bytes()),
        group: Some(input.group.clone().into_bytes()),
        seccomp: Some(input.seccomp.clone().into_bytes()),
    };
    let image_mounts: Vec<Option<PathBuf>> = vec![Some("/volume".into())];
    let volumes: Vec<(PathBuf, PathBuf)> = match spec::volumes::paths(&input.config, &input.image) {
        Err(error) => return check_message(&error.to_string()),
        Ok(paths) => {
            let source = |path| (path, PathBuf::from("/volume"));
            paths.into_iter().map(source).collect()
        }
    };
    let handler = config::Handler::default();
    let asked = spec::Asked {
        id: "c1",
        sandbox: "p1",
        sandbox_pid: 7,
        target_pid: input.target_pid,
        pod: &input.pod,
        config: &input.config,
        handler: &handler,
        image: &input.image,
        files: &files,
        image_mounts: &image_mounts,
        volumes: &volumes,
        selinux_level: "s0:c1,c2",
    };
    match spec::translate(&facts, &asked, &spec::Found::default()) {
        Err(error) => check_message(&error.to_string()),
        Ok(made) => check(&facts, &input, &made),
    }
});

fn facts(driver: config::CgroupDriver) -> spec::Facts {
    spec::Facts {
        driver,
        cgroup2: true,
        swap: true,
        hugetlb: true,
        capabilities: [Capability::Chown, Capability::Kill, Capability::SysAdmin].into(),
        least_oom_score_adj: -500,
        seccomp: true,
        apparmor: true,
        selinux: None,
        hostname: "node".into(),
    }
}

/// What must hold of every configuration.
fn check(facts: &spec::Facts, input: &Input, made: &spec::Made) {
    let process = made.spec.process().as_ref().expect("a process");
    let linux = made.spec.linux().as_ref().expect("linux");
    let sets = process.capabilities().as_ref().expect("capabilities");
    for set in [
        sets.bounding(),
        sets.permitted(),
        sets.effective(),
        sets.inheritable(),
        sets.ambient(),
    ] {
        assert!(
            set.iter().flatten().all(|one| facts.capabilities.contains(one)),
            "one that we have not"
        );
    }
    assert_ne!(process.user().uid(), u32::MAX);
    assert!(
        process
            .oom_score_adj()
            .is_none_or(|score| (-500..=1000).contains(&score))
    );
    assert!(
        made.cgroup.ends_with("/c1") || made.cgroup.ends_with("/rtc-c1.scope"),
        "{}",
        made.cgroup
    );
    assert!(
        !made.cgroup.split('/').any(|part| part == ".."),
        "{}",
        made.cgroup
    );
    assert!((1..=64).contains(&made.stop_signal));
    let annotations = made.spec.annotations().iter().flatten();
    assert!(
        annotations
            .clone()
            .all(|(key, _)| key.starts_with("io.kubernetes.cri."))
    );
    let privileged = input
        .config
        .linux
        .as_ref()
        .and_then(|linux| linux.security_context.as_ref());
    let privileged = privileged.is_some_and(|context| context.privileged);
    let rules = linux
        .resources()
        .as_ref()
        .and_then(|resources| resources.devices().clone());
    let all = rules
        .iter()
        .flatten()
        .any(|rule| rule.allow() && rule.typ().is_none());
    assert_eq!(all, privileged, "all devices are for the privileged");
    for mount in made.spec.mounts().iter().flatten() {
        let destination = mount.destination();
        assert!(
            destination.is_absolute() && destination.components().count() > 1,
            "{destination:?}"
        );
    }
    let text = serde_json::to_vec(&made.spec).expect("it can be written");
    let again: oci_spec::runtime::Spec = serde_json::from_slice(&text).expect("and read");
    assert!(again == made.spec, "what is written says the same");
}

/// An error message is one line of a log.
fn check_message(message: &str) {
    assert!(!message.is_empty());
    assert!(!message.contains(['\n', '\r', '\0', '\x1b']), "{message:?}");
}
