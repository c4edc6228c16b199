//! What a pod's plugins are told: CNI_ARGS for all of them, and capability arguments (`runtimeConfig`) for those that want
//! them (CNI `CONVENTIONS.md`).

use std::net::IpAddr;

use serde_json::{Map, Value, json};

use super::Pod;
use super::result::Cidr;
use crate::error::{Error, Result};
use crate::proto::{DnsConfig, PortMapping, Protocol};

const INGRESS: &str = "kubernetes.io/ingress-bandwidth";
const EGRESS: &str = "kubernetes.io/egress-bandwidth";
/// Ours: for networks whose plugins want `ips`, `mac`, `infinibandGUID`.
const IPS: &str = "cni.rtc.io/ips";
const MAC: &str = "cni.rtc.io/mac";
const GUID: &str = "cni.rtc.io/infiniband-guid";

/// Bits per second: less or more is a mistake (Kubernetes' `validateBandwidthIsReasonable`).
const RATE: std::ops::RangeInclusive<i128> = 1_000..=1_000_000_000_000_000;

/// The pairs of CNI_ARGS. Kubernetes' plugins know them by these names; others are told to take no offence.
///
/// # Errors
///
/// A field would be read as more than one.
pub(super) fn pairs(pod: &Pod<'_>) -> Result<Vec<(String, String)>> {
    let fields = [
        ("K8S_POD_NAMESPACE", "metadata.namespace", pod.namespace),
        ("K8S_POD_NAME", "metadata.name", pod.name),
        ("K8S_POD_INFRA_CONTAINER_ID", "id", pod.id),
        ("K8S_POD_UID", "metadata.uid", pod.uid),
    ];
    let mut pairs = vec![("IgnoreUnknown".to_owned(), "1".to_owned())];
    for (key, field, value) in fields {
        if value.contains([';', '=']) || value.chars().any(char::is_control) {
            return Err(Error::invalid(format_args!(
                "{field}: {value:?}: can't have ';', '=' or control characters, CNI plugins would take it for more than one \
                 argument"
            )));
        }
        pairs.push((key.into(), value.into()));
    }
    Ok(pairs)
}

/// `KEY=value;KEY=value`
pub(super) fn joined(pairs: &[(String, String)]) -> String {
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    pairs.join(";")
}

/// All that a plugin could be told of a pod, by capability.
///
/// # Errors
///
/// A port, an annotation can't be so.
pub(super) fn capabilities(pod: &Pod<'_>, pod_cidrs: &[String]) -> Result<Map<String, Value>> {
    let mut all = Map::new();
    let ports = port_mappings(pod.port_mappings)?;
    if !ports.is_empty() {
        all.insert("portMappings".into(), ports.into());
    }
    if let Some(bandwidth) = bandwidth(pod)? {
        all.insert("bandwidth".into(), bandwidth);
    }
    if let Some(dns) = pod.dns {
        all.insert("dns".into(), name_servers(dns));
    }
    if !pod.cgroup_parent.is_empty() {
        all.insert("cgroupPath".into(), pod.cgroup_parent.into());
    }
    if !pod_cidrs.is_empty() {
        let ranges: Vec<Value> = pod_cidrs.iter().map(|cidr| json!([{"subnet": cidr}])).collect();
        all.insert("ipRanges".into(), ranges.into());
    }
    if let Some(text) = pod.annotations.get(IPS) {
        all.insert("ips".into(), ips(text)?);
    }
    for (annotation, capability, bytes) in [(MAC, "mac", 6), (GUID, "infinibandGUID", 8)] {
        if let Some(text) = pod.annotations.get(annotation) {
            all.insert(capability.into(), hardware_address(annotation, text, bytes)?);
        }
    }
    // containerd's and CRI-O's.
    all.insert("io.kubernetes.cri.pod-annotations".into(), json!(pod.annotations));
    Ok(all)
}

fn port_mappings(mappings: &[PortMapping]) -> Result<Vec<Value>> {
    let mut ports = Vec::new();
    for (place, mapping) in mappings.iter().enumerate() {
        // No port of the host is wanted.
        if mapping.host_port <= 0 {
            continue;
        }
        for (field, port) in [
            ("host_port", mapping.host_port),
            ("container_port", mapping.container_port),
        ] {
            if !(1..=65535).contains(&port) {
                return Err(Error::invalid(format_args!(
                    "port_mappings[{place}].{field}: {port} is no port: 1 to 65535"
                )));
            }
        }
        let protocol = match Protocol::try_from(mapping.protocol) {
            Ok(Protocol::Tcp) => "tcp",
            Ok(Protocol::Udp) => "udp",
            Ok(Protocol::Sctp) => "sctp",
            Err(_) => {
                return Err(Error::invalid(format_args!(
                    "port_mappings[{place}].protocol: {} is none of TCP, UDP, SCTP",
                    mapping.protocol
                )));
            }
        };
        let mut port = json!({
            "hostPort": mapping.host_port,
            "containerPort": mapping.container_port,
            "protocol": protocol,
        });
        if !mapping.host_ip.is_empty() {
            let ip: IpAddr = mapping.host_ip.parse().map_err(|_| {
                Error::invalid(format_args!(
                    "port_mappings[{place}].host_ip: {:?} is no address",
                    mapping.host_ip
                ))
            })?;
            port["hostIP"] = ip.to_string().into();
        }
        ports.push(port);
    }
    Ok(ports)
}

fn name_servers(dns: &DnsConfig) -> Value {
    json!({"servers": dns.servers, "searches": dns.searches, "options": dns.options})
}

fn bandwidth(pod: &Pod<'_>) -> Result<Option<Value>> {
    let mut bandwidth = Map::new();
    for (annotation, rate, burst) in [
        (INGRESS, "ingressRate", "ingressBurst"),
        (EGRESS, "egressRate", "egressBurst"),
    ] {
        let Some(text) = pod.annotations.get(annotation) else {
            continue;
        };
        let invalid = |why: &str| Error::invalid(format_args!("annotations[{annotation}]: {text:?} {why}"));
        let value = quantity(text).ok_or_else(|| invalid("is no quantity, as 10M"))?;
        if !RATE.contains(&value) {
            return Err(invalid("is unreasonable: 1k to 1P bits per second"));
        }
        bandwidth.insert(rate.into(), json!(i64::try_from(value).unwrap_or(i64::MAX)));
        // No less than the rate allows, as Kubernetes always had it.
        bandwidth.insert(burst.into(), json!(u32::MAX));
    }
    Ok((!bandwidth.is_empty()).then_some(Value::Object(bandwidth)))
}

/// A Kubernetes quantity (apimachinery `pkg/api/resource`), rounded up to a whole number.
fn quantity(text: &str) -> Option<i128> {
    let (negative, rest) = match text.as_bytes().first()? {
        b'-' => (true, &text[1..]),
        b'+' => (false, &text[1..]),
        _ => (false, text),
    };
    let end = rest
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(rest.len());
    let (number, suffix) = rest.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() == 0 || fraction.contains('.') || whole.len() + fraction.len() > 18 {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let (base, exponent): (i128, i32) = match suffix {
        "n" => (10, -9),
        "u" => (10, -6),
        "m" => (10, -3),
        "" => (10, 0),
        "k" => (10, 3),
        "M" => (10, 6),
        "G" => (10, 9),
        "T" => (10, 12),
        "P" => (10, 15),
        "E" => (10, 18),
        "Ki" => (2, 10),
        "Mi" => (2, 20),
        "Gi" => (2, 30),
        "Ti" => (2, 40),
        "Pi" => (2, 50),
        "Ei" => (2, 60),
        // 12e6, 12E-3
        _ => (
            10,
            suffix
                .strip_prefix(['e', 'E'])?
                .parse()
                .ok()
                .filter(|e| (-18..=18).contains(e))?,
        ),
    };
    let power = base.checked_pow(exponent.unsigned_abs())?;
    let (mut above, mut below) = (digits, 10i128.checked_pow(u32::try_from(fraction.len()).ok()?)?);
    if exponent < 0 {
        below = below.checked_mul(power)?;
    } else {
        above = above.checked_mul(power)?;
    }
    let rounded = above / below + i128::from(above % below != 0 && !negative);
    Some(if negative { -rounded } else { rounded })
}

fn ips(text: &str) -> Result<Value> {
    let mut ips = Vec::new();
    for ip in text.split(',').map(str::trim) {
        if ip.parse::<IpAddr>().is_err() && Cidr::parse(ip).is_none() {
            return Err(Error::invalid(format_args!(
                "annotations[{IPS}]: {ip:?} is no address, as 10.1.0.5 or 10.1.0.5/16"
            )));
        }
        ips.push(Value::from(ip));
    }
    Ok(ips.into())
}

fn hardware_address(annotation: &str, text: &str, bytes: usize) -> Result<Value> {
    let parts: Vec<&str> = text.split(':').collect();
    let is_byte = |part: &&str| part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
    if parts.len() != bytes || !parts.iter().all(is_byte) {
        return Err(Error::invalid(format_args!(
            "annotations[{annotation}]: {text:?} is not {bytes} bytes, as c2:11:22:33:44:55"
        )));
    }
    Ok(text.into())
}

/// The ranges that the kubelet's UpdateRuntimeConfig names: `10.244.1.0/24,fd00:10:244:1::/64`.
///
/// # Errors
///
/// One of them is none.
pub(super) fn pod_cidrs(text: &str) -> Result<Vec<String>> {
    text.split(',')
        .map(str::trim)
        .filter(|cidr| !cidr.is_empty())
        .map(|cidr| match Cidr::parse(cidr) {
            Some(_) => Ok(cidr.to_owned()),
            None => Err(Error::invalid(format_args!(
                "runtime_config.network_config.pod_cidr: {cidr:?} is no range, as 10.244.1.0/24"
            ))),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::Path;

    use super::*;

    fn pod<'a>(ports: &'a [PortMapping], annotations: &'a BTreeMap<String, String>) -> Pod<'a> {
        Pod {
            id: "abc",
            name: "web-0",
            namespace: "shop",
            uid: "u-1",
            netns: Path::new("/run/netns/rtc-abc"),
            port_mappings: ports,
            dns: None,
            cgroup_parent: "/kubepods/pod1",
            annotations,
        }
    }

    #[test]
    fn plugins_know_the_pod_by_the_names_of_kubernetes() {
        let none = BTreeMap::new();
        assert_eq!(
            joined(&pairs(&pod(&[], &none)).unwrap()),
            "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web-0;K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=u-1"
        );
    }

    #[test]
    fn a_name_can_not_smuggle_another_argument_in() {
        let none = BTreeMap::new();
        let mut evil = pod(&[], &none);
        evil.name = "x;K8S_POD_NAMESPACE=kube-system";
        let error = pairs(&evil).unwrap_err().to_string();
        assert!(error.contains("metadata.name"), "{error}");
    }

    #[test]
    fn ports_are_told_with_their_protocol_and_address() {
        let none = BTreeMap::new();
        let port = |protocol: Protocol, container, host, ip: &str| PortMapping {
            protocol: protocol.into(),
            container_port: container,
            host_port: host,
            host_ip: ip.into(),
        };
        let ports = [
            port(Protocol::Tcp, 80, 8080, ""),
            port(Protocol::Sctp, 81, 8081, "::1"),
            port(Protocol::Udp, 53, 0, ""),
        ];
        let all = capabilities(&pod(&ports, &none), &[]).unwrap();
        assert_eq!(
            all["portMappings"],
            json!([
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": 8081, "containerPort": 81, "protocol": "sctp", "hostIP": "::1"},
            ])
        );
        assert_eq!(all["cgroupPath"], "/kubepods/pod1");
        assert!(!all.contains_key("bandwidth") && !all.contains_key("ipRanges"));
        for (wrong, field) in [
            (port(Protocol::Tcp, 0, 80, ""), "port_mappings[0].container_port"),
            (port(Protocol::Tcp, 80, 70000, ""), "port_mappings[0].host_port"),
            (
                port(Protocol::Tcp, 80, 80, "localhost"),
                "port_mappings[0].host_ip",
            ),
        ] {
            let error = capabilities(&pod(&[wrong], &none), &[]).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }

    #[test]
    fn annotations_say_bandwidth_and_addresses() {
        let annotations = BTreeMap::from([
            (INGRESS.to_owned(), "10M".to_owned()),
            (IPS.to_owned(), "10.0.0.9, fd00::9/64".to_owned()),
            (MAC.to_owned(), "c2:11:22:33:44:55".to_owned()),
        ]);
        let all = capabilities(&pod(&[], &annotations), &["10.244.1.0/24".into()]).unwrap();
        assert_eq!(
            all["bandwidth"],
            json!({"ingressRate": 10_000_000, "ingressBurst": u32::MAX})
        );
        assert_eq!(all["ips"], json!(["10.0.0.9", "fd00::9/64"]));
        assert_eq!(all["mac"], "c2:11:22:33:44:55");
        assert_eq!(all["ipRanges"], json!([[{"subnet": "10.244.1.0/24"}]]));
        for (key, value) in [
            (INGRESS, "1"),
            (EGRESS, "2P"),
            (EGRESS, "fast"),
            (MAC, "c2:11"),
            (IPS, "ten"),
        ] {
            let wrong = BTreeMap::from([(key.to_owned(), value.to_owned())]);
            let error = capabilities(&pod(&[], &wrong), &[]).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains(value), "{error}");
        }
    }

    #[test]
    fn quantities_are_those_of_kubernetes() {
        for (text, value) in [
            ("1k", 1_000),
            ("1Ki", 1_024),
            ("1.5M", 1_500_000),
            ("12e6", 12_000_000),
            ("1E3", 1_000),
            ("1500m", 2),
            (".5Gi", 536_870_912),
            ("+4", 4),
            ("-1k", -1_000),
        ] {
            assert_eq!(quantity(text), Some(value), "{text}");
        }
        for text in [
            "",
            "k",
            "1.2.3",
            "1KB",
            "1ki",
            "0x10",
            "1e",
            "1e99",
            "99999999999999999999",
        ] {
            assert_eq!(quantity(text), None, "{text}");
        }
    }

    #[test]
    fn pod_ranges_are_checked() {
        assert_eq!(
            pod_cidrs("10.244.1.0/24, fd00::/64").unwrap(),
            ["10.244.1.0/24", "fd00::/64"]
        );
        assert!(pod_cidrs("").unwrap().is_empty());
        for wrong in [
            "10.0.0.0",
            "10.0.0.0/33",
            "x/8",
            "fd00::/129",
            "10.0.0.0/-1",
            "/8",
        ] {
            assert!(pod_cidrs(wrong).is_err(), "{wrong}");
        }
    }
}
