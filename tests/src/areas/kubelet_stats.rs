//! What the kubelet says of its pods' use, whoever measures: cAdvisor inside it, or the CRI server
//! (`PodAndContainerStatsFromCRI`). Compared by their series, names and labels, with what it says over containerd.

use std::collections::BTreeSet;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::cri::only_ours;
use crate::kubelet::{Backend, Node, STAY, Setup, StaticPod, busybox_with, patience};
use crate::registry::Result;
use crate::test;
use crate::test::Test;
use crate::wait::within;

const FROM_CRI: &str = "PodAndContainerStatsFromCRI: true";

/// Names of fields below a value, as paths; elements of lists by their name.
fn paths(value: &Value, at: &str, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                paths(value, &format!("{at}.{key}"), found);
            }
        }
        Value::Array(items) => {
            for item in items {
                let name = item["name"].as_str().unwrap_or_default();
                paths(item, &format!("{at}[{name}]"), found);
            }
        }
        _ => {
            found.insert(at.to_owned());
        }
    }
}

/// Series of a pod in Prometheus' text: names and labels, without those that name an attempt or a machine.
fn series(text: &str, pod: &str) -> BTreeSet<String> {
    let of_pod = format!("pod=\"{pod}\"");
    let lines = text
        .lines()
        .filter(|line| line.starts_with("container_") && line.contains(&of_pod));
    lines
        .filter_map(|line| {
            let (name, rest) = line.split_once('{')?;
            let labels = rest.rsplit_once('}')?.0;
            let labels: Vec<&str> = split_labels(labels)
                .into_iter()
                .filter(|label| !label.ends_with("=\"\""))
                .filter(|label| {
                    !["id=", "name=", "device="]
                        .iter()
                        .any(|key| label.starts_with(key))
                })
                .collect();
            Some(format!("{name}{{{}}}", labels.join(",")))
        })
        .collect()
}

/// At commas outside of quotes.
fn split_labels(text: &str) -> Vec<&str> {
    let (mut parts, mut quoted, mut start) = (Vec::new(), false, 0);
    for (place, character) in text.char_indices() {
        match character {
            '"' => quoted = !quoted,
            ',' if !quoted => {
                parts.push(&text[start..place]);
                start = place + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// What is found of one pod: fields of `/stats/summary`, series of `/metrics/cadvisor`.
struct Found {
    summary: BTreeSet<String>,
    series: BTreeSet<String>,
}

fn measured(node: &Node<'_>) -> Result<Found> {
    let main = busybox_with(
        "main",
        STAY,
        &json!({"resources": {"limits": {"memory": "64Mi", "cpu": "500m"}}}),
    );
    let pod = node.up("measured", json!({"containers": [main]}))?;
    let mut found = None;
    let complete = within(patience(), "statistics of the pod", || {
        let (summary, text) = (node.get("/stats/summary")?, node.get_text("/metrics/cadvisor")?);
        let is_complete = summary_of(&summary, &pod)["containers"][0]["cpu"]["usageNanoCores"].is_u64()
            && text.contains("pod=\"measured-node\"");
        found = Some((summary, text));
        Ok(is_complete.then_some(()))
    });
    let (summary, text) = found.context("nothing")?;
    complete?;
    let mut fields = BTreeSet::new();
    paths(summary_of(&summary, &pod), "", &mut fields);
    Ok(Found {
        summary: fields,
        series: series(&text, "measured-node"),
    })
}

fn summary_of<'s>(summary: &'s Value, pod: &StaticPod) -> &'s Value {
    let mut pods = summary["pods"].as_array().into_iter().flatten();
    pods.find(|each| each["podRef"]["uid"] == pod.uid())
        .unwrap_or(&Value::Null)
}

fn over(t: &Test, backend: Backend, gates: Vec<&'static str>) -> Result<Found> {
    let mut found = None;
    let setup = Setup {
        gates,
        ..Setup::default()
    };
    setup.with_backend(t, backend, |node| {
        found = Some(measured(node)?);
        Ok(())
    })?;
    found.context("nothing measured")
}

fn none(what: &str, missing: &[&String]) -> Result {
    ensure!(missing.is_empty(), "{what}: {missing:#?}");
    Ok(())
}

test!(
    fn the_servers_own_statistics_have_every_series_that_containerds_have(t: &Test) -> Result {
        only_ours(t)?;
        let theirs = over(t, Backend::Containerd, vec![FROM_CRI])?;
        let ours = over(t, Backend::RtcCri, vec![FROM_CRI])?;
        none(
            "series",
            &theirs.series.difference(&ours.series).collect::<Vec<_>>(),
        )?;
        none(
            "fields",
            &theirs.summary.difference(&ours.summary).collect::<Vec<_>>(),
        )?;
        let network = ours
            .series
            .iter()
            .filter(|each| each.starts_with("container_network_"));
        ensure!(network.count() >= 8, "{:#?}", ours.series);
        Ok(())
    }
);

test!(
    fn without_them_the_summary_has_all_but_the_network_which_cadvisor_finds_by_a_pause_container(
        t: &Test,
    ) -> Result {
        only_ours(t)?;
        let theirs = over(t, Backend::Containerd, vec![])?;
        let ours = over(t, Backend::RtcCri, vec![])?;
        let missing = theirs.summary.difference(&ours.summary);
        let missing: Vec<_> = missing.filter(|field| !field.starts_with(".network.")).collect();
        none("fields", &missing)?;
        let of_pod = |found: &Found| -> BTreeSet<String> {
            found
                .series
                .iter()
                .filter(|each| !each.contains("image="))
                .cloned()
                .collect()
        };
        none(
            "series of the pod",
            &of_pod(&theirs).difference(&of_pod(&ours)).collect::<Vec<_>>(),
        )
    }
);
