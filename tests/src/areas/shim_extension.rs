//! `rtc.shim.v1`: ExecSync, ReopenLog, Attach.

use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use serde_json::json;

use crate::host::process;
use crate::registry::Result;
use crate::shim::extension::{Executing, attach, exec_sync, info, reopen_log};
use crate::shim::{Code, Containerd, Process, Reader, Refusal, Streams, fifo};
use crate::test;
use crate::test::Test;
use crate::wait::until;

/// A container that sleeps, of a shim that has the service.
fn sleeper<'t>(containerd: &Containerd<'t>, t: &'t Test) -> Result<Process<'t>> {
    if !t.shim_is_ours() {
        t.skip("needs rtc.shim.v1")?;
    }
    containerd.run(&containerd.bundle().sleeper())
}

/// Processes of a container that run `sleep` so long, which no other test does.
fn sleeping(seconds: u32) -> Result<usize> {
    let wanted = format!("sleep\0{seconds}\0");
    let processes = fs::read_dir("/proc")?.flatten();
    Ok(processes
        .filter(|process| {
            fs::read(process.path().join("cmdline")).is_ok_and(|line| line == wanted.as_bytes())
        })
        .count())
}

test!(
    fn a_client_can_ask_what_a_shim_can_do(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = sleeper(&containerd, t)?;
        let info = info(&task.shim)?;
        ensure!(
            info.version == 1 && info.pid == u64::from(task.shim.pid().unsigned_abs()),
            "{info:?}"
        );
        for feature in ["exec-sync", "reopen-log", "attach", "sandbox"] {
            ensure!(info.features.iter().any(|found| found == feature), "{info:?}");
        }
        task.end()
    }
);

test!(
    fn exec_sync_gives_both_outputs_whole_and_the_exit_code(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = sleeper(&containerd, t)?;
        let done = exec_sync(&task, "echo out; echo err >&2; exit 3", 0)?;
        ensure!(done.exit == Some((3, false)), "{done:?}");
        ensure!(done.stdout == b"out\n" && done.stderr == b"err\n", "{done:?}");
        let done = exec_sync(&task, "kill -9 $$", 0)?;
        ensure!(done.exit == Some((137, false)), "{done:?}");
        let done = exec_sync(&task, "head -c 1000000 /dev/zero; cat", 5000)?;
        ensure!(done.exit == Some((0, false)) && done.stdout.len() == 1_000_000);
        ensure!(done.longest <= 64 * 1024, "a piece of {} bytes", done.longest);
        // No events, no exec that stays.
        task.end()?;
        containerd
            .events
            .are(&task.id, &["create", "start", "exit 137", "delete"])
    }
);

test!(
    fn exec_sync_of_what_can_not_run_is_refused(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = sleeper(&containerd, t)?;
        let process = json!({"args": ["/nonexistent"], "cwd": "/", "user": {"uid": 0, "gid": 0}});
        let refused = Executing::begin_process(&task, &process, 0)?
            .finish()
            .refused(Code::UNKNOWN)?;
        ensure!(refused.message.contains("/nonexistent"), "{refused}");
        let unknown = Process::unknown(&task, "unknown", "");
        exec_sync(&unknown, "true", 0).refused_exactly(Code::NOT_FOUND)?;
        task.kill(9)?;
        task.exits_with(137)?;
        exec_sync(&task, "true", 0).refused_exactly(Code::FAILED_PRECONDITION)?;
        task.delete()?;
        Ok(())
    }
);

test!(
    fn a_timeout_kills_all_that_exec_sync_started(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = sleeper(&containerd, t)?;
        let script = "sleep 918273 & (sleep 918273 & sleep 918273); sleep 918273";
        let done = exec_sync(&task, &format!("echo begun; {script}"), 1000)?;
        ensure!(done.exit == Some((137, true)), "{done:?}");
        ensure!(done.stdout == b"begun\n");
        until("all to be killed", || Ok((sleeping(918_273)? == 0).then_some(())))?;
        task.end()
    }
);

test!(
    fn what_exec_sync_left_in_the_background_lives_on(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = sleeper(&containerd, t)?;
        let done = exec_sync(&task, "sleep 918274 & echo left", 5000)?;
        ensure!(
            done.exit == Some((0, false)) && done.stdout == b"left\n",
            "{done:?}"
        );
        ensure!(sleeping(918_274)? == 1, "it was killed");
        task.end()?;
        until("it to end with the container", || {
            Ok((sleeping(918_274)? == 0).then_some(()))
        })
    }
);

test!(
    fn a_client_that_has_gone_kills_its_exec_sync(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = sleeper(&containerd, t)?;
        // One that is silent, and one whose output nobody takes any more.
        for script in ["sleep 918275", "while :; do echo more; done & sleep 918275"] {
            let executing = Executing::begin(&task, script, 0)?;
            until("it to run", || Ok((sleeping(918_275)? == 1).then_some(())))?;
            drop(executing);
            until("it to be killed", || Ok((sleeping(918_275)? == 0).then_some(())))?;
        }
        task.end()
    }
);

test!(
    fn a_client_that_does_not_read_stops_its_exec_and_nobody_else(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = sleeper(&containerd, t)?;
        let mut slow = Executing::begin(&task, "head -c 20000000 /dev/zero; echo done >&2", 0)?;
        slow.next()?;
        std::thread::sleep(Duration::from_secs(1));
        ensure!(exec_sync(&task, "echo here", 5000)?.stdout == b"here\n");
        let memory = process::status_field(task.shim.pid(), "RssAnon")?;
        let kibibytes: u64 = memory.trim_end_matches(" kB").parse()?;
        ensure!(kibibytes < 16 * 1024, "the shim holds {memory}");
        let done = slow.finish()?;
        ensure!(done.stdout.len() == 20_000_000 && done.stderr == b"done\n");
        task.end()
    }
);

test!(
    fn a_log_is_opened_again_by_its_name_and_a_client_reads_along(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        if !t.shim_is_ours() {
            t.skip("needs rtc.shim.v1")?;
        }
        let (log, old) = (t.path("log"), t.path("old"));
        let bundle = containerd
            .bundle()
            .writable()
            .sh("echo first; while [ ! -e /tmp/go ]; do sleep 0.02; done; echo second; echo third >&2");
        let streams = Streams::uri(&format!("cri://{}", log.display()));
        let task = containerd.start(&bundle)?.create(&bundle, streams)?;
        let (out, err) = (fifo(t, "out")?, fifo(t, "err")?);
        let readers = [Reader::new(&out)?, Reader::new(&err)?];
        attach(&task, &out, Some(&err))?;
        task.start()?;
        until("the first line", || {
            Ok(fs::read_to_string(&log)?
                .contains("stdout F first\n")
                .then_some(()))
        })?;
        fs::rename(&log, &old)?;
        reopen_log(&task)?;
        fs::write(bundle.rootfs().join("tmp/go"), "")?;
        task.exits_with(0)?;
        let (log, old) = (fs::read_to_string(&log)?, fs::read_to_string(&old)?);
        ensure!(
            old.lines().count() == 1 && old.ends_with("stdout F first\n"),
            "{old:?}"
        );
        ensure!(
            log.contains("stdout F second\n") && log.contains("stderr F third\n"),
            "{log:?}"
        );
        let [out, err] = readers;
        ensure!(out.text_to_end()? == "first\nsecond\n");
        ensure!(err.text_to_end()? == "third\n");
        task.delete()?;
        reopen_log(&task).refused_exactly(Code::NOT_FOUND)?;
        Ok(())
    }
);

test!(
    fn a_container_without_a_log_of_the_shims_has_none_to_open(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = sleeper(&containerd, t)?;
        reopen_log(&task).refused_exactly(Code::FAILED_PRECONDITION)?;
        let path = fifo(t, "out")?;
        attach(&task, &path, None).refused_exactly(Code::FAILED_PRECONDITION)?;
        attach(&task, Path::new("/nonexistent"), None).refused_exactly(Code::FAILED_PRECONDITION)?;
        task.end()
    }
);
