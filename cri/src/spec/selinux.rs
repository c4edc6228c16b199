//! SELinux: the label of a container's processes and that of its files.
//!
//! A pod has a level of its own, two categories that no other pod has (`s0:c12,c803`), so that its processes can't touch what
//! is labelled for another. Its containers share it. The shim's runtime puts labels on; here they are chosen.

use std::collections::BTreeMap;
use std::path::Path;

use sha2::{Digest as _, Sha256};

use super::Asked;
use crate::error::{Error, Result};
use crate::proto::{LinuxContainerSecurityContext, SeLinuxOption};

/// What the policy says of containers, where it says it (`contexts/lxc_contexts`).
const CONTEXTS: &str = "/etc/selinux/targeted/contexts/lxc_contexts";
const PROCESS: &str = "system_u:system_r:container_t:s0";
const FILE: &str = "system_u:object_r:container_file_t:s0";
const FIELD: &str = "config.linux.security_context.selinux_options";
/// How many categories there are.
const CATEGORIES: u64 = 1024;

/// The policy's labels, as `user:role:type:level`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Contexts {
    process: String,
    file: String,
}

/// The labels of one container; empty ones are none.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Labels {
    pub(super) process: String,
    pub(super) mount: String,
}

impl Contexts {
    /// `None`: SELinux is off.
    pub(super) fn detect() -> Option<Self> {
        Path::new("/sys/fs/selinux/enforce")
            .exists()
            .then(|| Self::parse(&std::fs::read_to_string(CONTEXTS).unwrap_or_default()))
    }

    fn parse(text: &str) -> Self {
        let fields: BTreeMap<&str, &str> = text
            .lines()
            .filter_map(|line| line.split_once('='))
            .map(|(key, value)| (key.trim(), value.trim().trim_matches('"')))
            .collect();
        let of = |key, default: &str| fields.get(key).copied().unwrap_or(default).to_owned();
        Self {
            process: of("process", PROCESS),
            file: of("file", FILE),
        }
    }
}

/// The labels of a container: the policy's, with what is asked for, and the pod's level.
///
/// # Errors
///
/// `InvalidArgument`: a part that can't be.
pub(super) fn labels(
    contexts: Option<&Contexts>,
    asked: &Asked<'_>,
    context: &LinuxContainerSecurityContext,
) -> Result<Labels> {
    let pods = asked.pod_context().selinux_options;
    let options = context.selinux_options.clone().or(pods).unwrap_or_default();
    check(&options)?;
    let Some(contexts) = contexts else {
        return Ok(Labels::default());
    };
    let level = if options.level.is_empty() {
        asked.selinux_level
    } else {
        &options.level
    };
    let user = &options.user;
    let process = with(&contexts.process, [user, &options.role, &options.r#type, level]);
    Ok(Labels {
        process: if context.privileged {
            String::new()
        } else {
            process
        },
        mount: with(&contexts.file, [user, "", "", level]),
    })
}

/// Empty parts stay as they are.
fn with(label: &str, parts: [&str; 4]) -> String {
    let mut new: Vec<&str> = label.splitn(4, ':').collect();
    new.resize(4, "");
    for (old, part) in new.iter_mut().zip(parts) {
        if !part.is_empty() {
            *old = part;
        }
    }
    new.join(":")
}

fn check(options: &SeLinuxOption) -> Result<()> {
    let word = |text: &str| {
        text.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
    };
    for (field, value) in [
        ("user", &options.user),
        ("role", &options.role),
        ("type", &options.r#type),
    ] {
        if !word(value) {
            return Err(Error::invalid(format_args!(
                "{FIELD}.{field}: {value:?}: is no name"
            )));
        }
    }
    if !options.level.is_empty() && !is_level(&options.level) {
        return Err(Error::invalid(format_args!(
            "{FIELD}.level: {:?}: must be as s0:c1,c2",
            options.level
        )));
    }
    Ok(())
}

/// `s0`, `s0-s1`, `s0:c1,c2`, `s0:c1.c5,c7`.
fn is_level(level: &str) -> bool {
    let number = |text: &str, letter: char, digits: usize| {
        text.strip_prefix(letter).is_some_and(|number| {
            (1..=digits).contains(&number.len()) && number.bytes().all(|byte| byte.is_ascii_digit())
        })
    };
    let (sensitivity, categories) = match level.split_once(':') {
        Some((sensitivity, categories)) => (sensitivity, Some(categories)),
        None => (level, None),
    };
    sensitivity.split('-').count() <= 2
        && sensitivity.split('-').all(|one| number(one, 's', 1))
        && categories.is_none_or(|all| {
            all.split(',')
                .all(|range| range.split('.').count() <= 2 && range.split('.').all(|one| number(one, 'c', 4)))
        })
}

/// The level of a new pod: of its id, and of no pod that has one.
pub(crate) fn level(sandbox: &str, taken: &[String]) -> String {
    let mut digest = Sha256::digest(sandbox);
    loop {
        let mut number = [0; 8];
        number.copy_from_slice(&digest[..8]);
        let number = u64::from_be_bytes(number);
        let (a, b) = (number % CATEGORIES, number / CATEGORIES % CATEGORIES);
        let level = format!("s0:c{},c{}", a.min(b), a.max(b));
        // More pods than there are pairs is no machine's.
        if a != b && !taken.contains(&level) {
            return level;
        }
        digest = Sha256::digest(digest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policys_labels_are_read() {
        let text =
            "process = \"system_u:system_r:svirt_lxc_net_t:s0\"\ncontent=\"x\"\nfile = \"u:r:f_t:s0\"\n";
        let contexts = Contexts::parse(text);
        assert_eq!(contexts.process, "system_u:system_r:svirt_lxc_net_t:s0");
        assert_eq!(contexts.file, "u:r:f_t:s0");
        assert_eq!(Contexts::parse("").process, PROCESS);
    }

    #[test]
    fn what_is_asked_for_replaces_its_part_of_the_label() {
        assert_eq!(
            with(PROCESS, ["", "", "spc_t", "s0:c1,c2"]),
            "system_u:system_r:spc_t:s0:c1,c2"
        );
        assert_eq!(with(FILE, ["u", "", "", ""]), "u:object_r:container_file_t:s0");
    }

    #[test]
    fn levels_are_checked() {
        for good in ["s0", "s0-s1", "s0:c1,c2", "s0:c1.c5,c1023", "s0-s0:c1"] {
            assert!(is_level(good), "{good}");
        }
        for bad in [
            "",
            "x0",
            "s0:",
            "s0:c12345",
            "s0:c1,",
            "s0-s1-s2",
            "s0:c1.c2.c3",
            "s0\0",
            "s0:d1",
        ] {
            assert!(!is_level(bad), "{bad}");
        }
        let odd = SeLinuxOption {
            user: "a:b".into(),
            ..Default::default()
        };
        assert!(
            check(&odd)
                .unwrap_err()
                .to_string()
                .contains("selinux_options.user")
        );
    }

    #[test]
    fn every_pod_has_a_level_of_its_own() {
        let mut taken = Vec::new();
        for pod in 0..300 {
            let level = level(&pod.to_string(), &taken);
            assert!(is_level(&level) && !taken.contains(&level), "{level}");
            taken.push(level);
        }
        assert_eq!(level("7", &[]), level("7", &[]));
    }
}
