//! Mount options of containerd: words that are flags of mount(2), mappings of owners, and all others data of the file
//! system. Pure.

use std::path::PathBuf;

use anyhow::{Result, bail};
use nix::mount::MsFlags;

/// The most that mount(2) takes as data, with room for what a file system adds.
const DATA_MAX: usize = 4096 - 512;

/// The options of one mount.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) flags: MsFlags,
    pub(super) propagation: MsFlags,
    /// For the file system.
    data: Vec<String>,
    /// Users and groups in the form of `/proc/<pid>/uid_map`: whose owners are mapped.
    pub(super) maps: Option<(String, String)>,
}

impl Options {
    /// # Errors
    ///
    /// A word for containerd itself, or a mapping that is none.
    pub(super) fn parse(words: &[String]) -> Result<Self> {
        let mut options = Self {
            flags: MsFlags::empty(),
            propagation: MsFlags::empty(),
            data: Vec::new(),
            maps: None,
        };
        let (mut users, mut groups) = (None, None);
        for word in words {
            if let Some((flag, set)) = flag(word) {
                options.flags.set(flag, set);
            } else if let Some(propagation) = propagation(word) {
                options.propagation = propagation;
            } else if word.starts_with("X-containerd.") || word == "loop" {
                bail!(
                    "options: {word:?}: is for containerd's mount manager (2.2 or newer), which should have done it"
                );
            } else if let Some(map) = word.strip_prefix("uidmap=") {
                users = Some(map_text(map)?);
            } else if let Some(map) = word.strip_prefix("gidmap=") {
                groups = Some(map_text(map)?);
            } else if word != "defaults" {
                options.data.push(word.clone());
            }
        }
        // containerd's core/mount maps owners only where both are there.
        options.maps = users.zip(groups);
        Ok(options)
    }

    /// The data for mount(2), and the directory it has to be called in.
    ///
    /// # Errors
    ///
    /// It is longer than a page.
    pub(super) fn data(&self, fs_type: &str) -> Result<(Option<PathBuf>, String)> {
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
        let parent = self.parent_of_lower()?.to_owned();
        let mut short = self.data.clone();
        replace_lower(&mut short, &parent, "");
        Some((Some(parent.into()), short.join(",")))
    }

    /// The directory that all lower directories of an overlay are in.
    pub(super) fn parent_of_lower(&self) -> Option<&str> {
        let lower = self.data.iter().find_map(|word| word.strip_prefix(LOWER))?;
        common_parent(&lower.split(':').collect::<Vec<_>>())
    }

    /// Looks for the lower directories in another place than their parent.
    pub(super) fn move_lower(&mut self, parent: &str, to: &str) {
        replace_lower(&mut self.data, parent, &format!("{to}/"));
    }
}

const LOWER: &str = "lowerdir=";

/// Puts `prefix` in the place of `parent` and the slash behind it.
fn replace_lower(words: &mut [String], parent: &str, prefix: &str) {
    for word in words {
        if let Some(lower) = word.strip_prefix(LOWER) {
            let inner = |path: &str| path.get(parent.len() + 1..).unwrap_or_default().to_owned();
            let moved: Vec<String> = lower
                .split(':')
                .map(|path| format!("{prefix}{}", inner(path)))
                .collect();
            *word = format!("{LOWER}{}", moved.join(":"));
        }
    }
}

/// A mapping of containerd, `inside:outside:count,...`, in the form of `/proc/<pid>/uid_map`.
fn map_text(map: &str) -> Result<String> {
    let mut text = String::new();
    for extent in map.split(',') {
        let numbers: Vec<u32> = extent
            .split(':')
            .map_while(|number| number.parse().ok())
            .collect();
        let [inside, outside, count] = numbers[..] else {
            bail!("options: uidmap, gidmap: {extent:?}: must be inside:outside:count");
        };
        text.push_str(&format!("{inside} {outside} {count}\n"));
    }
    Ok(text)
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
    use std::path::Path;

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
        for word in ["loop", "X-containerd.mkfs.fs=ext4", "uidmap=0:1000"] {
            let error = parse(&[word]).unwrap_err().to_string();
            let value = word.trim_start_matches("uidmap=");
            assert!(error.contains(value), "{error}");
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

    #[test]
    fn a_mapping_needs_both_users_and_groups() {
        let options = parse(&["uidmap=0:1000:10,10:5000:1", "gidmap=0:2000:10"]).unwrap();
        let expected = ("0 1000 10\n10 5000 1\n".to_owned(), "0 2000 10\n".to_owned());
        assert_eq!(options.maps, Some(expected));
        assert_eq!(parse(&["uidmap=0:1000:10"]).unwrap().maps, None);
    }

    #[test]
    fn lower_directories_can_be_looked_for_elsewhere() {
        let mut options = parse(&["index=off", "lowerdir=/s/1/fs:/s/2/fs"]).unwrap();
        assert_eq!(options.parent_of_lower(), Some("/s"));
        options.move_lower("/s", "/tmp/m");
        assert_eq!(
            options.data("overlay").unwrap().1,
            "index=off,lowerdir=/tmp/m/1/fs:/tmp/m/2/fs"
        );
        let single = parse(&["lowerdir=/s/1/fs"]).unwrap();
        assert_eq!(single.parent_of_lower(), Some("/s/1"));
    }
}
