//! Fields of a manifest by their paths: `spec.containers[0].ports[1].hostPort`.
//!
//! Every field is taken by name; what is left in a map in the end is refused. An error names the path, the value, what it
//! must be, and the line.

use std::cell::RefCell;
use std::collections::BTreeMap;

use anyhow::{Result, anyhow};

use super::quantity::Quantity;
use super::tree::{Node, Value};

/// What a manifest asks for and is not done, a line each.
pub(super) type Warnings = RefCell<Vec<String>>;

/// A value at a path.
#[derive(Debug, Clone)]
pub(super) struct Field<'a> {
    pub(super) path: String,
    node: &'a Node,
    warnings: &'a Warnings,
}

/// The fields of a map.
#[derive(Debug)]
pub(super) struct Fields<'a> {
    path: String,
    entries: &'a [(String, Node)],
    known: Vec<&'static str>,
    warnings: &'a Warnings,
}

impl<'a> Field<'a> {
    pub(super) fn root(node: &'a Node, warnings: &'a Warnings) -> Self {
        Self {
            path: String::new(),
            node,
            warnings,
        }
    }

    /// An error of this field: what it must be, or what to do.
    pub(super) fn wrong(&self, what: impl std::fmt::Display) -> anyhow::Error {
        let path = if self.path.is_empty() {
            "the manifest"
        } else {
            &self.path
        };
        let value = match &self.node.value {
            Value::Null => " null:".into(),
            Value::Bool(value) => format!(" {value}:"),
            Value::Number(text) => format!(" {text}:"),
            Value::Text(text) if text.chars().count() > 80 => {
                format!(" {:?}...:", text.chars().take(80).collect::<String>())
            }
            Value::Text(text) => format!(" {text:?}:"),
            Value::List(_) | Value::Map(_) => String::new(),
        };
        anyhow!("{path}:{value} {what}{}", line(self.node.line))
    }

    /// Something that is asked for here, and is not done.
    pub(super) fn warn(&self, what: impl std::fmt::Display) {
        let warning = format!("{}: {what}{}", self.path, line(self.node.line));
        self.warnings.borrow_mut().push(warning);
    }

    pub(super) fn text(&self) -> Result<&'a str> {
        match &self.node.value {
            Value::Text(text) => Ok(text),
            Value::Bool(_) | Value::Number(_) => Err(self.wrong("must be text: put it in quotes")),
            _ => Err(self.wrong("must be text")),
        }
    }

    /// As [`Self::text`], and not empty.
    pub(super) fn word(&self) -> Result<&'a str> {
        match self.text()? {
            "" => Err(self.wrong("must not be empty")),
            text => Ok(text),
        }
    }

    pub(super) fn bool(&self) -> Result<bool> {
        match &self.node.value {
            Value::Bool(value) => Ok(*value),
            Value::Text(_) => Err(self.wrong("must be true or false, without quotes")),
            _ => Err(self.wrong("must be true or false")),
        }
    }

    /// A whole number in these bounds.
    pub(super) fn integer(&self, least: i64, most: i64) -> Result<i64> {
        let wrong = || self.wrong(format_args!("must be a whole number, {least} to {most}"));
        let Value::Number(text) = &self.node.value else {
            return Err(match &self.node.value {
                Value::Text(text) if text.parse::<i64>().is_ok() => {
                    self.wrong("must be a number: leave the quotes out")
                }
                _ => wrong(),
            });
        };
        // YAML 1.1 would take it for octal.
        if text.len() > 1 && text.starts_with('0') {
            return Err(self.wrong("must not begin with 0"));
        }
        let number: i64 = text.parse().map_err(|_| wrong())?;
        (least..=most)
            .contains(&number)
            .then_some(number)
            .ok_or_else(wrong)
    }

    /// A quantity of Kubernetes, as `500m` or `64Mi`.
    pub(super) fn quantity(&self) -> Result<Quantity> {
        let (Value::Text(text) | Value::Number(text)) = &self.node.value else {
            return Err(self.wrong("must be a quantity, as 500m or 64Mi"));
        };
        text.parse().map_err(|what: String| self.wrong(what))
    }

    /// The place of a word in a list of those that are possible.
    pub(super) fn choice(&self, possible: &[&str]) -> Result<usize> {
        let text = self.text()?;
        let found = possible.iter().position(|known| *known == text);
        found.ok_or_else(|| {
            let shown: Vec<&str> = possible
                .iter()
                .copied()
                .filter(|known| !known.is_empty())
                .collect();
            self.wrong(format_args!("must be {}", shown.join(" or ")))
        })
    }

    /// The values of a list.
    pub(super) fn list(&self) -> Result<Vec<Field<'a>>> {
        let Value::List(items) = &self.node.value else {
            return Err(self.wrong("must be a list"));
        };
        let field = |(at, node)| Field {
            path: format!("{}[{at}]", self.path),
            node,
            warnings: self.warnings,
        };
        Ok(items.iter().enumerate().map(field).collect())
    }

    /// A list of text.
    pub(super) fn texts(&self) -> Result<Vec<String>> {
        let items = self.list()?;
        items.iter().map(|item| Ok(item.text()?.to_owned())).collect()
    }

    /// A map of text, as labels are.
    pub(super) fn text_map(&self) -> Result<BTreeMap<String, String>> {
        let entries = self.entries()?;
        entries
            .iter()
            .map(|(name, field)| Ok(((*name).to_owned(), field.text()?.to_owned())))
            .collect()
    }

    /// The names and values of a map whose names are not known.
    pub(super) fn entries(&self) -> Result<Vec<(&'a str, Field<'a>)>> {
        let Value::Map(entries) = &self.node.value else {
            return Err(self.wrong("must be a map"));
        };
        let field = |(name, node): &'a (String, Node)| {
            let field = Field {
                path: format!("{}[{name:?}]", self.path),
                node,
                warnings: self.warnings,
            };
            (name.as_str(), field)
        };
        Ok(entries.iter().map(field).collect())
    }

    /// A map whose names are known.
    pub(super) fn fields(&self) -> Result<Fields<'a>> {
        let Value::Map(entries) = &self.node.value else {
            return Err(self.wrong("must be a map"));
        };
        Ok(Fields {
            path: self.path.clone(),
            entries,
            known: Vec::new(),
            warnings: self.warnings,
        })
    }
}

impl<'a> Fields<'a> {
    /// A field; `None`: it is not there, or null, which is the same to Kubernetes.
    pub(super) fn get(&mut self, name: &'static str) -> Option<Field<'a>> {
        self.known.push(name);
        let (_, node) = self.entries.iter().find(|(known, _)| known == name)?;
        (node.value != Value::Null).then(|| self.field(name, node))
    }

    fn field(&self, name: &str, node: &'a Node) -> Field<'a> {
        let path = if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        };
        Field {
            path,
            node,
            warnings: self.warnings,
        }
    }

    /// A field that must be there.
    pub(super) fn need(&mut self, name: &'static str, what: &str) -> Result<Field<'a>> {
        let path = self.path_of(name);
        self.get(name)
            .ok_or_else(|| anyhow!("{path}: is missing: {what}"))
    }

    fn path_of(&self, name: &str) -> String {
        match self.path.as_str() {
            "" => name.to_owned(),
            path => format!("{path}.{name}"),
        }
    }

    pub(super) fn text(&mut self, name: &'static str) -> Result<Option<&'a str>> {
        self.get(name).map(|field| field.text()).transpose()
    }

    pub(super) fn bool(&mut self, name: &'static str) -> Result<Option<bool>> {
        self.get(name).map(|field| field.bool()).transpose()
    }

    pub(super) fn texts(&mut self, name: &'static str) -> Result<Vec<String>> {
        self.get(name).map_or(Ok(Vec::new()), |field| field.texts())
    }

    /// A list; one that is not there is empty.
    pub(super) fn list(&mut self, name: &'static str) -> Result<Vec<Field<'a>>> {
        self.get(name).map_or(Ok(Vec::new()), |field| field.list())
    }

    /// An id of a user or a group.
    pub(super) fn id(&mut self, name: &'static str) -> Result<Option<i64>> {
        let id = self.get(name);
        id.map(|field| field.integer(0, i64::from(i32::MAX))).transpose()
    }

    /// Fields that mean nothing where there is no cluster, and do no harm.
    pub(super) fn skip(&mut self, names: &[&'static str]) {
        self.known.extend(names);
    }

    /// Fields that a pod can do without: they are warned of.
    pub(super) fn ignore(&mut self, names: &[&'static str], why: &str) {
        for name in names {
            if let Some(field) = self.get(name) {
                field.warn(format_args!("ignored: {why}"));
            }
        }
    }

    /// Fields that a pod can't do without.
    pub(super) fn refuse(&mut self, names: &[&'static str], why: &str) -> Result<()> {
        for name in names {
            if let Some(field) = self.get(name) {
                return Err(anyhow!("{}: {why}{}", field.path, line(field.node.line)));
            }
        }
        Ok(())
    }

    /// All fields were taken: the others are not known.
    pub(super) fn end(self) -> Result<()> {
        let Some((name, node)) = self
            .entries
            .iter()
            .find(|(name, _)| !self.known.contains(&name.as_str()))
        else {
            return Ok(());
        };
        let near = self.known.iter().find(|known| is_near(known, name));
        let hint = near.map_or(String::new(), |near| format!(": is {near:?} meant?"));
        Err(anyhow!(
            "{}: is no field of a Pod{hint}{}",
            self.path_of(name),
            line(node.line)
        ))
    }
}

fn line(line: usize) -> String {
    match line {
        0 => String::new(),
        line => format!(" (line {line})"),
    }
}

/// At most two letters added, left out, changed; or another case.
fn is_near(known: &str, given: &str) -> bool {
    let (known, given) = (known.to_lowercase(), given.to_lowercase());
    let (known, given): (Vec<char>, Vec<char>) = (known.chars().collect(), given.chars().take(64).collect());
    let mut row: Vec<usize> = (0..=given.len()).collect();
    for (at, letter) in known.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], at + 1);
        for (column, other) in given.iter().enumerate() {
            let changed = diagonal + usize::from(letter != other);
            diagonal = row[column + 1];
            row[column + 1] = changed.min(row[column] + 1).min(diagonal + 1);
        }
    }
    row[given.len()] <= 2.min(known.len() / 2)
}

#[cfg(test)]
mod tests {
    use super::super::tree;
    use super::*;

    fn error(text: &str, read: impl Fn(&mut Fields<'_>) -> Result<()>) -> String {
        let (node, warnings) = (tree::read(text).unwrap(), Warnings::default());
        let mut fields = Field::root(&node, &warnings).fields().unwrap();
        let result = read(&mut fields).and_then(|()| fields.end());
        result.unwrap_err().to_string()
    }

    #[test]
    fn an_error_names_the_path_the_value_what_to_do_and_the_line() {
        let text = "ports:\n- number: 99999\n  name: yes\n  on: \"true\"\n  id: \"7\"\n";
        fn port<'a>(fields: &mut Fields<'a>) -> Result<Fields<'a>> {
            fields.list("ports")?.remove(0).fields()
        }
        assert_eq!(
            error(text, |fields| port(fields)?
                .need("number", "")
                .unwrap()
                .integer(1, 65535)
                .map(drop)),
            "ports[0].number: 99999: must be a whole number, 1 to 65535 (line 2)"
        );
        assert_eq!(
            error(text, |fields| port(fields)?.text("name").map(drop)),
            "ports[0].name: true: must be text: put it in quotes (line 3)"
        );
        assert_eq!(
            error(text, |fields| port(fields)?.id("id").map(drop)),
            "ports[0].id: \"7\": must be a number: leave the quotes out (line 5)"
        );
        assert_eq!(
            error(text, |fields| port(fields)?.need("image", "which one?").map(drop)),
            "ports[0].image: is missing: which one?"
        );
        assert_eq!(
            error(text, |fields| fields.get("ports").unwrap().fields().map(drop)),
            "ports: must be a map (line 2)"
        );
    }

    #[test]
    fn a_field_that_is_not_known_is_refused_with_the_one_that_may_be_meant() {
        let told = error("imagee: x\n", |fields| fields.text("image").map(drop));
        assert_eq!(told, "imagee: is no field of a Pod: is \"image\" meant? (line 1)");
        let told = error("hostnetwork: true\n", |fields| {
            fields.bool("hostNetwork").map(drop)
        });
        assert!(told.contains("is \"hostNetwork\" meant?"), "{told}");
        let told = error("frobnicate: true\n", |fields| {
            fields.bool("hostNetwork").map(drop)
        });
        assert_eq!(told, "frobnicate: is no field of a Pod (line 1)");
        let told = error("tty: 1\n", |fields| fields.refuse(&["tty"], "not here"));
        assert_eq!(told, "tty: not here (line 1)");
    }
}
