//! A cgroup that somebody else made: that of a container of another runtime.

use std::path::Path;

use anyhow::{Result, bail};
use nix::unistd::Pid;

use super::create::Made;
use super::layout::{self, UNIFIED};
use super::{Cgroup, Driver, Layout, Tree};

impl Cgroup {
    /// The cgroup that a process is in, in each tree. It is to be looked at, frozen and killed through; making and removing
    /// it is for whoever made it.
    ///
    /// # Errors
    ///
    /// The process has gone, or is in a root cgroup: that is no container's.
    pub fn of_process(pid: Pid, layout: &Layout) -> Result<Self> {
        let process = pid.to_string();
        let trees = match layout {
            Layout::V2 => {
                let own = layout::unified_cgroup_of(&process)?;
                vec![Tree::new(
                    UNIFIED,
                    Path::new(layout::ROOT),
                    &layout::relative(&own),
                )]
            }
            Layout::V1(hierarchies) => {
                let places = layout::hierarchies_of(&process)?;
                let found = hierarchies.iter().filter_map(|hierarchy| {
                    let place = places
                        .iter()
                        .find(|place| place.controllers == hierarchy.controllers)?;
                    Some(Tree::new(
                        &hierarchy.controllers,
                        &hierarchy.mount,
                        &layout::relative(&place.own),
                    ))
                });
                found.collect()
            }
        };
        let cgroup = Self {
            driver: Driver::Cgroupfs,
            unit: None,
            user: false,
            slice: None,
            trees,
            made: Made::default(),
        };
        let main = cgroup.main()?;
        if main.path == main.mount {
            bail!("process {pid} is in the root cgroup: its runtime made it none");
        }
        Ok(cgroup)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_of_this_process_is_found_or_is_the_root() {
        let layout = Layout::detect().unwrap();
        match Cgroup::of_process(nix::unistd::getpid(), &layout) {
            Ok(cgroup) => assert!(cgroup.exists(), "{cgroup:?}"),
            Err(error) => assert!(error.to_string().contains("root cgroup"), "{error:#}"),
        }
    }
}
