//! What init's standard input, output and error are, at a checkpoint: pipes and files of outside, whose place others take at the
//! restore, since the image can't hold them.
//!
//! They are kept in the image as `descriptors.json`, a list of three names. A name is one of CRIU's: `pipe:[inode]`, or
//! `file[mount:inode]` for a file or a FIFO that is on no mount of the container's. (runc, which has the same file, leaves the latter
//! as paths, and its checkpoint fails.)

use std::collections::HashSet;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use nix::sys::stat::{SFlag, major, stat};

use super::image::Directory;

const FILE: &str = "descriptors.json";
/// The longest list, in bytes: three paths, quoted.
const SIZE_MAX: u64 = 64 * 1024;
/// How many descriptors are in it.
const COUNT: usize = 3;
/// The major number of `/dev/null` and its like.
const MEMORY_DEVICES: u64 = 1;

/// The names, in the order of the descriptors; what is no descriptor has an empty one.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Names(Vec<String>);

impl Names {
    /// Those of a process.
    ///
    /// # Errors
    ///
    /// It has ended.
    pub(super) fn of(pid: i32) -> Result<Self> {
        let place = format!("/proc/{pid}");
        let mounts = fs::read_to_string(format!("{place}/mountinfo")).context("the mounts of init")?;
        let own: HashSet<u64> = mounts.lines().filter_map(first_number).collect();
        let names = (0..COUNT).map(|number| name(&place, number, &own));
        Ok(Self(names.collect::<Result<_>>()?))
    }

    /// What CRIU has to be told of, so that it does not look for it in the container.
    pub(super) fn external(&self) -> impl Iterator<Item = &str> {
        self.unique()
            .map(|(_, name)| name)
            .filter(|name| name.starts_with("file["))
    }

    /// What a restored process gets from outside: the descriptor's number, and its name.
    pub(super) fn inherited(&self) -> impl Iterator<Item = (u64, &str)> {
        self.unique().filter(|(_, name)| is_external(name))
    }

    /// Each name once: by the first descriptor that has it.
    fn unique(&self) -> impl Iterator<Item = (u64, &str)> {
        let names = self.0.iter().enumerate();
        names
            .filter(|(number, name)| !self.0[..*number].contains(name))
            .map(|(number, name)| (number as u64, name.as_str()))
    }

    /// Writes them.
    ///
    /// # Errors
    ///
    /// As [`Directory::write`].
    pub(super) fn save(&self, image: &Directory) -> Result<()> {
        image.write(FILE, &serde_json::to_vec(&self.0)?)
    }

    /// Reads them. What is in the image is taken for names only: none but CRIU's own forms count.
    ///
    /// # Errors
    ///
    /// There are none, or they are not what a checkpoint writes.
    pub(super) fn load(image: &Directory) -> Result<Self> {
        let place = || format!("{}", image.path().join(FILE).display());
        let bytes = image.read(FILE, SIZE_MAX).with_context(place)?;
        let names: Vec<String> = serde_json::from_slice(&bytes).with_context(place)?;
        if names.len() > COUNT {
            bail!("{}: {} names: must be at most {COUNT}", place(), names.len());
        }
        Ok(Self(names))
    }
}

/// Whether a name is one of CRIU's, for what comes from outside.
fn is_external(name: &str) -> bool {
    let inside = |prefix: &str| name.strip_prefix(prefix).and_then(|rest| rest.strip_suffix(']'));
    let digits = |text: &str, radix| !text.is_empty() && text.chars().all(|c| c.is_digit(radix));
    match (inside("pipe:["), inside("file[")) {
        (Some(inode), _) => digits(inode, 10),
        (_, Some(file)) => file
            .split_once(':')
            .is_some_and(|(mount, inode)| digits(mount, 16) && digits(inode, 16)),
        _ => false,
    }
}

fn name(place: &str, number: usize, own: &HashSet<u64>) -> Result<String> {
    let link = format!("{place}/fd/{number}");
    let Ok(target) = fs::read_link(&link) else {
        return Ok(String::new());
    };
    let target = target.to_string_lossy().into_owned();
    if target.starts_with("pipe:[") {
        return Ok(target);
    }
    let found = stat(Path::new(&link)).with_context(|| format!("stat {link}"))?;
    let kind = SFlag::from_bits_truncate(found.st_mode & libc::S_IFMT);
    let by_path = kind == SFlag::S_IFREG
        || kind == SFlag::S_IFIFO
        || (kind == SFlag::S_IFCHR && major(found.st_rdev) == MEMORY_DEVICES);
    let mount = mount_of(&format!("{place}/fdinfo/{number}"))?;
    if by_path && !own.contains(&mount) {
        return Ok(format!("file[{mount:x}:{:x}]", found.st_ino));
    }
    Ok(target)
}

/// The id of the mount that a descriptor is on (proc_pid_fdinfo(5)).
fn mount_of(path: &str) -> Result<u64> {
    let text = fs::read_to_string(path).with_context(|| path.to_owned())?;
    let line = text.lines().find_map(|line| line.strip_prefix("mnt_id:"));
    line.and_then(first_number)
        .with_context(|| format!("{path}: no mnt_id"))
}

fn first_number(line: &str) -> Option<u64> {
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(list: &[&str]) -> Names {
        Names(list.iter().map(|name| (*name).to_owned()).collect())
    }

    #[test]
    fn pipes_and_files_of_outside_are_inherited_each_once() {
        let found = names(&["pipe:[12]", "file[1f:a0]", "file[1f:a0]"]);
        assert_eq!(found.external().collect::<Vec<_>>(), ["file[1f:a0]"]);
        assert_eq!(
            found.inherited().collect::<Vec<_>>(),
            [(0, "pipe:[12]"), (1, "file[1f:a0]")]
        );
        assert_eq!(names(&["/dev/null", "", "/x"]).inherited().count(), 0);
    }

    #[test]
    fn nothing_else_in_an_image_is_a_name() {
        for name in [
            "pipe:[",
            "pipe:[1",
            "pipe:[x]",
            "file[1]",
            "file[1:g]",
            "file[:1]",
            "fd[1]:pipe:[2]",
            "extRootNetNS",
        ] {
            assert!(!is_external(name), "{name}");
        }
    }

    #[test]
    fn our_own_are_found() {
        let own = Names::of(std::process::id().cast_signed()).unwrap();
        assert_eq!(own.0.len(), COUNT);
        // Nothing of ours is on a mount of others.
        assert_eq!(own.external().count(), 0);
    }

    #[test]
    fn they_are_read_as_they_were_written() {
        let path = std::env::temp_dir().join(format!("rtc-stdio-{}", std::process::id()));
        let image = Directory::make(&path, "--image-path").unwrap();
        assert!(Names::load(&image).is_err());
        let written = names(&["pipe:[1]", "/dev/null", ""]);
        written.save(&image).unwrap();
        assert_eq!(Names::load(&image).unwrap(), written);
        image.write(FILE, br#"["a","b","c","d"]"#).unwrap();
        assert!(Names::load(&image).is_err());
        fs::remove_dir_all(path).unwrap();
    }
}
