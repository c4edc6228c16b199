//! Annotations `org.systemd.property.NAME`: properties of the container's unit that the specification has no field
//! for, such as `org.systemd.property.CollectMode: "'inactive-or-failed'"`.
//!
//! Annotations may come from people who may make a container but not rule the machine, and properties such as
//! `ExecStopPost` (CVE-2024-3154) or `Slice` would let them. So only properties are taken that say how this one unit
//! is limited, ordered and ended.

use std::collections::HashMap;

use anyhow::{Context as _, Result, bail};

use super::message::{Property, Value};

const PREFIX: &str = "org.systemd.property.";

/// What is taken.
const ALLOWED: [&str; 41] = [
    "After",
    "AllowedCPUs",
    "AllowedMemoryNodes",
    "Before",
    "CPUQuotaPerSecUSec",
    "CPUQuotaPeriodUSec",
    "CPUWeight",
    "CollectMode",
    "DefaultDependencies",
    "FinalKillSignal",
    "IOWeight",
    "KillMode",
    "KillSignal",
    "ManagedOOMMemoryPressure",
    "ManagedOOMMemoryPressureLimit",
    "ManagedOOMPreference",
    "ManagedOOMSwap",
    "MemoryHigh",
    "MemoryLow",
    "MemoryMax",
    "MemoryMin",
    "MemorySwapMax",
    "MemoryZSwapMax",
    "OOMPolicy",
    "RestartKillSignal",
    "RuntimeMaxUSec",
    "RuntimeRandomizedExtraUSec",
    "SendSIGHUP",
    "SendSIGKILL",
    "StartupAllowedCPUs",
    "StartupAllowedMemoryNodes",
    "StartupCPUWeight",
    "StartupIOWeight",
    "StartupMemoryHigh",
    "StartupMemoryLow",
    "StartupMemoryMax",
    "StartupMemorySwapMax",
    "StartupMemoryZSwapMax",
    "TasksMax",
    "TimeoutStopUSec",
    "WatchdogSignal",
];

/// The properties among the annotations, in the order of their names.
///
/// # Errors
///
/// Names the annotation, and what is wrong with its name or value.
pub(super) fn properties(annotations: &HashMap<String, String>) -> Result<Vec<Property>> {
    let mut found: Vec<_> = annotations
        .iter()
        .filter_map(|(key, value)| Some((key.strip_prefix(PREFIX)?, value)))
        .collect();
    found.sort_unstable();
    found
        .into_iter()
        .map(|(name, value)| {
            property(name, value).with_context(|| format!("annotations[\"{PREFIX}{name}\"]"))
        })
        .collect()
}

fn property(name: &str, text: &str) -> Result<Property> {
    let mut value = parse(text).with_context(|| format!("value parse error: {text:?}"))?;
    // The manual writes TimeoutStopSec, in seconds; the interface has TimeoutStopUSec, in microseconds.
    let in_seconds = name
        .strip_suffix("Sec")
        .filter(|stem| stem.ends_with(|last: char| last.is_ascii_lowercase()))
        .map(|stem| format!("{stem}USec"));
    if in_seconds.is_some() {
        value = microseconds(&value).with_context(|| format!("value parse error: {text:?}: not a number"))?;
    }
    let wanted = in_seconds.as_deref().unwrap_or(name);
    match ALLOWED.iter().find(|allowed| **allowed == wanted) {
        Some(name) => Ok((name, value)),
        None => {
            bail!("not a property that a container may set: leave it out, or set it in a drop-in of the unit")
        }
    }
}

fn microseconds(value: &Value) -> Option<Value> {
    let seconds = match value {
        Value::Int(seconds) => u64::try_from(*seconds).ok()?,
        Value::Int64(seconds) => u64::try_from(*seconds).ok()?,
        Value::Uint(seconds) => (*seconds).into(),
        Value::Uint64(seconds) => *seconds,
        _ => return None,
    };
    Some(Value::Uint64(seconds.checked_mul(1_000_000)?))
}

/// A value in GVariant's text form: `true`, `5`, `uint64 5`, `'text'`, `['a', 'b']`.
fn parse(text: &str) -> Option<Value> {
    let text = text.trim();
    if let Some(inner) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        let inner = inner.trim();
        if inner.is_empty() {
            return Some(Value::Texts(Vec::new()));
        }
        if inner.starts_with(['\'', '"']) {
            return texts(inner).map(Value::Texts);
        }
        let bytes = inner.split(',').map(|number| {
            let number = number.trim().trim_start_matches("byte ").trim();
            number.strip_prefix("0x").map_or_else(
                || number.parse().ok(),
                |digits| u8::from_str_radix(digits, 16).ok(),
            )
        });
        return bytes.collect::<Option<Vec<u8>>>().map(Value::Bytes);
    }
    if text.starts_with(['\'', '"']) {
        let mut found = texts(text)?;
        return (found.len() == 1).then(|| Value::Text(found.remove(0)));
    }
    match text.split_once(' ') {
        Some(("uint64", number)) => number.trim().parse().ok().map(Value::Uint64),
        Some(("int64", number)) => number.trim().parse().ok().map(Value::Int64),
        Some(("uint32", number)) => number.trim().parse().ok().map(Value::Uint),
        Some(("int32", number)) => number.trim().parse().ok().map(Value::Int),
        Some(_) => None,
        None => match text {
            "true" => Some(Value::Bool(true)),
            "false" => Some(Value::Bool(false)),
            number => number.parse().ok().map(Value::Int),
        },
    }
}

/// Quoted texts with commas between them; a backslash takes the next character as it is.
fn texts(list: &str) -> Option<Vec<String>> {
    let mut found = Vec::new();
    let mut letters = list.chars().peekable();
    loop {
        let quote = letters.next().filter(|letter| matches!(letter, '\'' | '"'))?;
        let mut text = String::new();
        loop {
            match letters.next()? {
                '\\' => text.push(letters.next()?),
                letter if letter == quote => break,
                letter => text.push(letter),
            }
        }
        found.push(text);
        while letters.next_if(|letter| letter.is_whitespace()).is_some() {}
        match letters.next() {
            None => return Some(found),
            Some(',') => while letters.next_if(|letter| letter.is_whitespace()).is_some() {},
            Some(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(name: &str, value: &str) -> Result<Property> {
        let annotations = HashMap::from([
            (format!("{PREFIX}{name}"), value.to_owned()),
            ("other".into(), "x".into()),
        ]);
        properties(&annotations).map(|mut found| found.remove(0))
    }

    #[test]
    fn values_have_the_type_that_is_written() {
        assert_eq!(
            one("CollectMode", "'inactive-or-failed'").unwrap().1,
            Value::Text("inactive-or-failed".to_owned())
        );
        assert_eq!(
            one("TimeoutStopUSec", "uint64 123456789").unwrap(),
            ("TimeoutStopUSec", Value::Uint64(123_456_789))
        );
        assert_eq!(one("SendSIGHUP", "true").unwrap().1, Value::Bool(true));
        assert_eq!(
            one("After", r#"["a.service", 'b']"#).unwrap().1,
            Value::Texts(vec!["a.service".into(), "b".into()])
        );
        assert_eq!(one("AllowedCPUs", "[0x3]").unwrap().1, Value::Bytes(vec![3]));
    }

    #[test]
    fn seconds_become_microseconds() {
        assert_eq!(
            one("TimeoutStopSec", "5").unwrap(),
            ("TimeoutStopUSec", Value::Uint64(5_000_000))
        );
        assert!(format!("{:#}", one("TimeoutStopSec", "'x'").unwrap_err()).contains("not a number"));
    }

    #[test]
    fn only_harmless_properties_are_taken() {
        for name in [
            "ExecStopPost",
            "Slice",
            "Delegate",
            "PIDs",
            "Wants",
            "DeviceAllow",
            "BPFProgram",
            "x",
            "",
        ] {
            let error = format!("{:#}", one(name, "'x'").unwrap_err());
            assert!(
                error.contains("not a property that a container may set"),
                "{name}: {error}"
            );
        }
    }

    #[test]
    fn a_value_that_is_none_is_refused() {
        for value in ["", "'", "'a", "'a' 'b'", "uint64 x", "[1, 'a']", "what", "\\"] {
            let error = format!("{:#}", one("CollectMode", value).unwrap_err());
            assert!(error.contains("value parse error"), "{value}: {error}");
        }
    }
}
