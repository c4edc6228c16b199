//! `rtc list`: the containers under a root.

use std::io::ErrorKind;

use anyhow::{Result, bail};
use rtc_runtime::container::{self, StateReport};

use super::arguments::{Flag, Parsed};
use super::{Command, Global, ON_ONE_CONTAINER};

pub(super) static COMMAND: Command = Command {
    name: "list",
    summary: "lists containers started by rtc with the given root",
    arguments: "",
    description: "The root is given with the global option --root; one that is given must exist.",
    flags: &[
        FORMAT,
        Flag::switch("quiet", "display only container IDs").or('q'),
    ],
    count: (0, 0),
    run,
    ..ON_ONE_CONTAINER
};

pub(super) const FORMAT: Flag = Flag::value("format", "table or json (default: table)").or('f');

/// How a list is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Table,
    Json,
}

/// `--format`.
pub(super) fn format(parsed: &Parsed) -> Result<Format> {
    match parsed.text("format")? {
        None | Some("table") => Ok(Format::Table),
        Some("json") => Ok(Format::Json),
        Some(other) => bail!("--format: {other:?}: must be table or json"),
    }
}

fn run(global: &Global, parsed: &Parsed) -> Result<i32> {
    let format = format(parsed)?;
    let exists = match std::fs::metadata(&global.root) {
        Err(error) if error.kind() == ErrorKind::NotFound && !global.root_is_given => false,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            bail!("--root: {:?}: does not exist", global.root)
        }
        _ => true,
    };
    let reports = if exists {
        container::list(&global.state_root())?
    } else {
        Vec::new()
    };
    let text = if parsed.is_on("quiet") {
        reports.iter().map(|report| format!("{}\n", report.id)).collect()
    } else if format == Format::Table {
        table(&reports)
    } else if reports.is_empty() {
        // Go's encoding of a list that nothing was added to, which callers of runc know.
        "null\n".to_string()
    } else {
        serde_json::to_string(&reports)? + "\n"
    };
    super::print(&text)?;
    Ok(0)
}

fn table(reports: &[StateReport]) -> String {
    let heads = ["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(String::from);
    let rows = reports.iter().map(|report| {
        let bundle = report.bundle.display().to_string();
        [
            &report.id,
            &report.pid.to_string(),
            &report.status.to_string(),
            &bundle,
            &report.created,
            &report.owner,
        ]
        .map(|cell| plain(cell))
    });
    align(std::iter::once(heads).chain(rows).collect())
}

/// A directory's name may hold anything; a line of the table is one line.
fn plain(cell: &str) -> String {
    cell.chars()
        .map(|c| if c.is_control() { '?' } else { c })
        .collect()
}

/// Columns at least 12 wide, 3 spaces between, the last one as it is: Go's tabwriter with runc's settings.
fn align<const N: usize>(rows: Vec<[String; N]>) -> String {
    let width = |column: usize| {
        let longest = rows
            .iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0);
        (longest + 3).max(12)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut out = String::new();
    for row in &rows {
        for (column, cell) in row.iter().enumerate() {
            out.push_str(cell);
            if column + 1 < N {
                out.extend(std::iter::repeat_n(' ', widths[column] - cell.chars().count()));
            }
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_runcs() {
        let rows = [["ID", "PID", "OWNER"], ["a-long-container-name", "1", "root"]];
        let text = align(rows.iter().map(|row| row.map(String::from)).collect());
        assert_eq!(
            text,
            "ID                      PID         OWNER\na-long-container-name   1           root\n"
        );
    }

    #[test]
    fn a_name_cannot_break_a_line() {
        assert_eq!(plain("/a\n\u{1b}[2J"), "/a??[2J");
    }
}
