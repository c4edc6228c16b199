//! Arguments: tables of flags, one small parser for all of them.
//!
//! runc's command line has ways of its own, which its callers use: every long flag with one dash or two (`-bundle`),
//! `--flag value` and `--flag=value`, flags before and after the container id, no grouping of short flags, help that begins
//! with `NAME:`. clap knows half of that, and costs more: a static program that parses these verbs with it (derive, no
//! default features) is 1,327 KB where an empty one is 1,077 KB and takes 0.03 to 0.06 ms more CPU at each start of
//! about 0.5 ms; this parser is 6 KB and not measurable beside the noise.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::str::FromStr;

use anyhow::{Context, Result, anyhow, bail};

/// One flag of a table.
#[derive(Debug)]
pub(crate) struct Flag {
    /// Long name, without dashes.
    pub(crate) name: &'static str,
    /// One-letter name.
    pub(crate) short: Option<char>,
    /// Whether a value follows; else it is a switch.
    pub(crate) takes_value: bool,
    /// Shown in the help; nothing hides the flag there.
    pub(crate) help: &'static str,
}

impl Flag {
    /// A switch: `--name`.
    pub(crate) const fn switch(name: &'static str, help: &'static str) -> Flag {
        Flag {
            name,
            short: None,
            takes_value: false,
            help,
        }
    }

    /// A flag with a value: `--name value`.
    pub(crate) const fn value(name: &'static str, help: &'static str) -> Flag {
        Flag {
            name,
            short: None,
            takes_value: true,
            help,
        }
    }

    /// Adds a one-letter name.
    pub(crate) const fn or(self, short: char) -> Flag {
        Flag {
            short: Some(short),
            ..self
        }
    }

    fn is_named(&self, name: &str) -> bool {
        self.name == name || self.short.is_some_and(|short| name.chars().eq([short]))
    }
}

/// Where flags may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// Before and after the other arguments.
    Any,
    /// Before them only: what follows belongs to another program (`exec`, `ps`) or to a verb.
    FlagsFirst,
    /// Anywhere, and which ones does not matter: only help is looked for.
    Unparsed,
}

/// What an argument list says.
#[derive(Debug, Default)]
pub(crate) struct Parsed {
    /// Flags in the order given, by long name; switches have the value `true` or `false`.
    values: Vec<(&'static str, OsString)>,
    /// All that is no flag.
    pub(crate) rest: Vec<OsString>,
    /// `-h` or `--help` was there.
    pub(crate) help: bool,
}

/// Parses arguments by a table. `--` ends the flags.
pub(crate) fn parse(tables: &[&'static [Flag]], arguments: &[OsString], order: Order) -> Result<Parsed> {
    let mut parsed = Parsed::default();
    if order == Order::Unparsed {
        parsed.help = arguments.iter().any(|a| a == "-h" || a == "--help");
        return Ok(parsed);
    }
    let mut arguments = arguments.iter();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            parsed.rest.extend(arguments.cloned());
            break;
        }
        let Some((name, attached)) = split(argument) else {
            parsed.rest.push(argument.clone());
            if order == Order::FlagsFirst {
                parsed.rest.extend(arguments.cloned());
                break;
            }
            continue;
        };
        let undefined = || anyhow!("flag provided but not defined: {}", argument.to_string_lossy());
        if matches!(name, "h" | "help") {
            parsed.help = true;
            continue;
        }
        let flag = tables
            .iter()
            .flat_map(|t| t.iter())
            .find(|f| f.is_named(name))
            .ok_or_else(undefined)?;
        let value = match (flag.takes_value, attached) {
            (true, Some(value)) => value,
            (true, None) => arguments
                .next()
                .cloned()
                .ok_or_else(|| anyhow!("--{}: needs a value", flag.name))?,
            (false, None) => "true".into(),
            (false, Some(value)) if value == "true" || value == "false" => value,
            (false, Some(value)) => bail!("--{}: {value:?}: must be true or false", flag.name),
        };
        parsed.values.push((flag.name, value));
    }
    Ok(parsed)
}

/// The name of a flag, without dashes, and the value joined to it; none if the argument is no flag. A name that is not
/// UTF-8 is no flag's either, and comes out as such.
fn split(argument: &OsStr) -> Option<(&str, Option<OsString>)> {
    let bytes = argument
        .as_bytes()
        .strip_prefix(b"-")
        .filter(|rest| !rest.is_empty())?;
    let bytes = bytes.strip_prefix(b"-").unwrap_or(bytes);
    let (name, value) = match bytes.iter().position(|b| *b == b'=') {
        Some(i) => (
            &bytes[..i],
            Some(OsStr::from_bytes(&bytes[i + 1..]).to_os_string()),
        ),
        None => (bytes, None),
    };
    Some((std::str::from_utf8(name).unwrap_or("\u{fffd}"), value))
}

impl Parsed {
    /// Whether a switch is on.
    pub(crate) fn is_on(&self, name: &str) -> bool {
        self.switch(name).unwrap_or(false)
    }

    /// A switch, if it was given; the last one counts.
    pub(crate) fn switch(&self, name: &str) -> Option<bool> {
        self.last(name).map(|value| value == "true")
    }

    fn last(&self, name: &str) -> Option<&OsStr> {
        self.values
            .iter()
            .rev()
            .find(|(n, _)| *n == name)
            .map(|(_, value)| value.as_os_str())
    }

    /// The value of a flag as a path; the last one counts, an empty one is none.
    pub(crate) fn path(&self, name: &str) -> Option<PathBuf> {
        self.last(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    }

    /// The value of a flag as text; the last one counts.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>> {
        self.last(name)
            .map(|value| utf8(value).with_context(|| format!("--{name}")))
            .transpose()
    }

    /// All values of a flag that can be given several times.
    pub(crate) fn texts(&self, name: &str) -> Result<Vec<String>> {
        let all = self.values.iter().filter(|(n, _)| *n == name);
        all.map(|(_, value)| {
            utf8(value)
                .map(str::to_string)
                .with_context(|| format!("--{name}"))
        })
        .collect()
    }

    /// The value of a flag as a number in decimal.
    pub(crate) fn number<T: FromStr>(&self, name: &str) -> Result<Option<T>> {
        let Some(text) = self.text(name)? else {
            return Ok(None);
        };
        let number = text
            .parse()
            .map_err(|_| anyhow!("--{name}: {text:?}: must be a number in range"))?;
        Ok(Some(number))
    }

    /// Which flags were given.
    pub(crate) fn given(&self) -> impl Iterator<Item = &'static str> {
        self.values.iter().map(|(name, _)| *name)
    }
}

/// An argument as text.
pub(crate) fn utf8(argument: &OsStr) -> Result<&str> {
    argument
        .to_str()
        .ok_or_else(|| anyhow!("{argument:?}: must be UTF-8"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt as _;

    use super::*;

    static FLAGS: &[Flag] = &[
        Flag::value("bundle", "").or('b'),
        Flag::value("env", "").or('e'),
        Flag::value("limit", ""),
        Flag::switch("detach", "").or('d'),
    ];

    fn run(arguments: &[&str], order: Order) -> Result<Parsed> {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        parse(&[FLAGS], &arguments, order)
    }

    fn refused(arguments: &[&str]) -> String {
        run(arguments, Order::Any).unwrap_err().to_string()
    }

    #[test]
    fn one_dash_or_two_joined_or_apart_before_or_after_the_id() {
        for arguments in [
            &["--bundle", "/b", "-d", "id"][..],
            &["-bundle", "/b", "--detach", "id"],
            &["id", "-b=/b", "-detach=true"],
            &["-b", "/b", "id", "--d"],
            &["--bundle=/b", "-d", "--", "id"],
        ] {
            let parsed = run(arguments, Order::Any).unwrap();
            assert_eq!(parsed.path("bundle"), Some("/b".into()), "{arguments:?}");
            assert!(parsed.is_on("detach"));
            assert_eq!(parsed.rest, ["id"]);
        }
    }

    #[test]
    fn what_follows_the_first_argument_belongs_to_the_command() {
        let parsed = run(&["-d", "id", "ls", "-l", "--bundle"], Order::FlagsFirst).unwrap();
        assert_eq!(parsed.rest, ["id", "ls", "-l", "--bundle"]);
        let parsed = run(&["id", "--", "-x"], Order::FlagsFirst).unwrap();
        assert_eq!(parsed.rest, ["id", "--", "-x"]);
    }

    #[test]
    fn values_may_look_like_flags_and_hold_anything() {
        let parsed = run(&["--limit", "-1", "-e", "A=b=c", "--env=X=", "-"], Order::Any).unwrap();
        assert_eq!(parsed.number::<i64>("limit").unwrap(), Some(-1));
        assert_eq!(parsed.texts("env").unwrap(), ["A=b=c", "X="]);
        assert_eq!(parsed.rest, ["-"]);
        let bytes = OsString::from_vec(b"--bundle=/\xff".to_vec());
        let parsed = parse(&[FLAGS], &[bytes], Order::Any).unwrap();
        assert_eq!(parsed.path("bundle").unwrap().as_os_str().len(), 2);
        assert!(parsed.text("bundle").is_err());
    }

    #[test]
    fn the_last_of_several_counts_and_a_switch_can_be_off() {
        let parsed = run(&["-b", "1", "-b", "2", "-d", "-d=false"], Order::Any).unwrap();
        assert_eq!(parsed.text("bundle").unwrap(), Some("2"));
        assert_eq!(parsed.switch("detach"), Some(false));
        assert_eq!(parsed.switch("env"), None);
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(refused(&["--nope"]), "flag provided but not defined: --nope");
        assert_eq!(refused(&["-db"]), "flag provided but not defined: -db");
        assert_eq!(refused(&["id", "--bundle"]), "--bundle: needs a value");
        assert_eq!(
            refused(&["--detach=maybe"]),
            "--detach: \"maybe\": must be true or false"
        );
        let parsed = run(&["--limit", "1x"], Order::Any).unwrap();
        assert_eq!(
            parsed.number::<i64>("limit").unwrap_err().to_string(),
            "--limit: \"1x\": must be a number in range"
        );
        let not_text = OsString::from_vec(b"--\xff=1".to_vec());
        assert!(parse(&[FLAGS], &[not_text], Order::Any).is_err());
    }

    #[test]
    fn help_is_found_anywhere_among_the_flags() {
        assert!(run(&["id", "--help"], Order::Any).unwrap().help);
        assert!(!run(&["id", "-h"], Order::FlagsFirst).unwrap().help);
    }
}
