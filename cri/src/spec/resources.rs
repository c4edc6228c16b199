//! Limits of CPU, memory and huge pages.

use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

use super::Facts;
use crate::error::{Error, Result};
use crate::proto::LinuxContainerResources;

/// The limits; zero and empty ones are none. What the node can't limit (swap, huge pages) is left out: the kubelet sends it
/// whether the node can or not.
///
/// # Errors
///
/// `InvalidArgument`: a value that can't be.
pub(super) fn of(facts: &Facts, asked: &LinuxContainerResources) -> Result<LinuxResources> {
    let mut resources = LinuxResources::default();
    resources.set_cpu(cpu(asked)?).set_memory(memory(facts, asked)?);
    if facts.hugetlb && !asked.hugepage_limits.is_empty() {
        let limits = asked.hugepage_limits.iter().map(|asked| {
            let mut limit = LinuxHugepageLimit::default();
            limit.set_page_size(asked.page_size.clone());
            limit.set_limit(asked.limit.try_into().unwrap_or(i64::MAX));
            limit
        });
        resources.set_hugepage_limits(Some(limits.collect()));
    }
    if !asked.unified.is_empty() {
        check_unified(facts, asked)?;
        resources.set_unified(Some(asked.unified.clone().into_iter().collect()));
    }
    Ok(resources)
}

fn cpu(asked: &LinuxContainerResources) -> Result<Option<LinuxCpu>> {
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(positive("cpu_shares", asked.cpu_shares)?);
    cpu.set_period(positive("cpu_period", asked.cpu_period)?);
    // Negative: no limit.
    cpu.set_quota(Some(asked.cpu_quota).filter(|quota| *quota != 0));
    for (field, list) in [
        ("cpuset_cpus", &asked.cpuset_cpus),
        ("cpuset_mems", &asked.cpuset_mems),
    ] {
        if !list.is_empty() && !is_list(list) {
            return Err(invalid(
                field,
                format_args!("{list:?}"),
                "must be a list such as 0-3,7",
            ));
        }
    }
    cpu.set_cpus(Some(asked.cpuset_cpus.clone()).filter(|cpus| !cpus.is_empty()));
    cpu.set_mems(Some(asked.cpuset_mems.clone()).filter(|mems| !mems.is_empty()));
    Ok(Some(cpu).filter(|cpu| *cpu != LinuxCpu::default()))
}

/// Numbers and ranges, as in cpuset(7).
fn is_list(list: &str) -> bool {
    let number = |text: &str| text.parse::<u32>().ok();
    list.split(',').all(|part| match part.split_once('-') {
        Some((first, last)) => number(first)
            .zip(number(last))
            .is_some_and(|(first, last)| first <= last),
        None => number(part).is_some(),
    })
}

fn memory(facts: &Facts, asked: &LinuxContainerResources) -> Result<Option<LinuxMemory>> {
    let (limit, swap) = (asked.memory_limit_in_bytes, asked.memory_swap_limit_in_bytes);
    if limit < -1 {
        return Err(invalid("memory_limit_in_bytes", limit, "must be -1 or more"));
    }
    if swap < -1 {
        return Err(invalid("memory_swap_limit_in_bytes", swap, "must be -1 or more"));
    }
    let mut memory = LinuxMemory::default();
    memory.set_limit(Some(limit).filter(|limit| *limit != 0));
    if facts.swap {
        // Memory and swap together: as much as memory alone is no swap, which is what is meant where nothing is said.
        let swap = if swap == 0 { limit } else { swap };
        memory.set_swap(Some(swap).filter(|swap| *swap != 0));
    }
    Ok(Some(memory).filter(|memory| *memory != LinuxMemory::default()))
}

/// Keys are names of files in the container's cgroup.
fn check_unified(facts: &Facts, asked: &LinuxContainerResources) -> Result<()> {
    for (key, value) in &asked.unified {
        if key.is_empty() || key.contains(['/', '\0']) || key == "." || key == ".." {
            return Err(invalid(
                "unified",
                format_args!("{key:?}"),
                "must be the name of a file of cgroup v2",
            ));
        }
        if value.contains('\0') {
            return Err(invalid(
                "unified",
                format_args!("{key:?}"),
                "must not have a NUL byte",
            ));
        }
    }
    if !facts.cgroup2 {
        return Err(invalid(
            "unified",
            format_args!("{:?}", asked.unified),
            "needs cgroup v2, and this node has v1",
        ));
    }
    Ok(())
}

fn positive(field: &str, value: i64) -> Result<Option<u64>> {
    match u64::try_from(value) {
        Ok(0) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(invalid(field, value, "must not be negative")),
    }
}

fn invalid(field: &str, value: impl std::fmt::Display, advice: &str) -> Error {
    Error::invalid(format_args!("linux.resources.{field}: {value}: {advice}"))
}

/// The adjustment of the OOM score, raised to what this process may give where it has no CAP_SYS_RESOURCE.
///
/// # Errors
///
/// `InvalidArgument`: out of -1000 to 1000.
pub(super) fn oom_score_adj(facts: &Facts, asked: &LinuxContainerResources) -> Result<i32> {
    let score = asked.oom_score_adj;
    match i32::try_from(score) {
        Ok(score) if (-1000..=1000).contains(&score) => Ok(score.max(facts.least_oom_score_adj)),
        _ => Err(invalid("oom_score_adj", score, "must be -1000 to 1000")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::HugepageLimit;

    #[test]
    fn zero_is_no_limit() {
        let none = of(&Facts::for_tests(), &LinuxContainerResources::default()).unwrap();
        assert_eq!(none, LinuxResources::default());
    }

    #[test]
    fn every_limit_is_translated() {
        let asked = LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            cpuset_cpus: "0-1".into(),
            cpuset_mems: "0".into(),
            memory_limit_in_bytes: 1 << 20,
            hugepage_limits: vec![HugepageLimit {
                page_size: "2MB".into(),
                limit: u64::MAX,
            }],
            unified: [("memory.high".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        };
        let made = of(&Facts::for_tests(), &asked).unwrap();
        let cpu = made.cpu().as_ref().unwrap();
        assert_eq!(
            (cpu.period(), cpu.quota(), cpu.shares()),
            (Some(100_000), Some(50_000), Some(512))
        );
        assert_eq!(
            (cpu.cpus().as_deref(), cpu.mems().as_deref()),
            (Some("0-1"), Some("0"))
        );
        let memory = made.memory().as_ref().unwrap();
        assert_eq!((memory.limit(), memory.swap()), (Some(1 << 20), Some(1 << 20)));
        assert_eq!(made.hugepage_limits().as_ref().unwrap()[0].limit(), i64::MAX);
        assert_eq!(made.unified().as_ref().unwrap()["memory.high"], "1");
    }

    #[test]
    fn what_the_node_can_not_limit_is_left_out() {
        let facts = Facts {
            swap: false,
            hugetlb: false,
            ..Facts::for_tests()
        };
        let asked = LinuxContainerResources {
            memory_limit_in_bytes: 1,
            memory_swap_limit_in_bytes: 2,
            hugepage_limits: vec![HugepageLimit::default()],
            ..Default::default()
        };
        let made = of(&facts, &asked).unwrap();
        assert_eq!(made.memory().as_ref().unwrap().swap(), None);
        assert_eq!(made.hugepage_limits(), &None);
    }

    #[test]
    fn the_oom_score_is_not_lowered_further_than_we_may() {
        let asked = LinuxContainerResources {
            oom_score_adj: -999,
            ..Default::default()
        };
        assert_eq!(oom_score_adj(&Facts::for_tests(), &asked).unwrap(), -999);
        let facts = Facts {
            least_oom_score_adj: -10,
            ..Facts::for_tests()
        };
        assert_eq!(oom_score_adj(&facts, &asked).unwrap(), -10);
        let asked = LinuxContainerResources {
            oom_score_adj: 1001,
            ..Default::default()
        };
        assert!(oom_score_adj(&facts, &asked).is_err());
    }

    #[test]
    fn values_that_can_not_be_are_refused_by_field() {
        let negative = LinuxContainerResources {
            cpu_shares: -1,
            ..Default::default()
        };
        let path = LinuxContainerResources {
            unified: [("../memory.max".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        };
        for (asked, field) in [(negative, "cpu_shares"), (path, "unified")] {
            let error = of(&Facts::for_tests(), &asked).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
