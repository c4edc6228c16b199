//! UpdateContainerResources: what is asked for over what is recorded.

use oci_spec::runtime::LinuxResources;

use super::{Facts, resources};
use crate::error::Result;
use crate::proto::LinuxContainerResources;

/// The resources that are recorded from now on: what is zero or empty in `asked` stays as it is in `recorded`. The OOM score
/// of a process that runs is never changed.
pub(crate) fn merge(
    recorded: Option<&LinuxContainerResources>,
    asked: &LinuxContainerResources,
) -> LinuxContainerResources {
    let mut merged = recorded.cloned().unwrap_or_default();
    let number = |merged: &mut i64, asked: i64| {
        if asked != 0 {
            *merged = asked;
        }
    };
    number(&mut merged.cpu_period, asked.cpu_period);
    number(&mut merged.cpu_quota, asked.cpu_quota);
    number(&mut merged.cpu_shares, asked.cpu_shares);
    // Both are one setting: a new limit without one for swap means no swap again.
    if asked.memory_limit_in_bytes != 0 {
        merged.memory_limit_in_bytes = asked.memory_limit_in_bytes;
        merged.memory_swap_limit_in_bytes = 0;
    }
    number(
        &mut merged.memory_swap_limit_in_bytes,
        asked.memory_swap_limit_in_bytes,
    );
    let text = |merged: &mut String, asked: &str| {
        if !asked.is_empty() {
            asked.clone_into(merged);
        }
    };
    text(&mut merged.cpuset_cpus, &asked.cpuset_cpus);
    text(&mut merged.cpuset_mems, &asked.cpuset_mems);
    for limit in &asked.hugepage_limits {
        merged
            .hugepage_limits
            .retain(|known| known.page_size != limit.page_size);
        merged.hugepage_limits.push(limit.clone());
    }
    merged.unified.extend(asked.unified.clone());
    merged
}

/// For Task's Update: the merged resources.
///
/// # Errors
///
/// `InvalidArgument`: a value that can't be.
pub(crate) fn resources(facts: &Facts, merged: &LinuxContainerResources) -> Result<LinuxResources> {
    resources::of(facts, merged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::HugepageLimit;

    #[test]
    fn what_is_not_asked_for_stays() {
        let page = |size: &str, limit| HugepageLimit {
            page_size: size.into(),
            limit,
        };
        let recorded = LinuxContainerResources {
            cpu_shares: 100,
            cpu_quota: 5,
            memory_limit_in_bytes: 10,
            memory_swap_limit_in_bytes: 30,
            oom_score_adj: 7,
            cpuset_cpus: "0".into(),
            hugepage_limits: vec![page("2MB", 1), page("1GB", 2)],
            unified: [("memory.low".to_owned(), "1".to_owned())].into(),
            ..Default::default()
        };
        let asked = LinuxContainerResources {
            cpu_quota: 9,
            oom_score_adj: 3,
            hugepage_limits: vec![page("2MB", 8)],
            unified: [("memory.high".to_owned(), "2".to_owned())].into(),
            ..Default::default()
        };
        let merged = merge(Some(&recorded), &asked);
        assert_eq!((merged.cpu_shares, merged.cpu_quota), (100, 9));
        assert_eq!(
            (merged.memory_limit_in_bytes, merged.memory_swap_limit_in_bytes),
            (10, 30)
        );
        assert_eq!(merged.oom_score_adj, 7);
        assert_eq!(merged.cpuset_cpus, "0");
        assert_eq!(merged.hugepage_limits, [page("1GB", 2), page("2MB", 8)]);
        assert_eq!(merged.unified.len(), 2);
        assert_eq!(merge(None, &asked).cpu_quota, 9);
    }

    #[test]
    fn a_new_memory_limit_means_no_swap_unless_it_says_so() {
        let recorded = LinuxContainerResources {
            memory_limit_in_bytes: 10,
            memory_swap_limit_in_bytes: 30,
            ..Default::default()
        };
        let asked = LinuxContainerResources {
            memory_limit_in_bytes: 50,
            ..Default::default()
        };
        let made = resources(&Facts::for_tests(), &merge(Some(&recorded), &asked)).unwrap();
        assert_eq!(made.memory().as_ref().unwrap().swap(), Some(50));
    }
}
