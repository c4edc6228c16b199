use super::*;
use crate::proto::CdiDevice;
use crate::spec::cdi::{self, Registry};

const JSON: &str = r#"{
    "cdiVersion": "0.6.0", "kind": "vendor.com/gpu",
    "containerEdits": {"env": ["ALL=1"], "additionalGids": [0, 44]},
    "devices": [
        {"name": "0", "containerEdits": {
            "env": ["PATH=/gpu"],
            "deviceNodes": [{"path": "/dev/gpu0", "type": "c", "major": 195, "minor": 0, "permissions": "rw"}],
            "mounts": [{"hostPath": "/lib/gpu", "containerPath": "/dev/shm", "options": ["ro", "bind"]}],
            "hooks": [{"hookName": "createContainer", "path": "/usr/bin/hook", "args": ["hook", "x"]}]}},
        {"name": "1", "containerEdits": {"env": ["ONE=1"]}}
    ]}"#;

const YAML: &str = "
cdiVersion: 0.5.0
kind: vendor.com/net
devices:
- name: a-1
  containerEdits:
    deviceNodes:
    - path: /dev/null
      fileMode: 438
    mounts:
    - {hostPath: /etc/a, containerPath: /etc/b, options: [ro, nosuid, bind]}
    hooks:
    - hookName: poststop
      path: /bin/true
      timeout: 5
";

fn directory(files: &[(&str, &str)]) -> PathBuf {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let directory = std::env::temp_dir().join(format!("rtc-cri-cdi-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    for (name, text) in files {
        std::fs::write(directory.join(name), text).unwrap();
    }
    directory
}

fn registry(files: &[(&str, &str)]) -> Registry {
    let directory = directory(files);
    let registry = Registry::read(&[directory.to_str().unwrap()]);
    std::fs::remove_dir_all(directory).unwrap();
    registry
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn with(registry: &Registry, devices: &[&str]) -> Spec {
    let mut case = Case::new();
    case.found.edits = registry.edits(&names(devices)).unwrap();
    case.spec()
}

#[test]
fn a_device_brings_what_its_specification_says() {
    let spec = with(
        &registry(&[("gpu.json", JSON)]),
        &["vendor.com/gpu=0", "vendor.com/gpu=1"],
    );
    let process = spec.process().clone().unwrap();
    let env = process.env().clone().unwrap();
    assert_eq!(env[0], "PATH=/gpu");
    assert_eq!(env.iter().filter(|variable| *variable == "ALL=1").count(), 1);
    assert!(env.contains(&"ONE=1".to_owned()));
    // Root's group is not given.
    assert_eq!(process.user().additional_gids().as_deref(), Some(&[0, 44][..]));
    let linux = spec.linux().clone().unwrap();
    let nodes = linux.devices().clone().unwrap();
    assert_eq!(
        (nodes[0].path().to_str(), nodes[0].major()),
        (Some("/dev/gpu0"), 195)
    );
    let rules = linux.resources().clone().unwrap().devices().clone().unwrap();
    assert_eq!(
        (rules[1].allow(), rules[1].access().as_deref()),
        (true, Some("rw"))
    );
    let mounts = spec.mounts().clone().unwrap();
    let shm: Vec<_> = mounts
        .iter()
        .filter(|mount| mount.destination() == Path::new("/dev/shm"))
        .collect();
    assert_eq!(shm.len(), 1);
    assert_eq!(shm[0].source().as_deref(), Some(Path::new("/lib/gpu")));
    let hooks = spec.hooks().clone().unwrap();
    assert_eq!(
        hooks.create_container().as_ref().unwrap()[0]
            .args()
            .as_ref()
            .unwrap(),
        &["hook", "x"]
    );
}

#[test]
fn yaml_is_read_as_json_is() {
    let registry = registry(&[("net.yaml", YAML)]);
    let mut edits = registry.edits(&names(&["vendor.com/net=a-1"])).unwrap();
    let node = &mut edits[1].device_nodes[0];
    node.fill().unwrap();
    assert_eq!(
        (node.major, node.minor, node.file_mode),
        (Some(1), Some(3), Some(0o666))
    );
    assert_eq!(edits[1].mounts[0].options, ["ro", "nosuid", "bind"]);
    assert_eq!(edits[1].hooks[0].timeout, Some(5));
}

#[test]
fn a_device_that_no_specification_has_is_refused_with_what_could_not_be_read() {
    let registry = registry(&[("gpu.json", JSON), ("bad.yaml", "a: [")]);
    let error = registry
        .edits(&names(&["vendor.com/gpu=9"]))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("vendor.com/gpu=9") && error.contains("bad.yaml"),
        "{error}"
    );
}

#[test]
fn of_two_devices_of_a_name_the_stronger_directory_counts_and_in_one_it_is_a_conflict() {
    let other = JSON.replace("ALL=1", "ALL=2");
    let (weak, strong) = (directory(&[("a.json", JSON)]), directory(&[("b.json", &other)]));
    let registry = Registry::read(&[weak.to_str().unwrap(), strong.to_str().unwrap()]);
    assert_eq!(
        registry.edits(&names(&["vendor.com/gpu=0"])).unwrap()[0].env,
        ["ALL=2"]
    );
    for directory in [weak, strong] {
        std::fs::remove_dir_all(directory).unwrap();
    }
    let both = self::registry(&[("a.json", JSON), ("b.json", &other)]);
    let error = both.edits(&names(&["vendor.com/gpu=0"])).unwrap_err();
    assert!(error.to_string().contains("remove one"), "{error}");
}

#[test]
fn names_come_from_the_field_and_from_annotations_of_the_request_each_once() {
    let mut config = ContainerConfig {
        cdi_devices: vec![CdiDevice {
            name: "vendor.com/gpu=0".into(),
        }],
        annotations: text_map(&[
            ("cdi.k8s.io/b_1", "vendor.com/net=b"),
            ("cdi.k8s.io/a_1", "vendor.com/gpu=0,vendor.com/net=a"),
            ("other", "vendor.com/net=z"),
        ]),
        ..Default::default()
    };
    assert_eq!(
        cdi::names(&config).unwrap(),
        ["vendor.com/gpu=0", "vendor.com/net=a", "vendor.com/net=b"]
    );
    for bad in [
        "gpu0",
        "vendor.com/gpu",
        "=0",
        "vendor.com/gpu=",
        "v/c=a b",
        "v/c/d=1",
        "../x=1",
    ] {
        config.cdi_devices[0].name = bad.into();
        assert!(
            cdi::names(&config).unwrap_err().to_string().contains(bad),
            "{bad}"
        );
    }
}

/// Other runtimes took device requests from what came with a checkpoint or an image.
#[test]
fn cve_2026_53492_an_image_asks_for_no_devices() {
    let mut case = Case::new();
    case.image
        .labels
        .insert("cdi.k8s.io/x".into(), "vendor.com/gpu=0".into());
    assert_eq!(
        case.with(|_, asked| cdi::names(asked.config)).unwrap(),
        Vec::<String>::new()
    );
}
