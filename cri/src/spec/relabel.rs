//! Puts a label on a volume and all that is in it, while containers that have the volume already may move things about in it.
//!
//! ```text
//! volume ── opened through no link ──> directories, each opened below the volume's descriptor, through no link
//!                                      └ entries: opened by name in their directory, not followed, only to be labelled
//! ```
//!
//! No path is looked up twice and no link is followed: what gets the label is in the volume, whatever is swapped meanwhile.
//! Two descriptors are enough, however deep it goes.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, fstat};
use rtc_runtime::sys::open::{RESOLVE_BENEATH, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2};
use rtc_runtime::sys::xattr;

/// The attribute that SELinux keeps a file's label in.
pub(super) const SELINUX: &CStr = c"security.selinux";

/// The most bytes of paths that wait for their turn.
const WAITING: usize = 64 << 20;

/// What is the node's, and would take it down with it: as the field's libraries refuse it.
const NODES_OWN: [&str; 22] = [
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/media", "/opt", "/proc", "/root",
    "/run", "/sbin", "/srv", "/sys", "/tmp", "/usr", "/usr/lib", "/var", "/var/lib", "/var/log",
];

/// Puts `label` on what is at a path and on all below it, links themselves too, on to other file systems that are mounted
/// there. What has no labels (a file system without them) is left as it is. The path is canonical.
///
/// # Errors
///
/// A file that can't be labelled; a path that leads through a link now; one of the node's own directories.
pub(super) fn relabel(path: &Path, attribute: &CStr, label: &str) -> Result<()> {
    ensure!(
        !NODES_OWN.iter().any(|own| path == Path::new(own)),
        "label {}: is the node's own directory: give the volume a directory of its own, or no selinux_relabel",
        path.display()
    );
    let mut value = label.as_bytes().to_vec();
    value.push(0);
    let walk = Walk { attribute, value };
    walk.volume(path)
        .with_context(|| format!("label {}", path.display()))
}

struct Walk<'a> {
    attribute: &'a CStr,
    value: Vec<u8>,
}

impl Walk<'_> {
    fn volume(&self, path: &Path) -> Result<()> {
        let path = CString::new(path.as_os_str().as_bytes())?;
        let resolve = RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
        let root = openat2(
            rtc_runtime::sys::mount::cwd(),
            &path,
            libc::O_PATH | libc::O_NOFOLLOW,
            resolve,
        )?;
        if !self.one(&root)? {
            return Ok(());
        }
        let mut waiting = vec![Vec::new()];
        let mut bytes = 0;
        while let Some(path) = waiting.pop() {
            bytes -= path.len();
            let Some(directory) = directory(&root, &path)? else {
                continue;
            };
            self.entries(directory, &path, &mut |below| {
                bytes += below.len();
                waiting.push(below);
                ensure!(bytes <= WAITING, "has too many directories");
                Ok(())
            })
            .with_context(|| String::from_utf8_lossy(&path).into_owned())?;
        }
        Ok(())
    }

    /// All that is in a directory; `later` gets the directories.
    fn entries(
        &self,
        directory: OwnedFd,
        path: &[u8],
        later: &mut dyn FnMut(Vec<u8>) -> Result<()>,
    ) -> Result<()> {
        let mut entries = Dir::from_fd(directory)?;
        let parent = entries.as_fd().try_clone_to_owned()?;
        for entry in entries.iter() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let file = match openat(&parent, name, flags, Mode::empty()) {
                Ok(file) => file,
                // It went away.
                Err(Errno::ENOENT) => continue,
                Err(errno) => return Err(errno).with_context(|| name.to_string_lossy().into_owned()),
            };
            if self
                .one(&file)
                .with_context(|| name.to_string_lossy().into_owned())?
            {
                let separator: &[u8] = if path.is_empty() { b"" } else { b"/" };
                later([path, separator, name.to_bytes()].concat())?;
            }
        }
        Ok(())
    }

    /// What one descriptor is of. Whether there may be something to label in it.
    fn one(&self, file: &OwnedFd) -> nix::Result<bool> {
        match xattr::set_by_path_descriptor(file, self.attribute, &self.value) {
            Ok(()) => {}
            Err(Errno::ENOTSUP) => return Ok(false),
            Err(errno) => return Err(errno),
        }
        let kind = SFlag::from_bits_truncate(fstat(file)?.st_mode) & SFlag::S_IFMT;
        Ok(kind == SFlag::S_IFDIR)
    }
}

/// A directory below the volume; `None`: it is there no more.
fn directory(root: &OwnedFd, path: &[u8]) -> Result<Option<OwnedFd>> {
    let name = CString::new(if path.is_empty() { b"." } else { path })?;
    let flags = libc::O_RDONLY | libc::O_DIRECTORY | libc::O_NOFOLLOW;
    let resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
    match openat2(root, &name, flags, resolve) {
        Ok(directory) => Ok(Some(directory)),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
        Err(errno) => Err(errno).with_context(|| String::from_utf8_lossy(path).into_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// One that root may put on links, too.
    const ATTRIBUTE: &CStr = c"trusted.rtc";

    struct Volume(PathBuf);

    impl Volume {
        /// `None`: not root's, or its file system has no attributes.
        fn new(name: &str) -> Option<Self> {
            let path = std::env::temp_dir().join(format!("rtc-relabel-{}-{name}", std::process::id()));
            fs::create_dir_all(path.join("vol")).unwrap();
            fs::create_dir_all(path.join("host/etc")).unwrap();
            fs::write(path.join("host/etc/shadow"), "").unwrap();
            let volume = Self(path.canonicalize().unwrap());
            let file = fs::File::open(&volume.0).unwrap();
            xattr::set(&file, ATTRIBUTE, b"x").ok().map(|()| volume)
        }

        fn label(&self, path: &str) -> Option<Vec<u8>> {
            xattr::get(fs::File::open(self.0.join(path)).unwrap(), ATTRIBUTE).unwrap()
        }
    }

    impl Drop for Volume {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn everything_in_a_volume_gets_the_label_and_nothing_that_links_lead_to() {
        let Some(volume) = Volume::new("all") else { return };
        let deep: PathBuf = std::iter::repeat_n("d", 300).collect();
        fs::create_dir_all(volume.0.join("vol").join(&deep)).unwrap();
        fs::write(volume.0.join("vol").join(&deep).join("file"), "").unwrap();
        symlink(volume.0.join("host/etc"), volume.0.join("vol/link")).unwrap();
        symlink(volume.0.join("host/etc/shadow"), volume.0.join("vol/shadow")).unwrap();
        nix::unistd::mkfifo(&volume.0.join("vol/fifo"), Mode::S_IRUSR).unwrap();
        relabel(&volume.0.join("vol"), ATTRIBUTE, "l").unwrap();
        let deepest = format!("vol/{}/file", deep.display());
        for labelled in ["vol", "vol/d", &deepest] {
            assert_eq!(volume.label(labelled).as_deref(), Some(&b"l\0"[..]), "{labelled}");
        }
        for other in ["host", "host/etc", "host/etc/shadow"] {
            assert_eq!(volume.label(other), None, "{other}");
        }
    }

    #[test]
    fn a_directory_that_is_swapped_for_a_link_all_the_time_leads_nowhere() {
        let Some(volume) = Volume::new("swap") else { return };
        fs::create_dir(volume.0.join("vol/x")).unwrap();
        symlink(volume.0.join("host/etc"), volume.0.join("vol/y")).unwrap();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let parent = fs::File::open(volume.0.join("vol")).unwrap();
                while !over.load(Ordering::Relaxed) {
                    let exchange = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
                    nix::fcntl::renameat2(&parent, "x", &parent, "y", exchange).unwrap();
                }
            });
            for _ in 0..2000 {
                relabel(&volume.0.join("vol"), ATTRIBUTE, "l").unwrap();
            }
            over.store(true, Ordering::Relaxed);
        });
        assert_eq!(volume.label("host/etc"), None);
        assert_eq!(volume.label("host/etc/shadow"), None);
    }

    #[test]
    fn a_volume_whose_path_became_a_link_and_the_nodes_own_are_refused() {
        let Some(volume) = Volume::new("link") else { return };
        symlink(volume.0.join("host"), volume.0.join("was")).unwrap();
        assert!(relabel(&volume.0.join("was/etc"), ATTRIBUTE, "l").is_err());
        assert_eq!(volume.label("host/etc"), None);
        let error = relabel(Path::new("/var/lib"), ATTRIBUTE, "l").unwrap_err();
        assert!(error.to_string().contains("/var/lib"), "{error}");
    }
}
