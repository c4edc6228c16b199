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
