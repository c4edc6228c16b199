//! An ordinary user that a test makes up, and runs the runtime as. The machine knows nothing of it: its name and its ids
//! are in an `/etc` of the test's own, which only the runtime and what that starts (newuidmap) see.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::bundle::Bundle;
use crate::test::Test;

/// The first of the uids that are given out; no machine has users there.
const FIRST_UID: u32 = 1_900_000_000;

/// How many ids `/etc/subuid` and `/etc/subgid` give the user.
pub(crate) const SUBORDINATE_IDS: u32 = 1000;

/// Where newuidmap is.
pub(crate) const NEWUIDMAP: &str = "/usr/bin/newuidmap";

/// The user.
#[derive(Clone, Debug)]
pub(crate) struct User {
    /// Its uid, and the gid of its only group.
    pub(crate) id: u32,
    /// Its `$XDG_RUNTIME_DIR`.
    pub(crate) runtime_dir: PathBuf,
    /// What it sees as `/etc`.
    etc: PathBuf,
    /// The cgroup that the runtime is started in; none: the test's own.
    cgroup: Option<PathBuf>,
    /// The runtime is root of a user namespace in which the user has this one id, and of mounts of its own.
    pub(crate) is_root_inside: bool,
}

impl User {
    /// Makes up a user for this test. From here on the runtime is run by it, and the test's directories are the user's.
    pub(crate) fn new(t: &Test) -> Result<Self> {
        let hash = t.unique.bytes().fold(7_u32, |hash, byte| {
            hash.wrapping_mul(31).wrapping_add(u32::from(byte))
        });
        let id = FIRST_UID + hash % 10_000 * 10;
        let etc = t.path("etc");
        fs::create_dir(&etc)?;
        fs::write(
            etc.join("passwd"),
            format!("root:x:0:0::/:\ntester:x:{id}:{id}::/:/bin/sh\n"),
        )?;
        fs::write(etc.join("group"), format!("root:x:0:\ntester:x:{id}:\n"))?;
        fs::write(etc.join("nsswitch.conf"), "passwd: files\ngroup: files\n")?;
        let user = Self {
            id,
            runtime_dir: t.path("runtime"),
            etc,
            cgroup: None,
            is_root_inside: false,
        };
        fs::create_dir(&user.runtime_dir)?;
        fs::set_permissions(&user.runtime_dir, fs::Permissions::from_mode(0o700))?;
        for directory in [&user.runtime_dir, &t.directory, &t.root] {
            user.owns(directory)?;
        }
        // Not where group or others could write to it.
        fs::set_permissions(&t.root, fs::Permissions::from_mode(0o700))?;
        *t.user.borrow_mut() = Some(user.clone());
        Ok(user)
    }

    /// Gives the user this file or directory.
    pub(crate) fn owns(&self, path: &Path) -> Result<()> {
        chown(path, Some(self.id), Some(self.id)).with_context(|| path.display().to_string())
    }

    /// The first of the ids that it may map by newuidmap and newgidmap.
    pub(crate) fn first_subordinate(&self) -> u32 {
        self.id + 100_000
    }

    /// Lets it map more ids than its own.
    pub(crate) fn allow_subordinate_ids(&self) -> Result<()> {
        let line = format!("tester:{}:{SUBORDINATE_IDS}\n", self.first_subordinate());
        for file in ["subuid", "subgid"] {
            fs::write(self.etc.join(file), &line)?;
        }
        Ok(())
    }

    /// Has the runtime started in this cgroup.
    pub(crate) fn start_in(&mut self, t: &Test, cgroup: PathBuf) {
        self.cgroup = Some(cgroup);
        *t.user.borrow_mut() = Some(self.clone());
    }

    /// A bundle of the user's, for a container without a cgroup of its own choice, with a user namespace in which the
    /// user is root, and nobody else is.
    pub(crate) fn bundle<'t>(&self, t: &'t Test) -> Result<Bundle<'t>> {
        let bundle = t.bundle();
        let rootfs = bundle.rootfs();
        self.owns(&bundle.directory)?;
        self.owns(&rootfs)?;
        for entry in fs::read_dir(&rootfs)? {
            self.owns(&entry?.path())?;
        }
        let map = serde_json::json!([{"containerID": 0, "hostID": self.id, "size": 1}]);
        let bundle = bundle
            .unset("/linux/cgroupsPath")
            .namespace(serde_json::json!({"type": "user"}))
            .set("/linux/uidMappings", map.clone())
            .set("/linux/gidMappings", map);
        // runc refuses a group that is not mapped; that is a test of its own.
        Ok(bundle.edit(|spec| {
            for mount in spec["mounts"].as_array_mut().into_iter().flatten() {
                if let Some(options) = mount["options"].as_array_mut() {
                    options.retain(|option| option != "gid=5");
                }
            }
        }))
    }

    /// The words before a command that have it run by the user.
    pub(crate) fn words(&self) -> Vec<OsString> {
        let enter = match &self.cgroup {
            Some(cgroup) => format!("echo 0 >{}/cgroup.procs && ", cgroup.display()),
            None => String::new(),
        };
        let script = format!(
            "{enter}/usr/bin/mount --bind {} /etc && exec \"$@\"",
            self.etc.display()
        );
        let mut words: Vec<OsString> = [
            "/usr/bin/unshare",
            "--mount",
            "/bin/sh",
            "-c",
            &script,
            "sh",
            "/usr/bin/setpriv",
        ]
        .map(OsString::from)
        .into();
        words.extend([
            format!("--reuid={}", self.id).into(),
            format!("--regid={}", self.id).into(),
            "--clear-groups".into(),
        ]);
        if self.is_root_inside {
            words.extend(["/usr/bin/unshare", "--user", "--map-root-user", "--mount"].map(OsString::from));
        }
        words
    }

    /// The program where the user can reach it: itself, or a copy in the test's directory.
    pub(crate) fn reachable(&self, program: &Path, directory: &Path) -> Result<PathBuf> {
        let open = |path: &Path| fs::metadata(path).is_ok_and(|found| found.mode() & 0o001 != 0);
        if program.ancestors().all(open) {
            return Ok(program.to_owned());
        }
        let copy = directory.join(program.file_name().context("the runtime's name")?);
        if !copy.exists() {
            fs::copy(program, &copy).with_context(|| copy.display().to_string())?;
        }
        Ok(copy)
    }
}
