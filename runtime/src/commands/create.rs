//! `rtc create`: makes a container from a bundle; its process waits for `start`.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use rtc_runtime::bundle::Bundle;
use rtc_runtime::container::{self, ContainerId, CreateOptions};
use rtc_runtime::sys::fd::is_inherited;

use super::arguments::{Flag, Parsed};
use super::{Command, Global, ON_ONE_CONTAINER};

pub(super) static COMMAND: Command = Command {
    name: "create",
    summary: "create a container",
    description: "The container is made from a bundle, a directory with a config.json and a root filesystem;\n   \
                  its process does not run before \"start\". The id is unique on the host.",
    flags: &[
        BUNDLE,
        CONSOLE_SOCKET,
        PIDFD_SOCKET,
        PID_FILE,
        NO_PIVOT,
        NO_NEW_KEYRING,
        PRESERVE_FDS,
    ],
    meets_container: true,
    run,
    ..ON_ONE_CONTAINER
};

pub(super) const BUNDLE: Flag = Flag::value(
    "bundle",
    "path of the bundle directory (default: the current directory)",
)
.or('b');
pub(super) const CONSOLE_SOCKET: Flag = Flag::value(
    "console-socket",
    "AF_UNIX socket that receives the master end of the container's pseudoterminal",
);
pub(super) const PIDFD_SOCKET: Flag = Flag::value(
    "pidfd-socket",
    "AF_UNIX socket that receives a pidfd of the container's process",
);
pub(super) const PID_FILE: Flag = Flag::value("pid-file", "file to write the process id to");
pub(super) const NO_PIVOT: Flag = Flag::switch(
    "no-pivot",
    "do not use pivot_root(2) to enter the rootfs, for a rootfs on a ramdisk",
);
pub(super) const NO_NEW_KEYRING: Flag = Flag::switch(
    "no-new-keyring",
    "keep the caller's session keyring in the container",
);
pub(super) const PRESERVE_FDS: Flag = Flag::value(
    "preserve-fds",
    "pass N more file descriptors (stdio + $LISTEN_FDS + N in total) (default: 0)",
);

fn run(global: &Global, parsed: &Parsed) -> Result<i32> {
    let bundle = parsed.path("bundle").unwrap_or_else(|| PathBuf::from("."));
    let mut options = options(global, parsed, super::id(parsed)?, &bundle)?;
    let created = container::create(&global.state_root(), &mut options)?;
    // The process ends here: to free a thousand strings of the configuration one by one is 20 us for nothing.
    std::mem::forget((options, created));
    Ok(0)
}

/// What `create` and `run` have in common.
pub(super) fn options(
    global: &Global,
    parsed: &Parsed,
    id: ContainerId,
    bundle: &Path,
) -> Result<CreateOptions<'static>> {
    let preserved = preserved(parsed)?;
    let bundle = Bundle::load(bundle)?;
    let console_socket = parsed.path("console-socket");
    Ok(CreateOptions {
        id,
        bundle,
        console_socket,
        pidfd_socket: parsed.path("pidfd-socket"),
        pid_file: parsed.path("pid-file"),
        no_pivot: parsed.is_on("no-pivot"),
        no_new_keyring: parsed.is_on("no-new-keyring"),
        preserve_fds: preserved.count,
        listen_fds: preserved.activated,
        systemd_cgroup: global.systemd_cgroup,
        rootless: global.rootless,
        reporter: None,
    })
}

/// Descriptors from 3 on that the process keeps.
pub(super) struct Preserved {
    /// All of them.
    pub(super) count: u32,
    /// The first ones: sockets that a service manager activated us with.
    pub(super) activated: u32,
}

/// `--preserve-fds`, after the sockets of `$LISTEN_FDS` where those are meant for us (sd_listen_fds(3)). Each must be there.
pub(super) fn preserved(parsed: &Parsed) -> Result<Preserved> {
    let more = parsed.number("preserve-fds")?.unwrap_or(0);
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u32>().ok());
    let ours = number("LISTEN_PID") == Some(std::process::id());
    let activated = number("LISTEN_FDS").filter(|_| ours).unwrap_or(0);
    let count = activated.saturating_add(more);
    if let Some(missing) = (3..count.saturating_add(3)).find(|fd| !is_inherited(fd.cast_signed())) {
        bail!("--preserve-fds: {more} (and {activated} of $LISTEN_FDS): descriptor {missing} is not open");
    }
    Ok(Preserved { count, activated })
}
