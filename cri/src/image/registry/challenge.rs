//! `WWW-Authenticate`: how a host wants to be shown who asks. Pure.

use std::collections::HashMap;

use hyper::HeaderMap;
use hyper::header::WWW_AUTHENTICATE;

/// One of `WWW-Authenticate`.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Challenge {
    /// In lower case.
    pub(super) scheme: String,
    parameters: HashMap<String, String>,
}

impl Challenge {
    pub(super) fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters
            .get(name)
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }
}

pub(super) fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    headers
        .get_all(WWW_AUTHENTICATE)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(parse_challenges)
        .collect()
}

/// `Scheme name=value, name="value", Scheme ...` (RFC 9110, 11.6.1). What is not understood is passed over.
fn parse_challenges(text: &str) -> Vec<Challenge> {
    let mut found: Vec<Challenge> = Vec::new();
    let mut rest = text.trim_start_matches([' ', '\t', ',']);
    while !rest.is_empty() {
        let end = rest.find([' ', '\t', ',', '=']).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(end);
        let after = tail.trim_start_matches([' ', '\t']);
        if let Some(value) = after.strip_prefix('=')
            && let Some(challenge) = found.last_mut()
        {
            let (value, tail) = parse_value(value.trim_start_matches([' ', '\t']));
            challenge
                .parameters
                .entry(word.to_ascii_lowercase())
                .or_insert(value);
            rest = tail;
        } else {
            found.push(Challenge {
                scheme: word.to_ascii_lowercase(),
                parameters: HashMap::new(),
            });
            rest = after.trim_start_matches('=');
        }
        rest = rest.trim_start_matches([' ', '\t', ',']);
    }
    found
}

/// A token or a quoted string, and what is behind it.
fn parse_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut characters = quoted.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return (value, &quoted[at + 1..]),
            '\\' => value.extend(characters.next().map(|(_, character)| character)),
            _ => value.push(character),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn challenge(scheme: &str, parameters: &[(&str, &str)]) -> Challenge {
        let parameters = parameters
            .iter()
            .map(|(name, value)| ((*name).into(), (*value).into()))
            .collect();
        Challenge {
            scheme: scheme.into(),
            parameters,
        }
    }

    #[test]
    fn challenges_are_read() {
        for (text, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull,push""#,
                vec![challenge(
                    "bearer",
                    &[
                        ("realm", "https://auth.docker.io/token"),
                        ("service", "registry.docker.io"),
                        ("scope", "repository:a/b:pull,push"),
                    ],
                )],
            ),
            ("Basic realm=x", vec![challenge("basic", &[("realm", "x")])]),
            ("Negotiate", vec![challenge("negotiate", &[])]),
            (
                r#"Negotiate, BASIC Realm = "a \"b\"" , Bearer realm=c"#,
                vec![
                    challenge("negotiate", &[]),
                    challenge("basic", &[("realm", "a \"b\"")]),
                    challenge("bearer", &[("realm", "c")]),
                ],
            ),
            (
                r#"Bearer realm="unended"#,
                vec![challenge("bearer", &[("realm", "unended")])],
            ),
            ("", vec![]),
            (",, ,", vec![]),
        ] {
            assert_eq!(parse_challenges(text), expected, "{text}");
        }
    }

    #[test]
    fn any_challenge_is_read_to_its_end() {
        let pieces = [
            "Bearer", "=", "\"", ",", " ", "\\", "realm", "é", "\t", "x=y", "==",
        ];
        let mut state = 88_172_645_463_325_252_u64;
        for _ in 0..50_000 {
            let mut text = String::new();
            for _ in 0..8 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                text.push_str(pieces[(state >> 20) as usize % pieces.len()]);
            }
            assert!(parse_challenges(&text).len() <= text.len(), "{text:?}");
        }
    }
}
