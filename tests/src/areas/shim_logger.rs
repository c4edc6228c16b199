//! `binary://` loggers: a program of the user's that gets a container's output (containerd `docs/` on logging, `core/runtime/v2/README.md`).

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::bundle::Bundle;
use crate::host::process;
use crate::registry::Result;
use crate::shim::{Containerd, Process, Status, Streams};
use crate::test;
use crate::test::Test;
use crate::wait::until;

/// A logger: a shell script in a directory of its own, which is its first argument's value.
struct Logger {
    directory: PathBuf,
}

/// Copies both streams into files; says that it is ready before.
const COPY: &str = "echo \"$CONTAINER_ID $CONTAINER_NAMESPACE\" > $dir/env; exec 5>&-; \
    cat <&3 >> $dir/out & cat <&4 >> $dir/err & wait; echo >> $dir/ended";

impl Logger {
    fn new(t: &Test, script: &str) -> Result<Self> {
        let directory = t.path("logger");
        fs::create_dir(&directory)?;
        let program = directory.join("program");
        let dir = directory.display();
        fs::write(
            &program,
            format!(
                "#!/bin/busybox sh\nexport PATH=/bin:/usr/bin\ndir={dir}\necho $$ >> $dir/pid\necho \"$@\" > $dir/args\n{script}\n"
            ),
        )?;
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755))?;
        Ok(Self { directory })
    }

    fn uri(&self, query: &str) -> String {
        format!("binary://{}/program{query}", self.directory.display())
    }

    fn streams(&self) -> Streams {
        Streams::uri(&self.uri(""))
    }

    fn read(&self, name: &str) -> Result<String> {
        let path = self.directory.join(name);
        fs::read_to_string(&path).with_context(|| path.display().to_string())
    }

    /// Process ids of all runs of it so far.
    fn pids(&self) -> Vec<i32> {
        let text = self.read("pid").unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn gone(&self) -> Result {
        until("the loggers to be gone", || {
            Ok((!self.pids().into_iter().any(process::is_alive)).then_some(()))
        })
    }
}

/// Whether the tests' own caller has left this descriptor open, which another shim passes on.
fn inherited(number: &str, target: &str) -> bool {
    fs::read_link(format!("/proc/self/fd/{number}")).is_ok_and(|own| own.to_string_lossy() == target)
}

fn create<'t>(containerd: &Containerd<'t>, bundle: &Bundle<'t>, logger: &Logger) -> Result<Process<'t>> {
    containerd.start(bundle)?.create(bundle, logger.streams())
}

test!(
    fn a_logger_gets_both_streams_and_who_it_is_for(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let logger = Logger::new(t, COPY)?;
        let task = create(
            &containerd,
            &containerd.bundle().sh("echo out; echo err >&2"),
            &logger,
        )?;
        task.start()?;
        task.exits_with(0)?;
        task.delete()?;
        ensure!(logger.read("out")? == "out\n", "stdout {:?}", logger.read("out"));
        ensure!(logger.read("err")? == "err\n", "stderr {:?}", logger.read("err"));
        let expected = format!("{} {}\n", task.id, containerd.namespace);
        ensure!(logger.read("env")? == expected, "{:?}", logger.read("env"));
        logger.gone()
    }
);

test!(
    fn a_loggers_arguments_are_the_uris(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let logger = Logger::new(t, COPY)?;
        let bundle = containerd.bundle().args(&["true"]);
        let streams = Streams::uri(&logger.uri("?name=a%20value"));
        let task = containerd.start(&bundle)?.create(&bundle, streams)?;
        task.start()?;
        task.exits_with(0)?;
        task.delete()?;
        ensure!(
            logger.read("args")? == "name a value\n",
            "{:?}",
            logger.read("args")
        );
        Ok(())
    }
);

test!(
    fn a_logger_has_all_of_a_megabyte_when_the_task_is_deleted(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let logger = Logger::new(t, COPY)?;
        let task = create(
            &containerd,
            &containerd.bundle().args(&["seq", "1", "200000"]),
            &logger,
        )?;
        task.start()?;
        task.exits_with(0)?;
        task.delete()?;
        let out = logger.read("out")?;
        ensure!(
            out.lines().count() == 200_000 && out.ends_with("\n200000\n"),
            "{} bytes",
            out.len()
        );
        logger.gone()
    }
);

test!(
    fn a_logger_of_an_exec_is_its_own(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let logger = Logger::new(t, COPY)?;
        let streams = logger.streams();
        let exec = task.exec_by(&task.exec_request("e1", &["echo", "hello"], &streams), streams)?;
        exec.start()?;
        exec.exits_with(0)?;
        exec.delete()?;
        ensure!(logger.read("out")? == "hello\n", "{:?}", logger.read("out"));
        logger.gone()?;
        task.end()
    }
);

test!(
    fn a_logger_that_dies_leaves_a_task_that_answers(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let logger = Logger::new(t, "exec 5>&-; read line <&3; exit 1")?;
        let task = create(
            &containerd,
            &containerd
                .bundle()
                .sh("trap '' PIPE; echo one; while sleep 0.02; do echo more; done"),
            &logger,
        )?;
        task.start()?;
        logger.gone()?;
        task.state()?;
        let other = task.shim.pid();
        ensure!(process::is_alive(other), "the shim has died");
        // It may have ended on its own: its output has no reader.
        let _ = task.kill(libc::SIGKILL);
        task.wait()?;
        task.delete()?;
        Ok(())
    }
);

test!(
    fn a_logger_that_never_says_it_is_ready_fails_create_and_leaves_nothing(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let logger = Logger::new(t, "exec sleep 1000000")?;
        let bundle = containerd.bundle().sleeper();
        let shim = containerd.start(&bundle)?;
        let request = shim.create_request(&bundle, &logger.streams())?;
        let pending = shim.begin::<crate::shim::api::CreateTaskResponse>("Create", &request)?;
        // The shim is there for others meanwhile.
        until("the logger to run", || {
            Ok((!logger.pids().is_empty()).then_some(()))
        })?;
        shim.call::<crate::shim::api::ConnectResponse>("Connect", &crate::shim::api::ConnectRequest::new())?;
        ensure!(
            pending.answer().is_err(),
            "created with a logger that is not ready"
        );
        logger.gone()?;
        shim.ends()
    }
);

test!(
    fn a_logger_that_ends_without_a_word_counts_as_ready(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let logger = Logger::new(t, "exit 0")?;
        let task = create(&containerd, &containerd.bundle().sleeper(), &logger)?;
        task.start()?;
        task.is(Status::RUNNING)?;
        task.end()
    }
);

test!(
    fn a_logger_that_is_not_there_fails_create_and_leaves_nothing(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().sleeper();
        let shim = containerd.start(&bundle)?;
        let streams = Streams::uri("binary:///no/such/logger");
        ensure!(shim.create(&bundle, streams).is_err(), "created");
        shim.ends()
    }
);

test!(
    fn a_logger_has_nothing_open_but_what_it_is_given(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let logger = Logger::new(t, &format!("ls -l /proc/$$/fd > $dir/fds; {COPY}"))?;
        let task = create(&containerd, &containerd.bundle().args(&["true"]), &logger)?;
        task.start()?;
        task.exits_with(0)?;
        task.delete()?;
        let listing = logger.read("fds")?;
        for line in listing.lines().filter(|line| line.contains(" -> ")) {
            let (name, target) = line.rsplit_once(" -> ").unwrap_or_default();
            let number = name.rsplit(' ').next().unwrap_or_default();
            let given = match number {
                "3" | "4" | "5" => target.starts_with("pipe:"),
                "0" | "1" | "2" => true,
                // The shell has its script open.
                _ => target.ends_with("/program") || target == "/dev/null" || inherited(number, target),
            };
            ensure!(given, "{line}");
        }
        Ok(())
    }
);

test!(
    fn another_user_can_open_the_loggers_streams_again(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let logger = Logger::new(t, COPY)?;
        let bundle = containerd
            .bundle()
            .set("/process/user", json!({"uid": 1000, "gid": 1000}))
            .sh("echo one > /dev/stdout && echo two > /dev/stderr");
        let task = create(&containerd, &bundle, &logger)?;
        task.start()?;
        task.exits_with(0)?;
        task.delete()?;
        ensure!(logger.read("out")? == "one\n", "stdout {:?}", logger.read("out"));
        ensure!(logger.read("err")? == "two\n", "stderr {:?}", logger.read("err"));
        Ok(())
    }
);
