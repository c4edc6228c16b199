use super::*;
use crate::proto::Device;
use crate::spec::devices::Node;

fn device(host: &str, container: &str, permissions: &str) -> Device {
    Device {
        host_path: host.into(),
        container_path: container.into(),
        permissions: permissions.into(),
    }
}

fn node(path: &str, major: u64, minor: u64) -> Node {
    Node {
        path: path.into(),
        block: false,
        major,
        minor,
        mode: 0o666,
        uid: 0,
        gid: 6,
    }
}

/// Rules as `+c 1:3 rwm`.
fn rules(spec: &Spec) -> Vec<String> {
    let resources = spec.linux().as_ref().unwrap().resources().clone().unwrap();
    let number = |number: Option<i64>| number.map_or("*".into(), |number| number.to_string());
    let rules = resources.devices().clone().unwrap();
    rules
        .iter()
        .map(|rule| {
            format!(
                "{}{} {}:{} {}",
                if rule.allow() { '+' } else { '-' },
                rule.typ().map_or("a".to_owned(), |kind| kind.as_str().to_owned()),
                number(rule.major()),
                number(rule.minor()),
                rule.access().as_deref().unwrap_or("")
            )
        })
        .collect()
}

#[test]
fn nothing_is_allowed_that_was_not_asked_for() {
    assert_eq!(rules(&Case::new().spec()), ["-a *:* rwm"]);
}

#[test]
fn a_device_is_made_and_allowed_as_asked() {
    let mut case = Case::new();
    case.config.devices = vec![device("/dev/x", "/dev/y", "rw"), device("/dev/z", "", "")];
    case.found.devices.asked = vec![vec![node("/dev/y", 10, 1)], vec![node("/dev/z", 10, 2)]];
    let spec = case.spec();
    assert_eq!(rules(&spec), ["-a *:* rwm", "+c 10:1 rw", "+c 10:2 rwm"]);
    let nodes = spec.linux().as_ref().unwrap().devices().clone().unwrap();
    assert_eq!(nodes[0].path().to_str(), Some("/dev/y"));
    assert_eq!((nodes[0].file_mode(), nodes[0].gid()), (Some(0o666), Some(6)));
}

#[test]
fn permissions_are_of_the_letters_rwm_each_once() {
    for bad in ["x", "rr", "rwmr", "r w"] {
        let mut case = Case::new();
        case.config.devices = vec![device("/dev/x", "/dev/y", bad)];
        case.found.devices.asked = vec![vec![node("/dev/y", 1, 1)]];
        assert!(case.refused().contains("devices[0].permissions"), "{bad}");
    }
}

#[test]
fn a_privileged_container_has_all_devices_unless_its_handler_says_otherwise() {
    let mut case = Case::new().privileged();
    case.found.devices.host = vec![node("/dev/a", 1, 1)];
    let spec = case.spec();
    assert_eq!(rules(&spec), ["+a *:* rwm"]);
    assert_eq!(
        spec.linux().as_ref().unwrap().devices().as_ref().unwrap().len(),
        1
    );
    case.handler.privileged_without_host_devices = true;
    assert_eq!(rules(&case.spec()), ["-a *:* rwm"]);
}

#[test]
fn devices_are_found_by_path_and_by_directory() {
    let look = |host: &str, container: &str| {
        let mut case = Case::new();
        case.config.devices = vec![device(host, container, "r")];
        case.with(|_, asked| Devices::look(asked, false))
            .map(|mut found| found.asked.remove(0))
    };
    let null = look("/dev/null", "/dev/nothing").unwrap();
    assert_eq!(
        (null[0].major, null[0].minor, null[0].path.to_str()),
        (1, 3, Some("/dev/nothing"))
    );
    // A link is what it leads to.
    let directory = std::env::temp_dir().join(format!("rtc-cri-spec-devices-{}", std::process::id()));
    std::fs::create_dir_all(&directory).unwrap();
    let link = directory.join("link");
    std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
    assert_eq!(look(link.to_str().unwrap(), "/dev/z").unwrap()[0].minor, 5);
    std::fs::remove_dir_all(directory).unwrap();
    assert!(
        look("/dev", "/dev/host")
            .unwrap()
            .iter()
            .any(|node| node.path == Path::new("/dev/host/null"))
    );
    for bad in ["/etc/passwd", "dev/null", "/no/such"] {
        assert!(
            look(bad, "/dev/x")
                .unwrap_err()
                .to_string()
                .contains("devices[0].host_path"),
            "{bad}"
        );
    }
}
