//! The name of a container's unit and where systemd puts it.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

const FIELD: &str = "linux.cgroupsPath";
/// The longest name of a unit (systemd, `UNIT_NAME_MAX`).
const LONGEST: usize = 255;

/// A unit that is to be made.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unit {
    pub(super) slice: String,
    pub(super) name: String,
    /// Below the root of the tree.
    pub(super) path: PathBuf,
}

impl Unit {
    /// From `slice:prefix:name`; without it, `rtc-<id>.scope` in the slice `default`.
    pub(super) fn of(cgroups_path: Option<&Path>, id: &str, default: &str) -> Result<Self> {
        let Some(path) = cgroups_path else {
            return Self::new(default, "rtc", id);
        };
        let parts: Vec<&str> = path.to_str().unwrap_or_default().split(':').collect();
        let [slice, prefix, name] = parts[..] else {
            bail!(
                "{FIELD}: expected cgroupsPath to be of format \"slice:prefix:name\" for systemd cgroups, \
                 got {path:?} instead"
            );
        };
        Self::new(if slice.is_empty() { default } else { slice }, prefix, name)
    }

    fn new(slice: &str, prefix: &str, name: &str) -> Result<Self> {
        if name.is_empty() || name.ends_with(".slice") {
            bail!("{FIELD}: {name:?}: must name a container, not a slice");
        }
        // Also where the prefix is empty, as runc and crun have it.
        let name = format!("{prefix}-{name}.scope");
        for name in [slice, &name] {
            let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.\\@".contains(&byte);
            if name.len() > LONGEST || !name.bytes().all(allowed) {
                bail!(
                    "{FIELD}: {name:?}: not a name systemd takes: at most {LONGEST} ASCII letters, digits, and :-_.\\"
                );
            }
        }
        let path = expand(slice)?.join(&name);
        Ok(Self {
            slice: slice.to_owned(),
            name,
            path,
        })
    }
}

/// `a-b.slice` is in `a.slice` (systemd.slice(5)); `-.slice` is the root.
fn expand(slice: &str) -> Result<PathBuf> {
    let invalid = || format!("{FIELD}: invalid slice name: {slice}");
    let Some(name) = slice.strip_suffix(".slice") else {
        bail!(invalid())
    };
    let mut path = PathBuf::new();
    if name == "-" {
        return Ok(path);
    }
    let mut prefix = String::new();
    for part in name.split('-') {
        if part.is_empty() {
            bail!(invalid());
        }
        path.push(format!("{prefix}{part}.slice"));
        prefix.push_str(part);
        prefix.push('-');
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unit(path: &str) -> Result<Unit> {
        Unit::of(Some(Path::new(path)), "id", "system.slice")
    }

    #[test]
    fn a_slice_is_below_the_slices_its_name_tells() {
        let unit = unit("kubepods-burstable-pod_1.slice:cri:web").unwrap();
        let path = "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod_1.slice/cri-web.scope";
        assert_eq!(
            (unit.name.as_str(), unit.path),
            ("cri-web.scope", PathBuf::from(path))
        );
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let default = Unit::of(None, "web", "system.slice").unwrap();
        assert_eq!(default.path, Path::new("system.slice/rtc-web.scope"));
        assert_eq!(unit("::web").unwrap().path, Path::new("system.slice/-web.scope"));
        assert_eq!(unit("-.slice:a:web").unwrap().path, Path::new("a-web.scope"));
    }

    #[test]
    fn what_is_no_name_is_refused() {
        let text = |path: &str| unit(path).unwrap_err().to_string();
        assert!(text("/a/b").contains("expected cgroupsPath to be of format \"slice:prefix:name\""));
        for slice in ["a--b.slice", "-a.slice", ".slice", "a", "a-.slice"] {
            assert!(
                text(&format!("{slice}:p:n")).contains("invalid slice name"),
                "{slice}"
            );
        }
        for name in ["a.slice:p:../x", "a.slice:p:n+", "a/b.slice:p:n"] {
            assert!(text(name).contains("not a name systemd takes"), "{name}");
        }
        assert!(text("a.slice:p:").contains("must name a container"));
    }
}
