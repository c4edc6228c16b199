//! Arguments of the client's verbs: options before and behind the names, `-it` as `-i -t`, `--option=value`, `--`.

use std::path::PathBuf;

use anyhow::Result;

/// An option of a verb.
#[derive(Debug, Clone, Copy)]
pub(super) struct Flag {
    /// Without dashes.
    pub(super) name: &'static str,
    pub(super) short: Option<char>,
    /// What its value is, as `NAME`; `None`: it has none.
    pub(super) value: Option<&'static str>,
    pub(super) help: &'static str,
}

impl Flag {
    pub(super) const fn switch(name: &'static str, short: Option<char>, help: &'static str) -> Self {
        Self {
            name,
            short,
            value: None,
            help,
        }
    }

    pub(super) const fn value(
        name: &'static str,
        short: Option<char>,
        value: &'static str,
        help: &'static str,
    ) -> Self {
        Self {
            name,
            short,
            value: Some(value),
            help,
        }
    }

    /// As the help shows it: `-c, --container NAME`.
    pub(super) fn shown(&self) -> String {
        let short = self.short.map_or(String::new(), |short| format!("-{short}, "));
        let value = self.value.map_or(String::new(), |value| format!(" {value}"));
        format!("{short}--{}{value}", self.name)
    }
}

/// What every verb takes.
pub(super) const COMMON: [Flag; 3] = [
    Flag::value(
        "socket",
        None,
        "PATH",
        "the server's socket; default: config.toml's",
    ),
    Flag::value(
        "config",
        None,
        "FILE",
        "default /etc/rtc-cri/config.toml, which need not exist",
    ),
    Flag::switch("help", Some('h'), "this text"),
];

/// The command line is wrong.
#[derive(Debug)]
pub(super) struct Usage(pub(super) String);

impl std::fmt::Display for Usage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Usage {}

/// A command line, split up.
#[derive(Debug, Default)]
pub(super) struct Arguments {
    given: Vec<(&'static str, String)>,
    /// What is no option.
    pub(super) names: Vec<String>,
    /// What is behind `--`; `None`: there is none.
    pub(super) command: Option<Vec<String>>,
}

impl Arguments {
    /// Splits the words by a verb's options.
    ///
    /// # Errors
    ///
    /// [`Usage`]: an option that the verb does not have, or one without its value.
    pub(super) fn parse(words: impl IntoIterator<Item = String>, flags: &[Flag]) -> Result<Self> {
        let mut parsed = Self::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            if word == "--" {
                parsed.command = Some(words.collect());
                break;
            }
            if let Some(long) = word.strip_prefix("--") {
                let (name, value) = match long.split_once('=') {
                    Some((name, value)) => (name, Some(value.to_owned())),
                    None => (long, None),
                };
                let flag = find(flags, |flag| flag.name == name, &word)?;
                let value = match (flag.value, value) {
                    (None, None) => String::new(),
                    (None, Some(_)) => return Err(Usage(format!("--{name} takes no value")).into()),
                    (Some(_), Some(value)) => value,
                    (Some(what), None) => words.next().ok_or_else(|| missing(flag, what))?,
                };
                parsed.given.push((flag.name, value));
            } else if word.len() > 1 && word.starts_with('-') {
                parsed.short(&word, flags, &mut words)?;
            } else {
                parsed.names.push(word);
            }
        }
        Ok(parsed)
    }

    /// `-it`, `-c name`, `-cname`.
    fn short(&mut self, word: &str, flags: &[Flag], words: &mut impl Iterator<Item = String>) -> Result<()> {
        let mut letters = word.chars().skip(1);
        while let Some(letter) = letters.next() {
            let flag = find(flags, |flag| flag.short == Some(letter), word)?;
            let value = match flag.value {
                None => String::new(),
                Some(what) => match letters.by_ref().collect::<String>() {
                    rest if rest.is_empty() => words.next().ok_or_else(|| missing(flag, what))?,
                    rest => rest,
                },
            };
            self.given.push((flag.name, value));
        }
        Ok(())
    }

    /// Whether a switch was given.
    pub(super) fn has(&self, name: &str) -> bool {
        self.given.iter().any(|(given, _)| *given == name)
    }

    /// The last value given for an option.
    pub(super) fn value(&self, name: &str) -> Option<&str> {
        let mut given = self.given.iter().rev();
        given
            .find(|(given, _)| *given == name)
            .map(|(_, value)| value.as_str())
    }

    /// As [`Self::value`], a path.
    pub(super) fn path(&self, name: &str) -> Option<PathBuf> {
        self.value(name).map(PathBuf::from)
    }

    /// As [`Self::value`], a whole number that is not negative.
    ///
    /// # Errors
    ///
    /// [`Usage`]: it is none.
    pub(super) fn number(&self, name: &str) -> Result<Option<u32>> {
        let parse = |value: &str| {
            value.parse().map_err(|_| {
                Usage(format!(
                    "--{name}: {value:?}: must be a whole number that is not negative"
                ))
                .into()
            })
        };
        self.value(name).map(parse).transpose()
    }

    /// The one name that is wanted.
    ///
    /// # Errors
    ///
    /// [`Usage`]: there is none, or there are several.
    pub(super) fn one(&self, what: &str) -> Result<&str> {
        match &self.names[..] {
            [name] => Ok(name),
            [] => Err(Usage(format!("{what} must be given")).into()),
            [_, other, ..] => Err(Usage(format!(
                "{other:?}: only one {what} can be given (a command goes behind --)"
            ))
            .into()),
        }
    }

    /// The names, of which there must be at least one.
    ///
    /// # Errors
    ///
    /// [`Usage`]: there is none.
    pub(super) fn some(&self, what: &str) -> Result<&[String]> {
        if self.names.is_empty() {
            return Err(Usage(format!("{what} must be given")).into());
        }
        Ok(&self.names)
    }
}

fn find<'a>(flags: &'a [Flag], is: impl Fn(&Flag) -> bool, word: &str) -> Result<&'a Flag> {
    flags.iter().chain(&COMMON).find(|flag| is(flag)).ok_or_else(|| {
        Usage(format!(
            "unknown option {word:?} (a container's command goes behind --)"
        ))
        .into()
    })
}

fn missing(flag: &Flag, what: &str) -> anyhow::Error {
    Usage(format!("--{} needs a value: {what}", flag.name)).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: [Flag; 3] = [
        Flag::switch("stdin", Some('i'), ""),
        Flag::switch("tty", Some('t'), ""),
        Flag::value("container", Some('c'), "NAME", ""),
    ];

    fn parse(words: &[&str]) -> Result<Arguments> {
        Arguments::parse(words.iter().map(|word| (*word).to_owned()), &FLAGS)
    }

    #[test]
    fn options_stand_anywhere_before_the_command() {
        let parsed = parse(&[
            "-it",
            "web",
            "--container=a",
            "--socket",
            "/s",
            "--",
            "ls",
            "-l",
            "--",
        ])
        .unwrap();
        assert!(parsed.has("stdin") && parsed.has("tty") && !parsed.has("help"));
        assert_eq!(parsed.value("container"), Some("a"));
        assert_eq!(parsed.path("socket"), Some("/s".into()));
        assert_eq!(parsed.one("POD").unwrap(), "web");
        assert_eq!(parsed.command.unwrap(), ["ls", "-l", "--"]);
        let parsed = parse(&["-itc", "a", "-", "-cb"]).unwrap();
        assert_eq!(parsed.value("container"), Some("b"));
        assert_eq!(parsed.names, ["-"]);
    }

    #[test]
    fn a_wrong_command_line_is_told_what_is_wrong() {
        for (words, told) in [
            (&["--no-such"][..], "unknown option \"--no-such\""),
            (&["-ix"], "unknown option \"-ix\""),
            (&["--container"], "--container needs a value: NAME"),
            (&["-ic"], "--container needs a value: NAME"),
            (&["--tty=1"], "--tty takes no value"),
        ] {
            let error = parse(words).unwrap_err();
            assert!(
                error.is::<Usage>() && error.to_string().starts_with(told),
                "{error}"
            );
        }
        let error = parse(&[]).unwrap().one("POD").unwrap_err();
        assert_eq!(error.to_string(), "POD must be given");
        let error = parse(&["a", "b"]).unwrap().one("POD").unwrap_err();
        assert!(error.to_string().starts_with("\"b\": only one POD"), "{error}");
        let error = parse(&["--container", "-1"])
            .unwrap()
            .number("container")
            .unwrap_err();
        assert!(error.to_string().contains("\"-1\""), "{error}");
    }
}
