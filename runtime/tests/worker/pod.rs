//! A pod's namespaces, and its init.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sys::stat::fstat;
use nix::unistd::Pid;
use oci_spec::runtime::LinuxIdMappingBuilder;
use rtc_runtime::namespace::IdMaps;
use rtc_runtime::pod::{self, Network, PodOptions};
use rtc_runtime::process::worker;
use rtc_runtime::sys::clone::{CLONE_NEWIPC, CLONE_NEWNET, CLONE_NEWPID, CLONE_NEWUSER, CLONE_NEWUTS};
use rtc_runtime::sys::process::{self, Exit, pidfd_send_signal, wait};
use serde_json::json;

use crate::place::{Place, Said, end_strays, hear, kill_and_collect, ours, parent_of, readable};

fn make(options: &PodOptions<'_>, keep: &[BorrowedFd<'_>]) -> Result<Said> {
    let keep: Vec<_> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    hear(worker::fork(None, &keep, |reporter| {
        pod::make(options, reporter).map(|()| Vec::new())
    })?)
}

fn namespace(said: &Said, flag: i32) -> Result<&OwnedFd> {
    let found = said.namespaces.iter().find(|(found, _)| *found == flag);
    Ok(&found.with_context(|| format!("no namespace {flag:#x}"))?.1)
}

/// What a command says in these namespaces.
fn inside(namespaces: &[(i32, &OwnedFd)], body: impl FnOnce() -> Result<String>) -> Result<String> {
    let keep: Vec<_> = namespaces.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
    let said = hear(worker::fork(None, &keep, |_| {
        for (flag, namespace) in namespaces {
            process::setns(namespace, *flag)?;
        }
        Ok(body()?.into_bytes())
    })?)?;
    Ok(String::from_utf8(said.result?)?)
}

fn sysctl(name: &str) -> Result<String> {
    Ok(fs::read_to_string(Path::new("/proc/sys").join(name))?
        .trim()
        .to_owned())
}

fn maps() -> Result<IdMaps> {
    let map = LinuxIdMappingBuilder::default()
        .container_id(0_u32)
        .host_id(200_000_u32)
        .size(65536_u32)
        .build()?;
    Ok(IdMaps::of(&[map], &[map]))
}

pub(crate) fn namespaces(_: &Place) -> Result<()> {
    for user in [false, true] {
        let parameters = [
            ("net.core.somaxconn", "77"),
            ("net/ipv4/ip_forward", "1"),
            ("kernel.msgmax", "9000"),
        ];
        let options = PodOptions {
            user: user.then(maps).transpose()?,
            network: Network::New,
            ipc: true,
            uts: true,
            hostname: Some("web-0".into()),
            sysctls: BTreeMap::from(parameters.map(|(name, value)| (name.into(), value.into()))),
            ..PodOptions::default()
        };
        let said = make(&options, &[])?;
        said.result
            .as_ref()
            .map_err(|error| anyhow::anyhow!("{error:#}"))?;
        ensure!(said.born.is_empty() && said.namespaces.len() == 3 + usize::from(user));
        let (net, ipc) = (namespace(&said, CLONE_NEWNET)?, namespace(&said, CLONE_NEWIPC)?);
        let uts = namespace(&said, CLONE_NEWUTS)?;
        ensure!(inside(&[(CLONE_NEWNET, net)], || sysctl("net/core/somaxconn"))? == "77");
        ensure!(inside(&[(CLONE_NEWNET, net)], || sysctl("net/ipv4/ip_forward"))? == "1");
        let ping = || Ok(std::net::UdpSocket::bind("127.0.0.1:0").map(|_| "up".to_owned())?);
        ensure!(inside(&[(CLONE_NEWNET, net)], ping)? == "up");
        ensure!(inside(&[(CLONE_NEWIPC, ipc)], || sysctl("kernel/msgmax"))? == "9000");
        ensure!(inside(&[(CLONE_NEWUTS, uts)], || sysctl("kernel/hostname"))? == "web-0");
        if user {
            // Root of the user namespace owns them.
            let rename = || {
                process::set_ids(0, 0, Some(&[]))?;
                nix::unistd::sethostname("other")?;
                sysctl("kernel/hostname")
            };
            let user = namespace(&said, CLONE_NEWUSER)?;
            // Root outside may enter what belongs to it.
            ensure!(inside(&[(CLONE_NEWUTS, uts), (CLONE_NEWUSER, user)], rename)? == "other");
        }
    }
    Ok(())
}

pub(crate) fn joined_network(_: &Place) -> Result<()> {
    let network = make(
        &PodOptions {
            network: Network::New,
            ..PodOptions::default()
        },
        &[],
    )?;
    let net = namespace(&network, CLONE_NEWNET)?;
    for user in [false, true] {
        let options = PodOptions {
            user: user.then(maps).transpose()?,
            network: Network::Joined(net.as_fd()),
            ipc: true,
            pid: true,
            sysctls: BTreeMap::from([("net.core.somaxconn".into(), format!("9{}", u8::from(user)))]),
            ..PodOptions::default()
        };
        let said = make(&options, &[net.as_fd()])?;
        said.result
            .as_ref()
            .map_err(|error| anyhow::anyhow!("{error:#}"))?;
        ensure!(
            inside(&[(CLONE_NEWNET, net)], || sysctl("net/core/somaxconn"))?
                == format!("9{}", u8::from(user))
        );
        ensure!(
            namespace(&said, CLONE_NEWNET).is_err(),
            "the given one is reported"
        );
        kill_and_collect(&said.born[0])?;
    }
    Ok(())
}

/// As containerd hands it over: made in a user namespace of its own.
pub(crate) fn network_with_users(_: &Place) -> Result<()> {
    let network = make(
        &PodOptions {
            user: Some(maps()?),
            network: Network::New,
            ..PodOptions::default()
        },
        &[],
    )?;
    let net = namespace(&network, CLONE_NEWNET)?;
    let options = PodOptions {
        user: Some(maps()?),
        network: Network::Joined(net.as_fd()),
        ipc: true,
        uts: true,
        pid: true,
        hostname: Some("web-0".into()),
        ..PodOptions::default()
    };
    let said = make(&options, &[net.as_fd()])?;
    said.result
        .as_ref()
        .map_err(|error| anyhow::anyhow!("{error:#}"))?;
    let user = namespace(&said, CLONE_NEWUSER)?;
    ensure!(
        fstat(user)?.st_ino == fstat(namespace(&network, CLONE_NEWUSER)?)?.st_ino,
        "another user namespace was made"
    );
    let uts = namespace(&said, CLONE_NEWUTS)?;
    let rename = || {
        process::set_ids(0, 0, Some(&[]))?;
        let before = sysctl("kernel/hostname")?;
        nix::unistd::sethostname("other")?;
        Ok(before)
    };
    ensure!(inside(&[(CLONE_NEWUTS, uts), (CLONE_NEWUSER, user)], rename)? == "web-0");
    kill_and_collect(&said.born[0])?;

    let others = LinuxIdMappingBuilder::default()
        .container_id(0_u32)
        .host_id(300_000_u32)
        .size(65536_u32)
        .build()?;
    let options = PodOptions {
        user: Some(IdMaps::of(&[others], &[others])),
        ..options
    };
    let refused = make(&options, &[net.as_fd()])?.result;
    let error = refused.err().context("other users were taken")?.to_string();
    ensure!(error.contains("the user namespace that is joined has"), "{error}");
    Ok(())
}

pub(crate) fn failure(_: &Place) -> Result<()> {
    for (name, value, text) in [
        ("net.core.somaxconn", "x", "sysctl net.core.somaxconn"),
        ("net.no.such", "1", "sysctl net.no.such"),
        ("kernel.panic", "1", "would change the host"),
    ] {
        let options = PodOptions {
            network: Network::New,
            pid: true,
            sysctls: BTreeMap::from([(name.into(), value.into())]),
            ..PodOptions::default()
        };
        let said = make(&options, &[])?;
        let error = said.result.expect_err("a failure").to_string();
        ensure!(error.contains(text), "{error}");
        ensure!(said.born.is_empty() && said.namespaces.is_empty());
    }
    Ok(())
}

pub(crate) fn killed_anywhere(_: &Place) -> Result<()> {
    let options = || -> Result<PodOptions<'_>> {
        Ok(PodOptions {
            user: Some(maps()?),
            network: Network::New,
            ipc: true,
            uts: true,
            pid: true,
            ..PodOptions::default()
        })
    };
    let began = Instant::now();
    let whole = make(&options()?, &[])?;
    let time = began.elapsed();
    kill_and_collect(&whole.born[0])?;
    for step in 0..40 {
        let options = options()?;
        let worker = worker::fork(None, &[], |reporter| {
            pod::make(&options, reporter).map(|()| Vec::new())
        })?;
        std::thread::sleep(time * step / 30);
        pidfd_send_signal(&worker.child.pidfd, libc::SIGKILL)?;
        for child in &hear(worker)?.born {
            kill_and_collect(child)?;
        }
        end_strays()?;
    }
    Ok(())
}

/// By the helper that a joined user namespace needs.
pub(crate) fn container(place: &Place) -> Result<()> {
    let options = PodOptions {
        user: Some(maps()?),
        network: Network::New,
        ipc: true,
        uts: true,
        pid: true,
        hostname: Some("web-0".into()),
        ..PodOptions::default()
    };
    let pod = make(&options, &[])?;
    pod.result
        .as_ref()
        .map_err(|error| anyhow::anyhow!("{error:#}"))?;
    ensure!(pod.namespaces.len() == 5);
    place.configure(&["host"], |config| {
        let mut namespaces = vec![json!({"type": "mount"})];
        for (flag, namespace) in &pod.namespaces {
            let kind = match *flag {
                CLONE_NEWUSER => "user",
                CLONE_NEWNET => "network",
                CLONE_NEWIPC => "ipc",
                CLONE_NEWUTS => "uts",
                _ => "pid",
            };
            let path = format!("/proc/self/fd/{}", namespace.as_raw_fd());
            namespaces.push(json!({"type": kind, "path": path}));
        }
        config["linux"]["namespaces"] = json!(namespaces);
        let map = json!([{"containerID": 0, "hostID": 200_000, "size": 65536}]);
        config["linux"]["uidMappings"] = map.clone();
        config["linux"]["gidMappings"] = map;
    })?;
    let keep: Vec<_> = pod.namespaces.iter().map(|(_, fd)| fd.as_raw_fd()).collect();
    let (read, write) = nix::unistd::pipe()?;
    let null = File::open("/dev/null")?;
    let stdio = [null.as_fd(), write.as_fd(), write.as_fd()];
    let said = hear(place.start_create_with(Some(stdio), &keep)?)?;
    drop(write);
    said.result?;
    let [init] = &said.born[..] else {
        bail!("{:?}", said.born)
    };
    ensure!(said.helpers.len() == 1 && parent_of(init.pid)? == ours());
    place.start()?;
    ensure!(wait(&init.pidfd)? == Exit::Code(0));
    let mut text = String::new();
    File::from(read).read_to_string(&mut text)?;
    ensure!(text == "web-0\n", "{text:?}");
    place.delete()?;
    kill_and_collect(&pod.born[0])?;
    Ok(())
}

/// As the host sees it.
pub(crate) fn hardened(_: &Place) -> Result<()> {
    for user in [false, true] {
        let options = PodOptions {
            user: user.then(maps).transpose()?,
            network: Network::New,
            pid: true,
            ..PodOptions::default()
        };
        let said = make(&options, &[])?;
        said.result
            .as_ref()
            .map_err(|error| anyhow::anyhow!("{error:#}"))?;
        let init = &said.born[0];
        ensure!(parent_of(init.pid)? == ours());
        let id = if user { 265_535 } else { 65535 };
        let file = |name: &str| fs::read_to_string(format!("/proc/{}/{name}", init.pid));
        let status = file("status")?;
        for line in [
            format!("Uid:\t{id}\t{id}\t{id}\t{id}"),
            format!("Gid:\t{id}\t{id}\t{id}\t{id}"),
            "Groups:\t ".into(),
            "CapInh:\t0000000000000000".into(),
            "CapPrm:\t0000000000000000".into(),
            "CapEff:\t0000000000000000".into(),
            "CapBnd:\t0000000000000000".into(),
            "CapAmb:\t0000000000000000".into(),
            "NoNewPrivs:\t1".into(),
            "Seccomp:\t2".into(),
            "Name:\trtc-pod-init".into(),
            "NSpid:\t".to_owned() + &format!("{}\t1", init.pid),
        ] {
            ensure!(
                status.lines().any(|found| found == line),
                "no {line:?} in {status}"
            );
        }
        ensure!(file("environ")?.trim_matches('\0').is_empty());
        ensure!(file("cmdline")?.trim_matches('\0') == "rtc init");
        let mounts = file("mountinfo")?;
        ensure!(
            mounts.lines().count() == 1 && mounts.contains(" / / ro,"),
            "{mounts}"
        );
        ensure!(!file("maps")?.contains("[heap]"));
        let at = |name: &str| format!("/proc/{}/{name}", init.pid);
        ensure!(fs::read_dir(at("fd"))?.count() == 0 && fs::read_dir(at("root/"))?.count() == 0);
        for namespace in ["ns/mnt", "ns/cgroup", "ns/pid", "ns/net"] {
            let ours = fs::read_link(format!("/proc/self/{namespace}"))?;
            ensure!(fs::read_link(at(namespace))? != ours, "{namespace}");
        }
        // Non-dumpable: /proc shows what is root's.
        use std::os::unix::fs::MetadataExt;
        ensure!(fs::metadata(at("environ"))?.uid() == 0);
        // Nobody is in there with it, so this is from outside.
        pidfd_send_signal(&init.pidfd, libc::SIGTERM)?;
        ensure!(wait(&init.pidfd)? == Exit::Code(0));
    }
    Ok(())
}

/// Runs the payload in a container of the PID namespace; what it printed.
fn in_pod(place: &Place, pid: &OwnedFd, arguments: &[&str], capabilities: &[&str]) -> Result<String> {
    place.configure(arguments, |config| {
        config["linux"]["namespaces"][0]["path"] = json!(format!("/proc/self/fd/{}", pid.as_raw_fd()));
        let sets = ["bounding", "effective", "permitted"];
        for set in sets {
            config["process"]["capabilities"][set] = json!(capabilities);
        }
    })?;
    let (read, write) = nix::unistd::pipe()?;
    let null = File::open("/dev/null")?;
    let stdio = [null.as_fd(), write.as_fd(), write.as_fd()];
    let created = hear(place.start_create_with(Some(stdio), &[pid.as_raw_fd()])?)?;
    created.result?;
    drop(write);
    place.start()?;
    let exit = wait(&created.born[0].pidfd)?;
    let mut text = String::new();
    // What it left behind may hold the pipe.
    place.delete()?;
    File::from(read).read_to_string(&mut text)?;
    ensure!(exit == Exit::Code(0), "{exit}: {text}");
    Ok(text)
}

const ALL: [&str; 14] = [
    "CAP_SYS_PTRACE",
    "CAP_SYS_ADMIN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_SETUID",
    "CAP_SETGID",
    "CAP_KILL",
    "CAP_NET_ADMIN",
    "CAP_SYS_CHROOT",
    "CAP_MKNOD",
    "CAP_CHOWN",
    "CAP_FOWNER",
    "CAP_NET_RAW",
    "CAP_FSETID",
];

pub(crate) fn nothing_to_see(place: &Place) -> Result<()> {
    let options = PodOptions {
        pid: true,
        ..PodOptions::default()
    };
    let said = make(&options, &[])?;
    said.result
        .as_ref()
        .map_err(|error| anyhow::anyhow!("{error:#}"))?;
    let pid = namespace(&said, CLONE_NEWPID)?;
    for capabilities in [&ALL[..], &ALL[..1], &[]] {
        let seen = in_pod(place, pid, &["look"], capabilities)?;
        let may = capabilities.len() > 1;
        for line in seen.lines() {
            println!("  with {} capabilities: {line}", capabilities.len());
            let (what, found) = line.split_once(": ").context("what: found")?;
            let fine = match what {
                "root" | "root/.." | "cwd" | "fd" => found == "[]" || found.starts_with("error"),
                "write" => found == "error EROFS" || found == "error EACCES",
                "environ" => found.is_empty() || found.starts_with("error"),
                _ => bail!("{line}"),
            };
            ensure!(fine, "{line}");
        }
        ensure!(!may || seen.contains("root: []"), "{seen}");
    }
    ensure!(!process::has_ended(&said.born[0].pidfd, Duration::ZERO)?);
    kill_and_collect(&said.born[0])?;
    Ok(())
}

pub(crate) fn reaps_and_stays(place: &Place) -> Result<()> {
    let options = PodOptions {
        pid: true,
        ..PodOptions::default()
    };
    let said = make(&options, &[])?;
    said.result
        .as_ref()
        .map_err(|error| anyhow::anyhow!("{error:#}"))?;
    let pid = namespace(&said, CLONE_NEWPID)?;
    let zombies = in_pod(place, pid, &["orphans"], &ALL)?;
    ensure!(zombies == "0 zombies\n", "{zombies}");
    in_pod(place, pid, &["terminate"], &ALL)?;
    ensure!(!process::has_ended(
        &said.born[0].pidfd,
        Duration::from_millis(50)
    )?);
    pidfd_send_signal(&said.born[0].pidfd, libc::SIGTERM)?;
    ensure!(wait(&said.born[0].pidfd)? == Exit::Code(0));
    Ok(())
}

pub(crate) fn ends_with_its_shim(_: &Place) -> Result<()> {
    // A shim of its own, that is killed.
    let shim = worker::fork(None, &[], |reporter| {
        let options = PodOptions {
            pid: true,
            ..PodOptions::default()
        };
        let said = make(&options, &[])?;
        said.result?;
        reporter.born(&said.born[0])?;
        std::thread::sleep(Duration::from_secs(1000));
        Ok(Vec::new())
    })?;
    readable(&shim, Duration::from_secs(10))?;
    let Some(worker::Report::Born(init)) = shim.receive()? else {
        bail!("no pod init")
    };
    ensure!(parent_of(init.pid)? == shim.child.pid.as_raw());
    kill_and_collect(&shim.child)?;
    readable(&init.pidfd, Duration::from_secs(10)).context("the pod init lives")?;
    Ok(())
}

/// In the container: what there is of process 1.
pub(crate) fn look() {
    let list = |path: &str| match fs::read_dir(path) {
        Ok(entries) => format!(
            "{:?}",
            entries
                .flatten()
                .map(|entry| entry.file_name())
                .collect::<Vec<_>>()
        ),
        Err(error) => named(&error),
    };
    println!("root: {}", list("/proc/1/root/"));
    println!("root/..: {}", list("/proc/1/root/../"));
    println!("cwd: {}", list("/proc/1/cwd/"));
    println!("fd: {}", list("/proc/1/fd"));
    let written = fs::write("/proc/1/root/x", "x");
    println!(
        "write: {}",
        written.map_or_else(|error| named(&error), |()| "done".into())
    );
    let environment = fs::read_to_string("/proc/1/environ");
    let environment = environment.map(|text| text.trim_matches('\0').to_owned());
    println!("environ: {}", environment.unwrap_or_else(|error| named(&error)));
}

fn named(error: &std::io::Error) -> String {
    match error.kind() {
        ErrorKind::ReadOnlyFilesystem => "error EROFS".into(),
        ErrorKind::PermissionDenied => "error EACCES".into(),
        _ => format!("error {error}"),
    }
}

/// In the container: leaves processes to process 1, and counts those that stay dead.
pub(crate) fn orphans() {
    for _ in 0..10 {
        let child = std::process::Command::new("/payload")
            .args(["payload", "leave-dead"])
            .status();
        assert!(child.is_ok_and(|status| status.success()));
    }
    let began = Instant::now();
    loop {
        let zombies = count_zombies();
        if zombies == 0 || began.elapsed() > Duration::from_secs(5) {
            println!("{zombies} zombies");
            return;
        }
    }
}

fn count_zombies() -> usize {
    let entries = fs::read_dir("/proc").expect("/proc").flatten();
    let state = |entry: fs::DirEntry| {
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        stat.rsplit_once(") ")
            .is_some_and(|(_, rest)| rest.starts_with('Z'))
    };
    entries.filter_map(|entry| state(entry).then_some(())).count()
}

/// In the container.
pub(crate) fn terminate() {
    let sent = nix::sys::signal::kill(Pid::from_raw(1), nix::sys::signal::SIGTERM);
    assert_eq!(sent, Ok(()));
}
