//! Where in a JSON text something is: turns serde_json's line and column into the path of a field.
//!
//! Run only after parsing failed, so that the parser itself need not keep track (the crate `serde_path_to_error`
//! doubles the code of parsing a `Spec`: 0.3 MB). It also finds the capability names to leave out on the second
//! attempt, as runc goes on with a warning where it does not know one.

use std::ops::{ControlFlow, Range};

/// One level of nesting.
enum Frame<'a> {
    /// An object, and the (still escaped) key whose value is being read.
    Object {
        key: Option<&'a [u8]>,
        expects_key: bool,
    },
    /// An array, and the index being read.
    Array { index: usize },
}

/// Path of the value that the byte at `line` and `column` (both from 1, as serde_json counts) belongs to, such as
/// `process.rlimits[2].type`; empty for the whole text.
pub(super) fn path_at(json: &[u8], line: usize, column: usize) -> String {
    let line_start = match line.checked_sub(2) {
        Some(nth) => json
            .iter()
            .enumerate()
            .filter(|(_, b)| **b == b'\n')
            .nth(nth)
            .map_or(json.len(), |(i, _)| i + 1),
        None => 0,
    };
    let at = (line_start + column).saturating_sub(1);
    let mut path = String::new();
    walk(json, |frames, token| {
        if at < token.end || token.end == json.len() {
            // What is wrong at the end of an object (a field is missing) is wrong with the whole of it.
            let closes = matches!(json[token.start], b'}' | b']');
            render(
                &frames[..frames.len() - usize::from(closes && !frames.is_empty())],
                &mut path,
            );
            return ControlFlow::Break(());
        }
        ControlFlow::Continue(())
    });
    path
}

/// A copy of `json` without the elements of `<under>capabilities.*[]` that are no capability of Linux, and their names;
/// none if there is nothing to leave out. `under` is the path of the process: `["process"]` or nothing.
pub(super) fn without_unknown_capabilities(json: &[u8], under: &[&str]) -> Option<(Vec<u8>, Vec<String>)> {
    let mut unknown = Vec::new();
    walk(json, |frames, token| {
        // What is no JSON string stays, for the parser to refuse.
        if json[token.start] == b'"'
            && in_capability_set(frames, under)
            && let Ok(name) = serde_json::from_slice::<String>(&json[token.clone()])
            && !is_capability(&name)
        {
            unknown.push((token, name));
        }
        ControlFlow::Continue(())
    });
    if unknown.is_empty() {
        return None;
    }
    let mut cleaned = json.to_vec();
    let mut names = Vec::with_capacity(unknown.len());
    for (token, name) in unknown {
        blank_element(&mut cleaned, token);
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Some((cleaned, names))
}

/// Whether oci-spec knows the capability: it takes any case, and `CAP_` may be missing.
fn is_capability(name: &str) -> bool {
    let upper = name.to_uppercase();
    let mut bare = upper.as_str();
    while let Some(rest) = bare.strip_prefix("CAP_") {
        bare = rest;
    }
    bare.parse::<oci_spec::runtime::Capability>().is_ok()
}

fn in_capability_set(frames: &[Frame<'_>], under: &[&str]) -> bool {
    let [objects @ .., set, Frame::Array { .. }] = frames else {
        return false;
    };
    let Frame::Object {
        expects_key: false, ..
    } = set
    else {
        return false;
    };
    let keys = || under.iter().copied().chain(["capabilities"]);
    objects.len() == under.len() + 1
        && objects.iter().zip(keys()).all(|(frame, key)| match frame {
            Frame::Object { key: Some(found), .. } => *found == key.as_bytes(),
            _ => false,
        })
}

/// Replaces an array element and one comma beside it by spaces.
fn blank_element(json: &mut [u8], token: Range<usize>) {
    json[token.clone()].fill(b' ');
    let after = json[token.end..]
        .iter()
        .position(|b| !b.is_ascii_whitespace())
        .map(|i| token.end + i);
    if let Some(i) = after.filter(|&i| json[i] == b',') {
        json[i] = b' ';
    } else if let Some(i) = json[..token.start]
        .iter()
        .rposition(|b| !b.is_ascii_whitespace())
        .filter(|&i| json[i] == b',')
    {
        json[i] = b' ';
    }
}

/// Calls `visit` with the nesting and the bytes of each token, until it breaks or the text ends. Takes any bytes: what
/// is no JSON gives odd tokens, never a panic, and no recursion.
fn walk<'a>(json: &'a [u8], mut visit: impl FnMut(&[Frame<'a>], Range<usize>) -> ControlFlow<()>) {
    let mut frames: Vec<Frame<'a>> = Vec::new();
    let mut i = 0;
    while let Some(&byte) = json.get(i) {
        let end = match byte {
            b'"' => string_end(json, i),
            b'{' | b'}' | b'[' | b']' | b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' => i + 1,
            _ => json[i..]
                .iter()
                .position(|b| b" \t\r\n,:{}[]\"".contains(b))
                .map_or(json.len(), |n| i + n),
        };
        if byte == b'"'
            && let Some(Frame::Object {
                key,
                expects_key: true,
            }) = frames.last_mut()
        {
            *key = Some(&json[i + 1..(end - 1).max(i + 1)]);
        }
        if visit(&frames, i..end).is_break() {
            return;
        }
        match (byte, frames.last_mut()) {
            (b'{', _) => frames.push(Frame::Object {
                key: None,
                expects_key: true,
            }),
            (b'[', _) => frames.push(Frame::Array { index: 0 }),
            (b'}' | b']', _) => {
                frames.pop();
            }
            (b':', Some(Frame::Object { expects_key, .. })) => *expects_key = false,
            (b',', Some(Frame::Object { key, expects_key })) => (*key, *expects_key) = (None, true),
            (b',', Some(Frame::Array { index })) => *index += 1,
            _ => {}
        }
        i = end;
    }
}

/// Index after the closing quote of the string that begins at `start`.
fn string_end(json: &[u8], start: usize) -> usize {
    let mut i = start + 1;
    while let Some(&byte) = json.get(i) {
        match byte {
            b'\\' => i += 2,
            b'"' => return i + 1,
            _ => i += 1,
        }
    }
    json.len()
}

fn render(frames: &[Frame<'_>], path: &mut String) {
    path.clear();
    // Deep nesting is an error of its own; its path needs no thousand levels.
    for frame in frames.iter().take(12) {
        match frame {
            Frame::Array { index } => path.push_str(&format!("[{index}]")),
            Frame::Object { key: None, .. } => {}
            Frame::Object { key: Some(key), .. } => {
                let key = String::from_utf8_lossy(&key[..key.len().min(80)]);
                if key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') && !key.is_empty() {
                    if !path.is_empty() {
                        path.push('.');
                    }
                    path.push_str(&key);
                } else {
                    path.push_str(&format!("[{key:?}]"));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path_of(json: &str, needle: &str) -> String {
        let at = json.find(needle).unwrap();
        let line = json[..at].matches('\n').count() + 1;
        let column = at - json[..at].rfind('\n').map_or(0, |i| i + 1) + 1;
        path_at(json.as_bytes(), line, column)
    }

    #[test]
    fn a_position_is_named_by_its_field() {
        let json = "{\"a\": [1, {\"b\": {}, \"c.d\": [[], [5]]}],\n \"z\": 7}";
        assert_eq!(path_of(json, "1"), "a[0]");
        assert_eq!(path_of(json, "{}"), "a[1].b");
        assert_eq!(path_of(json, "}, \"c"), "a[1].b");
        assert_eq!(path_of(json, "}],"), "a[1]");
        assert_eq!(path_of(json, "5"), "a[1][\"c.d\"][1][0]");
        assert_eq!(path_of(json, "7"), "z");
    }

    #[test]
    fn quotes_and_braces_inside_strings_do_not_confuse_it() {
        let json = r#"{"a": "}]\"{", "b\"c": [0, "x\\"], "d": true}"#;
        assert_eq!(path_of(json, "true"), "d");
        assert_eq!(path_of(json, "0,"), "[\"b\\\\\\\"c\"][0]");
    }

    #[test]
    fn no_bytes_make_it_panic() {
        for json in [
            "",
            "\"",
            "\"\\",
            "]}]}",
            "{\"a",
            ":::",
            "{\"a\":[",
            "[,,",
            "\u{ff}{\"",
            "{\"\\",
        ] {
            for column in 0..8 {
                path_at(json.as_bytes(), 1, column);
                path_at(json.as_bytes(), 3, column);
            }
            without_unknown_capabilities(json.as_bytes(), &["process"]);
        }
        let deep = "[".repeat(200_000);
        assert!(path_at(deep.as_bytes(), 1, 199_999).len() < 100);
    }

    #[test]
    fn only_unknown_capabilities_are_left_out() {
        let json = br#"{"process":{"env":["CAP_X"],"capabilities":{"bounding":["CAP_KILL","CAP_FOO"],
            "effective":["CAP_FOO"],"permitted":["CAP_A", "cap_chown" , "\u0043AP_B","NET_RAW"]}},
            "capabilities":{"bounding":["CAP_X"]}}"#;
        let (cleaned, names) = without_unknown_capabilities(json, &["process"]).unwrap();
        assert_eq!(names, ["CAP_FOO", "CAP_A", "CAP_B"]);
        let value: serde_json::Value = serde_json::from_slice(&cleaned).unwrap();
        let sets = &value["process"]["capabilities"];
        assert_eq!(sets["bounding"], serde_json::json!(["CAP_KILL"]));
        assert_eq!(sets["effective"], serde_json::json!([]));
        assert_eq!(sets["permitted"], serde_json::json!(["cap_chown", "NET_RAW"]));
        assert_eq!(value["process"]["env"][0], "CAP_X");
        assert_eq!(value["capabilities"]["bounding"][0], "CAP_X");
    }

    #[test]
    fn nothing_to_leave_out_is_said() {
        assert!(
            without_unknown_capabilities(
                br#"{"process":{"capabilities":{"bounding":["CAP_KILL"]}}}"#,
                &["process"]
            )
            .is_none()
        );
        assert!(without_unknown_capabilities(br#"{"capabilities":{"bounding":["CAP_X"]}}"#, &[]).is_some());
    }
}
