//! Paths inside a container's root filesystem.
//!
//! Everything there is hostile: any component may be a symbolic link out of the root, may become one at any moment
//! (another container can share the volume), or may be missing. So a path is resolved by the kernel, inside the root
//! (`openat2` with `RESOLVE_IN_ROOT`), once; what it led to is then held by a descriptor, and directories and files
//! are made relative to the descriptor of their parent (CVE-2021-30465, CVE-2024-45310).

use std::collections::VecDeque;
use std::ffi::{CStr, CString, OsStr};
use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::fcntl::readlinkat;
use nix::sys::stat::{Mode, SFlag, mkdirat, mknodat};

use crate::sys::open::{
    RESOLVE_BENEATH, RESOLVE_IN_ROOT, RESOLVE_NO_MAGICLINKS, RESOLVE_NO_SYMLINKS, openat2,
};
use crate::sys::{Error, Named};

/// Mode of the directories made for mounts and devices (the umask is 0 while the root filesystem is made).
const DIRECTORY_MODE: Mode = Mode::from_bits_truncate(0o755);
/// Mode of the files made for mounts of files.
const FILE_MODE: Mode = Mode::from_bits_truncate(0o755);
/// How many dangling symbolic links one path may lead through.
const MAX_LINKS: u32 = 40;

/// A path inside the root, cleaned: no empty, `.` or `..` components, and relative to the root.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct InsidePath(CString);

impl InsidePath {
    /// Cleans the path as its text says (`..` takes back the component before it, and nothing above the root).
    pub(crate) fn new(path: &Path) -> Result<InsidePath> {
        let mut components: Vec<&[u8]> = Vec::new();
        for component in path.components() {
            match component {
                Component::Normal(name) => components.push(name.as_bytes()),
                Component::ParentDir => drop(components.pop()),
                Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
            }
        }
        let text = CString::new(components.join(&b'/'))
            .with_context(|| format!("{}: a path can't contain a NUL byte", path.display()))?;
        Ok(InsidePath(text))
    }

    /// Relative to the root, without a leading slash; empty for the root itself.
    pub(crate) fn as_c_str(&self) -> &CStr {
        &self.0
    }

    /// Whether this is the root itself.
    pub(crate) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether this is the given absolute path.
    pub(crate) fn is(&self, absolute: &str) -> bool {
        absolute.as_bytes().strip_prefix(b"/") == Some(self.0.to_bytes())
    }

    /// Whether this lies below the directory (given relative to the root).
    pub(crate) fn is_below(&self, directory: &[u8]) -> bool {
        self.0
            .to_bytes()
            .strip_prefix(directory)
            .is_some_and(|rest| rest.starts_with(b"/"))
    }

    /// The directory and the name in it.
    pub(crate) fn split(&self) -> (&[u8], &[u8]) {
        let bytes = self.0.to_bytes();
        match bytes.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&bytes[..slash], &bytes[slash + 1..]),
            None => (b"", bytes),
        }
    }
}

impl fmt::Display for InsidePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}", self.0.to_string_lossy())
    }
}

impl fmt::Debug for InsidePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

/// How symbolic links in a path are taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Links {
    /// Followed, inside the root.
    Follow,
    /// Followed, except where the last component is one.
    NotLast,
    /// Refused: the path must lead through ordinary directories.
    Refuse,
}

/// What is made where a path leads to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Make {
    /// A directory.
    Directory,
    /// An empty file.
    File,
}

/// The root of a container's filesystem, and the only way to reach what is in it.
#[derive(Debug)]
pub(crate) struct Root(OwnedFd);

impl Root {
    /// `fd` is the root directory.
    pub(crate) fn new(fd: OwnedFd) -> Root {
        Root(fd)
    }

    /// The root of this process, which is inside of the container: nothing it opens is outside, also not by a descriptor
    /// of the host's that it still holds and that `/proc/self/fd` shows.
    pub(crate) fn own() -> crate::sys::Result<Root> {
        let flags = libc::O_PATH | libc::O_DIRECTORY;
        openat2(crate::sys::mount::cwd(), c"/", flags, 0)
            .map(Root)
            .call(|| "openat2(\"/\")".into())
    }

    /// Opens a file to read or write it. `flags` make none.
    pub(crate) fn open_file(&self, path: &InsidePath, flags: libc::c_int, links: Links) -> nix::Result<File> {
        let (more, resolve) = links.flags();
        let resolve = resolve | RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS;
        openat2(&self.0, path.as_c_str(), flags | more, resolve).map(File::from)
    }

    /// Makes a directory with those above it, as mkdir(1) with `-p`. What else is there, or in the way, stays as it is.
    ///
    /// # Errors
    ///
    /// As mkdirat(2).
    pub(crate) fn make_directories(&self, path: &Path) -> Result<()> {
        // First as the kernel reads it: what its `..` lead to need not be what the text says.
        match self.open_bytes(&c_string(path)?, 0, Links::Follow) {
            Err(Errno::ENOENT) => {}
            _ => return Ok(()),
        }
        self.make(&InsidePath::new(path)?, Make::Directory, Links::Follow)?;
        Ok(())
    }

    /// Opens what the path leads to, as `O_PATH` and with `flags`.
    pub(crate) fn open(&self, path: &InsidePath, flags: libc::c_int, links: Links) -> nix::Result<OwnedFd> {
        self.open_bytes(path.as_c_str(), flags, links)
    }

    fn open_bytes(&self, path: &CStr, flags: libc::c_int, links: Links) -> nix::Result<OwnedFd> {
        let (more, resolve) = links.flags();
        let path = if path.is_empty() { c"." } else { path };
        openat2(
            &self.0,
            path,
            flags | more | libc::O_PATH,
            resolve | RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS,
        )
    }

    /// Opens what the path leads to; where that is nothing, makes it and the directories before it.
    /// Says whether it was made.
    pub(crate) fn open_or_make(
        &self,
        path: &InsidePath,
        make: Make,
        links: Links,
    ) -> Result<(OwnedFd, bool)> {
        match self.open(path, 0, links) {
            Ok(fd) => Ok((fd, false)),
            Err(Errno::ENOENT) => Ok((self.make(path, make, links)?, true)),
            Err(errno) => Err(open_error(path, errno).into()),
        }
    }

    /// Opens the directory that holds the last component, made where missing. Gives that component's name too.
    pub(crate) fn parent_of(&self, path: &InsidePath, links: Links) -> Result<(OwnedFd, CString)> {
        let (directory, name) = path.split();
        let directory = InsidePath(CString::new(directory)?);
        let name = CString::new(name)?;
        let (fd, _) = self.open_or_make(&directory, Make::Directory, links)?;
        Ok((fd, name))
    }

    /// Makes what the path leads to. Symbolic links to something missing are followed, inside the root.
    fn make(&self, path: &InsidePath, make: Make, links: Links) -> Result<OwnedFd> {
        let (parent, last) = path.split();
        let mut left_links = MAX_LINKS;
        let mut done = parent.to_vec();
        let mut rest = VecDeque::from([last.to_vec()]);
        // Usually only the last component is missing. Otherwise start from the top.
        let mut directory =
            match self.open_bytes(&CString::new(parent)?, libc::O_DIRECTORY, links.for_parents()) {
                Ok(fd) => fd,
                Err(Errno::ENOENT) => {
                    rest = components(path.as_c_str().to_bytes());
                    done.clear();
                    self.top().with_context(|| format!("make {path}"))?
                }
                Err(errno) => return Err(open_error(path, errno).into()),
            };
        if rest.len() == 1
            && let Some(fd) = make_new(&directory, &CString::new(last)?, make)
        {
            return Ok(fd);
        }
        while let Some(name) = rest.pop_front() {
            let last = rest.is_empty();
            let mut candidate = done.clone();
            if !candidate.is_empty() {
                candidate.push(b'/');
            }
            candidate.extend_from_slice(&name);
            let how = if last { links } else { links.for_parents() };
            match self.open_bytes(&CString::new(candidate.clone())?, 0, how) {
                Ok(fd) => {
                    directory = fd;
                    done = candidate;
                    continue;
                }
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(open_error(path, errno).into()),
            }
            let name = CString::new(name)?;
            match readlinkat(&directory, name.as_c_str()) {
                Ok(target) if links != Links::Refuse => {
                    if left_links == 0 {
                        bail!("make {path}: {}", Errno::ELOOP.desc());
                    }
                    left_links -= 1;
                    if Path::new(&target).is_absolute() {
                        done.clear();
                        directory = self.top().with_context(|| format!("make {path}"))?;
                    }
                    for component in components(target.as_bytes()).into_iter().rev() {
                        rest.push_front(component);
                    }
                }
                _ => {
                    let kind = if last { make } else { Make::Directory };
                    directory = make_in(&directory, &name, kind).with_context(|| format!("make {path}"))?;
                    done = candidate;
                }
            }
        }
        Ok(directory)
    }

    fn top(&self) -> crate::sys::Result<OwnedFd> {
        openat2(&self.0, c".", libc::O_PATH, RESOLVE_IN_ROOT).call(|| "openat2(\"/\")".into())
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl Links {
    /// As flags of open(2) and `RESOLVE_*` bits.
    fn flags(self) -> (libc::c_int, u64) {
        match self {
            Links::Follow => (0, 0),
            Links::NotLast => (libc::O_NOFOLLOW, 0),
            Links::Refuse => (0, RESOLVE_NO_SYMLINKS),
        }
    }

    /// How the components before the last are taken.
    fn for_parents(self) -> Links {
        if self == Links::NotLast {
            Links::Follow
        } else {
            self
        }
    }
}

/// Makes `name` in a directory and opens it as `O_PATH`, if that is all there is to it.
fn make_new(directory: &OwnedFd, name: &CStr, make: Make) -> Option<OwnedFd> {
    match make {
        Make::Directory => mkdirat(directory, name, DIRECTORY_MODE),
        Make::File => mknodat(directory, name, SFlag::S_IFREG, FILE_MODE, 0),
    }
    .and_then(|()| open_made(directory, name, make))
    .ok()
}

/// Opens what was just made, and nothing that a symbolic link leads to.
fn open_made(directory: &OwnedFd, name: &CStr, make: Make) -> nix::Result<OwnedFd> {
    let flags = if make == Make::Directory {
        libc::O_DIRECTORY
    } else {
        0
    };
    openat2(
        directory,
        name,
        libc::O_PATH | flags,
        RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS,
    )
}

/// Makes `name` in a directory and opens it as `O_PATH`. What another process made there meanwhile is taken if it is
/// of the right kind, and never a symbolic link.
fn make_in(directory: &OwnedFd, name: &CStr, make: Make) -> crate::sys::Result<OwnedFd> {
    let text = name.to_string_lossy();
    let (made, call) = match make {
        Make::Directory => (mkdirat(directory, name, DIRECTORY_MODE), "mkdirat"),
        Make::File => (mknodat(directory, name, SFlag::S_IFREG, FILE_MODE, 0), "mknodat"),
    };
    match made {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(errno) => return Err(errno).call(|| format!("{call}({text:?})")),
    }
    open_made(directory, name, make).call(|| format!("openat2({text:?})"))
}

/// The components of a path, without empty ones and `.`; `..` is left to the kernel, which stops at the root.
fn components(path: &[u8]) -> VecDeque<Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .filter(|component| !component.is_empty() && *component != b".")
        .map(<[u8]>::to_vec)
        .collect()
}

/// The error of a look-up inside the root.
pub(crate) fn open_error(path: &InsidePath, errno: Errno) -> Error {
    let needs = if errno == Errno::ENOSYS {
        " (needs Linux 5.6)"
    } else {
        ""
    };
    Error {
        call: format!("openat2(\"{path}\", IN_ROOT){needs}"),
        errno,
    }
}

/// A C string of an operating system string.
pub(crate) fn c_string(text: impl AsRef<OsStr>) -> Result<CString> {
    let text = text.as_ref();
    CString::new(text.as_bytes()).with_context(|| format!("{}: contains a NUL byte", text.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::PathBuf;

    /// A directory with an `outside` and a `root`, removed at the end.
    struct Place(PathBuf);

    impl Place {
        fn new(name: &str) -> Place {
            let path = std::env::temp_dir().join(format!("rtc-path-{}-{name}", std::process::id()));
            fs::create_dir_all(path.join("root")).unwrap();
            fs::create_dir_all(path.join("outside")).unwrap();
            Place(path)
        }

        fn root(&self) -> Root {
            Root::new(File::open(self.0.join("root")).unwrap().into())
        }

        fn make(&self, path: &str, make: Make) -> Result<bool> {
            let path = InsidePath::new(Path::new(path))?;
            Ok(self.root().open_or_make(&path, make, Links::Follow)?.1)
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.0));
        }
    }

    #[test]
    fn paths_are_cleaned_and_cannot_climb() {
        let clean = |path: &str| InsidePath::new(Path::new(path)).unwrap().to_string();
        assert_eq!(clean("///dev//shm/"), "/dev/shm");
        assert_eq!(clean("/a/./b/../c"), "/a/c");
        assert_eq!(clean("../../etc"), "/etc");
        assert!(InsidePath::new(Path::new("/..")).unwrap().is_root());
        assert!(InsidePath::new(Path::new("/proc/")).unwrap().is("/proc"));
        assert!(InsidePath::new(Path::new("/a\0b")).is_err());
    }

    #[test]
    fn missing_directories_and_files_are_made() {
        let place = Place::new("make");
        assert!(place.make("/a/b/c", Make::Directory).unwrap());
        assert!(!place.make("/a/b/c", Make::Directory).unwrap());
        assert!(place.make("/a/f", Make::File).unwrap());
        assert!(place.0.join("root/a/b/c").is_dir());
        assert!(place.0.join("root/a/f").is_file());
    }

    #[test]
    fn absolute_links_lead_inside_the_root() {
        let place = Place::new("absolute");
        fs::create_dir(place.0.join("root/real")).unwrap();
        symlink("/real", place.0.join("root/link")).unwrap();
        place.make("/link/x", Make::Directory).unwrap();
        assert!(place.0.join("root/real/x").is_dir());
    }

    #[test]
    fn dangling_links_are_made_inside_the_root() {
        let place = Place::new("dangling");
        symlink("/var/run", place.0.join("root/run")).unwrap();
        symlink("../../../../up", place.0.join("root/climb")).unwrap();
        place.make("/run/x", Make::File).unwrap();
        place.make("/climb/y", Make::Directory).unwrap();
        assert!(place.0.join("root/var/run/x").is_file());
        assert!(place.0.join("root/up/y").is_dir());
    }

    #[test]
    fn cve_2024_45310_directories_are_never_made_outside_the_root() {
        let place = Place::new("cve-2024-45310");
        symlink(place.0.join("outside"), place.0.join("root/out")).unwrap();
        place.make("/out/a/b", Make::Directory).unwrap();
        assert_eq!(fs::read_dir(place.0.join("outside")).unwrap().count(), 0);
    }

    #[test]
    fn cve_2024_21626_no_directory_is_made_through_a_descriptor_of_the_hosts() {
        let place = Place::new("magic");
        let host = File::open(place.0.join("outside")).unwrap();
        let proc = Root::new(File::open("/").unwrap().into());
        for base in ["/proc/self/fd", "/proc/thread-self/fd"] {
            let path = format!("{base}/{}/made", host.as_raw_fd());
            drop(proc.make_directories(Path::new(&path)));
            assert_eq!(fs::read_dir(place.0.join("outside")).unwrap().count(), 0);
        }
    }

    #[test]
    fn directories_are_made_where_the_kernel_would_look_for_them() {
        let place = Place::new("directories");
        symlink("real/deep", place.0.join("root/link")).unwrap();
        fs::create_dir_all(place.0.join("root/real/deep")).unwrap();
        let make = |path| place.root().make_directories(Path::new(path));
        make("/new/../other/x").unwrap();
        assert!(place.0.join("root/other/x").is_dir());
        // Is there, by the link's parent.
        make("/link/../deep").unwrap();
        assert!(!place.0.join("root/deep").exists());
        fs::write(place.0.join("root/file"), "").unwrap();
        make("/file").unwrap();
        make("/file/x").unwrap();
    }

    #[test]
    fn a_loop_of_links_is_an_error() {
        let place = Place::new("loop");
        symlink("b", place.0.join("root/a")).unwrap();
        symlink("a", place.0.join("root/b")).unwrap();
        assert!(place.make("/a/x", Make::Directory).is_err());
    }

    #[test]
    fn links_are_refused_where_asked() {
        let place = Place::new("refuse");
        symlink("/etc", place.0.join("root/proc")).unwrap();
        let path = InsidePath::new(Path::new("/proc")).unwrap();
        let result = place.root().open(&path, 0, Links::Refuse);
        assert_eq!(result.unwrap_err(), Errno::ELOOP);
        assert!(
            place
                .root()
                .open_or_make(&path, Make::Directory, Links::Refuse)
                .is_err()
        );
        assert!(!place.0.join("root/etc").exists());
    }

    #[test]
    fn directories_made_below_a_setgid_directory_inherit_its_group() {
        let place = Place::new("setgid");
        let parent = place.0.join("root/shared");
        fs::create_dir(&parent).unwrap();
        fs::set_permissions(&parent, fs::Permissions::from_mode(0o2775)).unwrap();
        place.make("/shared/x/y", Make::Directory).unwrap();
        let meta = fs::metadata(parent.join("x/y")).unwrap();
        assert_eq!(meta.mode() & 0o7777, 0o2755);
    }
}
