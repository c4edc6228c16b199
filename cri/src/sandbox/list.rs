//! ListPodSandbox.

use std::sync::Arc;

use super::{Record, State};
use crate::error::Result;
use crate::node::Node;
use crate::proto::*;

/// ListPodSandbox, the newest first.
pub(crate) async fn list(node: &Arc<Node>, filter: Option<PodSandboxFilter>) -> Result<Vec<PodSandbox>> {
    let filter = filter.unwrap_or_default();
    let mut records: Vec<_> = node
        .sandboxes()
        .iter()
        .map(|sandbox| sandbox.record())
        .filter(|record| is_wanted(record, &filter))
        .collect();
    records.sort_by_key(|record| std::cmp::Reverse(record.created_at));
    Ok(records.iter().map(|record| item(record)).collect())
}

/// All that the filter names must be so. One that is being made is nobody's yet.
fn is_wanted(record: &Record, filter: &PodSandboxFilter) -> bool {
    let labels = &record.config.labels;
    record.state != State::Making
        && record.id.starts_with(&filter.id)
        && filter
            .state
            .is_none_or(|state| state.state == record.state.cri() as i32)
        && filter
            .label_selector
            .iter()
            .all(|(name, value)| labels.get(name) == Some(value))
}

fn item(record: &Record) -> PodSandbox {
    PodSandbox {
        id: record.id.clone(),
        metadata: record.config.metadata.clone(),
        state: record.state.cri().into(),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
        runtime_handler: record.handler.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(state: State) -> Record {
        Record {
            id: "abc123".into(),
            config: PodSandboxConfig {
                labels: [("app".to_owned(), "web".to_owned())].into(),
                ..PodSandboxConfig::default()
            },
            handler: String::new(),
            created_at: 1,
            state,
            shim: None,
            pid: 0,
            netns: None,
            addresses: crate::cni::Addresses::default(),
            selinux_level: String::new(),
        }
    }

    #[test]
    fn all_that_a_filter_names_must_be_so() {
        let ready = record(State::Ready);
        let filter =
            |id: &str, state: Option<PodSandboxState>, label: Option<(&str, &str)>| PodSandboxFilter {
                id: id.into(),
                state: state.map(|state| PodSandboxStateValue { state: state.into() }),
                label_selector: label
                    .map(|(name, value)| (name.to_owned(), value.to_owned()))
                    .into_iter()
                    .collect(),
            };
        let is = |filter: &PodSandboxFilter| is_wanted(&ready, filter);
        assert!(is(&filter("", None, None)));
        assert!(is(&filter(
            "abc",
            Some(PodSandboxState::SandboxReady),
            Some(("app", "web"))
        )));
        assert!(!is(&filter("abd", None, None)));
        assert!(!is(&filter("", Some(PodSandboxState::SandboxNotready), None)));
        assert!(!is(&filter("", None, Some(("app", "db")))));
        assert!(!is(&filter("", None, Some(("tier", "")))));
    }

    #[test]
    fn one_that_is_being_made_is_not_listed() {
        let all = PodSandboxFilter::default();
        assert!(!is_wanted(&record(State::Making), &all));
        assert!(is_wanted(&record(State::Ended), &all));
        assert!(is_wanted(&record(State::Stopped), &all));
    }
}
