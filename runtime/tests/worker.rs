//! Tests of workers: the copies of the shim that make containers for it. The test plays the shim, with one thread; so it has
//! a main of its own. Containers need root.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::Pid;
use rtc_runtime::bundle::{self, Bundle};
use rtc_runtime::cgroup::OomEvent;
use rtc_runtime::container::{
    self, ContainerId, CreateOptions, Created, ExecOptions, ExecProcess, Executed, Starting, StateRoot,
};
use rtc_runtime::process::worker::{self, Report, Reporter, Worker};
use rtc_runtime::sys::Errno;
use rtc_runtime::sys::clone::Child;
use rtc_runtime::sys::process::{Exit, pidfd_send_signal, wait};
use serde_json::json;

type Test = fn(&Place) -> Result<()>;

const TESTS: &[(&str, Test)] = &[
    (
        "a_worker_has_the_descriptors_it_is_given_and_no_other",
        descriptors,
    ),
    ("a_worker_blocks_no_signal", signals),
    ("a_result_arrives_whole_and_then_the_end", result),
    ("a_failure_and_a_panic_arrive_as_text", failure),
    ("a_worker_runs_no_destructor_of_its_original", destructors),
    ("a_killed_worker_ends_without_a_last_word", killed),
    ("a_container_of_a_worker_is_our_child", container_is_our_child),
    (
        "an_exec_of_a_worker_and_its_helper_are_our_children",
        exec_is_our_child,
    ),
    ("an_exec_has_a_cgroup_of_its_own_on_v2", exec_cgroup),
    (
        "an_exec_has_no_cgroup_of_its_own_where_the_container_writes_its_own",
        no_exec_cgroup,
    ),
    ("a_watch_for_oom_is_readable_after_a_kill_and_at_the_end", oom),
    ("the_terminal_arrives_as_a_report", terminal),
    ("a_failed_create_leaves_nothing", failed_create),
    ("a_start_hears_why_there_is_no_program", failed_start),
    ("a_failed_poststart_hook_deletes_the_container", failed_poststart),
    (
        "an_init_ends_when_its_worker_is_killed",
        init_ends_with_its_worker,
    ),
    (
        "a_worker_killed_anywhere_leaves_what_delete_removes",
        killed_anywhere,
    ),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    if arguments.get(1).is_some_and(|argument| argument == "payload") {
        return payload(&arguments[2..]);
    }
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: the tests of workers need root");
        return ExitCode::SUCCESS;
    }
    let filter = arguments
        .iter()
        .skip(1)
        .find(|argument| !argument.starts_with('-'));
    let place = Place::new().expect("a place for containers");
    let mut failed = 0;
    let chosen = TESTS
        .iter()
        .filter(|(name, _)| filter.is_none_or(|filter| name.contains(filter.as_str())));
    for (name, test) in chosen {
        let result = test(&place).and_then(|()| place.nothing_is_left());
        match &result {
            Ok(()) => println!("test {name} ... ok"),
            Err(error) => println!("test {name} ... FAILED: {error:?}"),
        }
        failed += usize::from(result.is_err());
    }
    fs::remove_dir_all(&place.directory).expect("remove the directory");
    let verdict = if failed == 0 { "ok" } else { "FAILED" };
    println!("\ntest result: {verdict}. {failed} failed");
    ExitCode::from(u8::from(failed > 0))
}

/// What runs in the containers.
fn payload(arguments: &[String]) -> ExitCode {
    match arguments.first().map(String::as_str) {
        Some("sleep") => std::thread::sleep(Duration::from_secs(1000)),
        Some("eat") => std::mem::forget(std::hint::black_box(vec![1_u8; 256 << 20])),
        Some("leave") => {
            let left = std::process::Command::new("/payload")
                .args(["payload", "sleep"])
                .spawn();
            assert!(left.is_ok());
        }
        Some("say") => println!("{}", arguments[1]),
        _ => {}
    }
    let code = arguments.last().and_then(|code| code.parse().ok());
    ExitCode::from(code.unwrap_or(0))
}

/// Where the containers of these tests are.
struct Place {
    directory: PathBuf,
    name: String,
    /// Whether the next container's cgroup is made by systemd.
    systemd: Cell<bool>,
}

impl Place {
    fn new() -> Result<Self> {
        let name = format!("rtc-worker-{}", std::process::id());
        let directory = Path::new("/tmp").join(&name);
        fs::create_dir_all(directory.join("bundle/rootfs"))?;
        fs::copy("/proc/self/exe", directory.join("bundle/rootfs/payload"))?;
        Ok(Self {
            directory,
            name,
            systemd: Cell::new(false),
        })
    }

    fn root(&self) -> StateRoot {
        StateRoot::new(self.directory.join("state"))
    }

    fn id(&self) -> ContainerId {
        self.name.parse().expect("an id")
    }

    fn bundle(&self) -> PathBuf {
        self.directory.join("bundle")
    }

    fn configure(&self, arguments: &[&str], change: impl FnOnce(&mut serde_json::Value)) -> Result<()> {
        let mut args = vec!["/payload", "payload"];
        args.extend(arguments);
        let mut config = json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs"},
            "process": {"args": args, "cwd": "/", "user": {"uid": 0, "gid": 0}},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance"]},
            ],
            "linux": {
                "cgroupsPath": format!("/{}", self.name),
                "namespaces": [
                    {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"},
                ],
            },
        });
        change(&mut config);
        Ok(fs::write(self.bundle().join("config.json"), config.to_string())?)
    }

    /// What a test must not leave.
    fn nothing_is_left(&self) -> Result<()> {
        ensure!(worker::strays(&[])?.is_empty(), "a child is left");
        let states = self.root().ids()?;
        ensure!(states.is_empty(), "left in the state root: {states:?}");
        for tree in fs::read_dir("/sys/fs/cgroup")?.flatten() {
            let path = tree.path().join(&self.name);
            ensure!(!path.exists() && tree.file_name() != *self.name, "left: {path:?}");
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo")?;
        ensure!(!mounts.contains(&self.name), "a mount is left");
        Ok(())
    }

    fn start_create(&self, stdio: Option<[BorrowedFd<'_>; 3]>) -> Result<Worker> {
        worker::fork(stdio, &[], |reporter| {
            let mut options = self.create_options(reporter)?;
            Ok(serde_json::to_vec(&container::create(
                &self.root(),
                &mut options,
            )?)?)
        })
    }

    fn create_options<'a>(&self, reporter: &'a Reporter) -> Result<CreateOptions<'a>> {
        Ok(CreateOptions {
            id: self.id(),
            bundle: Bundle::load(&self.bundle())?,
            console_socket: None,
            pidfd_socket: None,
            pid_file: None,
            no_pivot: false,
            no_new_keyring: true,
            preserve_fds: 0,
            listen_fds: 0,
            systemd_cgroup: self.systemd.get(),
            reporter: Some(reporter),
        })
    }

    fn start(&self) -> Result<()> {
        let mut starting = Starting::begin(&self.root(), &self.id())?.context("it is locked")?;
        ensure!(
            Starting::begin(&self.root(), &self.id())?.is_none(),
            "two starts at once"
        );
        while !starting.look()? {
            readable(&starting, Duration::from_secs(10))?;
        }
        Ok(())
    }

    fn delete(&self) -> Result<()> {
        let said = hear(worker::fork(None, &[], |_| {
            container::delete(&self.root(), &self.id(), true).map(|()| Vec::new())
        })?)?;
        said.result.map(drop)
    }
}

/// All that a worker said.
#[derive(Debug)]
struct Said {
    born: Vec<Child>,
    helpers: Vec<OwnedFd>,
    terminal: Option<OwnedFd>,
    warnings: Vec<String>,
    result: Result<Vec<u8>>,
    exit: Exit,
}

/// Hears a worker to its end, and collects it and its helpers.
fn hear(worker: Worker) -> Result<Said> {
    let mut said = Said {
        born: Vec::new(),
        helpers: Vec::new(),
        terminal: None,
        warnings: Vec::new(),
        result: Err(anyhow::anyhow!("no last word")),
        exit: Exit::Code(0),
    };
    loop {
        match worker.receive() {
            Ok(None) => break,
            Ok(Some(Report::Born(child))) => said.born.push(child),
            Ok(Some(Report::Helper(helper))) => said.helpers.push(helper),
            Ok(Some(Report::Terminal(master))) => said.terminal = Some(master),
            Ok(Some(Report::Warning(text))) => said.warnings.push(text),
            Ok(Some(Report::Done(bytes))) => said.result = Ok(bytes),
            Ok(Some(Report::Failed(text))) => said.result = Err(anyhow::anyhow!(text)),
            Ok(Some(other)) => bail!("{other:?}"),
            Err(error) if error.errno == Errno::EAGAIN => readable(&worker, Duration::from_secs(30))?,
            Err(error) => return Err(error.into()),
        }
    }
    said.exit = wait(&worker.child.pidfd)?;
    for helper in &said.helpers {
        wait(helper)?;
    }
    Ok(said)
}

fn readable(fd: impl AsFd, patience: Duration) -> Result<()> {
    let timeout = PollTimeout::try_from(patience)?;
    let ready = poll(&mut [PollFd::new(fd.as_fd(), PollFlags::POLLIN)], timeout)?;
    ensure!(ready > 0, "nothing after {patience:?}");
    Ok(())
}

fn kill_and_collect(child: &Child) -> Result<Exit> {
    pidfd_send_signal(&child.pidfd, libc::SIGKILL)?;
    Ok(wait(&child.pidfd)?)
}

fn parent_of(pid: Pid) -> Result<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"));
    Ok(line.context("PPid")?.trim().parse()?)
}

fn ours() -> i32 {
    std::process::id().cast_signed()
}

fn descriptors(_: &Place) -> Result<()> {
    let kept = File::open("/etc/passwd")?;
    let _other = File::open("/etc/group")?;
    let (read, write) = nix::unistd::pipe()?;
    let null = File::open("/dev/null")?;
    let stdio = [null.as_fd(), write.as_fd(), write.as_fd()];
    let number = kept.as_raw_fd();
    let worker = worker::fork(Some(stdio), &[number], |reporter| {
        println!("out");
        let mut open: Vec<i32> = fs::read_dir("/proc/self/fd")?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        // But for the one that reads the directory.
        open.retain(|fd| fs::read_link(format!("/proc/self/fd/{fd}")).is_ok());
        open.retain(|fd| *fd != reporter.as_fd().as_raw_fd());
        Ok(serde_json::to_vec(&open)?)
    })?;
    drop(write);
    let said = hear(worker)?;
    let mut expected = vec![0, 1, 2, number];
    expected.sort_unstable();
    let mut open: Vec<i32> = serde_json::from_slice(&said.result?)?;
    open.sort_unstable();
    ensure!(open == expected, "{open:?}, not {expected:?}");
    let mut text = String::new();
    File::from(read).read_to_string(&mut text)?;
    ensure!(text == "out\n", "{text:?}");
    Ok(())
}

fn signals(_: &Place) -> Result<()> {
    use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), None)?;
    let worker = worker::fork(None, &[], |_| Ok(fs::read("/proc/self/status")?));
    sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&SigSet::all()), None)?;
    let status = String::from_utf8(hear(worker?)?.result?)?;
    ensure!(status.contains("SigBlk:\t0000000000000000"), "{status}");
    ensure!(status.contains("SigCgt:\t0000000000000000"), "{status}");
    Ok(())
}

fn result(_: &Place) -> Result<()> {
    let (read, write) = nix::unistd::pipe()?;
    let worker = worker::fork(None, &[read.as_raw_fd()], |_| {
        let mut byte = [0];
        nix::unistd::read(&read, &mut byte)?;
        Ok(vec![b'x'; worker::RESULT_MAX])
    })?;
    let nothing = worker.receive().expect_err("it has said nothing yet");
    ensure!(nothing.errno == Errno::EAGAIN, "{nothing}");
    nix::unistd::write(&write, b"x")?;
    let said = hear(worker)?;
    ensure!(said.result?.len() == worker::RESULT_MAX && said.exit == Exit::Code(0));
    let said = hear(worker::fork(None, &[], |_| Ok(vec![0; worker::RESULT_MAX + 1]))?)?;
    ensure!(said.result.is_err() && said.exit == Exit::Code(1));
    Ok(())
}

fn failure(_: &Place) -> Result<()> {
    let said = hear(worker::fork(None, &[], |_| {
        Err(anyhow::anyhow!("inner").context("outer"))
    })?)?;
    let error = said.result.expect_err("a failure").to_string();
    ensure!(error == "outer: inner" && said.exit == Exit::Code(1), "{error}");
    let said = hear(worker::fork(None, &[], |_| panic!("on purpose"))?)?;
    let error = said.result.expect_err("a panic").to_string();
    ensure!(error.contains("on purpose"), "{error}");
    let said = hear(worker::fork(None, &[], |reporter| {
        rtc_runtime::log::warn("of the library");
        reporter.warning("of the body");
        Ok(Vec::new())
    })?)?;
    ensure!(
        said.warnings == ["of the library", "of the body"],
        "{:?}",
        said.warnings
    );
    Ok(())
}

fn destructors(place: &Place) -> Result<()> {
    struct Writes(PathBuf);
    impl Drop for Writes {
        fn drop(&mut self) {
            let file = File::options().create(true).append(true).open(&self.0);
            let _ = file.and_then(|mut file| file.write_all(b"x"));
        }
    }
    let path = place.directory.join("dropped");
    let guard = Writes(path.clone());
    hear(worker::fork(None, &[], |_| {
        Ok(guard.0.as_os_str().as_encoded_bytes().to_vec())
    })?)?
    .result?;
    ensure!(!path.exists(), "the copy has run it");
    drop(guard);
    ensure!(fs::read(&path)? == b"x");
    Ok(())
}

fn killed(_: &Place) -> Result<()> {
    let worker = worker::fork(None, &[], |_| {
        std::thread::sleep(Duration::from_secs(1000));
        Ok(Vec::new())
    })?;
    let strays = worker::strays(&[])?;
    ensure!(
        strays.len() == 1 && strays[0].pid == worker.child.pid,
        "{strays:?}"
    );
    ensure!(worker::strays(&[worker.child.pid])?.is_empty());
    pidfd_send_signal(&worker.child.pidfd, libc::SIGKILL)?;
    let said = hear(worker)?;
    ensure!(said.exit == Exit::Signal(libc::SIGKILL) && said.result.is_err());
    Ok(())
}

fn container_is_our_child(place: &Place) -> Result<()> {
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
fn exec(place: &Place, arguments: &[&str], code: i32) -> Result<Executed> {
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

fn exec_is_our_child(place: &Place) -> Result<()> {
    place.configure(&["sleep"], |_| {})?;
    let created = hear(place.start_create(None)?)?;
    created.result?;
    place.start()?;
    exec(place, &["3"], 3)?;
    kill_and_collect(&created.born[0])?;
    place.delete()
}

fn exec_cgroup(place: &Place) -> Result<()> {
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

fn no_exec_cgroup(place: &Place) -> Result<()> {
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
    place.delete()
}

fn oom(place: &Place) -> Result<()> {
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

fn terminal(place: &Place) -> Result<()> {
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

fn failed_create(place: &Place) -> Result<()> {
    place.configure(&[], |config| config["process"]["args"] = json!(["/missing"]))?;
    let said = hear(place.start_create(None)?)?;
    let error = said.result.expect_err("no such program").to_string();
    ensure!(error.contains("/missing"), "{error}");
    let exit = wait(&said.born.first().context("no child was reported")?.pidfd)?;
    // It ends by itself, or is killed by the undo.
    ensure!(
        matches!(exit, Exit::Code(1) | Exit::Signal(libc::SIGKILL)),
        "{exit}"
    );
    Ok(())
}

fn failed_start(place: &Place) -> Result<()> {
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

fn failed_poststart(place: &Place) -> Result<()> {
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
fn init_ends_with_its_worker(place: &Place) -> Result<()> {
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

fn killed_anywhere(place: &Place) -> Result<()> {
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
        for stray in worker::strays(&[])? {
            kill_and_collect(&stray)?;
        }
        place.delete()?;
        place.nothing_is_left().with_context(|| format!("step {step}"))?;
    }
    println!("  of 60 killed workers {finished} had finished, {unborn} had reported no child");
    Ok(())
}
