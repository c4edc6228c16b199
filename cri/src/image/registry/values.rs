//! Values of `hosts.toml`: what each key may be. Pure.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Value;

/// What is wrong, without the key's name.
type Parsed<T> = Result<T, String>;

/// (resolve, pull)
pub(super) fn capabilities(value: &Value) -> Parsed<(bool, bool)> {
    let list = texts(value)?;
    if list.is_empty() {
        return Ok((true, true));
    }
    let (mut resolve, mut pull) = (false, false);
    for capability in &list {
        match capability.to_ascii_lowercase().as_str() {
            "resolve" => resolve = true,
            "pull" => pull = true,
            "push" | "referrers" => {}
            _ => {
                return Err(format!(
                    "{capability:?}: must be pull, resolve, push or referrers"
                ));
            }
        }
    }
    Ok((resolve, pull))
}

pub(super) fn truth(value: &Value) -> Parsed<bool> {
    value.as_bool().ok_or_else(|| "must be true or false".to_owned())
}

/// A text, or a list of them.
pub(super) fn texts(value: &Value) -> Parsed<Vec<String>> {
    let text = |value: &Value| {
        value
            .as_str()
            .map(str::to_owned)
            .ok_or_else(|| "must be a text or a list of texts".to_owned())
    };
    match value {
        Value::Array(list) => list.iter().map(text).collect(),
        value => Ok(vec![text(value)?]),
    }
}

/// A file, a list of files, or a list of pairs of files.
pub(super) fn pairs(value: &Value, directory: &Path) -> Parsed<Vec<(PathBuf, PathBuf)>> {
    let list = match value {
        Value::Array(list) => list.clone(),
        value => vec![value.clone()],
    };
    let mut pairs = Vec::with_capacity(list.len());
    for value in &list {
        let files = texts(value)?;
        pairs.push(match (value, files.as_slice()) {
            (Value::String(_), [both]) => (directory.join(both), directory.join(both)),
            // The key is in the certificate's file.
            (Value::Array(_), [both, key]) if key.is_empty() => (directory.join(both), directory.join(both)),
            (Value::Array(_), [certificate, key]) => (directory.join(certificate), directory.join(key)),
            _ => return Err("must be files, or pairs of a certificate and its key".into()),
        });
    }
    Ok(pairs)
}

/// Values are secrets often: they are not in the error.
pub(super) fn headers(value: &Value) -> Parsed<Vec<(String, String)>> {
    let Value::Table(table) = value else {
        return Err("must be a table".into());
    };
    let mut headers = Vec::new();
    for (name, value) in table {
        if hyper::header::HeaderName::from_bytes(name.as_bytes()).is_err() {
            return Err(format!("{name:?} is not the name of a header"));
        }
        for value in texts(value)? {
            if hyper::header::HeaderValue::from_str(&value).is_err() {
                return Err(format!("{name}: its value can't be sent"));
            }
            headers.push((name.clone(), value));
        }
    }
    Ok(headers)
}

/// Go's form: `1m30s`, `500ms`, `1.5h`.
pub(super) fn duration(text: &str) -> Parsed<Duration> {
    let wrong = || format!("{text:?} is not a time, as \"5s\"");
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let digits = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .ok_or_else(wrong)?;
        let (number, tail) = rest.split_at(digits);
        let unit = tail.find(|c: char| c.is_ascii_digit()).unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit);
        let factor = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(wrong()),
        };
        seconds += number.parse::<f64>().map_err(|_| wrong())? * factor;
        rest = tail;
    }
    match Duration::try_from_secs_f64(seconds) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(wrong()),
    }
}
