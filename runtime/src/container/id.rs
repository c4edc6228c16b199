//! The id of a container: the name of its state directory, and part of its cgroup's.

use std::fmt;
use std::str::FromStr;

use anyhow::{Error, bail};

/// Longest id: as long as a file name may be.
const LENGTH_MAX: usize = 255;

/// A checked id: runc's characters, so it is one path component that is neither `.` nor `..`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ContainerId(String);

impl ContainerId {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ContainerId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        if text.is_empty() {
            bail!("container id cannot be empty");
        }
        if text.len() > LENGTH_MAX {
            bail!(
                "invalid container ID format: {} bytes long; at most {LENGTH_MAX} are possible",
                text.len()
            );
        }
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_+.-".contains(&byte);
        if !text.bytes().all(allowed) || text == "." || text == ".." {
            bail!("invalid container ID format: {text:?}; use letters, digits and _ + . - (but not . or ..)");
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_the_charset_of_runc_are_accepted() {
        for id in ["a", "web-1", "a_b+c.d", ".foo", "...", &"x".repeat(255)] {
            assert_eq!(id.parse::<ContainerId>().unwrap().as_str(), id);
        }
    }

    #[test]
    fn what_could_leave_the_state_root_or_confuse_a_reader_is_refused() {
        for id in [
            "",
            ".",
            "..",
            "a/b",
            "/a",
            "a b",
            "a\n",
            "é",
            "a\0",
            &"x".repeat(256),
        ] {
            assert!(id.parse::<ContainerId>().is_err(), "{id:?}");
        }
    }
}
