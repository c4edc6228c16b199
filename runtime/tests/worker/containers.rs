//! Containers that are made by workers.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rtc_runtime::bundle;
use rtc_runtime::cgroup::OomEvent;
use rtc_runtime::container::{self, Created, ExecOptions, ExecProcess, Executed};
use rtc_runtime::process::worker::{self, Report};
use rtc_runtime::sys::process::{Exit, pidfd_send_signal, wait};
use serde_json::json;

use crate::place::{Place, end_strays, hear, kill_and_collect, ours, parent_of, readable};

pub(crate) fn container_is_our_child(place: &Place) -> Result<()> {
    place.configure(&["say", "hello", "7"], |_| {})?;
    let (read, write) = nix::unistd::pipe()?;
    let null = File::open("/dev/null")?;
    let worker = place.start_create(Some([null.as_fd(), write.as_fd(), write.as_fd()]))?;
    drop(write);
    let said = hear(worker)?;
    let created: Created = serde_json::from_slice(&said.result?)?;
    let [init] = &said.born[..] else {
        bail!("{:?}", said.born)
    };
    ensure!(init.pid.as_raw() == created.pid && !created.has_hooks);
    ensure!(parent_of(init.pid)? == ours());
    ensure!(created.cgroup.processes()? == [init.pid]);
    place.start()?;
    ensure!(wait(&init.pidfd)? == Exit::Code(7));
    let mut text = String::new();
    File::from(read).read_to_string(&mut text)?;
    ensure!(text == "hello\n", "{text:?}");
    place.delete()
}

/// Runs a process in the container, to its end, which must be this.
pub(crate) fn exec(place: &Place, arguments: &[&str], code: i32) -> Result<Executed> {
    let mut args = vec!["/payload", "payload"];
    args.extend(arguments);
    let process = json!({"args": args, "cwd": "/", "user": {"uid": 0, "gid": 0}});
    let said = hear(worker::fork(None, &[], |reporter| {
        let (process, _) = bundle::parse_process(process.to_string().into_bytes())?;
        let options = ExecOptions {
            process: ExecProcess::Whole(Box::new(process)),
            console_socket: None,
            pidfd_socket: None,
            pid_file: None,
            detach: true,
            preserve_fds: 0,
            cgroup: Vec::new(),
            own_cgroup: true,
            ignore_paused: false,
            reporter: Some(reporter),
        };
        Ok(serde_json::to_vec(&container::exec(
            &place.root(),
            &place.id(),
            options,
        )?)?)
    })?)?;
    ensure!(said.helpers.len() == 1, "{:?}", said.helpers);
    for process in &said.born {
        let exit = wait(&process.pidfd)?;
        ensure!(said.result.is_err() || exit == Exit::Code(code), "{exit}");
    }
    Ok(serde_json::from_slice(&said.result?)?)
}

pub(crate) fn exec_is_our_child(place: &Place) -> Result<()> {
    place.configure(&["sleep"], |_| {})?;
    let created = hear(place.start_create(None)?)?;
    created.result?;
    place.start()?;
    exec(place, &["3"], 3)?;
    kill_and_collect(&created.born[0])?;
    place.delete()
}

pub(crate) fn exec_cgroup(place: &Place) -> Result<()> {
    for systemd in [false, true] {
        if systemd && !Path::new("/run/systemd/system").is_dir() {
            continue;
        }
        place.systemd.set(systemd);
        place.configure(&["sleep"], |config| {
            if systemd {
                config["linux"]["cgroupsPath"] = json!(format!("system.slice:test:{}", place.name));
            }
        })?;
        let said = hear(place.start_create(None)?)?;
        place.systemd.set(false);
        let created: Created = serde_json::from_slice(&said.result?)?;
        place.start()?;
        let cgroup = exec(place, &["leave", "0"], 0)?.cgroup;
        ensure!(cgroup.is_some() == created.cgroup.is_v2(), "{cgroup:?}");
        ensure!(created.cgroup.processes()?.len() == 2);
        if let Some(name) = cgroup {
            let cgroup = created.cgroup.exec_cgroup(&name)?.context("it is gone")?;
            let [left] = cgroup.processes()?[..] else {
                bail!("{:?}", cgroup.processes()?)
            };
            ensure!(!cgroup.remove()?, "removed with a process in it");
            created.cgroup.freeze()?;
            created.cgroup.thaw()?;
            cgroup.kill()?;
            let began = Instant::now();
            while !cgroup.remove()? {
                ensure!(began.elapsed() < Duration::from_secs(10), "{left} does not end");
            }
            ensure!(created.cgroup.exec_cgroup(&name)?.is_none());
            cgroup.kill()?;
            ensure!(cgroup.remove()? && cgroup.processes()?.is_empty());
        }
        let failed = exec(place, &["leave", "0"], 0).and_then(|_| exec(place, &[], 0))?;
        ensure!(failed.cgroup.is_some() == created.cgroup.is_v2());
        kill_and_collect(&said.born[0])?;
        // Also with two cgroups of execs, one of them with a process.
        place.delete()?;
        place.nothing_is_left()?;
    }
    Ok(())
}

pub(crate) fn no_exec_cgroup(place: &Place) -> Result<()> {
    place.configure(&["sleep"], |config| {
        config["mounts"]
            .as_array_mut()
            .expect("mounts")
            .push(json!({"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup"}));
    })?;
    let said = hear(place.start_create(None)?)?;
    said.result?;
    place.start()?;
    ensure!(exec(place, &["0"], 0)?.cgroup.is_none());
    kill_and_collect(&said.born[0])?;
    place.delete()?;
    place.configure(&["sleep"], |_| {})?;
    let said = hear(place.start_create(None)?)?;
    let created: Created = serde_json::from_slice(&said.result?)?;
    place.start()?;
    if created.cgroup.is_v2() {
        let path = created.cgroup.path().context("no cgroup")?;
        for owner in [1000, 0] {
            std::os::unix::fs::chown(path, Some(owner), None)?;
            ensure!(exec(place, &["0"], 0)?.cgroup.is_some() == (owner == 0));
        }
        // It has begun to keep cgroups of its own.
        std::fs::write(path.join("cgroup.subtree_control"), "+pids")?;
        ensure!(exec(place, &["0"], 0)?.cgroup.is_none());
    }
    kill_and_collect(&said.born[0])?;
    place.delete()
}

pub(crate) fn oom(place: &Place) -> Result<()> {
    place.configure(&["eat"], |config| {
        config["linux"]["resources"] = json!({"memory": {"limit": 64 << 20, "swap": 64 << 20}});
    })?;
    let said = hear(place.start_create(None)?)?;
    let created: Created = serde_json::from_slice(&said.result?)?;
    let mut watch = created.cgroup.oom_watch()?;
    ensure!(watch.look()?.is_none());
    ensure!(readable(&watch, Duration::ZERO).is_err(), "nothing has happened");
    place.start()?;
    let mut seen = Vec::new();
    ensure!(wait(&said.born[0].pidfd)? == Exit::Signal(libc::SIGKILL));
    readable(&watch, Duration::from_secs(10))?;
    seen.extend(watch.look()?);
    if created.cgroup.is_v2() {
        readable(&watch, Duration::from_secs(10))?;
    } else {
        place.delete()?;
        readable(&watch, Duration::from_secs(10))?;
    }
    seen.extend(watch.look()?);
    ensure!(seen == [OomEvent::Oom, OomEvent::End], "{seen:?}");
    place.delete()
}

pub(crate) fn terminal(place: &Place) -> Result<()> {
    place.configure(&["say", "hello"], |config| {
        config["process"]["terminal"] = json!(true);
    })?;
    let said = hear(place.start_create(None)?)?;
    said.result?;
    let mut master = File::from(said.terminal.context("no terminal")?);
    place.start()?;
    ensure!(wait(&said.born[0].pidfd)? == Exit::Code(0));
    let mut text = [0; 7];
    master.read_exact(&mut text)?;
    ensure!(text == *b"hello\r\n", "{text:?}");
    place.delete()
}

pub(crate) fn failed_create(place: &Place) -> Result<()> {
    place.configure(&[], |config| config["process"]["args"] = json!(["/missing"]))?;
    let said = hear(place.start_create(None)?)?;
    let error = said.result.expect_err("no such program").to_string();
    ensure!(error.contains("/missing"), "{error}");
    ensure!(said.warnings.is_empty(), "{:?}", said.warnings);
    let exit = wait(&said.born.first().context("no child was reported")?.pidfd)?;
    // It ends by itself, or is killed by the undo.
    ensure!(
        matches!(exit, Exit::Code(1) | Exit::Signal(libc::SIGKILL)),
        "{exit}"
    );
    Ok(())
}

pub(crate) fn failed_start(place: &Place) -> Result<()> {
    let hook = json!({"path": "/payload", "args": ["payload", "payload", "5"]});
    place.configure(&["sleep"], |config| {
        config["hooks"] = json!({"startContainer": [hook]});
    })?;
    let said = hear(place.start_create(None)?)?;
    said.result?;
    let error = place.start().expect_err("the hook fails").to_string();
    ensure!(error.contains("startContainer hook #0: exit status 5"), "{error}");
    ensure!(wait(&said.born[0].pidfd)? == Exit::Code(1));
    place.delete()
}

pub(crate) fn failed_poststart(place: &Place) -> Result<()> {
    let hook = json!({"path": "/bin/false"});
    place.configure(&["sleep"], |config| {
        config["hooks"] = json!({"poststart": [hook]});
    })?;
    let said = hear(place.start_create(None)?)?;
    let created: Created = serde_json::from_slice(&said.result?)?;
    ensure!(created.has_hooks);
    place.start()?;
    let poststart = hear(worker::fork(None, &[], |_| {
        container::run_poststart(&place.root(), &place.id()).map(|()| Vec::new())
    })?)?;
    let error = poststart.result.expect_err("the hook fails").to_string();
    ensure!(error.contains("poststart hook #0"), "{error}");
    ensure!(wait(&said.born[0].pidfd)? == Exit::Signal(libc::SIGKILL));
    Ok(())
}

/// In the middle of its set-up, and without anybody who kills it.
pub(crate) fn init_ends_with_its_worker(place: &Place) -> Result<()> {
    let hook = json!({"path": "/bin/sleep", "args": ["sleep", "0.3"]});
    for kind in ["createRuntime", "createContainer"] {
        place.configure(&["sleep"], |config| config["hooks"] = json!({kind: [hook]}))?;
        let worker = place.start_create(None)?;
        let born = loop {
            readable(&worker, Duration::from_secs(10))?;
            if let Some(Report::Born(child)) = worker.receive()? {
                break child;
            }
        };
        std::thread::sleep(Duration::from_millis(100));
        pidfd_send_signal(&worker.child.pidfd, libc::SIGKILL)?;
        let said = hear(worker)?;
        ensure!(said.result.is_err(), "{kind}: it was too fast");
        readable(&born.pidfd, Duration::from_secs(10)).with_context(|| format!("{kind}: init lives"))?;
        ensure!(wait(&born.pidfd)? == Exit::Code(1), "{kind}");
        place.delete()?;
        place.nothing_is_left()?;
    }
    Ok(())
}

/// The worker takes back what it has done: nobody will ask for it.
pub(crate) fn ends_with_shim(place: &Place) -> Result<()> {
    let hook = json!({"path": "/bin/sleep", "args": ["sleep", "1000"]});
    for kind in ["createRuntime", "createContainer"] {
        place.configure(&["sleep"], |config| {
            config["hooks"] = json!({kind: [hook]});
        })?;
        let shim = worker::fork(None, &[], |reporter| {
            let worker = place.start_create(None)?;
            loop {
                readable(&worker, Duration::from_secs(10))?;
                if let Some(Report::Born(init)) = worker.receive()? {
                    reporter.born(&init)?;
                    reporter.born(&worker.child)?;
                }
            }
        })?;
        let mut born = Vec::new();
        while born.len() < 2 {
            readable(&shim, Duration::from_secs(10))?;
            if let Some(Report::Born(child)) = shim.receive()? {
                born.push(child);
            }
        }
        std::thread::sleep(Duration::from_millis(200));
        kill_and_collect(&shim.child)?;
        for child in &born {
            readable(&child.pidfd, Duration::from_secs(10))
                .with_context(|| format!("{kind}: {child:?} lives"))?;
        }
        place.nothing_is_left().context(kind)?;
    }
    Ok(())
}

pub(crate) fn killed_anywhere(place: &Place) -> Result<()> {
    place.configure(&["sleep"], |_| {})?;
    let began = Instant::now();
    hear(place.start_create(None)?)?
        .born
        .iter()
        .try_for_each(|child| kill_and_collect(child).map(drop))?;
    let whole = began.elapsed();
    place.delete()?;
    let (mut finished, mut unborn) = (0, 0);
    for step in 0..60 {
        let worker = place.start_create(None)?;
        std::thread::sleep(whole * step / 50);
        pidfd_send_signal(&worker.child.pidfd, libc::SIGKILL)?;
        let said = hear(worker)?;
        finished += u32::from(said.result.is_ok());
        unborn += u32::from(said.born.is_empty());
        for child in &said.born {
            kill_and_collect(child)?;
        }
        end_strays()?;
        place.delete()?;
        place.nothing_is_left().with_context(|| format!("step {step}"))?;
    }
    println!("  of 60 killed workers {finished} had finished, {unborn} had reported no child");
    Ok(())
}
