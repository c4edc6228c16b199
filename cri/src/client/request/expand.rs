//! `$(NAME)` in commands and variables (k8s.io/kubernetes, `third_party/forked/golang/expansion`).

use std::collections::BTreeMap;

/// Puts variables in. One that is not known stays as it is written; `$$(NAME)` is `$(NAME)`.
pub(super) fn expand(text: &str, variables: &BTreeMap<&str, String>) -> String {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        expanded.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            expanded.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')) {
            match variables.get(name) {
                Some(value) => expanded.push_str(value),
                None => expanded.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            expanded.push('$');
        }
    }
    expanded.push_str(rest);
    expanded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_put_in_as_kubernetes_does() {
        let variables = BTreeMap::from([("A", "1".to_owned()), ("B", "$(A)".to_owned())]);
        for (text, expanded) in [
            ("x$(A)y", "x1y"),
            ("$(A)$(B)", "1$(A)"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$1"),
            ("$(C)", "$(C)"),
            ("$(A", "$(A"),
            ("$A $", "$A $"),
            ("", ""),
        ] {
            assert_eq!(expand(text, &variables), expanded, "{text}");
        }
    }
}
