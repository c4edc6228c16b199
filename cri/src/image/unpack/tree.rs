//! Puts entries into a layer's directory, in whatever order they come.
//!
//! Names are the image's. Each component is looked up for itself and never followed by the kernel: a symbolic link is
//! resolved by hand, beneath the directory. (The process can't leave the directory anyway: `confine.rs`.)
//!
//! What is as it is only together with the layers below is remembered for whoever knows them (`Summary`): directories that no
//! entry names, hard links to files that are not here, and marks that need a privilege which this process has not.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::fd::OwnedFd;

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, futimens, makedev, mkdirat, mknodat,
    utimensat,
};
use nix::sys::time::{TimeSpec, TimeValLike as _};
use nix::unistd::{Gid, Uid, fchown, fchownat, linkat, symlinkat};
use rtc_runtime::sys::xattr;

use super::room::Room;
use super::tar::{Entry, Kind, Reader};
use super::{Limits, Summary};
use crate::image::removal;

const DIRECTORY: OFlag = OFlag::O_RDONLY
    .union(OFlag::O_DIRECTORY)
    .union(OFlag::O_NOFOLLOW)
    .union(OFlag::O_CLOEXEC);

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";
/// Of aufs, for itself.
const AUFS: &[u8] = b".wh..wh.";

/// So many symbolic links are followed in one name, as by the kernel.
const LINKS_MAX: usize = 40;
/// The most that may be remembered for later, in bytes.
const REMEMBERED_MAX: usize = 16 << 20;

/// A directory of the layer, and where it is: names joined by `/`.
struct Place {
    directory: OwnedFd,
    path: Vec<u8>,
}

/// A layer's directory that is being filled.
pub(super) struct Tree {
    root: OwnedFd,
    room: Room,
    /// Where the last entry was put.
    last: Option<Place>,
    /// The present entry may have changed what is on the way there.
    moved: bool,
    implicit: HashSet<Vec<u8>>,
    opaque: HashSet<Vec<u8>>,
    /// Times of directories, which change as something is put into them; and what their new files inherit.
    late: HashMap<Vec<u8>, Late>,
    links: Vec<(Vec<u8>, Vec<u8>)>,
    remembered: usize,
}

struct Late {
    mtime: (i64, u32),
    default_acl: Option<Vec<u8>>,
}

impl Tree {
    pub(super) fn new(root: OwnedFd, limits: Limits) -> Self {
        Self {
            root,
            room: Room::new(limits),
            last: None,
            moved: false,
            implicit: HashSet::new(),
            opaque: HashSet::new(),
            late: HashMap::new(),
            links: Vec::new(),
            remembered: 0,
        }
    }

    /// Puts an entry where it belongs.
    pub(super) fn put(&mut self, entry: &Entry, reader: &mut Reader<'_>) -> Result<()> {
        self.room.take_inode(&self.root)?;
        let mut names = clean(&entry.name)?;
        let Some(name) = names.pop() else {
            ensure!(
                entry.kind == Kind::Directory,
                "the root of a layer must be a directory"
            );
            let root = openat(&self.root, ".", DIRECTORY, Mode::empty())?;
            return self.describe_directory(&root, Vec::new(), entry);
        };
        let place = self.place(&names)?;
        self.moved = false;
        let result = match name.strip_prefix(WHITEOUT) {
            Some(_) if name == OPAQUE => self.remember_opaque(place.path.clone()),
            Some(_) if name.starts_with(AUFS) => Ok(()),
            Some(b"" | b"." | b"..") => bail!("a whiteout of nothing"),
            Some(hidden) => self.whiteout(&place, hidden),
            None => self.put_at(&place, name, entry, reader),
        };
        self.last = (!self.moved).then_some(place);
        result
    }

    fn put_at(&mut self, place: &Place, name: &[u8], entry: &Entry, reader: &mut Reader<'_>) -> Result<()> {
        let mode = Mode::from_bits_truncate(entry.mode);
        match entry.kind {
            Kind::Directory => return self.directory(place, name, entry),
            Kind::File => return self.file(place, name, entry, reader),
            Kind::HardLink => return self.link(place, name, &entry.target),
            Kind::Symlink => {
                self.create(place, name, || {
                    symlinkat(&entry.target[..], &place.directory, name)
                })?;
            }
            Kind::Fifo => self.create(place, name, || {
                mknodat(&place.directory, name, SFlag::S_IFIFO, mode, 0)
            })?,
            Kind::CharacterDevice | Kind::BlockDevice => {
                let kind = if entry.kind == Kind::BlockDevice {
                    SFlag::S_IFBLK
                } else {
                    SFlag::S_IFCHR
                };
                let device = makedev(entry.major.into(), entry.minor.into());
                self.create(place, name, || {
                    mknodat(&place.directory, name, kind, mode, device)
                })?;
            }
        }
        let (uid, gid) = owner(entry);
        fchownat(&place.directory, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW).context("chown")?;
        if entry.kind != Kind::Symlink {
            // Just made, and no link.
            fchmodat(&place.directory, name, mode, FchmodatFlags::FollowSymlink).context("chmod")?;
        }
        let time = time(entry.mtime);
        utimensat(
            &place.directory,
            name,
            &time,
            &time,
            UtimensatFlags::NoFollowSymlink,
        )
        .context("utimensat")
    }

    /// Makes something that is no directory; what has the name goes.
    fn create(&mut self, place: &Place, name: &[u8], make: impl Fn() -> nix::Result<()>) -> Result<()> {
        match make() {
            Err(Errno::EEXIST) => {
                self.remove(place, name)?;
                make().context("create")
            }
            result => result.context("create"),
        }
    }

    fn remove(&mut self, place: &Place, name: &[u8]) -> Result<()> {
        let stat = removal::stat(&place.directory, name).context("stat")?;
        if stat.is_some_and(|stat| removal::is_directory(&stat)) {
            self.forget();
        }
        removal::remove_at(&place.directory, name).context("remove what it replaces")
    }

    /// The directory of the last entry may be another now.
    fn forget(&mut self) {
        self.moved = true;
        self.last = None;
    }

    fn directory(&mut self, place: &Place, name: &[u8], entry: &Entry) -> Result<()> {
        let path = join(&place.path, name);
        match mkdirat(&place.directory, name, Mode::S_IRWXU) {
            Ok(()) => {}
            Err(Errno::EEXIST) => self.directory_over(place, name, &path)?,
            Err(errno) => return Err(errno).context("mkdir"),
        }
        let directory = openat(&place.directory, name, DIRECTORY, Mode::empty()).context("open")?;
        self.implicit.remove(&path);
        self.describe_directory(&directory, path, entry)
    }

    /// A directory where something is: directories are merged, anything else goes, and hides what is below it.
    fn directory_over(&mut self, place: &Place, name: &[u8], path: &[u8]) -> Result<()> {
        let stat = removal::stat(&place.directory, name).context("stat")?;
        if stat.is_some_and(|stat| removal::is_directory(&stat)) {
            return Ok(());
        }
        self.remove(place, name)?;
        mkdirat(&place.directory, name, Mode::S_IRWXU).context("mkdir")?;
        self.remember_opaque(path.to_vec())
    }

    fn describe_directory(&mut self, directory: &OwnedFd, path: Vec<u8>, entry: &Entry) -> Result<()> {
        let (uid, gid) = owner(entry);
        fchown(directory, uid, gid).context("chown")?;
        fchmod(directory, Mode::from_bits_truncate(entry.mode)).context("chmod")?;
        let default_acl = set_attributes(directory, entry)?;
        self.remember(path.len())?;
        let late = Late {
            mtime: entry.mtime,
            default_acl,
        };
        self.late.insert(path, late);
        Ok(())
    }

    fn file(&mut self, place: &Place, name: &[u8], entry: &Entry, reader: &mut Reader<'_>) -> Result<()> {
        let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let open = || openat(&place.directory, name, flags, Mode::S_IRUSR | Mode::S_IWUSR);
        let mut file = match open() {
            Err(Errno::EEXIST) => {
                self.remove(place, name)?;
                open().context("create")?
            }
            opened => opened.context("create")?,
        };
        file = self.fill(File::from(file), entry, reader)?.into();
        let (uid, gid) = owner(entry);
        fchown(&file, uid, gid).context("chown")?;
        fchmod(&file, Mode::from_bits_truncate(entry.mode)).context("chmod")?;
        // After chown, which takes capabilities away.
        set_attributes(&file, entry)?;
        let time = time(entry.mtime);
        futimens(&file, &time, &time).context("futimens")
    }

    fn fill(&mut self, mut file: File, entry: &Entry, reader: &mut Reader<'_>) -> Result<File> {
        let Some(extents) = &entry.extents else {
            loop {
                let piece = reader.data()?;
                if piece.is_empty() {
                    break;
                }
                let length = piece.len() as u64;
                file.write_all(piece).context("write")?;
                self.room.take(&self.root, length)?;
            }
            self.room.end_file();
            return Ok(file);
        };
        let mut extents = extents.iter();
        let mut left = 0;
        loop {
            let mut piece = reader.data()?;
            if piece.is_empty() {
                break;
            }
            self.room.take(&self.root, piece.len() as u64)?;
            while !piece.is_empty() {
                while left == 0 {
                    let (offset, length) = extents.next().context("more data than extents")?;
                    file.seek(SeekFrom::Start(*offset)).context("seek")?;
                    left = *length;
                }
                let length = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                file.write_all(&piece[..length]).context("write")?;
                left -= length as u64;
                piece = &piece[length..];
            }
        }
        file.set_len(entry.size).context("ftruncate")?;
        Ok(file)
    }

    /// A hard link. What it leads to may come later, or be in a layer below.
    fn link(&mut self, place: &Place, name: &[u8], target: &[u8]) -> Result<()> {
        if self.link_now(place, name, target)? {
            return Ok(());
        }
        self.remove(place, name)?;
        self.remember(place.path.len() + name.len() + target.len())?;
        self.links.push((join(&place.path, name), target.to_vec()));
        Ok(())
    }

    fn link_now(&mut self, place: &Place, name: &[u8], target: &[u8]) -> Result<bool> {
        let mut names = clean(target)?;
        let last = names.pop().context("a hard link to the root")?;
        let Some(from) = self.find(&names)? else {
            return Ok(false);
        };
        let Some(stat) = removal::stat(&from.directory, last)? else {
            return Ok(false);
        };
        let make = || linkat(&from.directory, last, &place.directory, name, AtFlags::empty());
        match make() {
            Err(Errno::EEXIST) => {}
            result => return result.context("link").map(|()| true),
        }
        let there = removal::stat(&place.directory, name)?;
        if there.is_some_and(|there| (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino)) {
            return Ok(true);
        }
        self.remove(place, name)?;
        match make() {
            // It was in what had the name.
            Err(Errno::ENOENT) => Ok(false),
            result => result.context("link").map(|()| true),
        }
    }

    /// Marks that a name of the layers below is not there any more. What this layer has of that name stays.
    fn whiteout(&mut self, place: &Place, hidden: &[u8]) -> Result<()> {
        let mode = Mode::empty();
        match mknodat(&place.directory, hidden, SFlag::S_IFCHR, mode, makedev(0, 0)) {
            Ok(()) => Ok(()),
            Err(Errno::EEXIST) => {
                let stat = removal::stat(&place.directory, hidden).context("stat")?;
                match stat {
                    Some(stat) if removal::is_directory(&stat) => {
                        self.remember_opaque(join(&place.path, hidden))
                    }
                    _ => Ok(()),
                }
            }
            Err(errno) => Err(errno).context("mknod a whiteout"),
        }
    }

    fn remember(&mut self, length: usize) -> Result<()> {
        self.remembered += length + 64;
        ensure!(
            self.remembered <= REMEMBERED_MAX,
            "more directories and links than are remembered"
        );
        Ok(())
    }

    fn remember_opaque(&mut self, path: Vec<u8>) -> Result<()> {
        self.remember(path.len())?;
        self.opaque.insert(path);
        Ok(())
    }

    /// The directory of these names; what is missing is made.
    fn place(&mut self, names: &[&[u8]]) -> Result<Place> {
        let path = names.join(&b'/');
        if let Some(last) = self.last.take_if(|last| last.path == path) {
            return Ok(last);
        }
        self.forget();
        if let Some(directory) = straight(&self.root, &path)? {
            return Ok(Place { directory, path });
        }
        self.walk(names, true)?.context("no such directory")
    }

    /// The directory of these names, if it is there.
    fn find(&mut self, names: &[&[u8]]) -> Result<Option<Place>> {
        let path = names.join(&b'/');
        if let Some(directory) = straight(&self.root, &path)? {
            return Ok(Some(Place { directory, path }));
        }
        self.walk(names, false)
    }

    /// Goes there name by name, through symbolic links.
    fn walk(&mut self, names: &[&[u8]], make: bool) -> Result<Option<Place>> {
        let mut todo: Vec<Vec<u8>> = names.iter().rev().map(|name| name.to_vec()).collect();
        let mut here = self.at_root()?;
        let mut links = 0;
        while let Some(name) = todo.pop() {
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    let end = here.path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                    here.path.truncate(end);
                    here.directory = straight(&self.root, &here.path)?.context("openat2 ..")?;
                    continue;
                }
                _ => {}
            }
            let next = match openat(&here.directory, &name[..], DIRECTORY, Mode::empty()) {
                Ok(next) => next,
                Err(Errno::ENOENT) if make => self.make_implicit(&here, &name)?,
                Err(Errno::ENOENT) => return Ok(None),
                Err(Errno::ENOTDIR | Errno::ELOOP) => {
                    let Some(target) = link_target(&here.directory, &name)? else {
                        if make && self.is_whiteout(&here, &name)? {
                            todo.push(name.clone());
                            self.reveal(&here, &name)?;
                            continue;
                        }
                        ensure!(
                            !make,
                            "{:?} is no directory",
                            String::from_utf8_lossy(&join(&here.path, &name))
                        );
                        return Ok(None);
                    };
                    links += 1;
                    ensure!(
                        links <= LINKS_MAX,
                        "more than {LINKS_MAX} symbolic links in its name"
                    );
                    if target.starts_with(b"/") {
                        here = self.at_root()?;
                    }
                    todo.extend(target.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                    continue;
                }
                Err(errno) => return Err(errno).context("open"),
            };
            here.directory = next;
            here.path = join(&here.path, &name);
        }
        Ok(Some(here))
    }

    fn at_root(&self) -> Result<Place> {
        Ok(Place {
            directory: openat(&self.root, ".", DIRECTORY, Mode::empty()).context("open")?,
            path: Vec::new(),
        })
    }

    fn make_implicit(&mut self, here: &Place, name: &[u8]) -> Result<OwnedFd> {
        self.room.take_inode(&self.root)?;
        mkdirat(&here.directory, name, Mode::from_bits_truncate(0o755)).context("mkdir")?;
        let path = join(&here.path, name);
        self.remember(path.len())?;
        self.implicit.insert(path);
        openat(&here.directory, name, DIRECTORY, Mode::empty()).context("open")
    }

    fn is_whiteout(&self, here: &Place, name: &[u8]) -> Result<bool> {
        let stat = removal::stat(&here.directory, name)?;
        Ok(stat.is_some_and(|stat| is_whiteout(stat.st_mode, stat.st_rdev)))
    }

    /// Something is in a directory that was hidden: it is a new one.
    fn reveal(&mut self, here: &Place, name: &[u8]) -> Result<()> {
        removal::remove_at(&here.directory, name).context("remove a whiteout")?;
        mkdirat(&here.directory, name, Mode::from_bits_truncate(0o755)).context("mkdir")?;
        self.remember_opaque(join(&here.path, name))
    }

    /// Hard links that were too early, and times of directories.
    pub(super) fn finish(mut self, digest: String) -> Result<Summary> {
        self.forget();
        let mut links = std::mem::take(&mut self.links);
        // Of one name the last counts.
        let mut names = HashSet::new();
        links.reverse();
        links.retain(|(name, _)| names.insert(name.clone()));
        links.reverse();
        loop {
            let count = links.len();
            let mut left = Vec::new();
            for (name, target) in links {
                let mut names = clean(&name)?;
                let last = names.pop().context("link")?;
                let place = self.place(&names)?;
                // A later entry has the name.
                let taken = removal::stat(&place.directory, last)?.is_some();
                if !taken && !self.link_now(&place, last, &target)? {
                    left.push((name, target));
                }
            }
            links = left;
            if links.is_empty() || links.len() == count {
                break;
            }
        }
        for (path, late) in &self.late {
            // It may be something else by now.
            let Some(directory) = straight(&self.root, path)? else {
                continue;
            };
            if let Some(acl) = &late.default_acl {
                set_attribute(&directory, c"system.posix_acl_default", acl)?;
            }
            let time = time(late.mtime);
            futimens(&directory, &time, &time).context("futimens")?;
        }
        let root_is_named = self.late.contains_key(&b""[..]);
        Ok(Summary {
            diff_id: digest,
            bytes: self.room.bytes,
            inodes: self.room.inodes,
            root_is_named,
            implicit: sorted(self.implicit),
            opaque: sorted(self.opaque),
            links,
        })
    }
}

/// Those above come first.
fn sorted(paths: HashSet<Vec<u8>>) -> Vec<Vec<u8>> {
    let mut paths: Vec<Vec<u8>> = paths.into_iter().collect();
    paths.sort_unstable();
    paths
}

/// A directory that is reached without any link; `None` where it is not so.
fn straight(root: &OwnedFd, path: &[u8]) -> Result<Option<OwnedFd>> {
    crate::image::beneath::directory(root, path).context("openat2")
}

fn link_target(directory: &OwnedFd, name: &[u8]) -> Result<Option<Vec<u8>>> {
    match readlinkat(directory, name) {
        Ok(target) => Ok(Some(std::os::unix::ffi::OsStringExt::into_vec(target))),
        Err(Errno::EINVAL) => Ok(None),
        Err(errno) => Err(errno).context("readlink"),
    }
}

/// What overlayfs takes as the mark of something that is gone.
pub(crate) fn is_whiteout(mode: u32, device: u64) -> bool {
    SFlag::from_bits_truncate(mode) & SFlag::S_IFMT == SFlag::S_IFCHR && device == makedev(0, 0)
}

/// The names in a path, relative to the root whatever it says.
pub(super) fn clean(path: &[u8]) -> Result<Vec<&[u8]>> {
    ensure!(!path.contains(&0), "a NUL in its name");
    let mut names = Vec::new();
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => drop(names.pop()),
            name => names.push(name),
        }
    }
    Ok(names)
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() {
        return name.to_vec();
    }
    [path, b"/", name].concat()
}

fn owner(entry: &Entry) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(entry.uid)), Some(Gid::from_raw(entry.gid)))
}

fn time((seconds, nanos): (i64, u32)) -> TimeSpec {
    // Nobody's file system goes further: the kernel clamps what is beyond its own.
    TimeSpec::seconds(seconds.clamp(-(1 << 40), 1 << 40)) + TimeSpec::nanoseconds(nanos.into())
}

/// Sets what an image may set; what is for later (`Late::default_acl`) is handed back. `trusted.*` are overlayfs's own orders,
/// labels are the node's.
fn set_attributes(file: &OwnedFd, entry: &Entry) -> Result<Option<Vec<u8>>> {
    let mut default_acl = None;
    for (name, value) in &entry.xattrs {
        match &name[..] {
            b"system.posix_acl_default" => default_acl = Some(value.clone()),
            b"system.posix_acl_access" => set_attribute(file, c"system.posix_acl_access", value)?,
            b"security.capability" => set_attribute(file, c"security.capability", value)?,
            name if name.starts_with(b"user.") => {
                set_attribute(
                    file,
                    &std::ffi::CString::new(name).context("xattr: its name")?,
                    value,
                )?;
            }
            _ => {}
        }
    }
    Ok(default_acl)
}

fn set_attribute(file: &OwnedFd, name: &std::ffi::CStr, value: &[u8]) -> Result<()> {
    match xattr::set(file, name, value) {
        // The file system has none of this kind.
        Ok(()) | Err(Errno::ENOTSUP) => Ok(()),
        Err(errno) => Err(errno).with_context(|| format!("xattr {name:?}")),
    }
}
