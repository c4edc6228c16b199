//! The mounts that make a container's root: what containerd's snapshotter hands with Create. For workers only: any of
//! these calls can wait for a disk or a server.
//!
//! The options are those of fstab(5) as containerd's `core/mount` has them: words that are flags of mount(2), and all others
//! data of the file system. A list of lower directories that is too long for a page (mount(2) takes no more) is made
//! relative to the directory that all of them are in.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use containerd_shim_protos::api::Mount;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};

/// The most that mount(2) takes as data, with room for what a file system adds.
const DATA_MAX: usize = 4096 - 512;
/// How many mounts one on top of the other are removed: more than any snapshotter makes.
const STACK_MAX: usize = 64;

/// The directory for the root of a bundle whose mounts come with the request.
pub(crate) fn directory(bundle: &Path) -> PathBuf {
    bundle.join("rootfs")
}

/// Mounts all of them, in order, on the bundle's root.
///
/// # Errors
///
/// Names the mount. What was mounted before it is unmounted again.
pub(crate) fn mount_all(bundle: &Path, mounts: &[Mount]) -> Result<()> {
    if mounts.is_empty() {
        return Ok(());
    }
    let root = directory(bundle);
    match fs::DirBuilder::new().mode(0o711).create(&root) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("mkdir {root:?}"));
        }
        _ => {}
    }
    for (i, wanted) in mounts.iter().enumerate() {
        let mounted = mount_one(&root, wanted)
            .with_context(|| format!("rootfs[{i}]: mount {} {:?}", wanted.type_, wanted.source));
        if let Err(error) = mounted {
            if let Err(undo) = unmount(bundle) {
                rtc_runtime::log::warn(format_args!("clean up: {undo:#}"));
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Removes every mount on the bundle's root and below it. None is fine.
///
/// # Errors
///
/// As umount2(2).
pub(crate) fn unmount(bundle: &Path) -> Result<()> {
    let root = directory(bundle);
    for _ in 0..STACK_MAX {
        match umount2(&root, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            // No mount, or no directory.
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno).with_context(|| format!("unmount {root:?}")),
        }
    }
    bail!("unmount {root:?}: more than {STACK_MAX} mounts on top of each other")
}

fn mount_one(root: &Path, wanted: &Mount) -> Result<()> {
    let options = Options::parse(&wanted.options)?;
    let target = target(root, &wanted.target)?;
    let (directory, data) = options.data(&wanted.type_)?;
    if let Some(directory) = &directory {
        std::env::set_current_dir(directory).with_context(|| format!("chdir {directory:?}"))?;
    }
    let mounted = mount(
        Some(wanted.source.as_str()),
        &target,
        Some(wanted.type_.as_str()),
        options.flags,
        Some(data.as_str()),
    )
    .with_context(|| format!("mount({:?}, {:?}, {data:?})", options.flags, target));
    if directory.is_some() {
        std::env::set_current_dir("/").context("chdir /")?;
    }
    mounted?;
    let none = None::<&str>;
    if !options.propagation.is_empty() {
        mount(none, &target, none, options.propagation, none).context("change its propagation")?;
    }
    if options.flags.contains(MsFlags::MS_BIND) && options.flags.intersects(PER_MOUNT) {
        // A bind mount takes its own flags only when it is remounted.
        let flags = options.flags - MsFlags::MS_REC | MsFlags::MS_REMOUNT;
        mount(none, &target, none, flags, none).context("remount with its flags")?;
    }
    Ok(())
}

const PER_MOUNT: MsFlags = MsFlags::MS_RDONLY
    .union(MsFlags::MS_NOSUID)
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

/// Where a mount goes: the root, or what is there at a path in it. That is the image's: no link in it leads outside.
fn target(root: &Path, inner: &str) -> Result<PathBuf> {
    if inner.is_empty() || inner == "/" {
        return Ok(root.to_owned());
    }
    use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
    use std::os::fd::{AsRawFd, IntoRawFd};
    let root = fs::File::open(root).with_context(|| format!("open {root:?}"))?;
    let how = OpenHow::new()
        .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let found = openat2(&root, inner, how).with_context(|| format!("target {inner:?}: openat2"))?;
    // A worker is short-lived: the descriptor ends with it.
    let path = format!("/proc/self/fd/{}", found.as_raw_fd());
    let _ = found.into_raw_fd();
    Ok(path.into())
}

/// The options of one mount.
#[derive(Debug, PartialEq, Eq)]
struct Options {
    flags: MsFlags,
    propagation: MsFlags,
    data: Vec<String>,
}

impl Options {
    fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self {
            flags: MsFlags::empty(),
            propagation: MsFlags::empty(),
            data: Vec::new(),
        };
        for word in words {
            if let Some((flag, set)) = flag(word) {
                options.flags.set(flag, set);
            } else if let Some(propagation) = propagation(word) {
                options.propagation = propagation;
            } else if word.starts_with("X-containerd.") || word == "loop" {
                bail!(
                    "options: {word:?}: is for containerd's mount manager (2.2 or newer), which should have done it"
                );
            } else if word.starts_with("uidmap=") || word.starts_with("gidmap=") {
                bail!("options: {word:?}: mapping the owners of a snapshot is not supported yet");
            } else if word != "defaults" {
                options.data.push(word.clone());
            }
        }
        Ok(options)
    }

    /// The data for mount(2), and the directory it has to be called in.
    fn data(&self, fs_type: &str) -> Result<(Option<PathBuf>, String)> {
        let whole = self.data.join(",");
        if whole.len() < DATA_MAX {
            return Ok((None, whole));
        }
        let compact = (fs_type == "overlay")
            .then(|| self.compact())
            .flatten()
            .unwrap_or((None, whole));
        if compact.1.len() >= 4096 {
            bail!(
                "options: {} bytes: mount(2) takes a page of 4096",
                compact.1.len()
            );
        }
        Ok(compact)
    }

    /// With the lower directories relative to the one that all are in.
    fn compact(&self) -> Option<(Option<PathBuf>, String)> {
        const LOWER: &str = "lowerdir=";
        let at = self.data.iter().position(|word| word.starts_with(LOWER))?;
        let lower: Vec<&str> = self.data.get(at)?.strip_prefix(LOWER)?.split(':').collect();
        let parent = common_parent(&lower)?;
        let prefix = parent.len() + 1;
        let short: Vec<&str> = lower.iter().filter_map(|path| path.get(prefix..)).collect();
        let mut words: Vec<&str> = self.data.iter().map(String::as_str).collect();
        let short = format!("{LOWER}{}", short.join(":"));
        *words.get_mut(at)? = &short;
        Some((Some(parent.into()), words.join(",")))
    }
}

/// The deepest directory that all of these paths are below; none but the root counts.
fn common_parent<'p>(paths: &[&'p str]) -> Option<&'p str> {
    let first = *paths.first()?;
    let ends = first.rmatch_indices('/').map(|(end, _)| end);
    ends.filter(|end| *end > 0).find_map(|end| {
        let parent = first.get(..end)?;
        let below = |path: &&str| {
            path.strip_prefix(parent)
                .is_some_and(|rest| rest.starts_with('/') && rest.len() > 1)
        };
        paths.iter().all(below).then_some(parent)
    })
}

/// A flag of mount(2), and whether the word sets or clears it.
fn flag(word: &str) -> Option<(MsFlags, bool)> {
    use MsFlags as M;
    Some(match word {
        "bind" => (M::MS_BIND, true),
        "rbind" => (M::MS_BIND | M::MS_REC, true),
        "ro" => (M::MS_RDONLY, true),
        "rw" => (M::MS_RDONLY, false),
        "nosuid" => (M::MS_NOSUID, true),
        "suid" => (M::MS_NOSUID, false),
        "nodev" => (M::MS_NODEV, true),
        "dev" => (M::MS_NODEV, false),
        "noexec" => (M::MS_NOEXEC, true),
        "exec" => (M::MS_NOEXEC, false),
        "noatime" => (M::MS_NOATIME, true),
        "atime" => (M::MS_NOATIME, false),
        "nodiratime" => (M::MS_NODIRATIME, true),
        "diratime" => (M::MS_NODIRATIME, false),
        "relatime" => (M::MS_RELATIME, true),
        "norelatime" => (M::MS_RELATIME, false),
        "strictatime" => (M::MS_STRICTATIME, true),
        "nostrictatime" => (M::MS_STRICTATIME, false),
        "sync" => (M::MS_SYNCHRONOUS, true),
        "async" => (M::MS_SYNCHRONOUS, false),
        "dirsync" => (M::MS_DIRSYNC, true),
        "mand" => (M::MS_MANDLOCK, true),
        "nomand" => (M::MS_MANDLOCK, false),
        "remount" => (M::MS_REMOUNT, true),
        _ => return None,
    })
}

fn propagation(word: &str) -> Option<MsFlags> {
    let (recursive, word) = match word {
        "rshared" | "rprivate" | "rslave" | "runbindable" => (MsFlags::MS_REC, word.get(1..)?),
        word => (MsFlags::empty(), word),
    };
    let kind = match word {
        "shared" => MsFlags::MS_SHARED,
        "private" => MsFlags::MS_PRIVATE,
        "slave" => MsFlags::MS_SLAVE,
        "unbindable" => MsFlags::MS_UNBINDABLE,
        _ => return None,
    };
    Some(recursive | kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &[&str]) -> Result<Options> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        Options::parse(&words)
    }

    #[test]
    fn words_are_flags_or_data_of_the_file_system() {
        let options = parse(&["rbind", "ro", "rw", "nodev", "index=off", "rprivate"]).unwrap();
        assert_eq!(
            options.flags,
            MsFlags::MS_BIND | MsFlags::MS_REC | MsFlags::MS_NODEV
        );
        assert_eq!(options.propagation, MsFlags::MS_REC | MsFlags::MS_PRIVATE);
        assert_eq!(options.data, ["index=off"]);
    }

    #[test]
    fn what_another_should_have_done_is_refused_by_name() {
        for word in ["loop", "X-containerd.mkfs.fs=ext4", "uidmap=0:1000:10"] {
            let error = parse(&[word]).unwrap_err().to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_short_list_of_layers_stays_as_it_is() {
        let options = parse(&["lowerdir=/a/1:/a/2"]).unwrap();
        assert_eq!(
            options.data("overlay").unwrap(),
            (None, "lowerdir=/a/1:/a/2".to_owned())
        );
    }

    #[test]
    fn a_list_of_layers_longer_than_a_page_is_made_relative() {
        let root = "/var/lib/containerd/io.containerd.snapshotter.v1.overlayfs/snapshots";
        let layers: Vec<String> = (1..=100).map(|number| format!("{root}/{number}/fs")).collect();
        let lower = format!("lowerdir={}", layers.join(":"));
        let options = parse(&["workdir=/w", "upperdir=/u", &lower]).unwrap();
        let (directory, data) = options.data("overlay").unwrap();
        assert_eq!(directory.unwrap(), Path::new(root));
        assert!(data.starts_with("workdir=/w,upperdir=/u,lowerdir=1/fs:2/fs:"));
        assert!(data.ends_with(":99/fs:100/fs"));
        assert!(data.len() < 4096);
    }

    #[test]
    fn a_parent_that_is_itself_a_layer_is_none() {
        assert_eq!(common_parent(&["/a/b/1", "/a/b/2"]), Some("/a/b"));
        assert_eq!(common_parent(&["/a/b", "/a/b/2"]), Some("/a"));
        assert_eq!(common_parent(&["/a/b", "/c/d"]), None);
    }
}
