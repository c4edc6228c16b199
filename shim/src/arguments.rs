//! The command line that containerd gives a shim, in the form of Go's `flag`: `-x v`, `-x=v`, `--x`, then one action.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use anyhow::{Context, Result, bail};

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start a shim for the bundle in the working directory, or find the one of its group.
    Start,
    /// Remove what a dead shim left.
    Delete,
    /// `-v`.
    Version,
    /// `-info`.
    Info,
    /// `-help`.
    Help,
}

/// The flags.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Flags {
    /// The namespace of containerd.
    pub(crate) namespace: Option<String>,
    /// The container, or the sandbox.
    pub(crate) id: Option<String>,
    /// containerd's gRPC address.
    pub(crate) address: Option<String>,
    /// containerd's own binary, which can publish events.
    pub(crate) publish_binary: Option<PathBuf>,
    /// Where to listen, instead of the address made of namespace and group.
    pub(crate) socket: Option<PathBuf>,
    /// The bundle, where that is not the working directory.
    pub(crate) bundle: Option<PathBuf>,
    /// More messages.
    pub(crate) debug: bool,
}

/// What `-help` prints.
pub(crate) const USAGE: &str = "\
containerd-shim-rtc-v2: the shim of rtc, called by containerd

usage: containerd-shim-rtc-v2 -namespace NAME -id ID [-address SOCKET] [FLAG...] start | delete
       containerd-shim-rtc-v2 -v | -info | -help

  -namespace NAME       containerd's namespace
  -id ID                the container or the sandbox
  -address SOCKET       containerd's gRPC address
  -publish-binary PATH  containerd, for events where the environment has no TTRPC_ADDRESS
  -socket PATH          listen there, instead of in /run/containerd/s
  -bundle DIRECTORY     the bundle, where that is not the working directory
  -debug                more messages
  -v, -version          print the version
  -info                 read options from standard input (protobuf), print what this runtime can do (protobuf)
";

/// Reads the arguments behind the program's name.
///
/// # Errors
///
/// What is unknown, by its name; a flag without its value; no action, or more than one.
pub(crate) fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<(Action, Flags)> {
    let mut arguments = arguments.into_iter();
    let mut flags = Flags::default();
    let mut single = None;
    let action = loop {
        let Some(argument) = arguments.next() else {
            break None;
        };
        let Some(flag) = Flag::of(&argument)? else {
            break match argument.as_bytes() {
                b"--" => arguments.next(),
                _ => Some(argument),
            };
        };
        if let Some(action) = flag.single()? {
            single = single.or(Some(action));
        } else {
            flags.set(flag, &mut arguments)?;
        }
    };
    if let Some(single) = single {
        return Ok((single, flags));
    }
    let action = match action.as_ref().map(|action| action.as_bytes()) {
        Some(b"start") => Action::Start,
        Some(b"delete") => Action::Delete,
        Some(other) => bail!("{:?}: must be start or delete", OsStr::from_bytes(other)),
        None => bail!("no action: must be start or delete; a shim that serves is made by start"),
    };
    if let Some(more) = arguments.next() {
        bail!("{more:?}: nothing may follow the action");
    }
    Ok((action, flags))
}

/// A flag as it was written.
struct Flag<'a> {
    name: &'a str,
    value: Option<&'a OsStr>,
}

impl<'a> Flag<'a> {
    /// `None`: no flag.
    fn of(argument: &'a OsStr) -> Result<Option<Self>> {
        let bytes = argument.as_bytes();
        let Some(rest) = bytes.strip_prefix(b"-") else {
            return Ok(None);
        };
        let rest = rest.strip_prefix(b"-").unwrap_or(rest);
        if rest.is_empty() {
            return Ok(None);
        }
        let (name, value) = match rest.iter().position(|byte| *byte == b'=') {
            Some(at) => (&rest[..at], Some(OsStr::from_bytes(&rest[at + 1..]))),
            None => (rest, None),
        };
        match std::str::from_utf8(name) {
            Ok(name) if !name.is_empty() && !name.starts_with('-') => Ok(Some(Self { name, value })),
            _ => bail!("{argument:?}: not a flag"),
        }
    }

    /// What stands for an action.
    fn single(&self) -> Result<Option<Action>> {
        let action = match self.name {
            "v" | "version" => Action::Version,
            "info" => Action::Info,
            "h" | "help" => Action::Help,
            _ => return Ok(None),
        };
        Ok(self.boolean()?.then_some(action))
    }

    fn boolean(&self) -> Result<bool> {
        match self.value.map(OsStr::as_bytes) {
            None | Some(b"1" | b"t" | b"T" | b"true" | b"TRUE" | b"True") => Ok(true),
            Some(b"0" | b"f" | b"F" | b"false" | b"FALSE" | b"False") => Ok(false),
            Some(other) => bail!(
                "-{}={:?}: must be true or false",
                self.name,
                OsStr::from_bytes(other)
            ),
        }
    }
}

impl Flags {
    fn set(&mut self, flag: Flag<'_>, rest: &mut impl Iterator<Item = OsString>) -> Result<()> {
        let name = flag.name;
        let mut value = || {
            let value = flag.value.map(OsStr::to_owned).or_else(|| rest.next());
            value.with_context(|| format!("-{name}: a value must follow"))
        };
        let text = |value: OsString| {
            String::from_utf8(value.into_vec()).with_context(|| format!("-{name}: must be UTF-8"))
        };
        match name {
            "debug" => self.debug = flag.boolean()?,
            "namespace" => self.namespace = Some(text(value()?)?),
            "id" => self.id = Some(text(value()?)?),
            "address" => self.address = Some(text(value()?)?),
            "publish-binary" => self.publish_binary = Some(value()?.into()),
            "socket" => self.socket = Some(value()?.into()),
            "bundle" => self.bundle = Some(value()?.into()),
            _ => bail!("-{name}: no such flag (-help lists them)"),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<(Action, Flags)> {
        parse(line.split_whitespace().map(OsString::from))
    }

    #[test]
    fn what_containerd_calls_is_understood() {
        let (action, flags) =
            parsed("-namespace k8s.io -address /a.sock -publish-binary /c -id x -debug start").unwrap();
        assert_eq!(action, Action::Start);
        let expected = Flags {
            namespace: Some("k8s.io".into()),
            id: Some("x".into()),
            address: Some("/a.sock".into()),
            publish_binary: Some("/c".into()),
            debug: true,
            ..Flags::default()
        };
        assert_eq!(flags, expected);
    }

    #[test]
    fn flags_have_the_forms_of_go() {
        let (action, flags) = parsed("--namespace=n -id=a=b -debug=false --bundle /b -- delete").unwrap();
        assert_eq!(action, Action::Delete);
        assert_eq!(flags.id.as_deref(), Some("a=b"));
        assert!(!flags.debug);
        assert_eq!(flags.bundle, Some("/b".into()));
        assert_eq!(parsed("-info").unwrap().0, Action::Info);
        assert_eq!(parsed("-v").unwrap().0, Action::Version);
    }

    #[test]
    fn what_is_unknown_is_refused_by_name() {
        for (line, text) in [
            ("-nope start", "-nope: no such flag (-help lists them)"),
            ("-id", "-id: a value must follow"),
            ("-debug=2 start", "-debug=\"2\": must be true or false"),
            ("restart", "\"restart\": must be start or delete"),
            ("start now", "\"now\": nothing may follow the action"),
            ("---id start", "\"---id\": not a flag"),
            (
                "-id x",
                "no action: must be start or delete; a shim that serves is made by start",
            ),
        ] {
            assert_eq!(parsed(line).unwrap_err().to_string(), text);
        }
    }
}
