//! Requests and limits as the kubelet makes shares, quota and scores of them (`kuberuntime`, `cm`, `qos`).

use rtc_cri::proto::{HugepageLimit, LinuxContainerResources};

use super::Place;
use crate::client::manifest::{Amounts, Container, Quantity};

/// Microseconds in which a quota may be used up.
const PERIOD: i64 = 100_000;
/// Least quota, in microseconds (kernel/sched/core.c).
const QUOTA_MIN: i64 = 1000;
const SHARES_MIN: i64 = 2;
const SHARES_MAX: i64 = 262_144;
const SHARES_OF_A_CPU: i64 = 1024;

/// Quality of service (k8s.io/kubernetes, `pkg/kubelet/qos`): who is killed first for want of memory.
const SCORE_GUARANTEED: i64 = -997;
const SCORE_BEST_EFFORT: i64 = 1000;

pub(super) fn resources(container: &Container, place: &Place) -> LinuxContainerResources {
    let (requests, limits) = (&container.requests, &container.limits);
    let mut resources = LinuxContainerResources {
        cpu_shares: shares(requests, limits),
        oom_score_adj: score(requests, limits, place.memory),
        memory_limit_in_bytes: limits.memory.map_or(0, Quantity::value),
        ..LinuxContainerResources::default()
    };
    if let Some(cpu) = limits.cpu.filter(|cpu| cpu.milli() > 0) {
        resources.cpu_period = PERIOD;
        resources.cpu_quota = cpu.milli().saturating_mul(PERIOD / 1000).max(QUOTA_MIN);
    }
    resources.hugepage_limits = limits.huge_pages.iter().map(huge_pages).collect();
    if place.unified {
        // All of a container ends, not one of its processes (singleProcessOOMKill: false).
        resources.unified.insert("memory.oom.group".into(), "1".into());
    }
    resources
}

/// A limit without a request is the request, too.
fn shares(requests: &Amounts, limits: &Amounts) -> i64 {
    let Some(cpu) = requests.cpu.or(limits.cpu) else {
        return SHARES_MIN;
    };
    (cpu.milli().saturating_mul(SHARES_OF_A_CPU) / 1000).clamp(SHARES_MIN, SHARES_MAX)
}

fn score(requests: &Amounts, limits: &Amounts, machine: u64) -> i64 {
    let none = [requests.cpu, requests.memory, limits.cpu, limits.memory]
        .into_iter()
        .all(|amount| amount.is_none());
    if none {
        return SCORE_BEST_EFFORT;
    }
    let memory = requests.memory.or(limits.memory);
    let guaranteed = limits.cpu.is_some()
        && limits.memory.is_some()
        && requests.cpu.or(limits.cpu) == limits.cpu
        && memory == limits.memory;
    if guaranteed {
        return SCORE_GUARANTEED;
    }
    let memory = memory.map_or(0, Quantity::value);
    let share = i128::from(memory) * 1000 / i128::from(machine.max(1));
    // Later than what has promised nothing, earlier than what is guaranteed.
    i64::try_from(1000 - share)
        .unwrap_or(0)
        .clamp(1000 + SCORE_GUARANTEED, SCORE_BEST_EFFORT - 1)
}

/// `2Mi` as CRI has it: `2MB`.
fn huge_pages((size, limit): &(String, Quantity)) -> HugepageLimit {
    HugepageLimit {
        page_size: size.replace('i', "B"),
        limit: u64::try_from(limit.value()).unwrap_or(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn amounts(cpu: &str, memory: &str) -> Amounts {
        let read = |text: &str| (!text.is_empty()).then(|| text.parse().unwrap());
        Amounts {
            cpu: read(cpu),
            memory: read(memory),
            huge_pages: Vec::new(),
        }
    }

    #[test]
    fn shares_are_of_requests_or_else_of_limits() {
        assert_eq!(shares(&amounts("500m", ""), &amounts("2", "")), 512);
        assert_eq!(shares(&amounts("", ""), &amounts("2", "")), 2048);
        assert_eq!(shares(&amounts("", ""), &amounts("", "")), 2);
        assert_eq!(shares(&amounts("0", ""), &amounts("1", "")), 2);
        assert_eq!(shares(&amounts("1000", ""), &amounts("", "")), 262_144);
    }

    #[test]
    fn scores_are_those_of_the_qualities_of_service() {
        let machine = 4 << 30;
        let score = |requests: Amounts, limits: Amounts| score(&requests, &limits, machine);
        assert_eq!(score(amounts("", ""), amounts("", "")), 1000);
        assert_eq!(score(amounts("1", "1Gi"), amounts("1", "1Gi")), -997);
        assert_eq!(score(amounts("", ""), amounts("1", "1Gi")), -997);
        assert_eq!(score(amounts("", "1Gi"), amounts("", "")), 750);
        assert_eq!(score(amounts("1", ""), amounts("", "")), 999);
        assert_eq!(score(amounts("", "8Gi"), amounts("", "")), 3);
    }
}
