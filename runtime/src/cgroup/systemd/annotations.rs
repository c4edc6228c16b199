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
const ALLOWED: [&str; 49] = [
    "After",
    "AllowedCPUs",
    "AllowedMemoryNodes",
    "Before",
    "CPUQuotaPerSecUSec",
    "CPUQuotaPeriodUSec",
    "CPUWeight",
    "CollectMode",
    "DefaultDependencies",
    "DefaultMemoryLow",
    "DefaultMemoryMin",
    "Description",
    "Documentation",
    "FinalKillSignal",
    "IOWeight",
    "IgnoreOnIsolate",
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
    "MemoryPressureThresholdUSec",
    "MemoryPressureWatch",
    "MemorySwapMax",
    "MemoryZSwapMax",
    "MemoryZSwapWriteback",
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
/// The longest value: a list of units to be ordered after.
const LONGEST: usize = 4096;

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
    if name.len() < 3 || !name.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        bail!("name incorrect: must be at least 3 ASCII letters");
    }
    // systemd keeps them in a file of lines.
    if text.len() > LONGEST || text.chars().any(char::is_control) {
        bail!("value parse error: must be at most {LONGEST} bytes without control characters");
    }
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

/// A value in GVariant's text form: `true`, `5`, `uint64 5`, `@t 5`, `'text'`, `['a', 'b']`, `[byte 0x3]`.
fn parse(text: &str) -> Option<Value> {
    let text = text.trim();
    let (kind, literal) = match text.split_once(' ') {
        Some((kind, literal)) if kind.starts_with('@') => (&kind[1..], literal.trim()),
        Some(("uint64", literal)) => ("t", literal.trim()),
        Some(("int64", literal)) => ("x", literal.trim()),
        Some(("uint32", literal)) => ("u", literal.trim()),
        Some(("int32", literal)) => ("i", literal.trim()),
        _ => (default_kind(text), text),
    };
    Some(match kind {
        "b" => Value::Bool(literal.parse().ok()?),
        "i" => Value::Int(number(literal)?.try_into().ok()?),
        "u" => Value::Uint(number(literal)?.try_into().ok()?),
        "x" => Value::Int64(number(literal)?.try_into().ok()?),
        "t" => Value::Uint64(number(literal)?.try_into().ok()?),
        "s" => {
            let mut found = texts(literal)?;
            (found.len() == 1).then(|| Value::Text(found.remove(0)))?
        }
        "as" => match inside(literal)? {
            "" => Value::Texts(Vec::new()),
            inner => Value::Texts(texts(inner)?),
        },
        "ay" => match inside(literal)? {
            "" => Value::Bytes(Vec::new()),
            inner => {
                let bytes = inner.split(',').map(|byte| {
                    let byte = byte.trim().trim_start_matches("byte ");
                    number(byte.trim())?.try_into().ok()
                });
                Value::Bytes(bytes.collect::<Option<_>>()?)
            }
        },
        _ => return None,
    })
}

/// The type of a value that is written without one. Numbers in a list are bytes: there is no other list of numbers here.
fn default_kind(text: &str) -> &'static str {
    match text.bytes().next() {
        Some(b'[') => match inside(text).and_then(|inner| inner.bytes().next()) {
            Some(b'\'' | b'"') | None => "as",
            Some(_) => "ay",
        },
        Some(b'\'' | b'"') => "s",
        Some(b't' | b'f') => "b",
        _ => "i",
    }
}

/// What is between the brackets.
fn inside(list: &str) -> Option<&str> {
    Some(list.strip_prefix('[')?.strip_suffix(']')?.trim())
}

/// Decimal, or hexadecimal after `0x`.
fn number(text: &str) -> Option<i128> {
    match text.strip_prefix("0x") {
        Some(digits) if digits.bytes().all(|digit| digit.is_ascii_hexdigit()) => {
            i128::from_str_radix(digits, 16).ok()
        }
        Some(_) => None,
        None => text.parse().ok(),
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
        for bytes in ["[0x3]", "[byte 0x03]", "@ay [3]"] {
            assert_eq!(
                one("AllowedCPUs", bytes).unwrap().1,
                Value::Bytes(vec![3]),
                "{bytes}"
            );
        }
        assert_eq!(one("TasksMax", "@t 0x10").unwrap().1, Value::Uint64(16));
        assert_eq!(one("KillSignal", "10").unwrap().1, Value::Int(10));
        assert_eq!(one("After", "@as []").unwrap().1, Value::Texts(Vec::new()));
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
            "FailureAction",
            "JobTimeoutAction",
            "NFTSet",
            "OnFailure",
            "Requires",
            "StopPropagatedFrom",
            "User",
            "xyz",
        ] {
            let error = format!("{:#}", one(name, "'x'").unwrap_err());
            assert!(
                error.contains("not a property that a container may set"),
                "{name}: {error}"
            );
        }
    }

    #[test]
    fn a_name_that_is_none_is_refused() {
        for name in ["", "x", "xy", "After ", "After\nSlice", "After.x", "Afté"] {
            let error = format!("{:#}", one(name, "'x'").unwrap_err());
            assert!(error.contains("name incorrect"), "{name}: {error}");
        }
    }

    #[test]
    fn a_value_that_is_none_is_refused() {
        let long = format!("'{}'", "x".repeat(LONGEST));
        for value in [
            "",
            "'",
            "'a",
            "'a' 'b'",
            "'a\n[Service]'",
            "uint64 x",
            "uint64 -1",
            "int32 0x80000000",
            "0x+1",
            "[1, 'a']",
            "[256]",
            "[",
            "@ 5",
            "@av []",
            "what",
            "truth",
            "\\",
            &long,
        ] {
            let error = format!("{:#}", one("CollectMode", value).unwrap_err());
            assert!(error.contains("value parse error"), "{value}: {error}");
        }
    }
}
