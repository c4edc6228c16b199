//! `rtc exec`: starts another process in a container.

use anyhow::{Context, Result, anyhow, bail};
use oci_spec::runtime::Capability;
use rtc_runtime::bundle;
use rtc_runtime::container::exec_process::ExecOverrides;
use rtc_runtime::container::{self, ExecOptions, ExecProcess};
use rtc_runtime::log;

use super::arguments::{Flag, Order, Parsed, utf8};
use super::create;
use super::{Command, Global};

pub(super) static COMMAND: Command = Command {
    name: "exec",
    summary: "execute new process inside the container",
    arguments: "<container-id> <command> [arguments...]  |  -p process.json <container-id>",
    description: "Options stand before the container id; all that follows it belongs to the command.",
    flags: &[
        create::CONSOLE_SOCKET,
        create::PIDFD_SOCKET,
        Flag::value("cwd", "current working directory in the container"),
        Flag::value("env", "set an environment variable, NAME=value; may be repeated").or('e'),
        Flag::switch("tty", "allocate a pseudo-TTY").or('t'),
        Flag::value("user", "UID (format: <uid>[:<gid>])").or('u'),
        Flag::value(
            "additional-gids",
            "additional gids, separated by commas; may be repeated",
        )
        .or('g'),
        Flag::value("process", "path to the process.json").or('p'),
        Flag::switch("detach", "detach from the container's process").or('d'),
        create::PID_FILE,
        Flag::value("process-label", "set the SELinux label of the process"),
        Flag::value("apparmor", "set the AppArmor profile of the process"),
        Flag::switch("no-new-privs", "set no_new_privs for the process"),
        Flag::value(
            "cap",
            "add a capability to the bounding set of the process; may be repeated",
        )
        .or('c'),
        create::PRESERVE_FDS,
        Flag::value(
            "cgroup",
            "run the process in an existing sub-cgroup, [<controller>:]<cgroup>; may be repeated",
        ),
        Flag::switch("ignore-paused", "allow exec in a paused container"),
    ],
    order: Order::FlagsFirst,
    count: (1, usize::MAX),
    failure: 255,
    meets_container: true,
    run,
};

/// Flags that say something about the process, as a file with all of it does.
const OF_THE_PROCESS: [&str; 9] = [
    "cwd",
    "env",
    "tty",
    "user",
    "additional-gids",
    "process-label",
    "apparmor",
    "no-new-privs",
    "cap",
];

fn run(global: &Global, parsed: &Parsed) -> Result<i32> {
    let id = super::id(parsed)?;
    let command = &parsed.rest[1..];
    let detach = parsed.is_on("detach");
    let process = match parsed.path("process") {
        Some(_) if !command.is_empty() => {
            bail!("--process: names the command; {command:?} must not be given too")
        }
        Some(file) => {
            if let Some(ignored) = parsed.given().find(|flag| OF_THE_PROCESS.contains(flag)) {
                log::warn(format_args!("--{ignored}: ignored beside --process"));
            }
            ExecProcess::Whole(Box::new(bundle::load_process(&file).context("--process")?))
        }
        None => ExecProcess::Overrides(Box::new(overrides(parsed)?)),
    };
    let options = ExecOptions {
        process,
        console_socket: parsed.path("console-socket"),
        pidfd_socket: parsed.path("pidfd-socket"),
        pid_file: parsed.path("pid-file"),
        detach,
        preserve_fds: create::preserved(parsed)?.count,
        cgroup: parsed.texts("cgroup")?,
        own_cgroup: false,
        ignore_paused: parsed.is_on("ignore-paused"),
        reporter: None,
    };
    Ok(container::exec(&global.state_root(), &id, options)?.status)
}

fn overrides(parsed: &Parsed) -> Result<ExecOverrides> {
    let args: Vec<String> = parsed.rest[1..]
        .iter()
        .map(|arg| utf8(arg).map(str::to_string))
        .collect::<Result<_>>()
        .context("command")?;
    if args.is_empty() {
        bail!("process args cannot be empty: give a command, or a file with --process");
    }
    let env = parsed.texts("env")?;
    if let Some(bad) = env
        .iter()
        .find(|variable| variable.find('=').is_none_or(|i| i == 0))
    {
        bail!("--env: {bad:?}: must be NAME=value");
    }
    let cwd = parsed.path("cwd");
    if let Some(cwd) = cwd.as_ref().filter(|cwd| !cwd.is_absolute()) {
        bail!("--cwd: {cwd:?}: must be absolute");
    }
    let user = parsed.text("user")?.map(user).transpose()?;
    let mut additional_gids = Vec::new();
    for list in parsed.texts("additional-gids")? {
        for gid in list.split(',') {
            additional_gids.push(number(gid).with_context(|| format!("--additional-gids: {list:?}"))?);
        }
    }
    let capabilities = parsed
        .texts("cap")?
        .iter()
        .map(|name| capability(name))
        .collect::<Result<_>>()?;
    Ok(ExecOverrides {
        args,
        cwd,
        env,
        tty: parsed.is_on("tty"),
        user,
        additional_gids,
        process_label: parsed
            .text("process-label")?
            .filter(|l| !l.is_empty())
            .map(str::to_string),
        apparmor: parsed
            .text("apparmor")?
            .filter(|p| !p.is_empty())
            .map(str::to_string),
        no_new_privs: parsed.switch("no-new-privs"),
        capabilities,
    })
}

/// `uid[:gid]`, in decimal digits only: what is not exactly that must never become somebody (CVE-2026-30892).
fn user(text: &str) -> Result<(u32, Option<u32>)> {
    let parse = |part: &str| number(part).with_context(|| format!("--user: {text:?}"));
    match text.split_once(':') {
        None => Ok((parse(text)?, None)),
        Some((uid, gid)) => Ok((parse(uid)?, Some(parse(gid)?))),
    }
}

/// A user or group id. 4294967295 means "unchanged" to the kernel and is nobody's.
fn number(text: &str) -> Result<u32> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let id = if digits {
        text.parse().ok().filter(|id| *id != u32::MAX)
    } else {
        None
    };
    id.ok_or_else(|| anyhow!("{text:?} must be a number from 0 to 4294967294; names are not looked up"))
}

fn capability(name: &str) -> Result<Capability> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    bare.parse()
        .map_err(|_| anyhow!("--cap: {name:?}: unknown capability"))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;
    use crate::commands::arguments::parse;

    #[test]
    fn a_user_is_digits_or_an_error() {
        assert_eq!(user("0").unwrap(), (0, None));
        assert_eq!(user("1000:100").unwrap(), (1000, Some(100)));
        assert_eq!(user("4294967294").unwrap(), (4_294_967_294, None));
        for text in [
            "",
            ":",
            "1:",
            ":1",
            "-1",
            "+1",
            " 1",
            "1 ",
            "1:2:3",
            "1:-1",
            "root",
            "1:root",
            "0x10",
            "1.0",
            "4294967295",
            "4294967296",
            "18446744073709551616",
            "1\u{a0}",
            "١",
        ] {
            let error = format!("{:#}", user(text).unwrap_err());
            assert!(error.starts_with(&format!("--user: {text:?}: ")), "{error}");
        }
    }

    fn from(arguments: &[&str]) -> Result<ExecOverrides> {
        let arguments: Vec<OsString> = arguments.iter().map(OsString::from).collect();
        overrides(&parse(&[COMMAND.flags], &arguments, COMMAND.order).unwrap())
    }

    #[test]
    fn flags_become_overrides() {
        let all = from(&[
            "-e",
            "A=1",
            "-t",
            "-u",
            "1:2",
            "-g",
            "3,4",
            "--additional-gids=5",
            "-c",
            "net_raw",
            "id",
            "ls",
            "-t",
        ]);
        let all = all.unwrap();
        assert_eq!(all.args, ["ls", "-t"]);
        assert_eq!(
            (all.user, all.additional_gids),
            (Some((1, Some(2))), vec![3, 4, 5])
        );
        assert_eq!(all.capabilities, [Capability::NetRaw]);
        assert!(all.tty && all.no_new_privs.is_none());
    }

    #[test]
    fn bad_values_are_named_by_their_flag() {
        for (arguments, text) in [
            (&["id"][..], "process args cannot be empty"),
            (&["-e", "A", "id", "ls"], "--env: \"A\": must be NAME=value"),
            (&["--cwd", "x", "id", "ls"], "--cwd: \"x\": must be absolute"),
            (
                &["-c", "CAP_X", "id", "ls"],
                "--cap: \"CAP_X\": unknown capability",
            ),
            (
                &["-g", "1,,2", "id", "ls"],
                "--additional-gids: \"1,,2\": \"\" must be a number",
            ),
        ] {
            let error = format!("{:#}", from(arguments).unwrap_err());
            assert!(error.starts_with(text), "{error}");
        }
    }
}
