//! crun's form of a mapping in an option: `idmap=uids=0-1-10#10-11-10;gids=@0-100-10`. Pure.
//!
//! Each triple is a line of `/proc/<pid>/uid_map`: id on the filesystem, id on the host, count. With `@` the second is an
//! id of the container, which its user namespace maps to the host's.

use anyhow::{Context as _, Result, bail};
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder};

use super::Container;

/// One triple.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Triple {
    inside: u32,
    outside: u32,
    count: u32,
    relative: bool,
}

/// Mappings of users and groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Custom {
    uids: Vec<Triple>,
    gids: Vec<Triple>,
}

impl Custom {
    /// What stands behind `idmap=`.
    ///
    /// # Errors
    ///
    /// Anything but both lists of triples.
    pub(crate) fn parse(text: &str) -> Result<Custom> {
        let (mut uids, mut gids) = (None, None);
        for part in text.split(';') {
            let (key, list) = part.split_once('=').unwrap_or((part, ""));
            let place = match key {
                "uids" => &mut uids,
                "gids" => &mut gids,
                _ => bail!("{part:?}: must be uids=... or gids=..."),
            };
            let triples = list
                .split('#')
                .map(|one| triple(one).with_context(|| format!("{key}: {one:?}")));
            if place.replace(triples.collect::<Result<Vec<_>>>()?).is_some() {
                bail!("{key}: is given twice");
            }
        }
        match (uids, gids) {
            (Some(uids), Some(gids)) => Ok(Custom { uids, gids }),
            (None, _) => bail!("uids: missing"),
            (_, None) => bail!("gids: missing"),
        }
    }

    /// The mappings with the host's ids, of users and of groups.
    ///
    /// # Errors
    ///
    /// A relative one that the container's user namespace does not map as a whole.
    pub(super) fn resolve(&self, container: &Container<'_>) -> Result<[Vec<LinuxIdMapping>; 2]> {
        let (uids, gids) = match container {
            Container::New { uids, gids } => (*uids, *gids),
            Container::Host | Container::Joined(_) => (&[][..], &[][..]),
        };
        Ok([
            absolute(&self.uids, uids).context("uids")?,
            absolute(&self.gids, gids).context("gids")?,
        ])
    }
}

fn triple(text: &str) -> Result<Triple> {
    let (relative, numbers) = match text.strip_prefix('@') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let parts: Vec<&str> = numbers.split('-').collect();
    let number = |text: &str| -> Option<u32> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        if digits { text.parse().ok() } else { None }
    };
    let [inside, outside, count] = parts.as_slice() else {
        bail!("must be three numbers such as 0-1000-10");
    };
    match (number(inside), number(outside), number(count)) {
        (Some(inside), Some(outside), Some(count))
            if count > 0 && inside.checked_add(count).is_some() && outside.checked_add(count).is_some() =>
        {
            Ok(Triple {
                inside,
                outside,
                count,
                relative,
            })
        }
        _ => bail!("must be three numbers such as 0-1000-10, a range within 0 to 4294967294"),
    }
}

fn absolute(triples: &[Triple], namespace: &[LinuxIdMapping]) -> Result<Vec<LinuxIdMapping>> {
    let one = |triple: &Triple| -> Result<LinuxIdMapping> {
        let mut host = triple.outside;
        if triple.relative {
            let holds = |map: &&LinuxIdMapping| {
                host >= map.container_id()
                    && u64::from(host) + u64::from(triple.count)
                        <= u64::from(map.container_id()) + u64::from(map.size())
            };
            let Some(map) = namespace.iter().find(holds) else {
                bail!(
                    "@{}-{host}-{}: no one mapping of the container's new user namespace has these ids",
                    triple.inside,
                    triple.count
                );
            };
            host = host - map.container_id() + map.host_id();
        }
        Ok(LinuxIdMappingBuilder::default()
            .container_id(triple.inside)
            .host_id(host)
            .size(triple.count)
            .build()?)
    };
    triples.iter().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(inside: u32, host: u32, size: u32) -> LinuxIdMapping {
        LinuxIdMappingBuilder::default()
            .container_id(inside)
            .host_id(host)
            .size(size)
            .build()
            .unwrap()
    }

    #[test]
    fn triples_are_lines_of_the_kernels_maps() {
        let custom = Custom::parse("uids=0-1-10#10-11-10;gids=0-100-10").unwrap();
        let [uids, gids] = custom.resolve(&Container::Host).unwrap();
        assert_eq!(uids, [map(0, 1, 10), map(10, 11, 10)]);
        assert_eq!(gids, [map(0, 100, 10)]);
    }

    /// The example of crun(1).
    #[test]
    fn relative_ones_are_counted_in_the_containers_user_namespace() {
        let maps = [map(0, 0, 1), map(1, 2, 1000)];
        let container = Container::New {
            uids: &maps,
            gids: &maps,
        };
        let custom = Custom::parse("gids=0-0-1;uids=@1-3-10").unwrap();
        let [uids, gids] = custom.resolve(&container).unwrap();
        assert_eq!((uids, gids), (vec![map(1, 4, 10)], vec![map(0, 0, 1)]));
        for (option, of) in [
            ("@0-0-2", "crosses"),
            ("@0-1001-1", "past"),
            ("@0-995-7", "crosses"),
        ] {
            let custom = Custom::parse(&format!("uids={option};gids=0-0-1")).unwrap();
            let error = format!("{:#}", custom.resolve(&container).unwrap_err());
            assert!(
                error.starts_with(&format!("uids: {option}: no one mapping")),
                "{of}: {error}"
            );
        }
        assert!(
            Custom::parse("uids=@0-0-1;gids=0-0-1")
                .unwrap()
                .resolve(&Container::Host)
                .is_err()
        );
    }

    #[test]
    fn what_is_no_mapping_is_refused() {
        for text in [
            "",
            "uids=0-0-1",
            "gids=0-0-1",
            "uids=;gids=",
            "uids=0-0-1;uids=0-0-1;gids=0-0-1",
            "uids=0-0;gids=0-0-1",
            "uids=0-0-0;gids=0-0-1",
            "uids=0-0-1-2;gids=0-0-1",
            "uids=+0-0-1;gids=0-0-1",
            "uids=0-4294967295-2;gids=0-0-1",
            "uids=0-0-1;gids=0-0-1;x=1",
            "uids=@@0-0-1;gids=0-0-1",
        ] {
            assert!(Custom::parse(text).is_err(), "{text}");
        }
    }
}
