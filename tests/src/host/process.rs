//! Processes as `/proc` shows them.

use std::collections::HashMap;
use std::fs;

use anyhow::{Context, Result};

/// Parent and state letter of a process; `None` if it is gone.
pub(crate) fn parent_and_state(pid: i32) -> Option<(i32, char)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let after_name = stat.rsplit_once(") ")?.1;
    let mut fields = after_name.split(' ');
    let state = fields.next()?.chars().next()?;
    Some((fields.next()?.parse().ok()?, state))
}

/// Whether the process is there and not a zombie.
pub(crate) fn is_alive(pid: i32) -> bool {
    parent_and_state(pid).is_some_and(|(_, state)| !matches!(state, 'Z' | 'X'))
}

/// All living descendants of a process, nearest first; zombies are left out.
pub(crate) fn descendants(ancestor: i32) -> Vec<i32> {
    let mut children: HashMap<i32, Vec<i32>> = HashMap::new();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let pids = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    for pid in pids {
        if let Some((parent, _)) = parent_and_state(pid) {
            children.entry(parent).or_default().push(pid);
        }
    }
    let mut found = Vec::new();
    let mut queue = std::collections::VecDeque::from([ancestor]);
    while let Some(pid) = queue.pop_front() {
        for &child in children.get(&pid).into_iter().flatten() {
            queue.push_back(child);
            found.push(child);
        }
    }
    found.retain(|&pid| is_alive(pid));
    found
}

/// One line that says what a process is and where in the kernel it waits: for reports.
pub(crate) fn describe(pid: i32) -> String {
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap_or_default();
    let command = read("cmdline").replace('\0', " ");
    let (parent, state) = parent_and_state(pid).unwrap_or((0, '?'));
    format!(
        "pid {pid} (parent {parent}, {state}, {}): {}",
        read("wchan"),
        command.trim_end()
    )
}

/// A field of `/proc/PID/status`, such as `CapEff` or `Groups`.
pub(crate) fn status_field(pid: i32, field: &str) -> Result<String> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'));
    Ok(line
        .with_context(|| format!("{path}: no {field}"))?
        .trim()
        .to_owned())
}

/// What a namespace link of a process says (`net:[4026531840]`).
pub(crate) fn namespace(pid: &str, kind: &str) -> Result<String> {
    let path = format!("/proc/{pid}/ns/{kind}");
    let link = fs::read_link(&path).with_context(|| path.clone())?;
    Ok(link.to_string_lossy().into_owned())
}
