//! `rtc checkpoint` and `rtc restore`: a container's processes written to files, and made again of them.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use rtc_runtime::bundle::Bundle;
use rtc_runtime::checkpoint::{self, DumpOptions, Options, RestoreOptions};
use rtc_runtime::container::{CreateOptions, RunOptions};

use super::arguments::{Flag, Parsed};
use super::{Command, Global, ON_ONE_CONTAINER, create};

const IMAGE_PATH: Flag = Flag::value(
    "image-path",
    "directory of CRIU's image files (default: checkpoint, in the current directory)",
);
const WORK_PATH: Flag = Flag::value(
    "work-path",
    "directory for CRIU's work files and logs (default: that of the image files)",
);
const TCP_ESTABLISHED: Flag = Flag::switch("tcp-established", "allow open tcp connections");
const EXT_UNIX_SK: Flag = Flag::switch("ext-unix-sk", "allow external unix sockets");
const SHELL_JOB: Flag = Flag::switch("shell-job", "allow shell jobs");
const FILE_LOCKS: Flag = Flag::switch("file-locks", "handle file locks, for safety");
const MANAGE_CGROUPS_MODE: Flag = Flag::value(
    "manage-cgroups-mode",
    "cgroups mode: soft, full, strict or ignore (default: soft)",
);
const EMPTY_NS: Flag = Flag::value(
    "empty-ns",
    "create a namespace, but don't restore its properties: network, as is always done",
);
const AUTO_DEDUP: Flag = Flag::switch("auto-dedup", "enable auto deduplication of memory images");
const LAZY_PAGES: Flag = Flag::switch("lazy-pages", "use userfaultfd to lazily restore memory pages");

pub(super) static CHECKPOINT: Command = Command {
    name: "checkpoint",
    summary: "checkpoint a running container",
    description: "Writes the processes of the container to files, by criu(8); the container is deleted then, unless it is\n   \
                  told to run on. \"restore\" makes it again of them.",
    flags: &[
        IMAGE_PATH,
        WORK_PATH,
        Flag::value(
            "parent-path",
            "directory of an earlier --pre-dump, relative to --image-path",
        ),
        Flag::switch("leave-running", "leave the process running after checkpointing"),
        TCP_ESTABLISHED,
        Flag::switch("tcp-skip-in-flight", "skip in-flight tcp connections"),
        Flag::switch(
            "link-remap",
            "allow one to link unlinked files back when possible",
        ),
        EXT_UNIX_SK,
        SHELL_JOB,
        LAZY_PAGES,
        Flag::value(
            "status-fd",
            "a \\0 is written to this descriptor once lazy-pages is ready",
        ),
        Flag::value("page-server", "ADDRESS:PORT of the page server"),
        FILE_LOCKS,
        Flag::switch(
            "pre-dump",
            "dump container's memory information only, leave the container running after this",
        ),
        MANAGE_CGROUPS_MODE,
        EMPTY_NS,
        AUTO_DEDUP,
    ],
    run: checkpoint,
    ..ON_ONE_CONTAINER
};

pub(super) static RESTORE: Command = Command {
    name: "restore",
    summary: "restore a container from a previous checkpoint",
    description: "Makes the container of a bundle, and its processes of the files that \"checkpoint\" wrote.",
    flags: &[
        create::CONSOLE_SOCKET,
        IMAGE_PATH,
        WORK_PATH,
        TCP_ESTABLISHED,
        EXT_UNIX_SK,
        SHELL_JOB,
        FILE_LOCKS,
        MANAGE_CGROUPS_MODE,
        create::BUNDLE,
        Flag::switch("detach", "detach from the container's process").or('d'),
        create::PID_FILE,
        Flag::switch("no-subreaper", "do not reap reparented processes"),
        create::NO_PIVOT,
        EMPTY_NS,
        AUTO_DEDUP,
        LAZY_PAGES,
        Flag::value(
            "lsm-profile",
            "LSM profile of the restored processes, in the form TYPE:NAME (apparmor or selinux)",
        ),
        Flag::value("lsm-mount-context", "LSM mount context of the restored mounts"),
    ],
    run: restore,
    ..ON_ONE_CONTAINER
};

fn checkpoint(global: &Global, parsed: &Parsed) -> Result<i32> {
    let id = super::id(parsed)?;
    let options = DumpOptions {
        common: common(parsed)?,
        parent_path: parsed.path("parent-path"),
        leave_running: parsed.is_on("leave-running"),
        tcp_skip_in_flight: parsed.is_on("tcp-skip-in-flight"),
        link_remap: parsed.is_on("link-remap"),
        status_fd: parsed.number("status-fd")?.filter(|number| *number != -1),
        page_server: parsed
            .text("page-server")?
            .filter(|text| !text.is_empty())
            .map(|text| text.parse().context("--page-server"))
            .transpose()?,
        pre_dump: parsed.is_on("pre-dump"),
    };
    checkpoint::checkpoint(&global.state_root(), &id, &options).map(|()| 0)
}

fn restore(global: &Global, parsed: &Parsed) -> Result<i32> {
    let id = super::id(parsed)?;
    let text = |name| -> Result<Option<String>> {
        let text = parsed.text(name)?.filter(|text| !text.is_empty());
        Ok(text.map(str::to_owned))
    };
    let options = RestoreOptions {
        common: common(parsed)?,
        lsm_profile: text("lsm-profile")?,
        lsm_mount_context: text("lsm-mount-context")?,
    };
    let bundle = parsed.path("bundle").unwrap_or_else(|| PathBuf::from("."));
    let mut create = CreateOptions {
        id,
        bundle: Bundle::load(&bundle)?,
        console_socket: parsed.path("console-socket"),
        pidfd_socket: None,
        pid_file: parsed.path("pid-file"),
        no_pivot: parsed.is_on("no-pivot"),
        no_new_keyring: false,
        preserve_fds: 0,
        listen_fds: 0,
        systemd_cgroup: global.systemd_cgroup,
        rootless: global.rootless,
        reporter: None,
    };
    let run = RunOptions {
        detach: parsed.is_on("detach"),
        keep: false,
        no_subreaper: parsed.is_on("no-subreaper"),
    };
    checkpoint::restore(&global.state_root(), &mut create, &options, run)
}

/// The flags that both have.
fn common(parsed: &Parsed) -> Result<Options> {
    if let Some(other) = parsed
        .texts("empty-ns")?
        .iter()
        .find(|kind| kind.as_str() != "network")
    {
        bail!("--empty-ns: namespace {other:?} is not supported: must be network");
    }
    let mode = parsed.text("manage-cgroups-mode")?.unwrap_or_default();
    Ok(Options {
        image_path: parsed
            .path("image-path")
            .unwrap_or_else(|| PathBuf::from("checkpoint")),
        work_path: parsed.path("work-path"),
        tcp_established: parsed.is_on("tcp-established"),
        ext_unix_sk: parsed.is_on("ext-unix-sk"),
        shell_job: parsed.is_on("shell-job"),
        file_locks: parsed.is_on("file-locks"),
        manage_cgroups: mode.parse().context("--manage-cgroups-mode")?,
        auto_dedup: parsed.is_on("auto-dedup"),
        lazy_pages: parsed.is_on("lazy-pages"),
    })
}
