//! A pod's volumes on this machine, made and removed as a kubelet would.
//!
//! ```text
//! <data>/<uid>/.rtc-cri-pod            says that the directory is ours to remove
//! <data>/<uid>/volumes/<name>          an emptyDir: a directory or a tmpfs
//! <data>/<uid>/subpaths/<container>/N  a subPath, bound here: what was opened is what is mounted, whatever a container
//!                                      does to the path meanwhile (CVE-2017-1002101)
//! ```

use std::fs;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open, openat};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, fstat, mkdirat};
use rtc_cri::proto::Mount;

use super::image;
use super::manifest::{Container, Pod, Source, Volume, VolumeMount};

/// A directory without it is never removed.
const MARK: &str = ".rtc-cri-pod";

/// Makes the volumes of a pod in its directory, which is there and new.
///
/// # Errors
///
/// What can't be made, or is not what the manifest says.
pub(super) fn make(pod: &Pod, data: &Path) -> Result<()> {
    if let Err(error) = fs::write(data.join(MARK), "") {
        // Without the mark it would stay.
        let _ = fs::remove_file(data.join(MARK));
        let _ = fs::remove_dir(data);
        return Err(error).with_context(|| format!("write to {}", data.display()));
    }
    for volume in &pod.volumes {
        let made = match &volume.source {
            Source::Empty { memory, limit } => empty(pod, &directory(data, volume), *memory, *limit),
            Source::Host { path, kind } => host(Path::new(path), kind),
            Source::Image { .. } => Ok(()),
        };
        made.with_context(|| format!("volume {:?}", volume.name))?;
    }
    Ok(())
}

fn directory(data: &Path, volume: &Volume) -> PathBuf {
    data.join("volumes").join(&volume.name)
}

/// As the kubelet's: for all, or for the pod's group.
fn empty(pod: &Pod, path: &Path, memory: bool, limit: Option<i64>) -> Result<()> {
    fs::create_dir_all(path)?;
    if memory {
        let options = match limit {
            Some(bytes) => format!("mode=777,size={bytes}"),
            None => "mode=777".to_owned(),
        };
        mount(
            Some("tmpfs"),
            path,
            Some("tmpfs"),
            MsFlags::empty(),
            Some(options.as_str()),
        )
        .with_context(|| format!("mount a tmpfs on {}", path.display()))?;
    }
    let mut mode = 0o777;
    if let Some(group) = pod.security.fs_group {
        std::os::unix::fs::chown(path, None, Some(u32::try_from(group)?))?;
        mode |= 0o2000;
    }
    Ok(fs::set_permissions(path, fs::Permissions::from_mode(mode))?)
}

fn host(path: &Path, kind: &str) -> Result<()> {
    match kind {
        "DirectoryOrCreate" => fs::create_dir_all(path).with_context(|| path.display().to_string())?,
        "FileOrCreate" => {
            let file = fs::File::options().append(true).create(true).open(path);
            file.with_context(|| path.display().to_string())?;
        }
        // CRI's servers make a directory where nothing is.
        "" => return Ok(()),
        _ => {}
    }
    let found = fs::metadata(path)
        .with_context(|| path.display().to_string())?
        .file_type();
    let right = match kind {
        "Directory" | "DirectoryOrCreate" => found.is_dir(),
        "File" | "FileOrCreate" => found.is_file(),
        "Socket" => found.is_socket(),
        "CharDevice" => found.is_char_device(),
        _ => found.is_block_device(),
    };
    ensure!(right, "{}: is not what hostPath.type {kind} says", path.display());
    Ok(())
}

/// The mounts of a container.
///
/// # Errors
///
/// A sub path that can't be opened, or leads out of its volume.
pub(super) fn mounts(pod: &Pod, container: &Container, data: &Path) -> Result<Vec<Mount>> {
    let mut mounts = Vec::new();
    for (at, asked) in container.mounts.iter().enumerate() {
        let Some(volume) = pod.volumes.iter().find(|volume| volume.name == asked.volume) else {
            bail!("volume {:?}: is none of the pod's", asked.volume);
        };
        let mut made = Mount {
            container_path: asked.path.clone(),
            readonly: asked.read_only,
            recursive_read_only: asked.recursive_read_only,
            propagation: asked.propagation,
            ..Mount::default()
        };
        let root = match &volume.source {
            Source::Empty { .. } => directory(data, volume),
            Source::Host { path, .. } => path.into(),
            Source::Image { reference, .. } => {
                made.image = Some(image::spec(reference));
                made.image_sub_path.clone_from(&asked.sub_path);
                made.readonly = true;
                mounts.push(made);
                continue;
            }
        };
        let path = if asked.sub_path.is_empty() {
            root
        } else {
            let place = data.join("subpaths").join(&container.name).join(at.to_string());
            bind(&root, asked, &place).with_context(|| {
                format!(
                    "container {:?}: subPath {:?} of volume {:?}",
                    container.name, asked.sub_path, volume.name
                )
            })?;
            place
        };
        made.host_path = path.display().to_string();
        mounts.push(made);
    }
    Ok(mounts)
}

/// Binds what is at a path below a volume to a place of its own.
fn bind(root: &Path, asked: &VolumeMount, place: &Path) -> Result<()> {
    let found = below(root, &asked.sub_path)?;
    let directory = SFlag::from_bits_truncate(fstat(&found)?.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
    if directory {
        fs::create_dir_all(place)?;
    } else {
        place.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(place, "")?;
    }
    let source = format!("/proc/self/fd/{}", found.as_raw_fd());
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(source.as_str()), place, None::<&str>, flags, None::<&str>).context("bind it")
}

/// Opens what is at a path below a directory, through no symbolic link; directories that are missing are made.
fn below(root: &Path, path: &str) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let mut at =
        open(root, flags | OFlag::O_DIRECTORY, Mode::empty()).with_context(|| root.display().to_string())?;
    for name in path.split('/').filter(|name| !matches!(*name, "" | ".")) {
        let next = openat(&at, name, flags | OFlag::O_NOFOLLOW, Mode::empty());
        let next = match next {
            Err(Errno::ENOENT) => {
                mkdirat(&at, name, Mode::from_bits_truncate(0o755))?;
                openat(&at, name, flags | OFlag::O_NOFOLLOW, Mode::empty())?
            }
            next => next.with_context(|| format!("{name:?}"))?,
        };
        let kind = SFlag::from_bits_truncate(fstat(&next)?.st_mode) & SFlag::S_IFMT;
        ensure!(
            kind != SFlag::S_IFLNK,
            "{name:?}: is a symbolic link, which may lead anywhere"
        );
        at = next;
    }
    Ok(at)
}

/// Removes a pod's directory with all that is mounted in it.
///
/// # Errors
///
/// What can't be unmounted or removed; it is no directory of a pod.
pub(super) fn remove(data: &Path) -> Result<()> {
    if !data.exists() {
        return Ok(());
    }
    ensure!(
        data.join(MARK).is_file(),
        "{}: is not removed: it has no {MARK}, so it is not of rtc-cri pod run",
        data.display()
    );
    for path in mounted_below(data)?.iter().rev() {
        umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW)
            .with_context(|| format!("unmount {}", path.display()))?;
    }
    // Else what is mounted would be removed.
    if let [path, ..] = &mounted_below(data)?[..] {
        bail!("{}: is still mounted", path.display());
    }
    remove_unmounted(data).with_context(|| format!("remove {}", data.display()))
}

/// The mark last: what fails can be tried again.
fn remove_unmounted(data: &Path) -> std::io::Result<()> {
    for entry in fs::read_dir(data)? {
        let entry = entry?;
        if entry.file_name() == MARK {
            continue;
        }
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    fs::remove_file(data.join(MARK))?;
    fs::remove_dir(data)
}

fn mounted_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let directory = directory.canonicalize()?;
    let text = fs::read_to_string("/proc/self/mountinfo").context("/proc/self/mountinfo")?;
    let points = text
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(unescape);
    Ok(points.filter(|point| point.starts_with(&directory)).collect())
}

/// `\040` and the like (proc_pid_mountinfo(5)).
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let octal = (*first == b'\\')
            .then(|| std::str::from_utf8(after.get(..3)?).ok())
            .flatten();
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    use std::os::unix::ffi::OsStringExt as _;
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sub_path_leads_nowhere_else() {
        let root = std::env::temp_dir().join(format!("rtc-cri-{}-subpath", std::process::id()));
        fs::create_dir_all(root.join("a")).unwrap();
        std::os::unix::fs::symlink("/etc", root.join("a/link")).unwrap();
        below(&root, "a/new/one").unwrap();
        assert!(root.join("a/new/one").is_dir());
        let error = below(&root, "a/link/passwd").unwrap_err().to_string();
        assert!(error.contains("\"link\": is a symbolic link"), "{error}");
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn a_directory_that_is_not_ours_is_not_removed() {
        let root = std::env::temp_dir().join(format!("rtc-cri-{}-data", std::process::id()));
        fs::create_dir_all(&root).unwrap();
        let error = remove(&root).unwrap_err().to_string();
        assert!(error.contains("is not removed"), "{error}");
        fs::write(root.join(MARK), "").unwrap();
        fs::create_dir_all(root.join("volumes/v")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        remove(&root).unwrap();
        assert!(!root.exists());
        remove(&root).unwrap();
    }

    #[test]
    fn a_mount_point_is_read_with_its_blanks() {
        assert_eq!(unescape(r"/a\040b\134c\x"), Path::new(r"/a b\c\x"));
    }
}
