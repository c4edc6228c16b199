//! The id maps of a user namespace, and who writes them.
//!
//! ```text
//! root of the machine, or of a user namespace   /proc/<pid>/{uid_map,gid_map}
//! an ordinary user, its own id alone            the same; its own group only with "deny" in /proc/<pid>/setgroups
//! an ordinary user, more ids                    newuidmap, newgidmap (setuid, package uidmap): /etc/subuid, /etc/subgid
//! ```

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use nix::unistd::{AccessFlags, Pid, Uid, access, getegid};
use oci_spec::runtime::{Linux, LinuxIdMapping};

use crate::rootless;

/// The id maps of a new user namespace, as the kernel reads them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct IdMaps {
    uid_map: String,
    gid_map: String,
}

impl IdMaps {
    /// From `linux.uidMappings` and `linux.gidMappings`.
    #[must_use]
    pub fn new(linux: &Linux) -> Self {
        Self {
            uid_map: lines(linux.uid_mappings().as_deref().unwrap_or_default()),
            gid_map: lines(linux.gid_mappings().as_deref().unwrap_or_default()),
        }
    }

    /// From mappings of users and of groups.
    #[must_use]
    pub fn of(users: &[LinuxIdMapping], groups: &[LinuxIdMapping]) -> Self {
        Self {
            uid_map: lines(users),
            gid_map: lines(groups),
        }
    }

    /// The user and group of this number, or where it is not mapped, those of the greatest number that is.
    pub(crate) fn nearest(&self, id: u32) -> (u32, u32) {
        (nearest(&self.uid_map, id), nearest(&self.gid_map, id))
    }

    /// Checks that a process in a joined user namespace has these maps; where none are configured, any will do.
    ///
    /// # Errors
    ///
    /// It has others: files would be made for the wrong users.
    pub fn check(&self, pid: Pid) -> Result<()> {
        for (file, map, field) in [
            ("uid_map", &self.uid_map, "uidMappings"),
            ("gid_map", &self.gid_map, "gidMappings"),
        ] {
            let path = format!("/proc/{pid}/{file}");
            let found = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
            // The kernel pads the numbers.
            if !map.is_empty() && !map.split_whitespace().eq(found.split_whitespace()) {
                bail!(
                    "linux.{field}: {:?}: the user namespace that is joined has {:?}; leave the mappings out, or give its own",
                    map.trim_end(),
                    found.split_whitespace().collect::<Vec<_>>().join(" ")
                );
            }
        }
        Ok(())
    }

    /// Checks that the namespace has this user and group.
    ///
    /// # Errors
    ///
    /// In runc's words: nobody could become them.
    pub(crate) fn check_ids(&self, uid: u32, gid: u32) -> Result<()> {
        for (map, id, kind, field) in [
            (&self.uid_map, uid, "uid", "uidMappings"),
            (&self.gid_map, gid, "gid", "gidMappings"),
        ] {
            if nearest(map, id) != id {
                bail!(
                    "process.user.{kind}: {id}: cannot set{kind} to unmapped {kind} {id} in user namespace: \
                     linux.{field} has {:?}",
                    map.trim_end()
                );
            }
        }
        Ok(())
    }

    /// Maps the ids of a process that has just been cloned into its user namespace. To an ordinary user the process must
    /// be dumpable: else its files are root's.
    ///
    /// # Errors
    ///
    /// `EPERM` without `CAP_SETUID` or `CAP_SETGID` over the ids, `EINVAL` for overlapping ranges; what newuidmap and
    /// newgidmap say.
    pub fn write(&self, pid: Pid) -> Result<()> {
        let ordinary = rootless::ordinary_user();
        if ordinary.is_some() && is_alone(&self.gid_map, getegid().as_raw()) {
            // Who can't map a group can't drop one either, or could shed one that keeps files from it (CVE-2014-8989).
            let path = format!("/proc/{pid}/setgroups");
            fs::write(&path, "deny")
                .with_context(|| format!("linux.gidMappings: write \"deny\" to {path}"))?;
        }
        for (file, map, field) in [
            ("uid_map", &self.uid_map, "uidMappings"),
            ("gid_map", &self.gid_map, "gidMappings"),
        ] {
            let path = format!("/proc/{pid}/{file}");
            let written = match (fs::write(&path, map), ordinary) {
                (Err(error), Some(user)) if error.kind() == ErrorKind::PermissionDenied => {
                    map_by_tool(&format!("new{}", file.replace('_', "")), pid, map, user)
                }
                (written, _) => written.with_context(|| format!("write {:?} to {path}", map.trim_end())),
            };
            written.with_context(|| format!("linux.{field}"))?;
        }
        Ok(())
    }
}

/// Whether a map is of one id, this one, which needs no privilege.
fn is_alone(map: &str, id: u32) -> bool {
    let numbers: Vec<&str> = map.split_ascii_whitespace().skip(1).collect();
    numbers == [id.to_string().as_str(), "1"]
}

/// Has a setuid program write a map.
fn map_by_tool(tool: &str, pid: Pid, map: &str, user: Uid) -> Result<()> {
    let Some(program) = find(tool) else {
        bail!(
            "{:?}: user {user} can map its own id only, with size 1: others need {tool} (package uidmap), which is not \
             in $PATH",
            map.trim_end()
        );
    };
    let output = Command::new(&program)
        .arg(pid.to_string())
        .args(map.split_ascii_whitespace())
        .env_clear()
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("run {}", program.display()))?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!(
            "{:?}: {}: {}: {}; /etc/sub{} says which ids user {user} may map",
            map.trim_end(),
            program.display(),
            output.status,
            said.trim(),
            &tool[3..6]
        );
    }
    Ok(())
}

/// The first program of this name in `$PATH`. Looked for here: it gets no environment of the caller's.
fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(OsStr::new(name)))
        .find(|file| file.is_file() && access(file, AccessFlags::X_OK).is_ok())
}

/// In a map as the kernel reads it.
fn nearest(map: &str, id: u32) -> u32 {
    let mut last = 0;
    for line in map.lines() {
        let mut numbers = line.split(' ').map(|number| number.parse().unwrap_or(0));
        let (first, size): (u32, u32) = (numbers.next().unwrap_or(0), numbers.nth(1).unwrap_or(0));
        let end = first.saturating_add(size);
        if (first..end).contains(&id) {
            return id;
        }
        last = last.max(end.saturating_sub(1));
    }
    last
}

fn lines(mappings: &[LinuxIdMapping]) -> String {
    let mut lines = String::new();
    for map in mappings {
        // Writing to a string can't fail.
        let _ = writeln!(lines, "{} {} {}", map.container_id(), map.host_id(), map.size());
    }
    lines
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxIdMappingBuilder;

    use super::*;

    #[test]
    fn one_own_id_alone_needs_no_privilege() {
        assert!(is_alone("0 1000 1\n", 1000) && is_alone("5 1000 1\n", 1000));
        assert!(!is_alone("0 1000 2\n", 1000));
        assert!(!is_alone("0 1001 1\n", 1000));
        assert!(!is_alone("0 1000 1\n1 100000 65536\n", 1000));
        assert!(!is_alone("", 1000));
    }

    #[test]
    fn a_user_that_is_not_mapped_is_refused_with_the_map() {
        let maps = IdMaps {
            uid_map: "0 1000 1\n".into(),
            gid_map: "0 1000 1\n1 100000 10\n".into(),
        };
        maps.check_ids(0, 10).unwrap();
        let error = maps.check_ids(5, 0).unwrap_err().to_string();
        assert!(
            error.starts_with("process.user.uid: 5: cannot setuid to unmapped uid 5 in user namespace"),
            "{error}"
        );
        let error = maps.check_ids(0, 11).unwrap_err().to_string();
        assert!(
            error.contains("linux.gidMappings has \"0 1000 1\\n1 100000 10\""),
            "{error}"
        );
    }

    #[test]
    fn the_nearest_id_is_the_id_itself_where_it_is_mapped() {
        assert_eq!(nearest("0 100000 65536\n", 65535), 65535);
        assert_eq!(nearest("0 100000 1000\n2000 300000 10\n", 65535), 2009);
        assert_eq!(nearest("0 1000 1\n", 65535), 0);
    }

    #[test]
    fn id_maps_have_a_line_for_each_range() {
        let range = |container: u32, host: u32| {
            LinuxIdMappingBuilder::default()
                .container_id(container)
                .host_id(host)
                .size(10u32)
                .build()
                .unwrap()
        };
        assert_eq!(
            lines(&[range(0, 1000), range(10, 3000)]),
            "0 1000 10\n10 3000 10\n"
        );
    }
}
