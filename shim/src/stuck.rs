//! Why a process does not end: which of its tasks sleep in the kernel where no signal reaches them, where, and for what.
//!
//! A worker looks: some of these files take locks that such a task may hold.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::time::Duration;

use crate::worker;

/// How long the look may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Tasks that are told of at most.
const TASKS_MAX: usize = 4;
/// Processes looked at at most.
const PROCESSES_MAX: usize = 64;
/// Frames of a kernel stack that are told at most.
const FRAMES_MAX: usize = 16;

/// What a task that can't be killed does, in one line each.
#[derive(Debug, PartialEq, Eq)]
struct Sleeper {
    pid: u32,
    task: u32,
    name: String,
    /// The kernel function it sleeps in.
    wchan: String,
    stack: Vec<String>,
    /// The mount it waits for.
    mount: Option<String>,
}

/// Looks at these processes.
pub(crate) async fn report(pids: Vec<u32>) -> String {
    let working = worker::start(None, &[], |_| {
        let sleepers = look(Path::new("/proc"), &pids);
        Ok(describe(&sleepers).into_bytes())
    });
    let looked = match working {
        Ok(working) => worker::patiently(working, PATIENCE).await,
        Err(error) => Err(error.into()),
    };
    match looked {
        Ok(outcome) => String::from_utf8_lossy(&outcome.result).into_owned(),
        Err(error) => format!("it can't be looked at: {error}"),
    }
}

fn describe(sleepers: &[Sleeper]) -> String {
    if sleepers.is_empty() {
        return "none of its tasks is in an uninterruptible sleep".to_owned();
    }
    let mut text = String::new();
    for (i, sleeper) in sleepers.iter().enumerate() {
        if i == TASKS_MAX {
            let _ = write!(text, "; and {} more", sleepers.len() - TASKS_MAX);
            break;
        }
        let separator = if i == 0 { "" } else { "; " };
        let _ = write!(
            text,
            "{separator}task {} ({:?}) of process {} sleeps uninterruptibly (state D) in {}",
            sleeper.task, sleeper.name, sleeper.pid, sleeper.wchan
        );
        if let Some(mount) = &sleeper.mount {
            let _ = write!(text, ", for {mount}");
        }
        if !sleeper.stack.is_empty() {
            let _ = write!(text, ", stack: {}", sleeper.stack.join(" < "));
        }
    }
    text
}

/// The sleepers among these processes.
fn look(proc: &Path, pids: &[u32]) -> Vec<Sleeper> {
    let mut sleepers = Vec::new();
    for pid in pids.iter().take(PROCESSES_MAX) {
        let tasks = proc.join(format!("{pid}/task"));
        let found = numbers(&tasks)
            .into_iter()
            .filter_map(|task| sleeper(&tasks.join(task.to_string()), *pid, task));
        sleepers.extend(found);
    }
    sleepers
}

fn numbers(directory: &Path) -> Vec<u32> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

fn sleeper(directory: &Path, pid: u32, task: u32) -> Option<Sleeper> {
    let stat = fs::read_to_string(directory.join("stat")).ok()?;
    let (name, state) = name_and_state(&stat)?;
    if state != 'D' {
        return None;
    }
    let read = |file: &str| fs::read_to_string(directory.join(file)).unwrap_or_default();
    let wchan = read("wchan");
    let stack = frames(&read("stack"));
    let mounts = read("mountinfo");
    let mount = descriptor_of(&read("syscall"))
        .and_then(|number| mount_id(&read(&format!("fdinfo/{number}"))))
        .and_then(|id| mount_by_id(&mounts, id))
        .or_else(|| mount_by_stack(&mounts, &stack));
    Some(Sleeper {
        pid,
        task,
        name: name.to_owned(),
        wchan: match wchan.trim() {
            "" | "0" => "the kernel".to_owned(),
            function => function.to_owned(),
        },
        stack,
        mount,
    })
}

/// Fields 2 and 3 of proc_pid_stat(5). The name may hold anything.
fn name_and_state(stat: &str) -> Option<(&str, char)> {
    let (start, end) = (stat.find('(')?, stat.rfind(')')?);
    let state = stat.get(end + 1..)?.trim_start().chars().next()?;
    Some((stat.get(start + 1..end)?, state))
}

/// The functions of a kernel stack, innermost first: `[<0>] request_wait_answer+0x1a/0x80 [fuse]`.
fn frames(stack: &str) -> Vec<String> {
    let function = |line: &str| {
        let text = line.split_once("] ").map_or(line, |(_, rest)| rest);
        let name = text.split(['+', ' ']).next()?.trim();
        (!name.is_empty()).then(|| name.to_owned())
    };
    stack.lines().filter_map(function).take(FRAMES_MAX).collect()
}

/// The descriptor that a system call was made for: its first argument, where it takes one there (proc_pid_syscall(5)).
fn descriptor_of(syscall: &str) -> Option<u32> {
    use nix::libc as c;
    let mut words = syscall.split_ascii_whitespace();
    let number: i64 = words.next()?.parse().ok()?;
    let takes = [
        c::SYS_read,
        c::SYS_write,
        c::SYS_pread64,
        c::SYS_pwrite64,
        c::SYS_readv,
        c::SYS_writev,
        c::SYS_fsync,
        c::SYS_fdatasync,
        c::SYS_fstat,
        c::SYS_close,
        c::SYS_getdents64,
        c::SYS_ftruncate,
        c::SYS_fallocate,
        c::SYS_syncfs,
        c::SYS_flock,
        c::SYS_ioctl,
        c::SYS_lseek,
    ];
    if !takes.contains(&number) {
        return None;
    }
    let first = words.next()?.strip_prefix("0x")?;
    u32::from_str_radix(first, 16).ok()
}

fn mount_id(fdinfo: &str) -> Option<u32> {
    let value = fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
    value.trim().parse().ok()
}

/// A line of mountinfo as a reader wants it: `the mount of fuse.sshfs "host:/data" at "/data"`.
fn mount_text(line: &str) -> Option<String> {
    let (left, right) = line.split_once(" - ")?;
    let place = left.split(' ').nth(4)?;
    let mut right = right.split(' ');
    let (kind, source) = (right.next()?, right.next()?);
    Some(format!("the mount of {kind} {source:?} at {place:?}"))
}

fn mount_by_id(mounts: &str, id: u32) -> Option<String> {
    let line = mounts.lines().find(|line| {
        let first = line.split(' ').next();
        first.and_then(|number| number.parse().ok()) == Some(id)
    })?;
    mount_text(line)
}

/// The only mount of a kind of file system that a function on the stack belongs to.
fn mount_by_stack(mounts: &str, stack: &[String]) -> Option<String> {
    const KINDS: [(&str, &str); 8] = [
        ("fuse_", "fuse"),
        ("request_wait_answer", "fuse"),
        ("nfs", "nfs"),
        ("rpc_", "nfs"),
        ("cifs_", "cifs"),
        ("smb2_", "cifs"),
        ("ceph_", "ceph"),
        ("p9_", "9p"),
    ];
    let kind = stack.iter().find_map(|function| {
        let found = KINDS.iter().find(|(prefix, _)| function.starts_with(prefix));
        found.map(|(_, kind)| *kind)
    })?;
    let is_kind = |line: &&str| {
        let after = line.split_once(" - ").map_or("", |(_, right)| right);
        after.starts_with(kind)
    };
    let mut found = mounts.lines().filter(is_kind);
    let first = mount_text(found.next()?)?;
    Some(match found.count() {
        0 => first,
        more => format!("one of {} mounts, such as {first}", more + 1),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
21 1 8:1 / / rw - ext4 /dev/sda1 rw\n\
40 21 0:50 / /data rw,nosuid - fuse.sshfs host:/data rw,user_id=0\n\
41 21 0:51 / /backup rw shared:9 - nfs4 server:/backup rw\n";

    #[test]
    fn the_mount_is_that_of_the_descriptor_of_the_call() {
        let syscall = format!(
            "{} 0x5 0x7f00 0x1000 0x0 0x0 0x0 0x7ffe 0x7f12",
            nix::libc::SYS_read
        );
        assert_eq!(descriptor_of(&syscall), Some(5));
        assert_eq!(descriptor_of("running"), None);
        assert_eq!(descriptor_of("-1 0x0 0x0"), None);
        let fdinfo = "pos:\t0\nflags:\t0100000\nmnt_id:\t41\nino:\t2\n";
        let mount = mount_by_id(MOUNTS, mount_id(fdinfo).unwrap()).unwrap();
        assert_eq!(mount, "the mount of nfs4 \"server:/backup\" at \"/backup\"");
    }

    #[test]
    fn without_a_descriptor_the_stack_tells_the_kind_of_mount() {
        let stack = frames("[<0>] request_wait_answer+0x1a/0x80 [fuse]\n[<0>] fuse_lookup_name+0x1/0x2\n");
        assert_eq!(stack, ["request_wait_answer", "fuse_lookup_name"]);
        let mount = mount_by_stack(MOUNTS, &stack).unwrap();
        assert_eq!(mount, "the mount of fuse.sshfs \"host:/data\" at \"/data\"");
        assert_eq!(mount_by_stack(MOUNTS, &["do_sleep".to_owned()]), None);
    }

    #[test]
    fn a_name_may_hold_anything() {
        assert_eq!(name_and_state("7 (a) D (b) S 1 2"), Some(("a) D (b", 'S')));
    }

    #[test]
    fn the_task_that_sleeps_is_told_with_its_stack_and_mount() {
        let proc = std::env::temp_dir().join(format!("rtc-stuck-{}", std::process::id()));
        for (pid, state) in [(5, 'S'), (6, 'D')] {
            let task = proc.join(format!("{pid}/task/{pid}"));
            fs::create_dir_all(&task).unwrap();
            fs::write(task.join("stat"), format!("{pid} (cat) {state} 1")).unwrap();
            fs::write(task.join("wchan"), "request_wait_answer").unwrap();
            fs::write(task.join("stack"), "[<0>] request_wait_answer+0x1/0x2\n").unwrap();
            fs::write(task.join("mountinfo"), MOUNTS).unwrap();
        }
        let text = describe(&look(&proc, &[5, 6]));
        fs::remove_dir_all(&proc).unwrap();
        assert_eq!(
            text,
            "task 6 (\"cat\") of process 6 sleeps uninterruptibly (state D) in request_wait_answer, for the mount of \
             fuse.sshfs \"host:/data\" at \"/data\", stack: request_wait_answer"
        );
    }

    #[test]
    fn a_process_that_only_runs_is_no_sleeper() {
        assert!(describe(&look(Path::new("/proc"), &[std::process::id()])).starts_with("none"));
    }
}
