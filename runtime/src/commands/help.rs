//! Help in the form of runc's, which begins with `NAME:`.

use std::fmt::Write as _;

use super::arguments::Flag;
use super::{COMMANDS, Command, GLOBAL_FLAGS, VERSION_FLAG, VERSION_TEXT};

/// `rtc --help`.
pub(super) fn program(name: &str) -> String {
    let mut out = format!(
        "NAME:\n   {name} - Open Container Initiative runtime\n\n\
         rtc runs containers from bundles: directories with a config.json and a root filesystem, as the Open\n\
         Container Initiative's runtime specification describes them. Its command line is runc's.\n\n\
         \x20   # {name} run bundle                 a bundle in the directory ./bundle, as container \"bundle\"\n\
         \x20   # {name} run [ -b bundle ] <container-id>\n\n\
         USAGE:\n   {name} [global options] command [command options] [arguments...]\n\n\
         VERSION:\n   {VERSION_TEXT}\n\nCOMMANDS:\n"
    );
    for command in COMMANDS {
        let _ = writeln!(out, "   {:<12}{}", command.name, command.summary);
    }
    let _ = writeln!(
        out,
        "   {:<12}shows a list of commands or help for one command",
        "help, h"
    );
    out.push_str("\nGLOBAL OPTIONS:\n");
    options(&[GLOBAL_FLAGS, HELP, VERSION_FLAG], &mut out);
    out
}

/// `rtc <command> --help`.
pub(super) fn command(name: &str, command: &Command) -> String {
    let mut out = format!(
        "NAME:\n   {name} {} - {}\n\nUSAGE:\n   {name} {}",
        command.name, command.summary, command.name
    );
    if !command.flags.is_empty() {
        out.push_str(" [command options]");
    }
    if !command.arguments.is_empty() {
        let _ = write!(out, " {}", command.arguments);
    }
    out.push('\n');
    if !command.description.is_empty() {
        let _ = write!(out, "\nDESCRIPTION:\n   {}\n", command.description);
    }
    out.push_str("\nOPTIONS:\n");
    options(&[command.flags, HELP], &mut out);
    out
}

/// Not in the tables: the parser knows it everywhere.
static HELP: &[Flag] = &[Flag::switch("help", "show help").or('h')];

fn options(tables: &[&[Flag]], out: &mut String) {
    let left = |flag: &Flag| {
        let value = if flag.takes_value { " value" } else { "" };
        match flag.short {
            Some(short) => format!("--{}{value}, -{short}{value}", flag.name),
            None => format!("--{}{value}", flag.name),
        }
    };
    let flags = || tables.iter().flat_map(|table| table.iter());
    let width = flags().map(|flag| left(flag).len()).max().unwrap_or(0);
    for flag in flags() {
        let _ = writeln!(out, "   {:<width$}  {}", left(flag), flag.help);
    }
}
