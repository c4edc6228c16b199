//! Where a node lives: mount, network, IPC and UTS namespaces of the test's, cgroups below the test's own, and for the
//! kubelet alone a copy of the kernel's settings that it wants to change.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::{NETNS, NODE_IP};
use crate::host::cgroup::{self, Cgroup};
use crate::registry::Result;

/// What the kubelet, servers, shims and plugins keep in fixed places of a disk.
const ON_DISK: [&str; 2] = ["/var/lib", "/var/log"];
/// The same in memory.
const IN_MEMORY: [&str; 4] = [NETNS, "/run/rtc-cri", "/run/containerd", "/run/lock"];

/// What the kubelet writes where it finds another value (`protectKernelDefaults: false`), with the value that it wants.
/// They would be the whole machine's.
const KERNEL_SETTINGS: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Moves this process, and what it will start, into them; files are kept in the directory.
pub(super) fn enter(directory: &Path) -> Result {
    let namespaces = CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    unshare(namespaces).context("unshare")?;
    // Nothing goes out; inside, servers share what they mount with what they start.
    for propagation in [MsFlags::MS_SLAVE, MsFlags::MS_SHARED] {
        let flags = MsFlags::MS_REC | propagation;
        mount(None::<&str>, "/", None::<&str>, flags, None::<&str>)
            .with_context(|| format!("mount(/, {propagation:?})"))?;
    }
    for place in ON_DISK {
        let own = directory.join(place.trim_start_matches('/').replace('/', "-"));
        fs::create_dir_all(&own)?;
        mount(Some(&own), place, None::<&str>, MsFlags::MS_BIND, None::<&str>).context(place)?;
    }
    for place in IN_MEMORY {
        fs::create_dir_all(place)?;
        let mode = Some("mode=755");
        mount(Some("tmpfs"), place, Some("tmpfs"), MsFlags::empty(), mode).context(place)?;
    }
    own_network()
}

/// An address of the node, and a default route. A new sysfs would be needed to see its links there; nothing here looks.
fn own_network() -> Result {
    for command in [
        "link set lo up",
        "link add up0 type veth peer name up1",
        "link set up1 up",
        &format!("addr add {NODE_IP}/24 dev up0"),
        "link set up0 up",
        "route add default via 192.0.2.1",
    ] {
        let output = Command::new("/sbin/ip").args(command.split(' ')).output()?;
        ensure!(
            output.status.success(),
            "ip {command}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    fs::write("/proc/sys/net/ipv4/ip_forward", "1").context("ip_forward")
}

/// The cgroup below which the kubelet makes its own (`cgroupRoot`), in every hierarchy.
pub(super) fn make_cgroup(cgroup: &Cgroup) -> Result {
    let relative = cgroup.path.trim_start_matches('/');
    for root in cgroup::hierarchies()? {
        let directory = root.join(relative);
        if cgroup::is_unified() {
            fs::write(
                root.join("cgroup.subtree_control"),
                "+cpu +cpuset +memory +pids +io",
            )
            .context("cgroup.subtree_control")?;
        }
        fs::create_dir_all(&directory).with_context(|| directory.display().to_string())?;
        // Of v1: a new one has none, and nothing can run in it.
        for file in ["cpuset.cpus", "cpuset.mems"] {
            if directory.join(file).exists() && !cgroup::is_unified() {
                fs::write(directory.join(file), fs::read(root.join(file))?).context(file)?;
            }
        }
    }
    Ok(())
}

/// The command line by which the kubelet finds the settings of the kernel as it wants them, and writes into files of
/// the test's in place of the machine's. Its mounts, which pods use, stay shared with everything else's.
pub(super) fn with_own_settings(directory: &Path) -> Result<Vec<OsString>> {
    let mut script = "mount --make-private /proc && ".to_owned();
    for (name, wanted) in KERNEL_SETTINGS {
        let file = directory.join("settings").join(name);
        fs::create_dir_all(file.parent().unwrap_or(directory))?;
        fs::write(&file, format!("{wanted}\n"))?;
        script += &format!("mount -o bind {} /proc/sys/{name} && ", file.display());
    }
    script += "exec \"$@\"";
    let words = ["/bin/busybox", "unshare", "--mount", "--propagation", "shared"];
    let shell = ["/bin/busybox", "sh", "-c", &script, "sh"];
    Ok(words.iter().chain(&shell).map(OsString::from).collect())
}
