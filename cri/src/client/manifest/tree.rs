//! A manifest as a tree, from YAML or JSON, with the line of each value.
//!
//! Scalars are what Kubernetes takes them for: YAML 1.1's, where `yes` and `off` are booleans. Numbers keep their text,
//! since `0.5` may be a quantity.

use std::collections::HashMap;

use anyhow::{Result, anyhow, bail, ensure};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use yaml_rust2::parser::{Event, Parser, Tag};
use yaml_rust2::scanner::TScalarStyle;

/// Values in a manifest, its aliases written out.
const NODES_MAX: usize = 100_000;
/// How deep they may be in each other.
const DEPTH_MAX: usize = 64;

/// A value, and where it is.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    /// From 1 on; 0: not known (JSON).
    pub(super) line: usize,
    pub(super) value: Value,
}

/// As YAML and JSON have them.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Value {
    Null,
    Bool(bool),
    /// As it is written.
    Number(String),
    Text(String),
    List(Vec<Node>),
    Map(Vec<(String, Node)>),
}

/// Reads the one document of a text.
///
/// # Errors
///
/// The line, and what is wrong there.
pub(super) fn read(text: &str) -> Result<Node> {
    if text.trim_start().starts_with('{') {
        return serde_json::from_str(text).map_err(|error| anyhow!("JSON: {error}"));
    }
    let mut documents = Builder::default().read(text)?;
    documents.retain(|document| document.value != Value::Null);
    match documents.len() {
        0 => bail!("is empty: a Pod is expected (apiVersion: v1, kind: Pod)"),
        1 => Ok(documents.remove(0)),
        count => bail!(
            "has {count} documents, the second in line {}: give each Pod a file of its own",
            documents[1].line
        ),
    }
}

/// A list or map that is not whole yet.
#[derive(Debug)]
struct Open {
    anchor: usize,
    node: Node,
    /// Of a map: what the next value belongs to.
    key: Option<(String, usize)>,
}

#[derive(Debug, Default)]
struct Builder {
    documents: Vec<Node>,
    open: Vec<Open>,
    anchors: HashMap<usize, (Node, usize)>,
    nodes: usize,
}

impl Builder {
    /// By the parser's events: they need no recursion, however deep the text is.
    fn read(mut self, text: &str) -> Result<Vec<Node>> {
        let mut parser = Parser::new_from_str(text).keep_tags(false);
        loop {
            let (event, mark) = parser.next_token().map_err(|error| anyhow!("YAML: {error}"))?;
            let line = mark.line();
            let at = |value| Node { line, value };
            match event {
                Event::StreamEnd => return Ok(self.documents),
                Event::Nothing | Event::StreamStart | Event::DocumentStart | Event::DocumentEnd => {}
                Event::SequenceStart(anchor, _) => self.begin(anchor, at(Value::List(Vec::new())))?,
                Event::MappingStart(anchor, _) => self.begin(anchor, at(Value::Map(Vec::new())))?,
                Event::SequenceEnd | Event::MappingEnd => {
                    let Some(open) = self.open.pop() else {
                        bail!("YAML: line {line}: an end without its beginning");
                    };
                    self.put(open.anchor, open.node, 0)?;
                }
                Event::Scalar(text, style, anchor, tag) => {
                    let value = scalar(text, style, tag.as_ref());
                    self.put(anchor, at(value), 1)?;
                }
                Event::Alias(anchor) => {
                    let Some((node, size)) = self.anchors.get(&anchor).cloned() else {
                        bail!("YAML: line {line}: an alias without its anchor, or inside of it");
                    };
                    self.put(0, node, size)?;
                }
            }
        }
    }

    fn begin(&mut self, anchor: usize, node: Node) -> Result<()> {
        ensure!(
            self.open.len() < DEPTH_MAX,
            "line {}: more than {DEPTH_MAX} lists and maps in each other",
            node.line
        );
        self.count(1, node.line)?;
        self.open.push(Open {
            anchor,
            node,
            key: None,
        });
        Ok(())
    }

    /// A value is whole: it goes into what is open. `new`: nodes that were not counted yet.
    fn put(&mut self, anchor: usize, node: Node, new: usize) -> Result<()> {
        self.count(new, node.line)?;
        if anchor > 0 {
            let size = size(&node);
            self.anchors.insert(anchor, (node.clone(), size));
        }
        let Some(open) = self.open.last_mut() else {
            self.documents.push(node);
            return Ok(());
        };
        match (&mut open.node.value, open.key.take()) {
            (Value::List(items), _) => items.push(node),
            (Value::Map(entries), Some((name, line))) => {
                ensure!(
                    entries.iter().all(|(known, _)| *known != name),
                    "line {line}: {name:?} is there twice"
                );
                entries.push((name, node));
            }
            (_, _) => match node.value {
                Value::Text(name) | Value::Number(name) => open.key = Some((name, node.line)),
                Value::Bool(value) => open.key = Some((value.to_string(), node.line)),
                _ => bail!("line {}: a name in a map must be text", node.line),
            },
        }
        Ok(())
    }

    fn count(&mut self, new: usize, line: usize) -> Result<()> {
        self.nodes += new;
        ensure!(
            self.nodes <= NODES_MAX,
            "line {line}: more than {NODES_MAX} values"
        );
        Ok(())
    }
}

/// The nodes in it.
fn size(node: &Node) -> usize {
    1 + match &node.value {
        Value::List(items) => items.iter().map(size).sum(),
        Value::Map(entries) => entries.iter().map(|(_, node)| size(node)).sum(),
        _ => 0,
    }
}

fn scalar(text: String, style: TScalarStyle, tag: Option<&Tag>) -> Value {
    if style != TScalarStyle::Plain || tag.is_some_and(|tag| tag.suffix == "str") {
        return Value::Text(text);
    }
    match text.as_str() {
        "" | "~" | "null" | "Null" | "NULL" => return Value::Null,
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Value::Bool(true),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => {
            return Value::Bool(false);
        }
        _ => {}
    }
    // What Rust reads as a number, but for its words.
    let digits = text.bytes().any(|byte| byte.is_ascii_digit())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_digit() || b"+-.eE".contains(&byte));
    if digits && text.parse::<f64>().is_ok() {
        Value::Number(text)
    } else {
        Value::Text(text)
    }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(Json)
    }
}

struct Json;

fn plain<E>(value: Value) -> std::result::Result<Node, E> {
    Ok(Node { line: 0, value })
}

impl<'de> Visitor<'de> for Json {
    type Value = Node;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value of JSON")
    }

    fn visit_unit<E>(self) -> std::result::Result<Node, E> {
        plain(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Node, E> {
        plain(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Node, E> {
        plain(Value::Number(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Node, E> {
        plain(Value::Number(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Node, E> {
        plain(Value::Number(value.to_string()))
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<Node, E> {
        plain(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> std::result::Result<Node, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        plain(Value::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Node, A::Error> {
        let mut entries: Vec<(String, Node)> = Vec::new();
        while let Some((name, node)) = map.next_entry::<String, Node>()? {
            if entries.iter().any(|(known, _)| *known == name) {
                return Err(A::Error::custom(format_args!("{name:?} is there twice")));
            }
            entries.push((name, node));
        }
        plain(Value::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get<'a>(node: &'a Node, name: &str) -> &'a Node {
        let Value::Map(entries) = &node.value else {
            panic!("{node:?}")
        };
        &entries.iter().find(|(known, _)| known == name).unwrap().1
    }

    #[test]
    fn a_scalar_is_what_kubernetes_takes_it_for() {
        let read = read(
            "a: yes\nb: \"yes\"\nc: 0.5\nd: 500m\ne:\nf: 1.2.3.4\ng: |\n  x\n  y\nh: !!str 7\ni: 1e3\nj: -\n",
        );
        // `-` alone is a list with nothing in it.
        assert!(read.is_err());
        let read = super::read(
            "a: yes\nb: \"yes\"\nc: 0.5\nd: 500m\ne:\nf: 1.2.3.4\ng: |\n  x\n  y\nh: !!str 7\ni: 1e3\n",
        );
        let read = read.unwrap();
        let value = |name| get(&read, name).value.clone();
        assert_eq!(value("a"), Value::Bool(true));
        assert_eq!(value("b"), Value::Text("yes".into()));
        assert_eq!(value("c"), Value::Number("0.5".into()));
        assert_eq!(value("d"), Value::Text("500m".into()));
        assert_eq!(value("e"), Value::Null);
        assert_eq!(value("f"), Value::Text("1.2.3.4".into()));
        assert_eq!(value("g"), Value::Text("x\ny\n".into()));
        assert_eq!(value("h"), Value::Text("7".into()));
        assert_eq!(value("i"), Value::Number("1e3".into()));
        assert_eq!(get(&read, "d").line, 4);
    }

    #[test]
    fn json_is_read_as_yaml_is() {
        let json = read(r#"{"a": [1, 0.5, "x\/\u00e9", null, true], "b": {}}"#).unwrap();
        let Value::List(items) = &get(&json, "a").value else {
            panic!("{json:?}")
        };
        let values: Vec<Value> = items.iter().map(|item| item.value.clone()).collect();
        let expected = [
            Value::Number("1".into()),
            Value::Number("0.5".into()),
            Value::Text("x/é".into()),
            Value::Null,
            Value::Bool(true),
        ];
        assert_eq!(values, expected);
        assert_eq!(get(&json, "b").value, Value::Map(Vec::new()));
    }

    #[test]
    fn what_can_t_be_read_is_told_with_its_line() {
        for (text, told) in [
            ("a: 1\nb: [\n", "line"),
            ("a: 1\na: 2\n", "line 2: \"a\" is there twice"),
            ("{\"a\": 1,\n \"a\": 2}", "\"a\" is there twice at line 2"),
            ("{\"a\": 1,\n}", "JSON: trailing comma at line 2"),
            ("", "is empty"),
            ("---\n---\n", "is empty"),
            ("a: 1\n---\nb: 1\n", "has 2 documents, the second in line 3"),
            ("a: *x\n", "unknown anchor"),
            ("? [1]\n: 2\n", "line 1: a name in a map must be text"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(told), "{text:?}: {error}");
        }
    }

    #[test]
    fn neither_aliases_nor_depth_use_up_the_memory() {
        let mut bomb = "a0: &a0 [1,1,1,1,1,1,1,1,1,1]\n".to_owned();
        for level in 1..9 {
            let below = format!("*a{},", level - 1).repeat(10);
            bomb.push_str(&format!("a{level}: &a{level} [{below}]\n"));
        }
        let error = read(&bomb).unwrap_err().to_string();
        assert!(error.contains("more than 100000 values"), "{error}");
        let error = read(&"[".repeat(100)).unwrap_err().to_string();
        assert!(error.contains("more than 64"), "{error}");
        assert!(read(&"[".repeat(100_000)).is_err());
        let error = read(&format!("{{\"a\":{}", "[".repeat(100_000)))
            .unwrap_err()
            .to_string();
        assert!(error.contains("recursion limit"), "{error}");
    }

    #[test]
    fn an_alias_is_what_its_anchor_is() {
        let read = read("a: &x {b: 1}\nc: *x\n").unwrap();
        assert_eq!(get(&read, "a").value, get(&read, "c").value);
    }
}
