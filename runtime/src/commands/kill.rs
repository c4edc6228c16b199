//! `rtc kill`: sends a signal to a container's init process.

use anyhow::{Result, bail};
use rtc_runtime::container;

use super::arguments::{Flag, Parsed, utf8};
use super::{Command, Global, ON_ONE_CONTAINER};

pub(super) static COMMAND: Command = Command {
    name: "kill",
    summary: "kill sends the specified signal (default: SIGTERM) to the container's init process",
    arguments: "<container-id> [signal]",
    description: "The signal is a name with or without SIG, or a number: KILL, SIGUSR1, RTMIN+3, 15.",
    flags: &[
        Flag::switch("all", "send the signal to all processes inside the container").or('a'),
        super::REGEX,
    ],
    count: (1, 2),
    run,
    ..ON_ONE_CONTAINER
};

fn run(global: &Global, parsed: &Parsed) -> Result<i32> {
    let signal = match parsed.rest.get(1) {
        None => libc::SIGTERM,
        Some(signal) => self::signal(utf8(signal)?)?,
    };
    super::on_each(global, parsed, |root, id| {
        container::kill(root, id, signal, parsed.is_on("all"))
    })
}

/// The number of a signal, from its number or its name in any case, with or without `SIG`.
fn signal(text: &str) -> Result<i32> {
    let largest = libc::SIGRTMAX();
    if let Some(number) = text.parse().ok().filter(|number| (1..=largest).contains(number)) {
        return Ok(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let found = NAMES
        .iter()
        .find(|(known, _)| *known == name)
        .map(|(_, number)| *number);
    match found.or_else(|| realtime(name)) {
        Some(number) => Ok(number),
        None => bail!("signal {text:?}: unknown; use a name such as TERM or a number from 1 to {largest}"),
    }
}

/// `RTMIN`, `RTMIN+n`, `RTMAX`, `RTMAX-n`. 34 as glibc counts from, 64 the last.
fn realtime(name: &str) -> Option<i32> {
    let (least, largest) = (libc::SIGRTMIN(), libc::SIGRTMAX());
    let offset = |text: &str, sign: char| match text {
        "" => Some(0),
        _ => text.strip_prefix(sign)?.parse::<u8>().ok().map(i32::from),
    };
    let number = match name.strip_prefix("RTMIN") {
        Some(rest) => least + offset(rest, '+')?,
        None => largest - offset(name.strip_prefix("RTMAX")?, '-')?,
    };
    (least..=largest).contains(&number).then_some(number)
}

static NAMES: &[(&str, i32)] = &[
    ("HUP", libc::SIGHUP),
    ("INT", libc::SIGINT),
    ("QUIT", libc::SIGQUIT),
    ("ILL", libc::SIGILL),
    ("TRAP", libc::SIGTRAP),
    ("ABRT", libc::SIGABRT),
    ("IOT", libc::SIGABRT),
    ("BUS", libc::SIGBUS),
    ("FPE", libc::SIGFPE),
    ("KILL", libc::SIGKILL),
    ("USR1", libc::SIGUSR1),
    ("SEGV", libc::SIGSEGV),
    ("USR2", libc::SIGUSR2),
    ("PIPE", libc::SIGPIPE),
    ("ALRM", libc::SIGALRM),
    ("TERM", libc::SIGTERM),
    ("STKFLT", libc::SIGSTKFLT),
    ("CHLD", libc::SIGCHLD),
    ("CLD", libc::SIGCHLD),
    ("CONT", libc::SIGCONT),
    ("STOP", libc::SIGSTOP),
    ("TSTP", libc::SIGTSTP),
    ("TTIN", libc::SIGTTIN),
    ("TTOU", libc::SIGTTOU),
    ("URG", libc::SIGURG),
    ("XCPU", libc::SIGXCPU),
    ("XFSZ", libc::SIGXFSZ),
    ("VTALRM", libc::SIGVTALRM),
    ("PROF", libc::SIGPROF),
    ("WINCH", libc::SIGWINCH),
    ("IO", libc::SIGIO),
    ("POLL", libc::SIGIO),
    ("PWR", libc::SIGPWR),
    ("SYS", libc::SIGSYS),
];

#[cfg(test)]
mod tests {
    use super::signal;

    #[test]
    fn a_signal_has_a_number_and_a_name_with_or_without_sig() {
        for text in ["9", "KILL", "SIGKILL", "sigkill", "Kill"] {
            assert_eq!(signal(text).unwrap(), libc::SIGKILL);
        }
        assert_eq!(signal("RTMIN").unwrap(), 34);
        assert_eq!(signal("SIGRTMIN+3").unwrap(), 37);
        assert_eq!(signal("RTMAX-1").unwrap(), 63);
        assert_eq!(signal("64").unwrap(), 64);
    }

    #[test]
    fn what_is_no_signal_is_refused() {
        for text in [
            "",
            "0",
            "65",
            "-9",
            "FOO",
            "SIG",
            "SIGSIGKILL",
            "RTMIN+31",
            "RTMAX-99",
            "RTMIN-1",
            "9 ",
        ] {
            let error = signal(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("signal {text:?}: unknown")), "{error}");
        }
    }
}
