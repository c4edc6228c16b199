//! The pod init: process 1 of a PID namespace that a pod's containers share.
//!
//! Whoever has CAP_SYS_PTRACE in one of these containers can look at it, and enter what it can: a naive one shows the
//! host's `/` as `/proc/1/root` (tried). So before it gets company it gives up all there is to see:
//!
//! | what | how it is |
//! |---|---|
//! | `/proc/1/root`, `cwd` | an empty, read-only tmpfs in a mount namespace of its own, with nothing else mounted |
//! | `/proc/1/ns` | the pod's, and a cgroup namespace of its own |
//! | `/proc/1/fd` | none, not even stdio |
//! | `/proc/1/environ`, `cmdline` | wiped |
//! | `/proc/1/mem` | its heap, a copy of the shim's, is unmapped |
//! | its rights | uid and gid 65535 of the pod's user namespace, no groups, no capabilities (bounding set too), no_new_privs |
//! | what it can be made to do | wait for a signal, and exit: seccomp kills it for all else |
//!
//! The kernel reaps its orphans (SIGCHLD is ignored). It ends by a SIGTERM from outside its PID namespace, not by one of a
//! container, and with its parent, the shim: nobody else would know of it.

use std::convert::Infallible;
use std::os::fd::{AsFd, AsRawFd};

use anyhow::{Context, Result};
use serde_json::json;

use crate::namespace::IdMaps;
use crate::process::channel::{Channel, Message};
use crate::seccomp::{self, Filter};
use crate::sys::entry::forget_caller;
use crate::sys::mount::{self, attr};
use crate::sys::open::openat2;
use crate::sys::pause::{self, Ranges};
use crate::sys::process::{self, CapabilitySets};
use crate::sys::{Named, fd};

/// Nobody's, by convention of pause images; the kubelet maps 65536 ids for each pod.
const ID: u32 = 65535;

/// What it may do from its readiness on.
pub(super) fn filter() -> Result<Filter> {
    let profile = json!({
        "defaultAction": "SCMP_ACT_KILL_PROCESS",
        "syscalls": [{"names": pause::CALLS, "action": "SCMP_ACT_ALLOW"}],
    });
    seccomp::compile(&serde_json::from_value(profile).context("the pod init's profile")?)
}

/// Becomes the pod init. Returns only with an error.
pub(super) fn run(maps: Option<&IdMaps>, filter: &Filter, channel: &Channel) -> Result<Infallible> {
    // While there is a /proc to read.
    let heap = Ranges::of_heap()?;
    nix::unistd::setsid().call(|| "setsid".into())?;
    enter_empty_root().context("the pod init's root")?;
    give_up_rights(maps).context("the pod init's rights")?;
    forget_caller();
    // It would be the shim's.
    nix::sys::prctl::set_name(c"rtc-pod-init").call(|| "prctl(PR_SET_NAME)".into())?;
    // After the change of ids, which forgets it.
    process::set_parent_death_signal(libc::SIGKILL)?;
    process::ignore_children_and_block_signals()?;
    fd::close_all_but(0, &[channel.as_fd().as_raw_fd()])?;
    channel.send(&Message::Ready)?;
    pause::until_asked(channel.as_fd().as_raw_fd(), heap, filter)
}

/// Leaves the host's tree for one with nothing in it.
fn enter_empty_root() -> Result<()> {
    mount::mount(None, c"/", None, mount::MS_PRIVATE | mount::MS_REC, None)
        .call(|| "mount(\"/\", PRIVATE|REC)".into())?;
    let context = mount::fsopen(c"tmpfs").call(|| "fsopen(\"tmpfs\")".into())?;
    for (key, value) in [
        (c"size", Some(c"4096")),
        (c"nr_inodes", Some(c"1")),
        (c"mode", Some(c"0555")),
        (c"ro", None),
    ] {
        mount::fsconfig(&context, key, value).call(|| format!("fsconfig({key:?}, {value:?})"))?;
    }
    mount::fsconfig_create(&context).call(|| "fsconfig(CREATE)".into())?;
    let attributes = attr::RDONLY | attr::NOSUID | attr::NODEV | attr::NOEXEC;
    let root = mount::fsmount(&context, attributes).call(|| "fsmount".into())?;
    let old = openat2(mount::cwd(), c"/", libc::O_PATH, 0).call(|| "openat2(\"/\")".into())?;
    mount::move_mount(&root, &old).call(|| "move_mount(\"/\")".into())?;
    nix::unistd::fchdir(&root).call(|| "fchdir".into())?;
    // Not on an initramfs, which can't be pivoted from: a container could climb out of a mere chroot.
    mount::pivot_to_working_directory().call(|| "pivot_root(\".\", \".\")".into())?;
    mount::detach(c".").call(|| "umount2(\".\", DETACH)".into())?;
    nix::unistd::chdir(c"/").call(|| "chdir(\"/\")".into())?;
    Ok(())
}

fn give_up_rights(maps: Option<&IdMaps>) -> Result<()> {
    process::clear_ambient()?;
    for capability in 0..64 {
        if !process::drop_bounding(capability)? {
            break;
        }
    }
    let (uid, gid) = maps.map_or((ID, ID), |maps| maps.nearest(ID));
    process::set_ids(uid, gid, Some(&[]))?;
    process::capset(CapabilitySets::default())?;
    process::set_no_new_privileges()?;
    Ok(process::set_non_dumpable()?)
}
