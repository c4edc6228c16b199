//! `restore`: a container made of a checkpoint.
//!
//! ```text
//! 1   the image is there, CRIU is there                until here nothing is made
//! 2-7 claim the id; the steps of the restoration       a failure undoes them, in reverse
//!     in the foreground: wait, and delete
//! ```
//!
//! CRIU is our child (the shim's, in a worker), and so is the init it makes.

use anyhow::{Result, bail};
use oci_spec::runtime::Process;

use super::criu::Program;
use super::failure::explain;
use super::image::Directory;
use super::restoration::{LOG, Restoration, Restored};
use super::stdio::Names;
use super::{Options, need_root, work_directory};
use crate::container::create::Created;
use crate::container::notify;
use crate::container::plan::check_terminal;
use crate::container::start::remove_if_same;
use crate::container::state::{Locked, StateRoot};
use crate::container::{CreateOptions, RunOptions};
use crate::log;
use crate::process::foreground::{self, Signals};
use crate::sys::process;

/// What `restore` is asked for beyond `create`.
#[derive(Debug, Clone, Default)]
pub struct RestoreOptions {
    /// What `checkpoint` has, too.
    pub common: Options,
    /// `apparmor:NAME` or `selinux:LABEL` for the processes, in place of what they had.
    pub lsm_profile: Option<String>,
    /// An SELinux context for the mounts, in place of what they had.
    pub lsm_mount_context: Option<String>,
}

/// Makes a container of an image, which runs on. Returns the status of its init, or 0 with `detach`.
///
/// # Errors
///
/// Nothing is left behind.
pub fn restore(
    root: &StateRoot,
    options: &mut CreateOptions<'_>,
    restore: &RestoreOptions,
    run: RunOptions,
) -> Result<i32> {
    let process = options.bundle.spec.process().as_ref();
    let terminal = process.and_then(Process::terminal).unwrap_or(false);
    check_terminal(terminal, options.console_socket.is_some(), run.detach)?;
    let signals = (!run.detach).then(Signals::block).transpose()?;
    if !run.detach && !run.no_subreaper {
        process::set_child_subreaper()?;
    }
    let (directory, restored) = make(root, options, restore)?;
    let id = directory.id().clone();
    drop(directory);
    let Some(signals) = signals else { return Ok(0) };
    let Restored { record, init, master } = restored;
    const NOTHING: foreground::Watched<'static, fn() -> bool> = None;
    let exit = foreground::wait(&init, &signals, master, NOTHING)?;
    if !run.keep
        && let Err(error) = remove_if_same(root, &id, &record)
    {
        log::warn(format_args!("delete the container: {error:#}"));
    }
    Ok(exit.status())
}

/// As [`restore`], in a worker of the shim, whose child init is.
///
/// # Errors
///
/// Nothing is left behind.
pub fn restore_for_shim(
    root: &StateRoot,
    options: &mut CreateOptions<'_>,
    restore: &RestoreOptions,
) -> Result<Created> {
    let (_directory, Restored { record, .. }) = make(root, options, restore)?;
    Ok(Created {
        pid: record.pid,
        start_time: record.start_time,
        cgroup: record.cgroup,
        has_hooks: record.has_hooks,
    })
}

fn make(
    root: &StateRoot,
    options: &mut CreateOptions<'_>,
    restore: &RestoreOptions,
) -> Result<(Locked, Restored)> {
    need_root("restore")?;
    check_lsm_profile(restore)?;
    let image = Directory::open(&restore.common.image_path, "--image-path")?;
    if !image.has_image() {
        bail!(
            "--image-path {:?}: there is no checkpoint in it (no inventory.img)",
            image.path()
        );
    }
    let names = Names::load(&image)?;
    let program = Program::find()?;
    program.check_features(false, restore.common.lazy_pages)?;
    let work = work_directory(&restore.common)?;
    let directory = root.claim(&options.id)?;
    if let Err(error) = prepare_notify(&directory, options) {
        if let Err(error) = directory.remove() {
            log::warn(format_args!("clean up: {error:#}"));
        }
        return Err(error);
    }
    let mut restoration = Restoration::new(options, restore, (&image, work.as_ref()), names, directory);
    match restoration.run(&program) {
        Ok(()) => restoration.into_parts(),
        Err(error) => {
            let error = explain(error, work.as_ref().unwrap_or(&image), LOG);
            restoration.undo();
            Err(error)
        }
    }
}

fn prepare_notify(directory: &Locked, options: &mut CreateOptions<'_>) -> Result<()> {
    match options.reporter {
        // What the shim was started by is no service manager of its containers.
        Some(_) => Ok(()),
        None => notify::prepare(directory, &mut options.bundle.spec),
    }
}

fn check_lsm_profile(restore: &RestoreOptions) -> Result<()> {
    let Some(profile) = &restore.lsm_profile else {
        return Ok(());
    };
    match profile.split_once(':') {
        Some(("apparmor" | "selinux", name)) if !name.is_empty() => Ok(()),
        _ => bail!("--lsm-profile: {profile:?}: must be apparmor:NAME or selinux:LABEL"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_lsm_profile_names_its_module() {
        let check = |profile: &str| {
            check_lsm_profile(&RestoreOptions {
                lsm_profile: Some(profile.into()),
                ..RestoreOptions::default()
            })
        };
        assert!(check("apparmor:some//profile").is_ok() && check("selinux:a:b:c").is_ok());
        for wrong in ["", "apparmor", "apparmor:", "smack:x"] {
            let error = check(wrong).unwrap_err().to_string();
            assert!(error.starts_with("--lsm-profile"), "{error}");
        }
    }
}
