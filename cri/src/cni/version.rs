//! Versions of the CNI specification, and which one a network speaks.

use std::fmt;

/// All that there are, the oldest first (CNI `SPEC.md`, "Released versions").
const KNOWN: [Version; 7] = [
    Version(0, 1, 0),
    Version(0, 2, 0),
    Version(0, 3, 0),
    Version(0, 3, 1),
    Version(0, 4, 0),
    Version(1, 0, 0),
    Version(1, 1, 0),
];

/// A version of the specification that we speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Version(u8, u8, u8);

impl Version {
    /// The first one: what a configuration or a result without one means.
    pub(crate) const FIRST: Self = KNOWN[0];
    /// The last one.
    pub(crate) const LAST: Self = KNOWN[KNOWN.len() - 1];
    /// From here on a result has `ips`, `interfaces` and `routes`; before, `ip4` and `ip6`.
    pub(super) const LISTS: Self = Self(0, 3, 0);
    /// CHECK, and `prevResult` of DEL.
    pub(super) const CHECK: Self = Self(0, 4, 0);
    /// `ips[].version` is no more.
    pub(super) const NO_IP_VERSION: Self = Self(1, 0, 0);
    /// GC and STATUS; `mtu`, `table`, `scope` and their kind in results.
    pub(super) const STATUS: Self = Self(1, 1, 0);

    /// `1.0.0`, or `1.0`; the empty string is 0.1.0.
    ///
    /// `Ok(None)`: a version that is newer than what we know.
    ///
    /// # Errors
    ///
    /// It is no version, or one that never was.
    pub(super) fn parse(text: &str) -> Result<Option<Self>, String> {
        if text.is_empty() {
            return Ok(Some(Self::FIRST));
        }
        let mut numbers = [0u32; 3];
        let mut parts = text.split('.');
        for (place, number) in numbers.iter_mut().enumerate() {
            match parts.next() {
                Some(part) => {
                    *number = part
                        .parse()
                        .map_err(|_| format!("{text:?} is no version, as 1.0.0"))?;
                }
                None if place == 0 => return Err(format!("{text:?} is no version, as 1.0.0")),
                None => {}
            }
        }
        if parts.next().is_some() {
            return Err(format!("{text:?} is no version, as 1.0.0"));
        }
        let tuple = |version: Self| (u32::from(version.0), u32::from(version.1), u32::from(version.2));
        let asked = (numbers[0], numbers[1], numbers[2]);
        if asked > tuple(Self::LAST) {
            return Ok(None);
        }
        match KNOWN.into_iter().find(|known| tuple(*known) == asked) {
            Some(known) => Ok(Some(known)),
            None => Err(format!(
                "{text:?}: no such version of CNI; there are {}",
                list(KNOWN)
            )),
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.0, self.1, self.2)
    }
}

/// `1.0.0, 1.1.0`
pub(super) fn list(versions: impl IntoIterator<Item = Version>) -> String {
    let versions: Vec<String> = versions.into_iter().map(|version| version.to_string()).collect();
    versions.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_and_ordered() {
        assert_eq!(Version::parse(""), Ok(Some(Version::FIRST)));
        assert_eq!(Version::parse("1.0"), Ok(Some(Version(1, 0, 0))));
        assert_eq!(Version::parse("1.1.0"), Ok(Some(Version::LAST)));
        assert!(Version::parse("0.4.0").unwrap() < Version::parse("1.0.0").unwrap());
    }

    #[test]
    fn a_newer_version_is_not_known_and_a_wrong_one_is_an_error() {
        assert_eq!(Version::parse("1.2.0"), Ok(None));
        assert_eq!(Version::parse("2"), Ok(None));
        for wrong in ["0.3.2", "one", "1.0.0.0", "1..0", "1.0.0-rc1", "-1.0.0"] {
            assert!(Version::parse(wrong).is_err(), "{wrong}");
        }
    }
}
