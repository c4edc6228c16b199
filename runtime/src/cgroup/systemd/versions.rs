//! Properties that not every systemd has.
//!
//! They are sent as if it had them all, and what it refuses as unknown is left out of the next try, so that a systemd that
//! has them is asked once. A limit is also written into the cgroup, where it holds until systemd writes something else
//! there; a property that only an annotation asks for is an error.

use anyhow::{Error, Result};

use super::bus::Refused;
use super::message::Property;
use crate::log;

/// The first version that takes a weight of 0 for `cpu.idle` 1.
pub(super) const IDLE: u32 = 252;

/// The versions that brought what is not in 229 (where these properties can be set for a scope; systemd's NEWS and manual
/// pages).
const SINCE: [(&str, u32); 32] = [
    ("AllowedCPUs", 244),
    ("AllowedMemoryNodes", 244),
    ("BPFProgram", 249),
    ("CPUQuotaPeriodUSec", 242),
    ("CPUWeight", 232),
    ("CollectMode", 236),
    ("DefaultMemoryLow", 242),
    ("DefaultMemoryMin", 242),
    ("FinalKillSignal", 240),
    ("IODeviceLatencyTargetUSec", 240),
    ("ManagedOOMMemoryPressure", 247),
    ("ManagedOOMMemoryPressureLimit", 248),
    ("ManagedOOMPreference", 248),
    ("ManagedOOMSwap", 247),
    ("MemoryHigh", 231),
    ("MemoryLow", 231),
    ("MemoryMax", 231),
    ("MemoryMin", 240),
    ("MemoryPressureThresholdUSec", 254),
    ("MemoryPressureWatch", 254),
    ("MemorySwapMax", 232),
    ("MemoryZSwapMax", 253),
    ("MemoryZSwapWriteback", 256),
    ("OOMPolicy", 253),
    ("RestartKillSignal", 244),
    ("RuntimeMaxUSec", 244),
    ("RuntimeRandomizedExtraUSec", 250),
    ("StartupAllowedCPUs", 252),
    ("StartupAllowedMemoryNodes", 252),
    ("StartupMemoryHigh", 252),
    ("StartupMemoryMax", 252),
    ("WatchdogSignal", 240),
];

/// Sends properties, without those that systemd does not know. `asked` are those of annotations.
///
/// # Errors
///
/// Those of `send`; names a property of an annotation that systemd does not know, and the version that does.
pub(super) fn negotiate(
    all: &mut Vec<Property>,
    asked: &[&str],
    mut send: impl FnMut(&[Property]) -> Result<()>,
) -> Result<()> {
    loop {
        let error = match send(all) {
            Err(error) => error,
            sent => return sent,
        };
        let Some(at) = unknown(&error, all) else {
            return Err(error);
        };
        let (name, value) = all.remove(at);
        if asked.contains(&name) {
            let context = format!("annotations[\"org.systemd.property.{name}\"]: {}", too_old(name));
            return Err(error.context(context));
        }
        log::debug(|| {
            let too_old = too_old(name);
            format!("systemd: {name}={value:?} is left out and set in the cgroup alone: {too_old}")
        });
    }
}

fn too_old(name: &str) -> String {
    match SINCE.iter().find(|(since, _)| *since == name) {
        Some((_, version)) => format!("this systemd does not have it: it came with version {version}"),
        None => "this systemd does not have it for scopes".to_owned(),
    }
}

/// Which of the properties systemd says it does not know.
fn unknown(error: &Error, all: &[Property]) -> Option<usize> {
    let refused = error.downcast_ref::<Refused>()?;
    if !refused.name.ends_with(".PropertyReadOnly") {
        return None;
    }
    let rest = refused.text.strip_prefix("Cannot set property ")?;
    let named = rest.split([',', ' ']).next()?;
    all.iter().position(|(name, _)| *name == named)
}

#[cfg(test)]
mod tests {
    use super::super::message::Value;
    use super::*;

    fn refusal(name: &str) -> Error {
        Error::from(Refused {
            name: "org.freedesktop.DBus.Error.PropertyReadOnly".to_owned(),
            text: format!("Cannot set property {name}, or unknown property."),
        })
        .context("systemd: StartTransientUnit")
    }

    fn all() -> Vec<Property> {
        ["Slice", "AllowedCPUs", "MemoryMax", "BPFProgram"]
            .map(|name| (name, Value::Bool(true)))
            .to_vec()
    }

    #[test]
    fn a_limit_that_systemd_does_not_know_is_left_out() {
        let mut sent = Vec::new();
        negotiate(&mut all(), &["MemoryMax"], |properties| {
            let names: Vec<_> = properties.iter().map(|(name, _)| *name).collect();
            sent.push(names.join(" "));
            match names
                .iter()
                .find(|name| matches!(**name, "AllowedCPUs" | "BPFProgram"))
            {
                Some(name) => Err(refusal(name)),
                None => Ok(()),
            }
        })
        .unwrap();
        assert_eq!(
            sent,
            [
                "Slice AllowedCPUs MemoryMax BPFProgram",
                "Slice MemoryMax BPFProgram",
                "Slice MemoryMax"
            ]
        );
    }

    #[test]
    fn a_property_of_an_annotation_that_systemd_does_not_know_is_named_with_its_version() {
        let error = negotiate(&mut all(), &["AllowedCPUs"], |_| Err(refusal("AllowedCPUs"))).unwrap_err();
        let text = format!("{error:#}");
        assert!(
            text.contains("org.systemd.property.AllowedCPUs") && text.contains("version 244"),
            "{text}"
        );
    }

    #[test]
    fn any_other_refusal_is_an_error() {
        for error in [
            refusal("Wants"),
            Error::msg("x"),
            Error::from(Refused {
                name: "org.freedesktop.DBus.Error.AccessDenied".to_owned(),
                text: "Permission denied".to_owned(),
            }),
        ] {
            let text = error.to_string();
            let mut error = Some(error);
            let refused = negotiate(&mut all(), &[], |_| Err(error.take().unwrap())).unwrap_err();
            assert_eq!(refused.to_string(), text);
        }
    }
}
