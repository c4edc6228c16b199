//! A small client of rtc-cri, for people without crictl: `rtc-cri pod ...`, `rtc-cri image ...`.
//!
//! ```text
//! arguments.rs                    the command line
//! manifest/  a Pod of Kubernetes, read strictly     -> manifest::Pod
//! request/   what the kubelet would ask for (pure)  -> CRI's messages
//! run.rs logs.rs exec.rs list.rs remove.rs image.rs a file for each verb
//! connection.rs                   the server's socket: the client knows no more of the server than crictl does
//! ```
//!
//! There is no kubelet: containers are not restarted, and not probed. What a manifest asks of a cluster is refused, or
//! warned of where a pod can do without it.

mod arguments;
mod connection;
mod exec;
mod explain;
mod find;
mod image;
mod interrupt;
mod list;
mod logs;
mod manifest;
mod remove;
mod request;
mod run;
mod terminal;
mod volumes;
mod websocket;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;

use self::arguments::{Arguments, COMMON, Flag, Usage};
use self::connection::Server;
use crate::config::{self, Config};

/// The words that begin a command line of the client.
pub(crate) const OBJECTS: [&str; 2] = ["pod", "image"];

/// What `rtc-cri --help` says of the client.
pub(crate) const USAGE: &str = "\
  rtc-cri pod run FILE              a Pod of Kubernetes (YAML or JSON; - for standard input) and its images
  rtc-cri pod ls                    pods, their addresses and containers
  rtc-cri pod logs [-f] POD         what a container wrote
  rtc-cri pod exec [-it] POD -- CMD a command in a container
  rtc-cri pod rm POD...             stops and removes pods
  rtc-cri image pull IMAGE          also: image ls, image rm IMAGE...
  rtc-cri image explain IMAGE       which hosts a pull would ask, and how
";

/// A verb: its words, options and help.
#[derive(Debug)]
struct Verb {
    object: &'static str,
    name: &'static str,
    /// Behind the options.
    operands: &'static str,
    about: &'static str,
    flags: &'static [Flag],
}

/// All of them, in the order of the help.
const VERBS: &[Verb] = &[
    run::RUN,
    list::LS,
    logs::LOGS,
    exec::EXEC,
    remove::RM,
    image::PULL,
    image::LS,
    image::RM,
    explain::EXPLAIN,
];

/// Options that stand before the object: `rtc-cri --socket PATH pod ls`.
#[derive(Debug, Default)]
pub(crate) struct Before {
    pub(crate) socket: Option<PathBuf>,
    pub(crate) config: Option<PathBuf>,
}

/// Runs a command line: `words` begin with one of [`OBJECTS`].
pub(crate) fn main(before: Before, words: Vec<String>) -> ExitCode {
    match dispatch(before, words) {
        Ok(code) => code,
        Err(error) => {
            let text = terminal::harmless(&format!("{error:#}"));
            eprintln!("rtc-cri: {text}");
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}

fn dispatch(before: Before, words: Vec<String>) -> Result<ExitCode> {
    let mut words = words.into_iter();
    let object = words.next().unwrap_or_default();
    let name = words.next().unwrap_or_default();
    let verbs = || VERBS.iter().filter(|verb| verb.object == object);
    if matches!(name.as_str(), "--help" | "-h" | "help") {
        print!("{}", overview(&object));
        return Ok(ExitCode::SUCCESS);
    }
    let Some(verb) = verbs().find(|verb| verb.name == name) else {
        let known: Vec<&str> = verbs().map(|verb| verb.name).collect();
        let wrong = match name.as_str() {
            "" => format!("{object}: what to do is missing"),
            _ => format!("{object} {name:?}: there is no such verb"),
        };
        return Err(Usage(format!("{wrong}: {} (rtc-cri {object} --help)", known.join(", "))).into());
    };
    let arguments = Arguments::parse(words, verb.flags).map_err(|error| usage_of(verb, error))?;
    if arguments.has("help") {
        print!("{}", verb.help());
        return Ok(ExitCode::SUCCESS);
    }
    if verb.name == explain::EXPLAIN.name {
        return explain::run(&before, &arguments).map_err(|error| usage_of(verb, error));
    }
    let socket = socket(&before, &arguments)?;
    let tokio = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let code = tokio.block_on(run(verb, &arguments, socket));
    // What reads standard input is not waited for.
    tokio.shutdown_background();
    code.map_err(|error| usage_of(verb, error))
}

async fn run(verb: &Verb, arguments: &Arguments, socket: PathBuf) -> Result<ExitCode> {
    let connect = Server::connect(&socket);
    match (verb.object, verb.name) {
        ("pod", "run") => run::run(&socket, arguments).await,
        ("pod", "ls") => list::ls(connect.await?, arguments).await,
        ("pod", "logs") => logs::logs(connect.await?, arguments).await,
        ("pod", "exec") => exec::exec(connect.await?, arguments).await,
        ("pod", "rm") => remove::rm(connect.await?, arguments).await,
        ("image", "pull") => image::pull(connect.await?, arguments).await,
        ("image", "ls") => image::ls(connect.await?, arguments).await,
        _ => image::rm(connect.await?, arguments).await,
    }
}

/// By the command line, else by config.toml.
fn socket(before: &Before, arguments: &Arguments) -> Result<PathBuf> {
    if let Some(given) = arguments.path("socket").or_else(|| before.socket.clone()) {
        return Ok(
            match given.to_str().and_then(|text| text.strip_prefix("unix://")) {
                Some(path) => path.into(),
                None => given,
            },
        );
    }
    Ok(configuration(before, arguments)?.socket)
}

fn configuration(before: &Before, arguments: &Arguments) -> Result<Config> {
    let given = arguments.path("config").or_else(|| before.config.clone());
    let required = given.is_some();
    let config = Config::read(&given.unwrap_or_else(|| config::PATH.into()), required);
    config.map_err(|error| anyhow::anyhow!("{error}"))
}

/// A wrong command line is told where help is.
fn usage_of(verb: &Verb, error: anyhow::Error) -> anyhow::Error {
    match error.downcast::<Usage>() {
        Ok(Usage(text)) => Usage(format!(
            "{} {}: {text} (rtc-cri {0} {1} --help)",
            verb.object, verb.name
        ))
        .into(),
        Err(error) => error,
    }
}

fn overview(object: &str) -> String {
    let mut text = String::new();
    for verb in VERBS.iter().filter(|verb| verb.object == object) {
        text.push_str(&format!(
            "  rtc-cri {object} {} {}\n      {}\n",
            verb.name, verb.operands, verb.about
        ));
    }
    text.push_str("\nEach has --help.\n");
    text
}

impl Verb {
    fn help(&self) -> String {
        let mut text = format!(
            "rtc-cri {} {} [OPTION...] {}\n\n{}\n\n",
            self.object, self.name, self.operands, self.about
        );
        for flag in self.flags.iter().chain(&COMMON) {
            text.push_str(&format!("  {:<26} {}\n", flag.shown(), flag.help));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verb_that_is_not_known_is_told_which_there_are() {
        let error = dispatch(Before::default(), vec!["image".into(), "pul".into()]).unwrap_err();
        let text = error.to_string();
        assert!(
            error.is::<Usage>() && text.contains("\"pul\"") && text.contains("pull, ls"),
            "{text}"
        );
    }

    #[test]
    fn an_option_that_is_not_known_is_told_where_help_is() {
        let words = ["image", "ls", "--frobnicate"].map(str::to_owned).to_vec();
        let error = dispatch(Before::default(), words).unwrap_err();
        assert!(
            error.is::<Usage>() && error.to_string().contains("rtc-cri image ls --help"),
            "{error}"
        );
    }
}
