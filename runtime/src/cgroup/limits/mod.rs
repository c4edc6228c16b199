//! Resource limits as writes: what `linux.resources` means, in files and values, for each version of cgroups.
//!
//! Pure translation. [`v1`] and [`v2`] make a list of [`Write`]s in the order in which the kernel takes them;
//! `apply` performs it. A number of 0 means "not set", as in runc (whose callers send it for that), and -1 "no limit".

pub(super) mod v1;
pub(super) mod v2;

#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::HashMap;

use anyhow::{Result, bail};
use oci_spec::runtime::{
    LinuxBlockIo, LinuxHugepageLimit, LinuxMemory, LinuxPids, LinuxRdma, LinuxThrottleDevice,
};

/// One value for one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Write {
    /// The controller whose tree it goes to on v1.
    pub(super) controller: &'static str,
    pub(super) file: Cow<'static, str>,
    pub(super) value: String,
    /// The field of config.json it comes from, for the error.
    pub(super) field: Cow<'static, str>,
    pub(super) otherwise: Otherwise,
}

/// What a failure of a write means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Otherwise {
    /// An error.
    Fail,
    /// Nothing, where the kernel has no such file: what was asked for is so without it, or runc ignores it.
    Skip,
    /// Where the kernel has no such file, this one is meant.
    Instead(&'static str, String),
    /// Where it does not fit what is set now (`EINVAL`), it comes again after the other writes of its controller.
    Again,
    /// [`Otherwise::Again`], and nothing where the kernel has no such file.
    AgainOrSkip,
}

impl Write {
    pub(super) fn new(
        controller: &'static str,
        file: impl Into<Cow<'static, str>>,
        value: impl ToString,
        field: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            controller,
            file: file.into(),
            value: value.to_string(),
            field: field.into(),
            otherwise: Otherwise::Fail,
        }
    }

    pub(super) fn or(self, otherwise: Otherwise) -> Self {
        Self { otherwise, ..self }
    }
}

/// A value of memory in bytes: `None` where it is not set.
fn bytes(value: Option<i64>, field: &'static str) -> Result<Option<i64>> {
    match value {
        None | Some(0) => Ok(None),
        Some(value) if value < -1 => bail!("{field}: {value}: must be a number of bytes, or -1 for no limit"),
        value => Ok(value),
    }
}

/// The memory of a container: the limit, the soft limit, and memory and swap together (the v1 meaning of `swap`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Memory {
    pub(super) limit: Option<i64>,
    pub(super) reservation: Option<i64>,
    pub(super) with_swap: Option<i64>,
}

pub(super) const LIMIT: &str = "linux.resources.memory.limit";
pub(super) const RESERVATION: &str = "linux.resources.memory.reservation";
pub(super) const SWAP: &str = "linux.resources.memory.swap";

impl Memory {
    /// Checks what is said about memory. `kernel` and `kernelTCP` are ignored, as in runc: the kernel dropped them.
    pub(super) fn of(memory: &LinuxMemory) -> Result<Self> {
        let found = Self {
            limit: bytes(memory.limit(), LIMIT)?,
            reservation: bytes(memory.reservation(), RESERVATION)?,
            with_swap: bytes(memory.swap(), SWAP)?,
        };
        if let (Some(limit @ 1..), Some(with_swap @ 1..)) = (found.limit, found.with_swap)
            && with_swap < limit
        {
            bail!(
                "{SWAP}: {with_swap}: memory+swap limit should be >= memory limit ({limit}): \
                 it counts memory and swap together"
            );
        }
        Ok(found)
    }

    /// Refuses limits below what is used now, where the kernel would kill instead (`checkBeforeUpdate`, on v2).
    pub(super) fn check_before_update(&self, used: u64) -> Result<()> {
        let exceeded = |limit: Option<i64>| {
            limit
                .and_then(|limit| u64::try_from(limit).ok())
                .filter(|limit| *limit <= used)
        };
        if let Some(limit) = exceeded(self.with_swap) {
            bail!("{SWAP}: rejecting memory+swap limit {limit} <= usage {used}");
        }
        if let Some(limit) = exceeded(self.limit) {
            bail!("{LIMIT}: rejecting memory limit {limit} <= usage {used}");
        }
        Ok(())
    }
}

/// `-1` is the word for no limit on v2.
fn or_max(value: i64) -> String {
    if value == -1 {
        "max".to_owned()
    } else {
        value.to_string()
    }
}

/// runc: a limit of 0 is 1, as systemd can't have 0; any negative one is none.
fn pids(pids: &LinuxPids) -> Write {
    let value = match pids.limit() {
        0 => "1".to_owned(),
        limit @ 1.. => limit.to_string(),
        _ => "max".to_owned(),
    };
    Write::new("pids", "pids.max", value, "linux.resources.pids.limit")
}

/// Limits of huge pages, and of their reservations where the kernel (5.7) counts them.
fn hugepages(limits: &[LinuxHugepageLimit], suffix: &str, writes: &mut Vec<Write>) -> Result<()> {
    for (index, limit) in limits.iter().enumerate() {
        let size = limit.page_size();
        let digits = size.trim_end_matches(|letter: char| letter.is_ascii_uppercase());
        let well_formed = digits.starts_with(|first: char| matches!(first, '1'..='9'))
            && digits.bytes().all(|byte| byte.is_ascii_digit())
            && matches!(&size[digits.len()..], "KB" | "MB" | "GB");
        if !well_formed {
            bail!(
                "linux.resources.hugepageLimits[{index}].pageSize: {size:?}: must be like 64KB, 2MB or 1GB"
            );
        }
        let field = format!("linux.resources.hugepageLimits[{index}].limit");
        if limit.limit() < 0 {
            bail!("{field}: {}: must be a number of bytes", limit.limit());
        }
        for (kind, otherwise) in [("", Otherwise::Fail), (".rsvd", Otherwise::Skip)] {
            let file = format!("hugetlb.{size}{kind}.{suffix}");
            writes.push(Write::new("hugetlb", file, limit.limit(), field.clone()).or(otherwise));
        }
    }
    Ok(())
}

/// RDMA limits, the same on both versions. In the order of the devices' names: a map has none.
fn rdma(devices: &HashMap<String, LinuxRdma>, writes: &mut Vec<Write>) {
    let mut devices: Vec<_> = devices.iter().collect();
    devices.sort_unstable_by_key(|(name, _)| *name);
    for (name, limits) in devices {
        let mut value = name.clone();
        if let Some(handles) = limits.hca_handles() {
            value.push_str(&format!(" hca_handle={handles}"));
        }
        if let Some(objects) = limits.hca_objects() {
            value.push_str(&format!(" hca_object={objects}"));
        }
        writes.push(Write::new(
            "rdma",
            "rdma.max",
            value,
            format!("linux.resources.rdma[{name:?}]"),
        ));
    }
}

/// The four lists of throttles, with their names: bytes and operations per second, read and written.
fn throttles(io: &LinuxBlockIo) -> [(&'static str, &[LinuxThrottleDevice]); 4] {
    [
        ("throttleReadBpsDevice", io.throttle_read_bps_device()),
        ("throttleWriteBpsDevice", io.throttle_write_bps_device()),
        ("throttleReadIOPSDevice", io.throttle_read_iops_device()),
        ("throttleWriteIOPSDevice", io.throttle_write_iops_device()),
    ]
    .map(|(name, list)| (name, list.as_deref().unwrap_or(&[])))
}
