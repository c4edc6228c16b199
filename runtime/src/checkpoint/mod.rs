//! `checkpoint` and `restore`: a container's processes written to files, and made again of them, by CRIU (<https://criu.org>).
//!
//! ```text
//! checkpoint  dump: locked, running or paused --criu dump--> image; the container is deleted, unless it is to run on
//! restore     id claimed, cgroup made --> mount points made, in a mount namespace that is thrown away
//!               --> CRIU, born in the cgroup, with the root mounted in a mount namespace of its own
//!               <-- setup-namespaces: loopback, prestart and createRuntime hooks
//!               <-- orphan-pts-master: the terminal
//!               <-- post-restore: init is there, and recorded
//!               <-- pre-resume: nothing of it has run yet: all processes are compared with config.json
//!               --> running
//! ```
//!
//! What runc's users rely on is kept: the flags, `descriptors.json`, the names of external mounts and namespaces in an image, so
//! that either runtime restores what the other wrote. A restored container is a container like any other: its mounts' sources, its
//! cgroup and limits, its joined namespaces and hooks are those of the bundle given to `restore`, none is the image's.

mod criu;
mod dump;
mod failure;
mod image;
mod message;
mod restoration;
mod restore;
mod stdio;
mod verify;

use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use oci_spec::runtime::Spec;

pub use dump::{DumpOptions, PageServer, checkpoint};
pub use restore::{RestoreOptions, restore, restore_for_shim};

use crate::log;
use crate::sys::clone::CLONE_NEWNET;
use image::Directory;
use message::{Message, option};

/// What both are asked for.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where the image is.
    pub image_path: PathBuf,
    /// Where CRIU works and writes its log; none: in the image.
    pub work_path: Option<PathBuf>,
    /// Connected TCP sockets are part of it.
    pub tcp_established: bool,
    /// Unix sockets with a peer outside are part of it.
    pub ext_unix_sk: bool,
    /// Sessions and terminals of outside are part of it.
    pub shell_job: bool,
    /// File locks are part of it.
    pub file_locks: bool,
    /// What CRIU does about cgroups.
    pub manage_cgroups: CgroupMode,
    /// What is in a parent image, too, is taken out of that.
    pub auto_dedup: bool,
    /// Memory is fetched when it is first used.
    pub lazy_pages: bool,
}

/// `--manage-cgroups-mode`, by CRIU's numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum CgroupMode {
    /// Cgroups are none of its business.
    Ignore = 0,
    /// Those that are missing are made, with their limits.
    Soft = 3,
    /// All are made, with their limits.
    Full = 4,
    /// Those that are there already are an error.
    Strict = 5,
    /// As CRIU likes: soft.
    #[default]
    Default = 6,
}

impl FromStr for CgroupMode {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        Ok(match text {
            "" => Self::Default,
            "soft" => Self::Soft,
            "full" => Self::Full,
            "strict" => Self::Strict,
            "ignore" => Self::Ignore,
            _ => return Err(anyhow!("{text:?}: must be soft, full, strict or ignore")),
        })
    }
}

/// How much CRIU writes to its log: what runc asks for.
const LOG_LEVEL: u64 = 4;

/// The key by which an external namespace is known in an image: what runc calls it.
const fn external_key(kind: &str) -> &'static str {
    match kind.as_bytes() {
        b"net" => "extRootNetNS",
        _ => "extRootPidNS",
    }
}

/// CRIU's options that both requests have. The directories are the image's and that to work in, by the numbers of their
/// descriptors.
fn options(options: &Options, directories: (u64, Option<u64>), spec: &Spec, log: &str) -> Result<Message> {
    let (image, work) = directories;
    let message = Message::default()
        .number(option::IMAGES_DIR_FD, image)
        .flag(option::EXT_UNIX_SK, options.ext_unix_sk)
        .flag(option::TCP_ESTABLISHED, options.tcp_established)
        .flag(option::SHELL_JOB, options.shell_job)
        .flag(option::FILE_LOCKS, options.file_locks)
        .number(option::LOG_LEVEL, LOG_LEVEL)
        .text(option::LOG_FILE, log)
        .flag(option::NOTIFY_SCRIPTS, true)
        .flag(option::AUTO_DEDUP, options.auto_dedup)
        .flag(option::MANAGE_CGROUPS, true)
        .number(option::MANAGE_CGROUPS_MODE, options.manage_cgroups as u64)
        // Interfaces and addresses are not ours but those of whoever made them: a hook, or a CNI plugin.
        .number(option::EMPTY_NS, u64::from(CLONE_NEWNET.cast_unsigned()))
        .flag(option::LAZY_PAGES, options.lazy_pages)
        .flag(option::ORPHAN_PTS_MASTER, true);
    let message = match work {
        Some(work) => message.number(option::WORK_DIR_FD, work),
        None => message,
    };
    let config = config_file(spec)?;
    Ok(message.text_if(option::CONFIG_FILE, config.as_deref().map(path_bytes)))
}

fn path_bytes(path: &Path) -> &[u8] {
    std::os::unix::ffi::OsStrExt::as_bytes(path.as_os_str())
}

/// `--work-path`, made where it is missing.
fn work_directory(options: &Options) -> Result<Option<Directory>> {
    let path = options.work_path.as_deref();
    path.map(|path| Directory::make(path, "--work-path")).transpose()
}

/// CRIU's own configuration: the annotation `org.criu.config` of the container (an empty one: none at all), else
/// `/etc/criu/rtc.conf`, else runc's. It may name programs to run, so it has to be root's.
fn config_file(spec: &Spec) -> Result<Option<PathBuf>> {
    const ANNOTATION: &str = "org.criu.config";
    let named = spec.annotations().as_ref().and_then(|all| all.get(ANNOTATION));
    let Some(named) = named else {
        let usual = ["/etc/criu/rtc.conf", "/etc/criu/runc.conf"];
        let found = usual.into_iter().map(PathBuf::from).find(|path| path.exists());
        return Ok(found);
    };
    if named.is_empty() {
        return Ok(None);
    }
    let path = PathBuf::from(named);
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let Ok(file) = open(&path, flags, Mode::empty()) else {
        log::warn(format_args!("annotation {ANNOTATION}: {named}: is not there"));
        return Ok(None);
    };
    let found = nix::sys::stat::fstat(&file).with_context(|| named.clone())?;
    if found.st_uid != 0 || found.st_mode & 0o022 != 0 || found.st_mode & libc::S_IFMT != libc::S_IFREG {
        bail!(
            "annotation {ANNOTATION}: {named}: may name programs to run: must be a file of root that nobody else may write"
        );
    }
    Ok(Some(path))
}

/// What CRIU does needs root.
fn need_root(verb: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "{verb} must be run as root (user {} is not): CRIU can't yet do it for rootless containers",
            nix::unistd::geteuid()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_modes_of_cgroups_are_criu_s_numbers() {
        for (text, number) in [("", 6), ("soft", 3), ("full", 4), ("strict", 5), ("ignore", 0)] {
            assert_eq!(text.parse::<CgroupMode>().unwrap() as u64, number);
        }
        let error = "props".parse::<CgroupMode>().unwrap_err().to_string();
        assert!(
            error.contains("\"props\": must be soft, full, strict or ignore"),
            "{error}"
        );
    }

    fn with_config(path: &str) -> Result<Option<PathBuf>> {
        let text = format!(r#"{{"ociVersion": "1.2.0", "annotations": {{"org.criu.config": "{path}"}}}}"#);
        config_file(&serde_json::from_str(&text).unwrap())
    }

    #[test]
    fn criu_is_configured_by_files_of_root_only() {
        assert_eq!(with_config("").unwrap(), None);
        assert_eq!(with_config("/nonexistent").unwrap(), None);
        let error = with_config("/tmp").unwrap_err().to_string();
        assert!(error.starts_with("annotation org.criu.config: /tmp"), "{error}");
    }
}
