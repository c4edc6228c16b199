//! What is written below `/proc/<process>` before the program: security labels and the OOM score.

use anyhow::{Context, Result};
use oci_spec::runtime::Process;

use crate::procfs::Procfs;
use crate::{log, rootless};

/// What a Linux security module shall do at the next `execve` of the process.
#[derive(Debug, Default)]
pub struct Labels<'a> {
    apparmor: Option<&'a str>,
    selinux: Option<&'a str>,
}

impl<'a> Labels<'a> {
    /// `process.apparmorProfile` and `process.selinuxLabel`; empty ones count as none.
    #[must_use]
    pub fn of(process: &'a Process) -> Self {
        Self {
            apparmor: process
                .apparmor_profile()
                .as_deref()
                .filter(|profile| !profile.is_empty()),
            selinux: process
                .selinux_label()
                .as_deref()
                .filter(|label| !label.is_empty()),
        }
    }

    /// Whether nothing is to be written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.apparmor.is_none() && self.selinux.is_none()
    }

    /// The label of keys and keyrings that this process makes from here on: that of the process to be, which could not
    /// use them otherwise (SELinux, `attr/keycreate`).
    ///
    /// # Errors
    ///
    /// SELinux is not enabled, or does not know the label.
    pub fn write_for_keys(&self, procfs: &Procfs) -> Result<()> {
        match self.selinux {
            Some(label) => procfs
                .write("self/attr/keycreate", label)
                .with_context(|| format!("process.selinuxLabel: {label:?}: is SELinux enabled?")),
            None => Ok(()),
        }
    }

    /// Writes them for this process; its children inherit them (AppArmor: `attr/apparmor/exec` since Linux 5.8, before
    /// that the `attr/exec` it shares with SELinux).
    ///
    /// # Errors
    ///
    /// The security module is not enabled, or does not know the label.
    pub fn write(&self, procfs: &Procfs) -> Result<()> {
        if let Some(profile) = self.apparmor {
            let value = format!("exec {profile}");
            procfs
                .write("self/attr/apparmor/exec", &value)
                .or_else(|_| procfs.write("self/attr/exec", &value))
                .with_context(|| {
                    format!(
                        "process.apparmorProfile: {profile:?}: is AppArmor enabled, and the profile loaded?"
                    )
                })?;
        }
        if let Some(label) = self.selinux {
            procfs
                .write("self/attr/exec", label)
                .with_context(|| format!("process.selinuxLabel: {label:?}: is SELinux enabled?"))?;
        }
        Ok(())
    }
}

/// Sets the OOM score adjustment of `/proc/<process>`, -1000 to 1000. Lowering it needs CAP_SYS_RESOURCE
/// (proc_pid_oom_score_adj(5)): a caller that is not root of the machine is warned, and the process keeps what it has.
///
/// # Errors
///
/// Root may not lower it.
pub fn set_oom_score(procfs: &Procfs, process: &str, score: i32) -> Result<()> {
    let written = procfs
        .write(&format!("{process}/oom_score_adj"), &score.to_string())
        .context("process.oomScoreAdj");
    match written {
        Err(error) if rootless::was_refused(&error) && rootless::is_unprivileged() => {
            log::warn(format_args!("{error:#}: only root may lower it; left as it is"));
            Ok(())
        }
        written => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SELinux is on no machine that the project is tested on: what would be written to the kernel is written to files.
    #[test]
    fn labels_are_written_where_each_security_module_reads_them() {
        let directory = std::env::temp_dir().join(format!("rtc-attr-{}", std::process::id()));
        let files = ["apparmor/exec", "exec", "keycreate"].map(|file| directory.join("self/attr").join(file));
        std::fs::create_dir_all(directory.join("self/attr/apparmor")).unwrap();
        for file in &files {
            std::fs::write(file, "").unwrap();
        }
        let process: Process = serde_json::from_value(serde_json::json!({
            "user": {}, "cwd": "/", "apparmorProfile": "web", "selinuxLabel": "system_u:system_r:container_t:s0:c1,c2"
        }))
        .unwrap();
        let (procfs, labels) = (Procfs::fake(&directory), Labels::of(&process));
        labels.write_for_keys(&procfs).unwrap();
        labels.write(&procfs).unwrap();
        let written = files
            .each_ref()
            .map(|file| std::fs::read_to_string(file).unwrap());
        let selinux = "system_u:system_r:container_t:s0:c1,c2";
        assert_eq!(written, ["exec web", selinux, selinux]);
        std::fs::remove_dir_all(directory).unwrap();
    }
}
