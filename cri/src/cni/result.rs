//! What plugins answer to ADD, in every version of it.
//!
//! ```text
//! 0.1.0, 0.2.0           ip4 {ip, gateway, routes}, ip6 {..}, dns
//! 0.3.0, 0.3.1, 0.4.0    interfaces, ips {version, address, gateway, interface}, routes, dns
//! 1.0.0                  the same without ips[].version
//! 1.1.0                  and mtu, socketPath, pciID of interfaces; mtu, advmss, priority, table, scope of routes
//! ```
//!
//! Kept as the last version; written as whatever version a plugin is to read. Conversions are libcni's (`pkg/types`).

use std::fmt;
use std::net::IpAddr;

use serde::de::{Deserializer, Error as _};
use serde::{Deserialize, Serialize, Serializer};
use serde_json::{Map, Value};

use super::version::Version;

/// A result of ADD.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attached {
    pub(super) interfaces: Vec<Interface>,
    pub(super) ips: Vec<Ip>,
    pub(super) routes: Vec<Route>,
    pub(super) dns: Dns,
}

/// An interface that was made, in the pod or on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Interface {
    #[serde(deserialize_with = "or_default")]
    pub(super) name: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    mac: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "is_zero")]
    mtu: i64,
    /// The network namespace; empty: the host's.
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    pub(super) sandbox: String,
    #[serde(
        rename = "socketPath",
        deserialize_with = "or_default",
        skip_serializing_if = "String::is_empty"
    )]
    socket_path: String,
    #[serde(
        rename = "pciID",
        deserialize_with = "or_default",
        skip_serializing_if = "String::is_empty"
    )]
    pci_id: String,
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ip {
    /// Which of `interfaces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) interface: Option<i64>,
    pub(super) address: Cidr,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "address"
    )]
    gateway: Option<IpAddr>,
}

/// A route of the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Route {
    dst: Cidr,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "address"
    )]
    gw: Option<IpAddr>,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "is_zero")]
    mtu: i64,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "is_zero")]
    advmss: i64,
    #[serde(default, deserialize_with = "or_default", skip_serializing_if = "is_zero")]
    priority: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    table: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    scope: Option<i64>,
}

/// What a network says of name servers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Dns {
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    nameservers: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "String::is_empty")]
    domain: String,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    search: Vec<String>,
    #[serde(deserialize_with = "or_default", skip_serializing_if = "Vec::is_empty")]
    options: Vec<String>,
}

/// An address and the length of its network: `10.1.0.5/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cidr {
    pub(super) ip: IpAddr,
    length: u8,
}

/// `ip4` or `ip6` of the first versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct OldIp {
    ip: Cidr,
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "address"
    )]
    gateway: Option<IpAddr>,
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "or_default"
    )]
    routes: Vec<Route>,
}

#[derive(Deserialize)]
struct Old {
    #[serde(default)]
    ip4: Option<OldIp>,
    #[serde(default)]
    ip6: Option<OldIp>,
    #[serde(default)]
    dns: Option<Dns>,
}

#[derive(Deserialize)]
struct New {
    #[serde(default, deserialize_with = "or_default")]
    interfaces: Vec<Interface>,
    #[serde(default, deserialize_with = "or_default")]
    ips: Vec<Ip>,
    #[serde(default, deserialize_with = "or_default")]
    routes: Vec<Route>,
    #[serde(default)]
    dns: Option<Dns>,
}

impl Attached {
    /// Reads what a plugin wrote; `asked` is the version that its configuration had, and so what an answer without one is.
    ///
    /// # Errors
    ///
    /// What is wrong in it.
    pub(super) fn parse(output: &[u8], asked: Version) -> Result<Self, String> {
        let value: Value = serde_json::from_slice(output).map_err(|error| format!("is no JSON: {error}"))?;
        Self::from_value(value, asked)
    }

    /// The same, of what was read already.
    ///
    /// # Errors
    ///
    /// What is wrong in it.
    pub(super) fn from_value(value: Value, asked: Version) -> Result<Self, String> {
        let value = match value {
            // As libcni has it.
            Value::Null => return Ok(Self::default()),
            Value::Object(_) => value,
            other => return Err(format!("is no JSON object but {}", kind(&other))),
        };
        let version = match value.get("cniVersion") {
            None | Some(Value::Null) => asked,
            Some(Value::String(text)) if text.is_empty() => asked,
            Some(Value::String(text)) => Version::parse(text)
                .map_err(|error| format!("cniVersion: {error}"))?
                .ok_or_else(|| format!("cniVersion: {text:?} is newer than {}", Version::LAST))?,
            Some(other) => return Err(format!("cniVersion: is no string but {}", kind(other))),
        };
        if version < Version::LISTS {
            serde_json::from_value(value)
                .map(Old::current)
                .map_err(|error| error.to_string())
        } else {
            let new: New = serde_json::from_value(value).map_err(|error| error.to_string())?;
            Ok(Self {
                interfaces: new.interfaces,
                ips: new.ips,
                routes: new.routes,
                dns: new.dns.unwrap_or_default(),
            })
        }
    }

    /// As `version` writes it.
    ///
    /// # Errors
    ///
    /// The first two versions need an address.
    pub(super) fn to_value(&self, version: Version) -> Result<Value, String> {
        let mut result = Map::new();
        result.insert("cniVersion".into(), version.to_string().into());
        if version < Version::LISTS {
            self.old(&mut result)?;
        } else {
            self.lists(version, &mut result);
        }
        if self.dns != Dns::default() || version < Version::NO_IP_VERSION {
            result.insert("dns".into(), json(&self.dns));
        }
        Ok(Value::Object(result))
    }

    fn old(&self, result: &mut Map<String, Value>) -> Result<(), String> {
        for (key, four) in [("ip4", true), ("ip6", false)] {
            // The first address of each kind is all there is room for.
            let Some(ip) = self.ips.iter().find(|ip| ip.address.ip.is_ipv4() == four) else {
                continue;
            };
            let mut routes = self.routes.clone();
            routes.retain(|route| route.dst.ip.is_ipv4() == four);
            routes.iter_mut().for_each(Route::strip);
            result.insert(
                key.into(),
                json(&OldIp {
                    ip: ip.address,
                    gateway: ip.gateway,
                    routes,
                }),
            );
        }
        if result.contains_key("ip4") || result.contains_key("ip6") {
            Ok(())
        } else {
            Err("has no address, which results before 0.3.0 must have".into())
        }
    }

    fn lists(&self, version: Version, result: &mut Map<String, Value>) {
        let mut interfaces = self.interfaces.clone();
        let mut routes = self.routes.clone();
        if version < Version::STATUS {
            interfaces.iter_mut().for_each(Interface::strip);
            routes.iter_mut().for_each(Route::strip);
        }
        let ips = self.ips.iter().map(|ip| {
            let mut value = json(ip);
            if version < Version::NO_IP_VERSION
                && let Value::Object(ip_object) = &mut value
            {
                let family = if ip.address.ip.is_ipv4() { "4" } else { "6" };
                ip_object.insert("version".into(), family.into());
            }
            value
        });
        let ips: Vec<Value> = ips.collect();
        for (key, values) in [
            ("interfaces", interfaces.iter().map(json).collect()),
            ("ips", ips),
            ("routes", routes.iter().map(json).collect()),
        ] {
            if !values.is_empty() {
                result.insert(key.into(), Value::Array(values));
            }
        }
    }

    /// The addresses of an interface in the pod, in the order they are given, but an IPv4 address first (containerd's
    /// `ip_pref` left out). One that names no interface is of this one.
    ///
    /// # Errors
    ///
    /// An address is of an interface that is not there.
    pub(super) fn addresses(&self, interface: &str) -> Result<Vec<IpAddr>, String> {
        let mut addresses = Vec::new();
        for (place, ip) in self.ips.iter().enumerate() {
            let of = match ip.interface {
                None => None,
                Some(index) => Some(
                    usize::try_from(index)
                        .ok()
                        .and_then(|index| self.interfaces.get(index))
                        .ok_or_else(|| {
                            format!(
                                "ips[{place}].interface: {index}, and there are {} interfaces",
                                self.interfaces.len()
                            )
                        })?,
                ),
            };
            // Plugins of old say no sandbox: then the name is all there is.
            let in_pod = |found: &&Interface| found.name == interface && !found.sandbox.is_empty();
            let ours = match of {
                None => true,
                Some(of) if self.interfaces.iter().any(|found| in_pod(&found)) => in_pod(&of),
                Some(of) => of.name == interface,
            };
            if ours {
                addresses.push(ip.address.ip);
            }
        }
        if let Some(first) = addresses.iter().position(IpAddr::is_ipv4) {
            addresses[..=first].rotate_right(1);
        }
        Ok(addresses)
    }
}

impl Old {
    fn current(self) -> Attached {
        let mut attached = Attached {
            dns: self.dns.unwrap_or_default(),
            ..Attached::default()
        };
        for old in [self.ip4, self.ip6].into_iter().flatten() {
            attached.ips.push(Ip {
                interface: None,
                address: old.ip,
                gateway: old.gateway,
            });
            attached.routes.extend(old.routes);
        }
        attached
    }
}

impl Interface {
    /// Without what came with 1.1.0.
    fn strip(&mut self) {
        self.mtu = 0;
        self.socket_path.clear();
        self.pci_id.clear();
    }
}

impl Route {
    /// Without what came with 1.1.0.
    fn strip(&mut self) {
        self.mtu = 0;
        self.advmss = 0;
        self.priority = 0;
        self.table = None;
        self.scope = None;
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.ip, self.length)
    }
}

impl Cidr {
    /// `10.1.0.5/16`, `fd00::5/64`.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (ip, length) = text.split_once('/')?;
        let ip: IpAddr = ip.parse().ok()?;
        let length: u8 = length.parse().ok()?;
        (length <= if ip.is_ipv4() { 32 } else { 128 }).then_some(Self { ip, length })
    }
}

impl Serialize for Cidr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Cidr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        Self::parse(&text).ok_or_else(|| D::Error::custom(format!("{text:?} is no address as 10.1.0.5/16")))
    }
}

/// An address; `null` and the empty string are none, as Go has it.
fn address<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<IpAddr>, D::Error> {
    match Option::<String>::deserialize(deserializer)? {
        None => Ok(None),
        Some(text) if text.is_empty() => Ok(None),
        Some(text) => match text.parse() {
            Ok(ip) => Ok(Some(ip)),
            Err(_) => Err(D::Error::custom(format!("{text:?} is no address"))),
        },
    }
}

/// `null` is as if it were not there, as Go has it; and plugins that are not Go's write it.
fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

fn json(value: &impl Serialize) -> Value {
    // Structures of strings and numbers: there is nothing that can fail.
    serde_json::to_value(value).unwrap_or_default()
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// What a value is, for an error.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        Version::parse(text).unwrap().unwrap()
    }

    fn dual() -> Attached {
        Attached::parse(
            br#"{"cniVersion": "1.1.0",
                "interfaces": [{"name": "cni0", "mac": "0a:00:00:00:00:01"},
                               {"name": "eth0", "mtu": 1400, "sandbox": "/run/netns/a", "pciID": "x"}],
                "ips": [{"address": "fd00::5/64", "gateway": "fd00::1", "interface": 1},
                        {"address": "10.1.0.5/16", "interface": 1},
                        {"address": "10.1.0.1/16", "interface": 0}],
                "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1", "mtu": 1300, "table": 0}, {"dst": "::/0"}],
                "dns": {"nameservers": ["10.0.0.10"]}}"#,
            Version::LAST,
        )
        .unwrap()
    }

    #[test]
    fn the_addresses_of_a_pod_are_those_of_its_interface_and_ipv4_comes_first() {
        let addresses = dual().addresses("eth0").unwrap();
        let addresses: Vec<String> = addresses.iter().map(ToString::to_string).collect();
        assert_eq!(addresses, ["10.1.0.5", "fd00::5"]);
        assert!(dual().addresses("eth1").unwrap().is_empty());
    }

    #[test]
    fn every_version_is_written_so_that_it_reads_the_same_again() {
        for text in ["0.3.0", "0.3.1", "0.4.0", "1.0.0"] {
            let written = dual().to_value(version(text)).unwrap();
            assert_eq!(written["cniVersion"], text);
            assert_eq!(
                written["ips"][0].get("version").is_some(),
                text < "1.0.0",
                "{text}"
            );
            assert!(written["interfaces"][1].get("mtu").is_none());
            assert!(written["routes"][0].get("table").is_none());
            let read = Attached::from_value(written, Version::FIRST).unwrap();
            assert_eq!(read.ips, dual().ips);
            assert_eq!(read.dns, dual().dns);
        }
        let last = dual().to_value(Version::LAST).unwrap();
        assert_eq!(last["interfaces"][1]["mtu"], 1400);
        assert_eq!(last["routes"][0]["table"], 0);
        assert_eq!(Attached::from_value(last, Version::FIRST).unwrap(), dual());
    }

    #[test]
    fn the_first_versions_have_one_address_of_each_kind_with_its_routes() {
        let written = dual().to_value(version("0.2.0")).unwrap();
        assert_eq!(
            written,
            serde_json::json!({
                "cniVersion": "0.2.0",
                "ip4": {"ip": "10.1.0.5/16", "routes": [{"dst": "0.0.0.0/0", "gw": "10.1.0.1"}]},
                "ip6": {"ip": "fd00::5/64", "gateway": "fd00::1", "routes": [{"dst": "::/0"}]},
                "dns": {"nameservers": ["10.0.0.10"]},
            })
        );
        let read = Attached::from_value(written, Version::LAST).unwrap();
        assert_eq!(read.addresses("eth0").unwrap().len(), 2);
        assert_eq!(read.routes.len(), 2);
        assert!(Attached::default().to_value(version("0.1.0")).is_err());
    }

    #[test]
    fn a_result_without_a_version_is_of_the_version_that_was_asked_for() {
        let old = Attached::parse(br#"{"ip4": {"ip": "10.0.0.2/8"}}"#, version("0.2.0")).unwrap();
        assert_eq!(old.ips.len(), 1);
        let new = Attached::parse(
            br#"{"cniVersion": "", "ips": [{"address": "10.0.0.2/8", "gateway": ""}]}"#,
            version("1.0.0"),
        );
        assert_eq!(new.unwrap().ips.len(), 1);
        assert_eq!(
            Attached::parse(b"null", version("1.0.0")).unwrap(),
            Attached::default()
        );
    }

    #[test]
    fn what_is_null_is_as_if_it_were_not_there() {
        let nulls = br#"{"interfaces": null, "ips": null, "routes": null, "dns": null}"#;
        assert_eq!(
            Attached::parse(nulls, version("1.0.0")).unwrap(),
            Attached::default()
        );
        let read = |text: &str, of: &str| Attached::parse(text.as_bytes(), version(of)).unwrap();
        let nulls = r#"{
            "interfaces": [{"name": "eth0", "mac": null, "mtu": null, "sandbox": null, "socketPath": null, "pciID": null}],
            "ips": [{"address": "10.1.0.5/16", "gateway": null, "interface": null}],
            "routes": [{"dst": "0.0.0.0/0", "gw": null, "mtu": null, "advmss": null, "priority": null, "table": null,
                        "scope": null}],
            "dns": {"nameservers": null, "domain": null, "search": null, "options": null}}"#;
        let none = r#"{"interfaces": [{"name": "eth0"}], "ips": [{"address": "10.1.0.5/16"}],
                       "routes": [{"dst": "0.0.0.0/0"}]}"#;
        assert_eq!(read(nulls, "1.1.0"), read(none, "1.1.0"));
        let nulls =
            r#"{"ip4": {"ip": "10.1.0.5/16", "gateway": null, "routes": null}, "ip6": null, "dns": null}"#;
        assert_eq!(
            read(nulls, "0.2.0"),
            read(r#"{"ip4": {"ip": "10.1.0.5/16"}}"#, "0.2.0")
        );
    }

    #[test]
    fn nonsense_is_refused_with_what_is_wrong_in_it() {
        for (output, why) in [
            (&b""[..], "no JSON"),
            (b"ok", "no JSON"),
            (b"[]", "a list"),
            (br#"{"cniVersion": "9.0.0"}"#, "newer"),
            (br#"{"cniVersion": 1}"#, "a number"),
            (br#"{"ips": [{"address": "10.0.0.1"}]}"#, "10.0.0.1"),
            (br#"{"ips": [{"address": "10.0.0.1/33"}]}"#, "10.0.0.1/33"),
            (br#"{"ips": [{"gateway": "10.0.0.1"}]}"#, "address"),
            (
                br#"{"ips": [{"address": "10.0.0.1/8", "gateway": "x"}]}"#,
                "\"x\"",
            ),
        ] {
            let error = Attached::parse(output, Version::LAST).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        let far = br#"{"ips": [{"address": "10.0.0.1/8", "interface": 3}]}"#;
        let error = Attached::parse(far, Version::LAST)
            .unwrap()
            .addresses("eth0")
            .unwrap_err();
        assert!(error.contains("ips[0].interface: 3"), "{error}");
    }
}
