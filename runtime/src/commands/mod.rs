//! The command line: one table of verbs, one file per verb.
//!
//! ```text
//! rtc [global flags] verb [flags] arguments
//!      \__ Global       \__ Parsed   -> verb's run() -> exit code, or an error for main to report
//! ```
//!
//! Verbs translate arguments into calls of the library and print what it returns; they decide nothing about containers.

mod arguments;
mod checkpoint;
mod create;
mod delete;
mod events;
mod exec;
mod features;
mod help;
mod kill;
mod list;
mod mounts;
mod pause;
mod ps;
mod run;
mod spec;
mod start;
mod state;
mod update;

use std::ffi::{OsStr, OsString};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use rtc_runtime::container::{ContainerId, StateRoot};
use rtc_runtime::rootless::{self, Rootless};
use rtc_runtime::{log, sealed_exe, sys};

use arguments::{Flag, Order, Parsed};

/// What `rtc --version` says after the name.
const VERSION_TEXT: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    "\ncommit: ",
    env!("RTC_COMMIT"),
    "\nspec: 1.3.0"
);

/// Flags before the verb.
static GLOBAL_FLAGS: &[Flag] = &[
    Flag::switch("debug", "enable debug logging"),
    Flag::value("log", "file to append log messages to (default: standard error)"),
    Flag::value(
        "log-format",
        "format of log messages: text or json (default: text)",
    ),
    Flag::value(
        "root",
        "directory for the state of containers, in memory (default: /run/rtc; of a user that is not root $XDG_RUNTIME_DIR/rtc)",
    ),
    Flag::switch(
        "systemd-cgroup",
        "let systemd manage cgroups; cgroupsPath has the form slice:prefix:name",
    ),
    Flag::value(
        "cgroup-manager",
        "as crun has it: systemd stands for --systemd-cgroup, cgroupfs for the default",
    ),
    Flag::value(
        "rootless",
        "do without a cgroup that may not be made, where none is asked for: true, false or auto (default: auto, where the caller is not root)",
    ),
];

/// A verb.
#[derive(Debug)]
struct Command {
    name: &'static str,
    /// One line, for the list of verbs.
    summary: &'static str,
    /// The arguments as the help shows them.
    arguments: &'static str,
    /// More lines for the help.
    description: &'static str,
    flags: &'static [Flag],
    order: Order,
    /// How many arguments that are no flags: at least, at most.
    count: (usize, usize),
    /// Exit code where the verb fails.
    failure: u8,
    /// Whether a process of ours becomes one of a container.
    meets_container: bool,
    run: fn(&Global, &Parsed) -> Result<i32>,
}

/// What most verbs are like: one container id, no flag.
const ON_ONE_CONTAINER: Command = Command {
    name: "",
    summary: "",
    arguments: "<container-id>",
    description: "",
    flags: &[],
    order: Order::Any,
    count: (1, 1),
    failure: 1,
    meets_container: false,
    run: |_, _| Ok(0),
};

/// All verbs, in the order of the help.
static COMMANDS: &[&Command] = &[
    &checkpoint::CHECKPOINT,
    &create::COMMAND,
    &delete::COMMAND,
    &events::COMMAND,
    &exec::COMMAND,
    &features::COMMAND,
    &kill::COMMAND,
    &list::COMMAND,
    &mounts::COMMAND,
    &pause::PAUSE,
    &ps::COMMAND,
    &checkpoint::RESTORE,
    &pause::RESUME,
    &run::COMMAND,
    &spec::COMMAND,
    &start::COMMAND,
    &state::COMMAND,
    &update::COMMAND,
];

/// What the flags before the verb say.
#[derive(Debug)]
struct Global {
    /// Absolute.
    root: PathBuf,
    /// `--root` was given: it must exist where nothing is created.
    root_is_given: bool,
    systemd_cgroup: bool,
    rootless: Rootless,
}

impl Global {
    fn new(parsed: &Parsed) -> Result<Global> {
        let rootless = match parsed.text("rootless")? {
            None | Some("auto") => Rootless::Auto,
            Some("true") => Rootless::Always,
            Some("false") => Rootless::Never,
            Some(value) => bail!("--rootless: {value:?}: must be true, false or auto"),
        };
        let managed = match parsed.text("cgroup-manager")? {
            None | Some("" | "cgroupfs") => false,
            Some("systemd") => true,
            Some(other) => bail!("--cgroup-manager: {other:?}: must be cgroupfs or systemd"),
        };
        let given = parsed.path("root");
        let root_is_given = given.is_some();
        let root = given.unwrap_or_else(default_root);
        let root = std::path::absolute(&root).with_context(|| format!("--root {root:?}"))?;
        Ok(Global {
            root,
            root_is_given,
            systemd_cgroup: parsed.is_on("systemd-cgroup") || managed,
            rootless,
        })
    }

    fn state_root(&self) -> StateRoot {
        StateRoot::new(self.root.clone())
    }
}

/// `/run/rtc`, or for other users a directory of theirs that ends with their session, as runc does.
fn default_root() -> PathBuf {
    match std::env::var_os("XDG_RUNTIME_DIR") {
        Some(dir) if Path::new(&dir).is_absolute() && honours_runtime_directory() => {
            Path::new(&dir).join("rtc")
        }
        _ => PathBuf::from("/run/rtc"),
    }
}

/// Whether `$XDG_RUNTIME_DIR` is the caller's. Root's is not used, nor that of who has become root of a user namespace and
/// calls itself so.
fn honours_runtime_directory() -> bool {
    rootless::ordinary_user().is_some()
        || (std::env::var_os("USER").is_none_or(|user| user != "root") && rootless::in_user_namespace())
}

/// A command that failed: what to report, and the exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: anyhow::Error,
    pub(crate) code: u8,
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Failure {
        Failure { error, code: 1 }
    }
}

/// Runs the command line (with the program's name first); returns the exit code.
pub(crate) fn dispatch(arguments: &[OsString]) -> Result<i32, Failure> {
    let program = program_name(arguments.first());
    let rest = arguments.get(1..).unwrap_or_default();
    // `-v` stands for the version, but has no meaning to a verb.
    let globals = arguments::parse(&[GLOBAL_FLAGS, VERSION_FLAG], rest, Order::FlagsFirst)
        .map_err(|error| anyhow!("{error:#}; see rtc --help"))?;
    init_log(&globals)?;
    if globals.is_on("version") {
        print(&format!("{program} version {VERSION_TEXT}\n"))?;
        return Ok(0);
    }
    let Some((verb, rest)) = globals.rest.split_first() else {
        print(&help::program(&program))?;
        return Ok(0);
    };
    if verb == "help" || verb == "h" {
        return Ok(show_help(&program, rest.first())?);
    }
    let Some(command) = find(verb) else {
        return Err(unknown(
            verb,
            globals.help || rest.iter().any(|a| a == "-h" || a == "--help"),
        )
        .into());
    };
    if globals.help {
        print(&help::command(&program, command))?;
        return Ok(0);
    }
    run(&program, command, &globals, rest)
}

static VERSION_FLAG: &[Flag] = &[Flag::switch("version", "print the version").or('v')];

fn run(program: &str, command: &Command, globals: &Parsed, arguments: &[OsString]) -> Result<i32, Failure> {
    let usage =
        |error: anyhow::Error| anyhow!("{}: {error:#}; see rtc {} --help", command.name, command.name);
    let parsed = arguments::parse(&[command.flags], arguments, command.order).map_err(usage)?;
    if parsed.help {
        print(&help::command(program, command))?;
        return Ok(0);
    }
    check_count(command, parsed.rest.len()).map_err(usage)?;
    let global = Global::new(globals)?;
    if command.meets_container {
        protect_ourselves()?;
    }
    (command.run)(&global, &parsed).map_err(|error| Failure {
        error: in_context(error, command, &parsed),
        code: command.failure,
    })
}

/// Says what was done to which container.
fn in_context(error: anyhow::Error, command: &Command, parsed: &Parsed) -> anyhow::Error {
    match id(parsed) {
        Ok(id) if command.count.0 == 1 => {
            error.context(format!("{} container {:?}", command.name, id.as_str()))
        }
        _ => error,
    }
}

/// What a container could otherwise read or write of us, while a process of ours becomes its own: our program, memory,
/// descriptors. What is in the way of that is in the way of the verb.
fn protect_ourselves() -> Result<()> {
    let seal = sealed_exe::ensure()?;
    log::debug(|| seal);
    Ok(sys::process::set_non_dumpable()?)
}

fn init_log(globals: &Parsed) -> Result<()> {
    let format = match globals.text("log-format")? {
        None | Some("text" | "") => log::Format::Text,
        Some("json") => log::Format::Json,
        Some(other) => bail!("--log-format: {other:?}: must be text or json"),
    };
    log::init(&log::Options {
        file: globals.path("log"),
        format,
        debug: globals.is_on("debug"),
    })
}

fn find(verb: &OsStr) -> Option<&'static Command> {
    COMMANDS.iter().copied().find(|command| verb == command.name)
}

fn unknown(verb: &OsStr, help: bool) -> anyhow::Error {
    let verb = verb.to_string_lossy();
    if help {
        anyhow!("No help topic for '{verb}'")
    } else {
        anyhow!("unknown command {verb:?}; see rtc --help")
    }
}

fn show_help(program: &str, topic: Option<&OsString>) -> Result<i32> {
    let text = match topic {
        None => help::program(program),
        Some(topic) => help::command(program, find(topic).ok_or_else(|| unknown(topic, true))?),
    };
    print(&text)?;
    Ok(0)
}

fn check_count(command: &Command, count: usize) -> Result<()> {
    let (least, most) = command.count;
    if (least..=most).contains(&count) {
        return Ok(());
    }
    if least == most {
        bail!("requires exactly {least} argument(s), not {count}");
    }
    if count < least {
        bail!("requires a minimum of {least} argument(s), not {count}");
    }
    bail!("requires a maximum of {most} argument(s), not {count}")
}

fn program_name(argument: Option<&OsString>) -> String {
    let name = argument.and_then(|a| Path::new(a).file_name());
    name.map_or_else(|| "rtc".into(), |name| name.to_string_lossy().into_owned())
}

/// The container id, the first argument.
fn id(parsed: &Parsed) -> Result<ContainerId> {
    let first = parsed
        .rest
        .first()
        .ok_or_else(|| anyhow!("container id: missing"))?;
    arguments::utf8(first).context("container id")?.parse()
}

/// Of crun's: the container id is an expression.
const REGEX: Flag = Flag::switch(
    "regex",
    "the container id is a regular expression: for all whose id matches",
);

/// Does something to the container that is named, or with `--regex` to all whose id matches, also after a failure.
///
/// # Errors
///
/// The first failure; an expression that is none.
fn on_each(
    global: &Global,
    parsed: &Parsed,
    verb: impl Fn(&StateRoot, &ContainerId) -> Result<()>,
) -> Result<i32> {
    let root = global.state_root();
    if !parsed.is_on("regex") {
        verb(&root, &id(parsed)?)?;
        return Ok(0);
    }
    let text = arguments::utf8(&parsed.rest[0]).context("--regex")?;
    let expression = regex::Regex::new(text).map_err(|error| anyhow!("--regex: {text:?}: {error}"))?;
    let mut failed = None;
    for id in root.ids()?.iter().filter(|id| expression.is_match(id.as_str())) {
        if let Err(error) = verb(&root, id) {
            let error = error.context(format!("container {:?}", id.as_str()));
            if let Some(first) = failed.replace(error) {
                log::warn(format_args!("{first:#}"));
            }
        }
    }
    match failed {
        Some(error) => Err(error),
        None => Ok(0),
    }
}

/// Writes to standard output; a reader that went away is no error.
fn print(text: &str) -> Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("write to standard output")
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
