//! How a process gets into a container's cgroup.
//!
//! On v2 it is born in it (`CLONE_INTO_CGROUP`). On v1 the child writes `0` into the `cgroup.procs` of each tree: a
//! task that moves itself takes microseconds, one that is moved by another a grace period of RCU each.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::OFlag;
use nix::unistd::Pid;

use super::dir::Dir;
use super::layout::{ROOT, relative, unified_cgroup_of};
use super::{Cgroup, Tree};
use crate::sys::Named as _;

/// What a new process needs to join a cgroup. All descriptors are close-on-exec.
#[derive(Debug)]
pub enum JoinTarget {
    /// The directory, for `CLONE_INTO_CGROUP` (Linux 5.7).
    V2(OwnedFd),
    /// One `cgroup.procs` for each tree, open for writing; the child writes `0` into each.
    V1(Vec<OwnedFd>),
}

impl Cgroup {
    /// The container's cgroup itself. Nothing to join where systemd is yet to make it, around the process
    /// ([`Cgroup::attach`]).
    ///
    /// # Errors
    ///
    /// Where the cgroup is gone.
    pub fn join_target(&self) -> Result<JoinTarget> {
        if self.made.is_awaited() {
            return Ok(JoinTarget::V1(Vec::new()));
        }
        if self.is_v2() {
            let dir = self.main()?.dir()?;
            return Ok(JoinTarget::V2(duplicate(dir)?));
        }
        let files = self
            .trees
            .iter()
            .map(|tree| Ok(tree.file("cgroup.procs", OFlag::O_WRONLY)?));
        Ok(JoinTarget::V1(files.collect::<Result<_>>()?))
    }

    /// The container's cgroup, or one below it: what `exec --cgroup` names (each element is an argument), by runc's
    /// rules. `path` goes for every tree, `controller[,controller]:path` for those named; the others get the
    /// container's own.
    ///
    /// # Errors
    ///
    /// `bad sub cgroup path` for one that leads out, `unknown controller`, or a cgroup that does not exist.
    pub fn join_target_below(&self, arguments: &[String]) -> Result<JoinTarget> {
        let mut paths: Vec<PathBuf> = self.trees.iter().map(|tree| tree.path.clone()).collect();
        for (index, path) in below(&self.trees, arguments)? {
            paths[index].push(path);
        }
        let open = |path: &Path| Dir::open(path).with_context(|| format!("adding pid to cgroup {path:?}"));
        if self.is_v2() {
            return Ok(JoinTarget::V2(duplicate(&open(&paths[0])?)?));
        }
        let files = paths.iter().map(|path| {
            let file = open(path)?.file("cgroup.procs", OFlag::O_WRONLY);
            file.with_context(|| format!("adding pid to cgroup {path:?}"))
        });
        Ok(JoinTarget::V1(files.collect::<Result<_>>()?))
    }

    /// The cgroup that the container's init has moved to. On v2 only.
    ///
    /// For an exec whose clone into [`Cgroup::join_target`] failed with `EBUSY`: the container has made cgroups of its
    /// own and passed controllers on to them, so its own cgroup takes no more processes (runc does the same).
    ///
    /// # Errors
    ///
    /// Where init is gone, or its cgroup is no longer below the container's.
    pub fn join_target_of_init(&self, init: Pid) -> Result<JoinTarget> {
        let path = Path::new(ROOT).join(relative(&unified_cgroup_of(&init.to_string())?));
        let own = &self.main()?.path;
        if !path.starts_with(own) {
            bail!("init is in cgroup {path:?}, which is not below the container's, {own:?}");
        }
        Ok(JoinTarget::V2(duplicate(&Dir::open(&path)?)?))
    }
}

pub(super) fn duplicate(dir: &Dir) -> Result<OwnedFd> {
    Ok(dir
        .as_fd()
        .try_clone_to_owned()
        .call(|| format!("dup({:?})", dir.path()))?)
}

/// Which trees get which path below the container's cgroup.
fn below(trees: &[Tree], arguments: &[String]) -> Result<Vec<(usize, PathBuf)>> {
    let mut found: Vec<(usize, PathBuf)> = Vec::new();
    for argument in arguments {
        let Some((controllers, path)) = argument.split_once(':') else {
            if arguments.len() != 1 {
                bail!("invalid --cgroup argument: {argument} (missing <controller>: prefix)");
            }
            let path = inside(argument)?;
            return Ok((0..trees.len()).map(|index| (index, path.clone())).collect());
        };
        let path = inside(path)?;
        for controller in controllers.split(',') {
            if controller.is_empty() {
                bail!("invalid --cgroup argument: {argument} (empty <controller> prefix)");
            }
            let Some(index) = trees.iter().position(|tree| tree.has(controller)) else {
                bail!("unknown controller {controller} in --cgroup argument: {argument}");
            };
            if let Some((_, other)) = found.iter().find(|(found, _)| *found == index) {
                // `cpu:a` and `cpuacct:a` may be one tree.
                if *other != path {
                    bail!("invalid --cgroup argument(s): controller {controller} specified multiple times");
                }
                continue;
            }
            found.push((index, path.clone()));
        }
    }
    Ok(found)
}

/// A path that stays inside.
fn inside(path: &str) -> Result<PathBuf> {
    let mut depth = 0_usize;
    for component in Path::new(path).components() {
        match component {
            std::path::Component::Normal(_) => depth += 1,
            std::path::Component::ParentDir if depth == 0 => bail!("bad sub cgroup path: {path}"),
            std::path::Component::ParentDir => depth -= 1,
            _ => {}
        }
    }
    Ok(relative(Path::new(path)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn below_of(arguments: &[&str]) -> Result<Vec<(usize, PathBuf)>> {
        let trees = [
            Tree::new("memory", Path::new("/m"), Path::new("x")),
            Tree::new("cpu,cpuacct", Path::new("/c"), Path::new("x")),
        ];
        below(
            &trees,
            &arguments
                .iter()
                .map(|argument| (*argument).to_owned())
                .collect::<Vec<_>>(),
        )
    }

    #[test]
    fn a_plain_path_goes_for_every_tree() {
        let path = PathBuf::from("a/b");
        assert_eq!(below_of(&["/a/b"]).unwrap(), [(0, path.clone()), (1, path)]);
    }

    #[test]
    fn a_path_with_controllers_goes_for_their_trees() {
        assert_eq!(below_of(&["cpu,cpuacct:a"]).unwrap(), [(1, PathBuf::from("a"))]);
        assert_eq!(
            below_of(&["cpu:a", "memory:b"]).unwrap(),
            [(1, PathBuf::from("a")), (0, PathBuf::from("b"))]
        );
    }

    #[test]
    fn bad_arguments_are_told_in_runcs_words() {
        let text = |arguments: &[&str]| below_of(arguments).unwrap_err().to_string();
        assert!(text(&["a/../../x"]).starts_with("bad sub cgroup path"));
        assert!(text(&["rdma:x"]).starts_with("unknown controller rdma"));
        assert!(text(&["cpu:x", "cpuacct:y"]).contains("specified multiple times"));
        assert!(text(&["cpu:x", "y"]).contains("missing <controller>: prefix"));
        assert!(text(&[":x"]).contains("empty <controller> prefix"));
    }
}
