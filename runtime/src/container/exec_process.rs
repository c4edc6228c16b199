//! The process of `exec`: one given whole, or the container's own with changes.
//!
//! Pure: the container's configuration goes in, the process to start comes out.

use std::collections::HashSet;
use std::path::PathBuf;

use anyhow::{Result, bail};
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilities, Process};

use crate::bundle;
use crate::log;

/// What an exec request says about its process.
#[derive(Debug)]
pub enum ExecProcess {
    /// All of it, as in `exec --process FILE` or the shim's Task API; already checked.
    Whole(Box<Process>),
    /// The container's process with these changes.
    Overrides(Box<ExecOverrides>),
}

/// Changes to the container's process, one for each flag of `exec`; what is empty or none stays as it is.
#[derive(Debug, Default, Clone)]
pub struct ExecOverrides {
    /// The program and its arguments.
    pub args: Vec<String>,
    /// `--cwd`.
    pub cwd: Option<PathBuf>,
    /// `--env`: added after the container's, so that they win.
    pub env: Vec<String>,
    /// `--tty`: the container's own setting is not taken over.
    pub tty: bool,
    /// `--user uid[:gid]`.
    pub user: Option<(u32, Option<u32>)>,
    /// `--additional-gids`.
    pub additional_gids: Vec<u32>,
    /// `--process-label`.
    pub process_label: Option<String>,
    /// `--apparmor`.
    pub apparmor: Option<String>,
    /// `--no-new-privs`, where given.
    pub no_new_privs: Option<bool>,
    /// `--cap`.
    pub capabilities: Vec<Capability>,
}

impl ExecProcess {
    /// The process to start in a container whose configuration names `container` as its own.
    pub fn resolve(self, container: Option<&Process>) -> Result<Process> {
        match self {
            ExecProcess::Whole(process) => Ok(*process),
            ExecProcess::Overrides(overrides) => {
                let Some(container) = container else {
                    bail!("config.json: process: missing; give one with --process");
                };
                overrides.onto(container.clone())
            }
        }
    }
}

impl ExecOverrides {
    fn onto(self, mut process: Process) -> Result<Process> {
        process.set_args(Some(self.args));
        process.set_terminal(Some(self.tty));
        if let Some(cwd) = self.cwd {
            process.set_cwd(cwd);
        }
        if let Some(label) = self.process_label {
            process.set_selinux_label(Some(label));
        }
        if let Some(profile) = self.apparmor {
            process.set_apparmor_profile(Some(profile));
        }
        if let Some(no_new_privs) = self.no_new_privs {
            process.set_no_new_privileges(Some(no_new_privs));
        }
        process.env_mut().get_or_insert_default().extend(self.env);
        let user = process.user_mut();
        if let Some((uid, gid)) = self.user {
            user.set_uid(uid);
            if let Some(gid) = gid {
                user.set_gid(gid);
            }
        }
        if !self.additional_gids.is_empty() {
            let mut gids = user.additional_gids().clone().unwrap_or_default();
            gids.extend(self.additional_gids);
            user.set_additional_gids(Some(gids));
        }
        if !self.capabilities.is_empty() {
            let sets = with_capabilities(process.capabilities().as_ref(), &self.capabilities);
            process.set_capabilities(Some(sets));
        }
        for warning in bundle::check_process(&process)? {
            log::warn(warning);
        }
        Ok(process)
    }
}

/// Adds capabilities to the bounding, effective and permitted sets, never to the inheritable one (CVE-2022-29162), and so to
/// the ambient one only where they are inheritable already.
fn with_capabilities(sets: Option<&LinuxCapabilities>, added: &[Capability]) -> LinuxCapabilities {
    let mut sets = sets.cloned().unwrap_or_else(no_capabilities);
    let plus = |set: &Option<Capabilities>, wanted: &dyn Fn(&Capability) -> bool| {
        let mut set: HashSet<Capability> = set.clone().unwrap_or_default();
        set.extend(added.iter().copied().filter(|c| wanted(c)));
        Some(set)
    };
    let inheritable = sets.inheritable().clone().unwrap_or_default();
    let (bounding, effective, permitted, ambient) = (
        plus(sets.bounding(), &|_| true),
        plus(sets.effective(), &|_| true),
        plus(sets.permitted(), &|_| true),
        plus(sets.ambient(), &|c| inheritable.contains(c)),
    );
    sets.set_bounding(bounding)
        .set_effective(effective)
        .set_permitted(permitted)
        .set_ambient(ambient);
    sets
}

/// Five sets without a capability; oci-spec's default is what Docker gives.
fn no_capabilities() -> LinuxCapabilities {
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(None)
        .set_effective(None)
        .set_inheritable(None)
        .set_permitted(None)
        .set_ambient(None);
    sets
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container() -> Process {
        serde_json::from_str(
            r#"{"terminal": true, "user": {"uid": 5, "gid": 6, "additionalGids": [7]}, "args": ["init"], "env": ["A=1"],
                "cwd": "/srv", "noNewPrivileges": true,
                "capabilities": {"bounding": ["CAP_KILL"], "inheritable": ["CAP_NET_RAW"]}}"#,
        )
        .unwrap()
    }

    fn resolved(overrides: ExecOverrides) -> Process {
        ExecProcess::Overrides(Box::new(overrides))
            .resolve(Some(&container()))
            .unwrap()
    }

    fn command() -> ExecOverrides {
        ExecOverrides {
            args: vec!["ls".into()],
            ..ExecOverrides::default()
        }
    }

    #[test]
    fn what_no_flag_names_comes_from_the_container_except_the_terminal() {
        let process = resolved(command());
        let mut expected = container();
        expected
            .set_args(Some(vec!["ls".into()]))
            .set_terminal(Some(false));
        assert_eq!(process, expected);
    }

    #[test]
    fn flags_win_and_lists_are_added_to() {
        let process = resolved(ExecOverrides {
            cwd: Some("/tmp".into()),
            env: vec!["A=2".into()],
            tty: true,
            user: Some((9, None)),
            additional_gids: vec![8],
            no_new_privs: Some(false),
            ..command()
        });
        assert_eq!(process.cwd().to_str(), Some("/tmp"));
        assert_eq!(process.env().as_deref().unwrap(), ["A=1", "A=2"]);
        assert_eq!((process.user().uid(), process.user().gid()), (9, 6));
        assert_eq!(process.user().additional_gids().as_deref().unwrap(), [7, 8]);
        assert_eq!(
            (process.terminal(), process.no_new_privileges()),
            (Some(true), Some(false))
        );
    }

    #[test]
    fn an_added_capability_is_ambient_only_if_inheritable() {
        let process = resolved(ExecOverrides {
            capabilities: vec![Capability::NetRaw, Capability::SysAdmin],
            ..command()
        });
        let sets = process.capabilities().as_ref().unwrap();
        let set = |items: &[Capability]| Some(items.iter().copied().collect::<HashSet<_>>());
        assert_eq!(
            *sets.bounding(),
            set(&[Capability::Kill, Capability::NetRaw, Capability::SysAdmin])
        );
        assert_eq!(
            *sets.permitted(),
            set(&[Capability::NetRaw, Capability::SysAdmin])
        );
        assert_eq!(*sets.inheritable(), set(&[Capability::NetRaw]));
        assert_eq!(*sets.ambient(), set(&[Capability::NetRaw]));
    }

    #[test]
    fn bad_values_of_flags_are_named() {
        let overrides = ExecOverrides {
            cwd: Some("tmp".into()),
            ..command()
        };
        let error = ExecProcess::Overrides(Box::new(overrides))
            .resolve(Some(&container()))
            .unwrap_err();
        assert_eq!(error.to_string(), "cwd: \"tmp\": must be absolute");
        assert!(ExecProcess::Overrides(Box::new(command())).resolve(None).is_err());
    }
}
