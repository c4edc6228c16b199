//! `mounts add` and `mounts remove`: mounts of a running container, as crun has them.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result, anyhow, bail};
use oci_spec::runtime::{LinuxNamespaceType, Mount, Spec};

use crate::bundle;
use crate::container::id::ContainerId;
use crate::container::state::{Locked, Operation, Record, StateRoot};
use crate::process::channel::{Channel, Message};
use crate::process::spawn::live;
use crate::rootfs::{self, Descriptors, Hot};
use crate::sys::clone::{CLONE_NEWNS, CLONE_NEWUSER, Cloned, clone3};
use crate::sys::process;

/// Mounts in a container, in their order; all or none.
///
/// # Errors
///
/// The container does not run or has no mount namespace of its own; a mount that is refused or fails.
pub fn add_mounts(root: &StateRoot, id: &ContainerId, mounts: &[Mount]) -> Result<()> {
    let (directory, record, spec) = open(root, id)?;
    bundle::check_mounts(&spec, mounts)?;
    let mut hot = Hot::plan(&spec, &record.bundle, mounts)?;
    in_container(&directory, &record, &spec, |root, descriptors| {
        hot.attach(root, descriptors)
    })
}

/// Removes the mounts at the destinations of these, the last one first.
///
/// # Errors
///
/// The container does not run or has no mount namespace of its own; nothing is mounted there.
pub fn remove_mounts(root: &StateRoot, id: &ContainerId, mounts: &[Mount]) -> Result<()> {
    let (directory, record, spec) = open(root, id)?;
    in_container(&directory, &record, &spec, |root, descriptors| {
        rootfs::detach_mounts(root, mounts, descriptors)
    })
}

fn open(root: &StateRoot, id: &ContainerId) -> Result<(Locked, Record, Spec)> {
    let directory = root.lock(id)?;
    let record = directory.complete_record()?;
    directory.status(&record)?.allows(Operation::Mounts, id)?;
    let spec = bundle::parse_kept(&directory.config()?)?;
    if !has(&spec, LinuxNamespaceType::Mount) {
        bail!("the container has no mount namespace of its own: what is mounted on the host shows there");
    }
    Ok((directory, record, spec))
}

fn has(spec: &Spec, kind: LinuxNamespaceType) -> bool {
    let namespaces = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref());
    namespaces
        .into_iter()
        .flatten()
        .any(|namespace| namespace.typ() == kind)
}

/// Does something in the container's mount namespace, and user namespace, with its root: in a child, which is in no other
/// namespace and no cgroup of the container's. The lock is held until its end.
fn in_container(
    directory: &Locked,
    record: &Record,
    spec: &Spec,
    body: impl FnOnce(OwnedFd, &Descriptors) -> Result<()>,
) -> Result<()> {
    let gone = || anyhow!("container not running");
    let init = record.pidfd()?.ok_or_else(gone)?;
    let path = format!("/proc/{}/root", record.pid);
    let root = File::options()
        .read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY)
        .open(&path)
        .with_context(|| format!("open {path}"))?;
    // Still there: the path was that of init, not of a process that got its pid.
    process::pidfd_send_signal(&init, 0).map_err(|_| gone())?;
    let in_user_namespace = has(spec, LinuxNamespaceType::User);
    let flags = CLONE_NEWNS | if in_user_namespace { CLONE_NEWUSER } else { 0 };
    let (ours, theirs) = Channel::pair()?;
    match clone3(0, None).context("make the process that mounts")? {
        Cloned::Child => {
            drop(ours);
            live(&theirs, || {
                process::set_parent_death_signal(libc::SIGKILL)?;
                let descriptors = Descriptors::open()?;
                process::setns(&init, flags).context("join the container's mount namespace")?;
                if in_user_namespace {
                    process::set_ids(0, 0, None).context("become root of the user namespace")?;
                }
                body(root.into(), &descriptors)?;
                theirs.send(&Message::Ready)?;
                process::exit(0)
            })
        }
        Cloned::Parent(child) => {
            drop(theirs);
            let heard = ours.receive();
            process::wait(&child.pidfd)?;
            match heard? {
                Some(Message::Ready) => Ok(()),
                Some(Message::Failed(text)) => Err(anyhow!(text)),
                other => Err(anyhow!("the process that mounts has died: {other:?}")),
            }
            .with_context(|| format!("in container {}", directory.id()))
        }
    }
}
