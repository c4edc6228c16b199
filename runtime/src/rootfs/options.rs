//! Mount options: from the words of `mounts[].options` to what the kernel is asked for. Pure.
//!
//! The words are those of fstab(5), the recursive ones of the runtime specification (`rro`, `rnosuid`, ..., Linux 5.12)
//! and the extensions `tmpcopyup` (runc), `copy-symlink`, `src-nofollow`, `dest-nofollow` and `idmap=` with a mapping (crun). Of two that
//! contradict each other the last one holds. Any other word is a parameter of the filesystem; a bind mount has none, so
//! there it is an error.

use std::ffi::CStr;

use anyhow::{Context as _, Result, bail};

use super::idmap::Custom;
use crate::sys::mount::{self as sys, MountAttr, attr};

/// Attributes to set and to clear; what is in neither stays as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Change {
    /// Bits of [`attr`] to set.
    pub(crate) set: u64,
    /// Bits of [`attr`] to clear first.
    pub(crate) clear: u64,
}

impl Change {
    /// Nothing to do.
    pub(crate) fn is_empty(self) -> bool {
        self == Change::default()
    }

    pub(crate) fn set(&mut self, bits: u64) {
        self.set |= bits;
        self.clear &= !bits;
    }

    fn clear(&mut self, bits: u64) {
        self.clear |= bits;
        self.set &= !bits;
    }

    /// The access time mode is one field: the kernel wants all of it cleared when any of it changes.
    fn access_time(&mut self, mode: u64) {
        self.clear |= attr::ATIME;
        self.set = self.set & !attr::ATIME | mode;
    }

    /// As the argument of mount_setattr(2).
    pub(crate) fn as_attr(self) -> MountAttr {
        MountAttr {
            set: self.set,
            clear: self.clear,
            ..MountAttr::default()
        }
    }

    /// The flags of a classic remount of a mount that has the `ST_*` flags `current`.
    pub(crate) fn remount_flags(self, current: libc::c_ulong) -> libc::c_ulong {
        let mut now = 0;
        for (st, bit) in STATFS_FLAGS {
            if current & st != 0 {
                now |= bit;
            }
        }
        if current & (libc::ST_NOATIME | libc::ST_RELATIME) == 0 {
            now |= attr::STRICTATIME;
        }
        mount_flags(now & !self.clear | self.set)
    }
}

/// The flags of statfs(2) and the attributes they stand for.
const STATFS_FLAGS: [(libc::c_ulong, u64); 7] = [
    (libc::ST_RDONLY, attr::RDONLY),
    (libc::ST_NOSUID, attr::NOSUID),
    (libc::ST_NODEV, attr::NODEV),
    (libc::ST_NOEXEC, attr::NOEXEC),
    (libc::ST_NOATIME, attr::NOATIME),
    (libc::ST_NODIRATIME, attr::NODIRATIME),
    (0x2000, attr::NOSYMFOLLOW),
];

/// Attributes as the flags of mount(2).
pub(crate) fn mount_flags(attributes: u64) -> libc::c_ulong {
    const FLAGS: [(u64, libc::c_ulong); 8] = [
        (attr::RDONLY, sys::MS_RDONLY),
        (attr::NOSUID, sys::MS_NOSUID),
        (attr::NODEV, sys::MS_NODEV),
        (attr::NOEXEC, sys::MS_NOEXEC),
        (attr::NOATIME, sys::MS_NOATIME),
        (attr::STRICTATIME, sys::MS_STRICTATIME),
        (attr::NODIRATIME, sys::MS_NODIRATIME),
        (attr::NOSYMFOLLOW, sys::MS_NOSYMFOLLOW),
    ];
    let mut flags = if attributes & attr::ATIME == 0 {
        sys::MS_RELATIME
    } else {
        0
    };
    for (bit, flag) in FLAGS {
        if attributes & bit != 0 {
            flags |= flag;
        }
    }
    flags
}

/// Attributes as a reader would write them, for errors: `RDONLY|NOSUID`.
pub(crate) fn describe(attributes: u64) -> String {
    const NAMES: [(u64, &str); 9] = [
        (attr::RDONLY, "RDONLY"),
        (attr::NOSUID, "NOSUID"),
        (attr::NODEV, "NODEV"),
        (attr::NOEXEC, "NOEXEC"),
        (attr::NOATIME, "NOATIME"),
        (attr::STRICTATIME, "STRICTATIME"),
        (attr::NODIRATIME, "NODIRATIME"),
        (attr::IDMAP, "IDMAP"),
        (attr::NOSYMFOLLOW, "NOSYMFOLLOW"),
    ];
    let names: Vec<&str> = NAMES
        .iter()
        .filter(|(bit, _)| attributes & bit != 0)
        .map(|(_, name)| *name)
        .collect();
    if names.is_empty() {
        "0".into()
    } else {
        names.join("|")
    }
}

/// The options of one mount.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Options {
    /// `bind` or `rbind`.
    pub(crate) bind: bool,
    /// `rbind`: with all mounts below the source.
    pub(crate) recursive: bool,
    /// `remount`: change the mount that is there.
    pub(crate) remount: bool,
    /// Changes of this mount.
    pub(crate) change: Change,
    /// Changes of this mount and all below it.
    pub(crate) recursive_change: Change,
    /// Flags of the superblock: parameters that every filesystem takes.
    pub(crate) superblock: Superblock,
    /// Changes of propagation, in order: `MS_SHARED` and the like, with `MS_REC` or without.
    pub(crate) propagation: Vec<libc::c_ulong>,
    /// Parameters of the filesystem: `key` or `key=value`.
    pub(crate) data: Vec<String>,
    /// `tmpcopyup`: the new tmpfs starts as a copy of what it covers.
    pub(crate) copy_up: bool,
    /// `idmap` (false) or `ridmap` (true: all mounts below too).
    pub(crate) idmap: Option<bool>,
    /// `idmap=uids=...;gids=...` (crun): a mapping of this mount's own.
    pub(crate) mapping: Option<Custom>,
    /// `copy-symlink`: where the source is a symbolic link, a copy of the link instead of a mount.
    pub(crate) copy_symlink: bool,
    /// `src-nofollow`: a symbolic link as the source is itself mounted.
    pub(crate) source_nofollow: bool,
    /// `dest-nofollow`: a symbolic link as the destination is itself covered.
    pub(crate) destination_nofollow: bool,
}

/// Flags of a superblock (`SB_*`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Superblock(libc::c_ulong);

impl Superblock {
    const PARAMETERS: [(libc::c_ulong, &CStr); 5] = [
        (sys::MS_SYNCHRONOUS, c"sync"),
        (sys::MS_DIRSYNC, c"dirsync"),
        (sys::MS_MANDLOCK, c"mand"),
        (sys::MS_LAZYTIME, c"lazytime"),
        (sys::MS_I_VERSION, c"iversion"),
    ];

    /// The parameters for fsconfig(2).
    pub(crate) fn parameters(self) -> impl Iterator<Item = &'static CStr> {
        Superblock::PARAMETERS
            .into_iter()
            .filter(move |(flag, _)| self.0 & flag != 0)
            .map(|(_, parameter)| parameter)
    }

    /// The flags for mount(2).
    pub(crate) fn flags(self) -> libc::c_ulong {
        self.0
    }
}

/// What a word does.
#[derive(Clone, Copy)]
enum Effect {
    Nothing,
    Bind { recursive: bool },
    Remount,
    Set(u64),
    Clear(u64),
    AccessTime(u64),
    SetAll(u64),
    ClearAll(u64),
    AccessTimeAll(u64),
    Superblock(libc::c_ulong),
    NoSuperblock(libc::c_ulong),
    Propagation(libc::c_ulong),
    IdMap { recursive: bool },
    CopyUp,
    CopySymlink,
    SourceNoFollow,
    DestinationNoFollow,
}

/// `relatime` as a value of the access time mode: the kernel's default.
const RELATIME: u64 = 0;

const WORDS: &[(&str, Effect)] = &[
    ("defaults", Effect::Nothing),
    ("bind", Effect::Bind { recursive: false }),
    ("rbind", Effect::Bind { recursive: true }),
    ("remount", Effect::Remount),
    ("ro", Effect::Set(attr::RDONLY)),
    ("rw", Effect::Clear(attr::RDONLY)),
    ("nosuid", Effect::Set(attr::NOSUID)),
    ("suid", Effect::Clear(attr::NOSUID)),
    ("nodev", Effect::Set(attr::NODEV)),
    ("dev", Effect::Clear(attr::NODEV)),
    ("noexec", Effect::Set(attr::NOEXEC)),
    ("exec", Effect::Clear(attr::NOEXEC)),
    ("nodiratime", Effect::Set(attr::NODIRATIME)),
    ("diratime", Effect::Clear(attr::NODIRATIME)),
    ("nosymfollow", Effect::Set(attr::NOSYMFOLLOW)),
    ("symfollow", Effect::Clear(attr::NOSYMFOLLOW)),
    ("noatime", Effect::AccessTime(attr::NOATIME)),
    ("strictatime", Effect::AccessTime(attr::STRICTATIME)),
    ("relatime", Effect::AccessTime(RELATIME)),
    ("atime", Effect::AccessTime(RELATIME)),
    ("norelatime", Effect::AccessTime(RELATIME)),
    ("nostrictatime", Effect::AccessTime(RELATIME)),
    ("rro", Effect::SetAll(attr::RDONLY)),
    ("rrw", Effect::ClearAll(attr::RDONLY)),
    ("rnosuid", Effect::SetAll(attr::NOSUID)),
    ("rsuid", Effect::ClearAll(attr::NOSUID)),
    ("rnodev", Effect::SetAll(attr::NODEV)),
    ("rdev", Effect::ClearAll(attr::NODEV)),
    ("rnoexec", Effect::SetAll(attr::NOEXEC)),
    ("rexec", Effect::ClearAll(attr::NOEXEC)),
    ("rnodiratime", Effect::SetAll(attr::NODIRATIME)),
    ("rdiratime", Effect::ClearAll(attr::NODIRATIME)),
    ("rnosymfollow", Effect::SetAll(attr::NOSYMFOLLOW)),
    ("rsymfollow", Effect::ClearAll(attr::NOSYMFOLLOW)),
    ("rnoatime", Effect::AccessTimeAll(attr::NOATIME)),
    ("rstrictatime", Effect::AccessTimeAll(attr::STRICTATIME)),
    ("rrelatime", Effect::AccessTimeAll(RELATIME)),
    ("ratime", Effect::AccessTimeAll(RELATIME)),
    ("rnorelatime", Effect::AccessTimeAll(RELATIME)),
    ("rnostrictatime", Effect::AccessTimeAll(RELATIME)),
    ("sync", Effect::Superblock(sys::MS_SYNCHRONOUS)),
    ("async", Effect::NoSuperblock(sys::MS_SYNCHRONOUS)),
    ("dirsync", Effect::Superblock(sys::MS_DIRSYNC)),
    ("mand", Effect::Superblock(sys::MS_MANDLOCK)),
    ("nomand", Effect::NoSuperblock(sys::MS_MANDLOCK)),
    ("lazytime", Effect::Superblock(sys::MS_LAZYTIME)),
    ("nolazytime", Effect::NoSuperblock(sys::MS_LAZYTIME)),
    ("iversion", Effect::Superblock(sys::MS_I_VERSION)),
    ("noiversion", Effect::NoSuperblock(sys::MS_I_VERSION)),
    // Only mount(2) knows these: whether the kernel logs a refusal. A filesystem context tells it to its opener alone.
    ("silent", Effect::Nothing),
    ("loud", Effect::Nothing),
    ("private", Effect::Propagation(sys::MS_PRIVATE)),
    ("shared", Effect::Propagation(sys::MS_SHARED)),
    ("slave", Effect::Propagation(sys::MS_SLAVE)),
    ("unbindable", Effect::Propagation(sys::MS_UNBINDABLE)),
    ("rprivate", Effect::Propagation(sys::MS_PRIVATE | sys::MS_REC)),
    ("rshared", Effect::Propagation(sys::MS_SHARED | sys::MS_REC)),
    ("rslave", Effect::Propagation(sys::MS_SLAVE | sys::MS_REC)),
    (
        "runbindable",
        Effect::Propagation(sys::MS_UNBINDABLE | sys::MS_REC),
    ),
    ("idmap", Effect::IdMap { recursive: false }),
    ("ridmap", Effect::IdMap { recursive: true }),
    ("tmpcopyup", Effect::CopyUp),
    ("copy-symlink", Effect::CopySymlink),
    ("src-nofollow", Effect::SourceNoFollow),
    ("dest-nofollow", Effect::DestinationNoFollow),
];

/// The words that are understood here, for `rtc features` (`mountOptions`), sorted.
#[must_use]
pub fn known() -> Vec<&'static str> {
    let mut words: Vec<&str> = WORDS.iter().map(|(word, _)| *word).collect();
    words.sort_unstable();
    words
}

impl Options {
    /// Reads the options of a mount of the given type.
    ///
    /// # Errors
    ///
    /// An unknown option of a bind mount, `tmpcopyup` on anything but a tmpfs.
    pub(crate) fn parse(fs_type: &str, words: &[String]) -> Result<Options> {
        let mut options = Options {
            bind: fs_type == "bind",
            ..Options::default()
        };
        for word in words {
            match WORDS.iter().find(|(known, _)| known == word) {
                Some((_, effect)) => options.apply(*effect),
                None if options.custom_mapping(word)? => {}
                // Several parameters in one word, as in fstab(5).
                None => options.data.extend(split(word).into_iter().map(str::to_owned)),
            }
        }
        if options.bind && !options.data.is_empty() {
            bail!(
                "options: {:?}: not an option of bind mounts, which take no parameters of a filesystem",
                options.data.join(",")
            );
        }
        if options.copy_up && (options.bind || fs_type != "tmpfs") {
            bail!("options: \"tmpcopyup\": only a mount of type tmpfs can be a copy of what it covers");
        }
        Ok(options)
    }

    /// Whether the word is an `idmap` with a mapping.
    fn custom_mapping(&mut self, word: &str) -> Result<bool> {
        let (text, recursive) = match (word.strip_prefix("idmap="), word.strip_prefix("ridmap=")) {
            (Some(text), _) => (text, false),
            (_, Some(text)) => (text, true),
            _ => return Ok(false),
        };
        let mapping = Custom::parse(text).with_context(|| format!("options: {word:?}"))?;
        self.mapping = Some(mapping);
        self.idmap = Some(recursive);
        Ok(true)
    }

    fn apply(&mut self, effect: Effect) {
        match effect {
            Effect::Nothing => {}
            Effect::Bind { recursive } => {
                self.bind = true;
                self.recursive |= recursive;
            }
            Effect::Remount => self.remount = true,
            Effect::Set(bits) => self.change.set(bits),
            Effect::Clear(bits) => self.change.clear(bits),
            Effect::AccessTime(mode) => self.change.access_time(mode),
            Effect::SetAll(bits) => self.recursive_change.set(bits),
            Effect::ClearAll(bits) => self.recursive_change.clear(bits),
            Effect::AccessTimeAll(mode) => self.recursive_change.access_time(mode),
            Effect::Superblock(flag) => self.superblock.0 |= flag,
            Effect::NoSuperblock(flag) => self.superblock.0 &= !flag,
            Effect::Propagation(kind) => self.propagation.push(kind),
            Effect::IdMap { recursive } => self.idmap = Some(recursive),
            Effect::CopyUp => self.copy_up = true,
            Effect::CopySymlink => self.copy_symlink = true,
            Effect::SourceNoFollow => self.source_nofollow = true,
            Effect::DestinationNoFollow => self.destination_nofollow = true,
        }
    }
}

/// Splits parameters at commas, except where a backslash precedes one (overlayfs) or within double quotes (SELinux).
pub(crate) fn split(data: &str) -> Vec<&str> {
    let (mut parts, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, byte) in data.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => {
                parts.push(&data[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&data[start..]);
    parts.retain(|part| !part.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(fs_type: &str, words: &[&str]) -> Result<Options> {
        let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
        Options::parse(fs_type, &words)
    }

    #[test]
    fn a_bare_bind_changes_nothing() {
        let options = parse("bind", &["rbind"]).unwrap();
        assert!(options.bind && options.recursive);
        assert!(options.change.is_empty() && options.recursive_change.is_empty());
    }

    #[test]
    fn the_last_of_two_contradicting_options_holds() {
        let options = parse("tmpfs", &["ro", "rw", "dev", "nodev", "sync", "async"]).unwrap();
        assert_eq!(
            options.change,
            Change {
                set: attr::NODEV,
                clear: attr::RDONLY
            }
        );
        assert_eq!(options.superblock, Superblock::default());
        let options = parse("bind", &["bind", "noatime", "strictatime"]).unwrap();
        assert_eq!(
            options.change,
            Change {
                set: attr::STRICTATIME,
                clear: attr::ATIME
            }
        );
    }

    #[test]
    fn every_flag_word_sets_its_attribute() {
        for (word, bit) in [
            ("ro", attr::RDONLY),
            ("nosuid", attr::NOSUID),
            ("nodev", attr::NODEV),
            ("noexec", attr::NOEXEC),
            ("nodiratime", attr::NODIRATIME),
            ("nosymfollow", attr::NOSYMFOLLOW),
            ("noatime", attr::NOATIME),
            ("strictatime", attr::STRICTATIME),
        ] {
            assert_eq!(parse("tmpfs", &[word]).unwrap().change.set, bit, "{word}");
            let recursive = format!("r{word}");
            let options = parse("bind", &["bind", &recursive]).unwrap();
            assert_eq!(options.recursive_change.set, bit, "{recursive}");
            assert!(options.change.is_empty(), "{recursive}");
        }
    }

    #[test]
    fn every_clearing_word_clears_its_attribute() {
        for (word, bit) in [
            ("rw", attr::RDONLY),
            ("suid", attr::NOSUID),
            ("dev", attr::NODEV),
            ("exec", attr::NOEXEC),
            ("diratime", attr::NODIRATIME),
            ("symfollow", attr::NOSYMFOLLOW),
            ("atime", attr::ATIME),
            ("relatime", attr::ATIME),
            ("norelatime", attr::ATIME),
            ("nostrictatime", attr::ATIME),
        ] {
            let change = Change { set: 0, clear: bit };
            assert_eq!(parse("tmpfs", &[word]).unwrap().change, change, "{word}");
            let recursive = format!("r{word}");
            let options = parse("bind", &["bind", &recursive]).unwrap();
            assert_eq!(options.recursive_change, change, "{recursive}");
        }
    }

    #[test]
    fn superblock_words_become_parameters() {
        let words = ["sync", "dirsync", "mand", "lazytime", "iversion"];
        for word in words {
            let options = parse("ext4", &[word]).unwrap();
            let parameters: Vec<_> = options.superblock.parameters().collect();
            assert_eq!(parameters.len(), 1);
            assert_eq!(parameters[0].to_str().unwrap(), word);
        }
        let options = parse(
            "ext4",
            &["mand", "nomand", "iversion", "noiversion", "silent", "loud"],
        )
        .unwrap();
        assert_eq!(options.superblock.parameters().count(), 0);
        assert!(options.data.is_empty());
    }

    #[test]
    fn propagation_is_kept_in_order() {
        let options = parse("bind", &["rbind", "rslave", "shared"]).unwrap();
        assert_eq!(options.propagation, [sys::MS_SLAVE | sys::MS_REC, sys::MS_SHARED]);
        for word in ["private", "shared", "slave", "unbindable"] {
            let plain = parse("bind", &[word]).unwrap().propagation[0];
            let recursive = parse("bind", &[&format!("r{word}")]).unwrap().propagation[0];
            assert_eq!(recursive, plain | sys::MS_REC);
        }
    }

    #[test]
    fn an_unknown_option_is_a_parameter_of_the_filesystem() {
        let options = parse("tmpfs", &["nosuid", "mode=755", "size=64k,nr_inodes=5"]).unwrap();
        assert_eq!(options.data, ["mode=755", "size=64k", "nr_inodes=5"]);
    }

    #[test]
    fn an_unknown_option_of_a_bind_mount_is_refused_by_name() {
        let error = parse("none", &["rbind", "frobnicate"]).unwrap_err().to_string();
        assert!(
            error.contains("\"frobnicate\"") && error.contains("bind mounts"),
            "{error}"
        );
    }

    #[test]
    fn copy_up_is_for_tmpfs_alone() {
        assert!(parse("tmpfs", &["tmpcopyup"]).unwrap().copy_up);
        assert!(parse("bind", &["bind", "tmpcopyup"]).is_err());
        assert!(parse("proc", &["tmpcopyup"]).is_err());
    }

    #[test]
    fn id_mapping_and_link_words_are_understood() {
        assert_eq!(parse("bind", &["idmap"]).unwrap().idmap, Some(false));
        assert_eq!(parse("bind", &["idmap", "ridmap"]).unwrap().idmap, Some(true));
        let options = parse("bind", &["copy-symlink", "src-nofollow", "dest-nofollow"]).unwrap();
        assert!(options.copy_symlink && options.source_nofollow && options.destination_nofollow);
    }

    #[test]
    fn quoted_and_escaped_commas_do_not_split() {
        assert_eq!(split("a=1,,b"), ["a=1", "b"]);
        assert_eq!(split(r"lowerdir=/x\,y,ro"), [r"lowerdir=/x\,y", "ro"]);
        assert_eq!(
            split("context=\"u:r:t:s0:c1,c2\",k"),
            ["context=\"u:r:t:s0:c1,c2\"", "k"]
        );
    }

    #[test]
    fn a_classic_remount_keeps_what_is_not_cleared() {
        let change = Change {
            set: attr::RDONLY,
            clear: attr::NODEV,
        };
        let flags = change.remount_flags(libc::ST_NOSUID | libc::ST_NODEV | libc::ST_RELATIME);
        assert_eq!(flags, sys::MS_RDONLY | sys::MS_NOSUID | sys::MS_RELATIME);
        let flags = Change::default().remount_flags(0);
        assert_eq!(flags, sys::MS_STRICTATIME);
    }

    #[test]
    fn known_words_are_unique() {
        let words = known();
        let mut unique = words.clone();
        unique.dedup();
        assert_eq!(words, unique);
    }
}
