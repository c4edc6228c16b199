//! ListContainers.

use std::sync::Arc;

use super::{Record, State};
use crate::error::Result;
use crate::node::Node;
use crate::proto::{Container, ContainerFilter};

/// ListContainers: all that pass the filter, the newest first.
pub(crate) async fn list(node: &Arc<Node>, filter: Option<ContainerFilter>) -> Result<Vec<Container>> {
    let filter = filter.unwrap_or_default();
    let mut found: Vec<Arc<Record>> = node
        .containers()
        .iter()
        .map(|container| container.record())
        .filter(|record| passes(record, &filter))
        .collect();
    found.sort_by(|one, other| (other.created_at, &other.id).cmp(&(one.created_at, &one.id)));
    Ok(found.iter().map(|record| item(record)).collect())
}

/// Whether a filter lets a container pass; an id may be its beginning. What is being made nobody was told of yet.
pub(crate) fn passes(record: &Record, filter: &ContainerFilter) -> bool {
    record.state != State::Making
        && record.id.starts_with(&filter.id)
        && record.sandbox.starts_with(&filter.pod_sandbox_id)
        && filter
            .state
            .is_none_or(|wanted| wanted.state() == record.state.cri())
        && filter
            .label_selector
            .iter()
            .all(|(key, value)| record.config.labels.get(key) == Some(value))
}

fn item(record: &Record) -> Container {
    Container {
        id: record.id.clone(),
        pod_sandbox_id: record.sandbox.clone(),
        metadata: record.config.metadata.clone(),
        image: record.config.image.clone(),
        image_ref: record.image_ref.clone(),
        image_id: record.image_id.clone(),
        state: record.state.cri().into(),
        created_at: record.created_at,
        labels: record.config.labels.clone(),
        annotations: record.config.annotations.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::tests::record;
    use crate::proto::{ContainerState, ContainerStateValue};

    #[test]
    fn a_filter_lets_pass_what_fits_all_of_it() {
        let mut one = record("abc1", "pod1", State::Created);
        one.config.labels.insert("app".into(), "web".into());
        let passes = |filter: ContainerFilter| passes(&one, &filter);
        let state = |state: ContainerState| ContainerFilter {
            state: Some(ContainerStateValue { state: state.into() }),
            ..ContainerFilter::default()
        };
        let label = |value: &str| ContainerFilter {
            label_selector: [("app".to_owned(), value.to_owned())].into(),
            ..ContainerFilter::default()
        };
        let ids = |id: &str, sandbox: &str| ContainerFilter {
            id: id.into(),
            pod_sandbox_id: sandbox.into(),
            ..ContainerFilter::default()
        };
        assert!(passes(ContainerFilter::default()));
        assert!(passes(state(ContainerState::ContainerCreated)));
        assert!(!passes(state(ContainerState::ContainerRunning)));
        assert!(passes(label("web")) && !passes(label("db")));
        assert!(passes(ids("abc", "")) && passes(ids("abc1", "pod1")));
        assert!(!passes(ids("abd", "")) && !passes(ids("abc1", "pod2")));
    }

    #[test]
    fn what_is_being_made_is_not_listed() {
        assert!(!passes(
            &record("a", "b", State::Making),
            &ContainerFilter::default()
        ));
    }
}
