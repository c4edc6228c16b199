//! The program of a container's process: arguments, environment, working directory, and the file to execute.
//!
//! Texts of the lookup are those of runc: Docker and Podman read them to tell "not found" (127) from "can't be
//! executed" (126).

use std::collections::HashSet;
use std::convert::Infallible;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use oci_spec::runtime::Process;

use crate::rootfs::path::{InsidePath, Links, Root};
use crate::sys::{Errno, Named, process};

/// A container's `/etc/passwd` is read up to here (CVE-2026-47262: an unbounded one is a denial of service).
const PASSWD_MAX: u64 = 1 << 20;

/// What is to be executed, and where.
#[derive(Debug)]
pub struct Program {
    arguments: Vec<CString>,
    environment: Vec<CString>,
    /// `PATH` of the environment.
    path: Option<String>,
    /// Whether `HOME` must still be found, in the container's `/etc/passwd`.
    home_missing: bool,
    /// Its directory in the container.
    cwd: PathBuf,
}

impl Program {
    /// From a checked `process`. A variable that is given twice has its last value.
    ///
    /// # Errors
    ///
    /// A NUL byte in an argument or a variable.
    pub fn new(process: &Process) -> Result<Self> {
        let text = |field: &str, text: &str| {
            CString::new(text).map_err(|_| anyhow!("{field}: {text:?} has a NUL byte"))
        };
        let arguments = process
            .args()
            .iter()
            .flatten()
            .map(|argument| text("process.args", argument));
        let variables = process.env().as_deref().unwrap_or_default();
        let mut names = HashSet::with_capacity(variables.len());
        let mut environment = Vec::with_capacity(variables.len() + 2);
        for variable in variables.iter().rev() {
            let name = variable
                .split_once('=')
                .map_or(variable.as_str(), |(name, _)| name);
            let is_empty_home = variable == "HOME=";
            if !is_empty_home && names.insert(name) {
                environment.push(text("process.env", variable)?);
            }
        }
        environment.reverse();
        let path = variables
            .iter()
            .rev()
            .find_map(|variable| variable.strip_prefix("PATH="));
        Ok(Self {
            arguments: arguments.collect::<Result<_>>()?,
            environment,
            path: path.map(str::to_owned),
            home_missing: !names.contains("HOME"),
            cwd: process.cwd().clone(),
        })
    }

    /// Adds a variable, over one of the same name.
    pub fn set_variable(&mut self, name: &str, value: &str) -> Result<()> {
        let prefix = format!("{name}=");
        self.environment
            .retain(|variable| !variable.as_bytes().starts_with(prefix.as_bytes()));
        self.environment
            .push(CString::new(prefix + value).with_context(|| format!("the variable {name}"))?);
        Ok(())
    }

    /// The environment as the program will have it.
    #[must_use]
    pub fn environment(&self) -> &[CString] {
        &self.environment
    }

    /// Makes the working directory where it is missing, as root of the container. The caller is inside, and still holds
    /// descriptors of the host: none of them may lead anywhere (CVE-2024-21626).
    ///
    /// # Errors
    ///
    /// As mkdir(2), but what is in the way is told by [`Program::enter_cwd`].
    pub fn make_cwd(&self) -> Result<()> {
        Root::own()?
            .make_directories(&self.cwd)
            .with_context(|| format!("process.cwd: mkdir {}", self.cwd.display()))
    }

    /// Goes to the working directory. Whoever may not as the container's user may as its root: called before and,
    /// where that failed, after the user changes.
    ///
    /// # Errors
    ///
    /// As chdir(2).
    pub fn enter_cwd(&self) -> Result<()> {
        nix::unistd::chdir(&self.cwd)
            .call(|| format!("chdir({:?})", self.cwd))
            .context("process.cwd")
    }

    /// Checks that the working directory is in the container's root, not behind a descriptor that leaked into the
    /// container (CVE-2024-21626): the kernel calls a directory out of reach `(unreachable)`.
    ///
    /// # Errors
    ///
    /// It is not.
    pub fn check_cwd() -> Result<()> {
        match nix::unistd::getcwd() {
            Ok(path) if path.is_absolute() => Ok(()),
            Ok(path) => bail!(
                "process.cwd: {} is outside of the container's root",
                path.display()
            ),
            Err(Errno::ENOENT) => {
                bail!("process.cwd: the directory is outside of the container's root, or was removed")
            }
            Err(errno) => Err(errno).call(|| "getcwd".into()).context("process.cwd"),
        }
    }

    /// Sets `HOME` from the container's `/etc/passwd` where the environment has none. The caller is inside.
    pub fn find_home(&mut self, uid: u32) -> Result<()> {
        if self.home_missing {
            let home = open_passwd()
                .and_then(|passwd| home_of(passwd, uid))
                .unwrap_or_else(|| "/".into());
            self.environment
                .push(CString::new(format!("HOME={home}")).context("HOME")?);
        }
        Ok(())
    }

    /// Finds the file to execute: as given where it has a slash, else in the directories of `PATH`.
    ///
    /// # Errors
    ///
    /// Not found, a directory, or not executable for this user, in runc's words.
    pub fn find(&self) -> Result<CString> {
        let name = self
            .arguments
            .first()
            .ok_or_else(|| anyhow!("process.args must not be empty"))?;
        let text = name
            .to_str()
            .map_err(|_| anyhow!("exec: {name:?} is not UTF-8"))?;
        if text.contains('/') {
            return match executable(text) {
                Ok(()) => Ok(name.clone()),
                // Docker and Podman make 126 of "permission denied", which is what execve(2) says; older ones of no other.
                Err(Errno::EISDIR) => Err(anyhow!("exec: {text:?}: is a directory: permission denied")),
                Err(Errno::EACCES) => Err(anyhow!("exec: {text:?}: permission denied")),
                Err(errno) => Err(anyhow!("exec: {text:?}: stat {text}: {}", lower(errno))),
            };
        }
        let mut denied = false;
        for directory in self.path.as_deref().unwrap_or_default().split(':') {
            let directory = if directory.is_empty() { "." } else { directory };
            let candidate = format!("{directory}/{text}");
            match executable(&candidate) {
                Ok(()) => return CString::new(candidate).context("exec"),
                Err(Errno::EACCES) => denied = true,
                Err(_) => {}
            }
        }
        if denied {
            bail!("exec: {text:?}: permission denied");
        }
        bail!("exec: {text:?}: executable file not found in $PATH")
    }

    /// Executes it. Returns only with an error, in runc's words.
    pub fn execute(&self, file: &CStr) -> Result<Infallible> {
        process::default_sigpipe();
        let errno = match nix::unistd::execve(file, &self.arguments, &self.environment) {
            Ok(never) => match never {},
            Err(errno) => errno,
        };
        Err(anyhow!("exec {}: {}", file.to_string_lossy(), lower(errno)))
    }
}

/// Whether this user may execute the file; `EISDIR` for a directory, `EACCES` without the right.
#[expect(
    clippy::disallowed_methods,
    reason = "as the user, with nothing of the host's open: what execve(2) would find"
)]
fn executable(path: &str) -> nix::Result<()> {
    let metadata = std::fs::metadata(path)
        .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(Errno::EIO as i32)))?;
    if metadata.is_dir() {
        return Err(Errno::EISDIR);
    }
    // Root may read and write anything, but executes only what has an execute bit for somebody.
    if metadata.permissions().mode() & 0o111 == 0 {
        return Err(Errno::EACCES);
    }
    nix::unistd::eaccess(path, nix::unistd::AccessFlags::X_OK)
}

/// The text of an errno as Go spells it, which is what callers of runc look for.
fn lower(errno: Errno) -> String {
    let text = errno.desc();
    let mut characters = text.chars();
    characters.next().map_or_else(String::new, |first| {
        first.to_lowercase().chain(characters).collect()
    })
}

/// The container's `/etc/passwd`, by links of the container's at most: the host's may still be reachable by a descriptor.
fn open_passwd() -> Option<File> {
    let path = InsidePath::new(Path::new("/etc/passwd")).ok()?;
    let flags = libc::O_RDONLY | libc::O_NONBLOCK | libc::O_NOCTTY;
    Root::own().ok()?.open_file(&path, flags, Links::Follow).ok()
}

/// The home directory of a user in a passwd(5) file that a container controls: bounded, never a FIFO that blocks or a
/// device. A line that is not as it should be is not there.
fn home_of(passwd: File, uid: u32) -> Option<String> {
    let metadata = passwd.metadata().ok()?;
    if !metadata.is_file() || metadata.size() > PASSWD_MAX {
        return None;
    }
    let mut text = Vec::new();
    passwd.take(PASSWD_MAX).read_to_end(&mut text).ok()?;
    text.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = std::str::from_utf8(line).ok()?.split(':').skip(2);
        let number = fields
            .next()
            .filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
        let found = number.parse::<u32>().ok()? == uid;
        let home = fields.nth(2)?;
        (found && !home.is_empty() && !home.contains('\0')).then(|| home.to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(env: &[&str]) -> Program {
        let process = serde_json::json!({"user": {}, "cwd": "/", "args": ["sh"], "env": env});
        Program::new(&serde_json::from_value(process).unwrap()).unwrap()
    }

    fn variables(program: &Program) -> Vec<&str> {
        program
            .environment()
            .iter()
            .map(|variable| variable.to_str().unwrap())
            .collect()
    }

    #[test]
    fn a_variable_given_twice_has_its_last_value() {
        assert_eq!(
            variables(&program(&["A=1", "HOME=/x", "A=2", "B=\n"])),
            ["HOME=/x", "A=2", "B=\n"]
        );
    }

    #[test]
    fn an_empty_home_counts_as_none() {
        assert!(program(&["HOME="]).home_missing);
        assert!(!program(&["HOME=/root"]).home_missing);
    }

    #[test]
    fn a_name_is_looked_up_in_path_and_its_absence_told_as_runc_does() {
        let error = program(&["PATH=/nowhere"]).find().unwrap_err();
        assert_eq!(
            error.to_string(),
            "exec: \"sh\": executable file not found in $PATH"
        );
        assert_eq!(
            program(&["PATH=/nowhere:/bin"]).find().unwrap().to_str().unwrap(),
            "/bin/sh"
        );
    }

    fn home(text: &[u8], uid: u32) -> Option<String> {
        let mut file = nix::sys::memfd::memfd_create(c"passwd", nix::sys::memfd::MFdFlags::empty())
            .map(File::from)
            .unwrap();
        std::io::Write::write_all(&mut file, text).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        home_of(file, uid)
    }

    #[test]
    fn home_comes_from_the_line_of_the_uid() {
        let text = b"root:x:0:0:root:/root:/bin/sh\nbad line\nweb:x:1000:1000::/srv/web:\n";
        assert_eq!(home(text, 1000).as_deref(), Some("/srv/web"));
        assert_eq!(home(text, 1), None);
    }

    #[test]
    fn a_line_that_is_not_as_it_should_be_gives_no_home() {
        let text = b"a:x:+5:5::/plus:\n\xff:x:5:5::/bytes:\nb:x::5::/none:\nc:x:4294967301:5::/wrapped:\nd:x:5:5::/home/d:";
        assert_eq!(home(text, 5).as_deref(), Some("/home/d"));
    }

    #[test]
    fn cve_2026_47262_no_more_than_a_mebibyte_of_passwd_is_read() {
        let mut text = b"web:x:1000:1000::/srv/web:\n".to_vec();
        text.resize(1 << 20, b'\n');
        assert_eq!(home(&text, 1000).as_deref(), Some("/srv/web"));
        text.push(b'\n');
        assert_eq!(home(&text, 1000), None);
    }
}
