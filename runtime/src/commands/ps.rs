//! `rtc ps`: the processes of a container, as `ps(1)` shows them or as a list of host pids.

use std::ffi::OsString;
use std::process::Command as Program;

use anyhow::{Context, Result, bail};
use rtc_runtime::container;

use super::arguments::{Order, Parsed};
use super::list::{FORMAT, Format, format};
use super::{Command, Global, ON_ONE_CONTAINER};

pub(super) static COMMAND: Command = Command {
    name: "ps",
    summary: "ps displays the processes running inside a container",
    arguments: "<container-id> [ps options]",
    description: "What follows the id is given to ps(1) (default: -ef); its output must have a column PID.",
    flags: &[FORMAT],
    order: Order::FlagsFirst,
    count: (1, usize::MAX),
    run,
    ..ON_ONE_CONTAINER
};

fn run(global: &Global, parsed: &Parsed) -> Result<i32> {
    let mut options = &parsed.rest[1..];
    let mut format = format(parsed)?;
    // ps(1) has a --format too, but none of these names.
    if let [flag, value, rest @ ..] = options
        && (flag == "--format" || flag == "-f")
        && (value == "json" || value == "table")
    {
        format = if value == "json" {
            Format::Json
        } else {
            Format::Table
        };
        options = rest;
    }
    let pids = container::processes(&global.state_root(), &super::id(parsed)?)?;
    let text = match format {
        Format::Json => serde_json::to_string(&pids)? + "\n",
        Format::Table => rows_of(&ps(options)?, &pids)?,
    };
    super::print(&text)?;
    Ok(0)
}

fn ps(options: &[OsString]) -> Result<String> {
    let mut program = Program::new("ps");
    if options.is_empty() {
        program.arg("-ef");
    }
    let output = program
        .args(options)
        .output()
        .context("run ps, from the package procps")?;
    if !output.status.success() {
        bail!(
            "ps: {}: {}",
            output.status,
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The header and the lines whose column PID is one of these.
fn rows_of(table: &str, pids: &[i32]) -> Result<String> {
    let mut lines = table.lines();
    let header = lines.next().unwrap_or_default();
    let Some(column) = header.split_whitespace().position(|head| head == "PID") else {
        bail!("ps: its output has no column PID; choose options that show one");
    };
    let is_ours = |line: &&str| {
        let pid = line
            .split_whitespace()
            .nth(column)
            .and_then(|cell| cell.parse().ok());
        pid.is_some_and(|pid: i32| pids.contains(&pid))
    };
    let mut out = format!("{header}\n");
    for line in lines.filter(is_ours) {
        out.push_str(line);
        out.push('\n');
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::rows_of;

    #[test]
    fn only_the_containers_processes_are_shown() {
        let table = "UID  PID  PPID CMD\nroot   1     0 init 7\nroot   7     1 sleep\nroot  71     7 x\n";
        assert_eq!(
            rows_of(table, &[7]).unwrap(),
            "UID  PID  PPID CMD\nroot   7     1 sleep\n"
        );
        assert_eq!(rows_of(table, &[]).unwrap(), "UID  PID  PPID CMD\n");
        assert!(rows_of("UID CMD\n", &[1]).is_err());
    }
}
