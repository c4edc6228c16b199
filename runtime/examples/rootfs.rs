//! Makes a bundle's root filesystem and runs its process there, with no other part of the runtime: for looking at what
//! `rtc_runtime::rootfs` does (`strace -fc`, `perf`) and for its tests.
//!
//! ```text
//! rootfs BUNDLE [--no-pivot] [--v1 | --v2] [PROGRAM ARG...]
//! ```

use std::ffi::CString;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::unistd::execv;
use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rtc_runtime::rootfs::{Cgroups, Context, Hierarchy, Plan};
use rtc_runtime::sys::clone::{self, Cloned, clone3};

fn main() -> Result<()> {
    let mut args = std::env::args().skip(1).peekable();
    let bundle = PathBuf::from(args.next().context("no bundle")?).canonicalize()?;
    let mut context = Context::default();
    while let Some(option) = args.next_if(|arg| arg.starts_with("--")) {
        match option.as_str() {
            "--no-pivot" => context.no_pivot = true,
            "--v1" => context.cgroups = legacy(),
            "--v2" => {
                context.cgroups = Cgroups::Unified {
                    own: "/sys/fs/cgroup".into(),
                }
            }
            _ => bail!("{option}?"),
        }
    }
    let spec = Spec::load(bundle.join("config.json"))?;
    let program: Vec<String> = if args.peek().is_some() {
        args.collect()
    } else {
        spec.process()
            .as_ref()
            .and_then(|process| process.args().clone())
            .context("no process.args")?
    };
    let rootfs = bundle
        .join(spec.root().as_ref().context("no root")?.path())
        .canonicalize()?;
    let flags = flags(&spec);
    let plan = Plan::new(&spec, &bundle, &rootfs, &context)?;
    let (mut ours, theirs) = UnixStream::pair()?;
    match clone3(flags, None)? {
        Cloned::Child => {
            drop(ours);
            if let Err(error) = child(plan, theirs, &program) {
                eprintln!("{error:#}");
            }
            std::process::exit(1);
        }
        Cloned::Parent(child) => {
            drop((plan, theirs));
            if flags & clone::CLONE_NEWUSER != 0 {
                for file in ["gid_map", "uid_map"] {
                    fs::write(format!("/proc/{}/{file}", child.pid), "0 100000 65536")?;
                }
            }
            ours.write_all(b"x")?;
            match waitid(Id::Pid(child.pid), WaitPidFlag::WEXITED)? {
                WaitStatus::Exited(_, status) => std::process::exit(status),
                other => bail!("{other:?}"),
            }
        }
    }
}

fn child(mut plan: Plan, mut ready: UnixStream, program: &[String]) -> Result<()> {
    ready.read_exact(&mut [0])?;
    rtc_runtime::sys::process::set_ids(0, 0, Some(&[]))?;
    plan.prepare()?;
    plan.pivot()?;
    plan.seal()?;
    drop(plan);
    let args: Vec<CString> = program
        .iter()
        .map(|arg| CString::new(arg.as_str()))
        .collect::<Result<_, _>>()?;
    execv(&args[0], &args).with_context(|| format!("execve({:?})", args[0]))?;
    Ok(())
}

fn flags(spec: &Spec) -> i32 {
    let namespaces = spec
        .linux()
        .iter()
        .flat_map(|linux| linux.namespaces().iter().flatten());
    namespaces.fold(0, |flags, namespace| {
        flags
            | match namespace.typ() {
                LinuxNamespaceType::Mount => clone::CLONE_NEWNS,
                LinuxNamespaceType::Pid => clone::CLONE_NEWPID,
                LinuxNamespaceType::Network => clone::CLONE_NEWNET,
                LinuxNamespaceType::Ipc => clone::CLONE_NEWIPC,
                LinuxNamespaceType::Uts => clone::CLONE_NEWUTS,
                LinuxNamespaceType::User => clone::CLONE_NEWUSER,
                LinuxNamespaceType::Cgroup => clone::CLONE_NEWCGROUP,
                LinuxNamespaceType::Time => 0,
            }
    })
}

/// Every v1 hierarchy below /sys/fs/cgroup, with its root as the container's cgroup.
fn legacy() -> Cgroups {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let hierarchies = mounts
        .lines()
        .filter(|line| line.contains(" - cgroup "))
        .filter_map(|line| line.split(' ').nth(4))
        .map(|point| {
            let name = Path::new(point)
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            Hierarchy {
                options: if name == "systemd" {
                    "none,name=systemd".into()
                } else {
                    name.clone()
                },
                name,
                own: point.into(),
            }
        })
        .collect();
    Cgroups::Legacy {
        hierarchies,
        links: vec![("cpulink".into(), "cpu".into())],
    }
}
