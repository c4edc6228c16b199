//! Where the volumes that an image defines are in a container: as containerd has them, but none where the pod mounts
//! something at the path or above it, which is then what is meant to be kept.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::mounts::destination;
use crate::error::{Error, Result};
use crate::image::Untrusted;
use crate::proto::ContainerConfig;

/// An image that has more is broken, or hostile.
const MOST: usize = 256;
/// What is there is the container's confinement: a directory of an image over it would take it away (CVE-2019-16884).
const CONFINEMENT: [&str; 3] = ["/proc", "/sys", "/dev"];

/// The paths, those above first.
///
/// # Errors
///
/// `InvalidArgument`: one that can't be, or too many.
pub(crate) fn paths(config: &ContainerConfig, image: &Untrusted) -> Result<Vec<PathBuf>> {
    if image.volumes.len() > MOST {
        return Err(Error::invalid(format_args!(
            "the image's Volumes: {} of them: more than {MOST}",
            image.volumes.len()
        )));
    }
    let mounted: Vec<PathBuf> = config
        .mounts
        .iter()
        .filter_map(|mount| destination(&mount.container_path))
        .collect();
    let mut paths = BTreeSet::new();
    for volume in &image.volumes {
        let refuse = |what: &str| {
            Err(Error::invalid(format_args!(
                "the image's Volumes: {volume:?}: {what}"
            )))
        };
        let Some(path) = destination(volume) else {
            return refuse("is no path below \"/\": build the image without it");
        };
        if mounted.iter().any(|over| path.starts_with(over)) {
            continue;
        }
        if CONFINEMENT.iter().any(|own| path.starts_with(own)) {
            return refuse("is in a file system of the kernel: build the image without it");
        }
        paths.insert(path);
    }
    Ok(paths.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::Mount;
    use std::path::Path;

    fn of(volumes: &[&str], mounts: &[&str]) -> Result<Vec<PathBuf>> {
        let config = ContainerConfig {
            mounts: mounts
                .iter()
                .map(|path| Mount {
                    container_path: (*path).into(),
                    ..Mount::default()
                })
                .collect(),
            ..ContainerConfig::default()
        };
        let image = Untrusted {
            volumes: volumes.iter().map(|path| (*path).to_owned()).collect(),
            ..Untrusted::default()
        };
        paths(&config, &image)
    }

    #[test]
    fn a_volume_is_there_unless_the_pod_mounts_something_at_it_or_above() {
        let paths = |volumes, mounts| -> Vec<String> {
            let paths = of(volumes, mounts).unwrap();
            paths.iter().map(|path| path.display().to_string()).collect()
        };
        assert_eq!(
            paths(&["/b/c", "data", "/b", "/b/"], &["/x", "/b/c/d"]),
            ["/b", "/b/c", "/data"]
        );
        assert_eq!(paths(&["/var/lib/db/data", "/log"], &["/var/lib/db/"]), ["/log"]);
        assert_eq!(paths(&["/a/../../b"], &[]), ["/b"]);
        assert!(paths(&["/dev/shm"], &["/dev/shm"]).is_empty());
    }

    #[test]
    fn a_volume_over_the_confinement_or_the_root_is_refused() {
        for bad in [
            "/",
            "",
            "..",
            "/a/..",
            "/proc",
            "/proc/self/attr",
            "/x/../sys/fs",
            "/dev",
            "a\0b",
        ] {
            let error = of(&[bad], &[]).unwrap_err().to_string();
            assert!(
                error.contains("the image's Volumes") && error.contains(&format!("{bad:?}")),
                "{error}"
            );
        }
        let many: Vec<String> = (0..=MOST).map(|at| format!("/{at}")).collect();
        let many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert!(of(&many, &[]).unwrap_err().to_string().contains("257"));
    }

    #[test]
    fn paths_have_no_way_up() {
        let up = of(&["../../etc", "x/../../../y"], &[]).unwrap();
        assert_eq!(up, [Path::new("/etc"), Path::new("/y")]);
    }
}
