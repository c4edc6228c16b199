//! The shim under the real containerd, every version that there is, driven by `ctr`.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::Value;

use crate::containerd::{Daemon, with_each};
use crate::host::process;
use crate::registry::Result;
use crate::terminal::Terminal;
use crate::test;
use crate::wait::until;

test!(
    fn run_prints_both_streams_and_ends_with_the_containers_status(t: &Test) -> Result {
        with_each(t, |containerd| {
            let (run, id) = containerd.run(&["--rm"], &["sh", "-c", "echo out; echo err >&2; exit 7"]);
            let output = run.run()?.code(7)?;
            ensure!(output.stdout == "out\n", "{output}");
            ensure!(output.stderr.contains("err\n"), "{output}");
            ensure!(containerd.task(&id)?.is_none(), "the task is still there");
            Ok(())
        })
    }
);

test!(
    fn all_output_arrives_however_much_there_is(t: &Test) -> Result {
        with_each(t, |containerd| {
            let (run, _) = containerd.run(&["--rm"], &["sh", "-c", "seq 1 200000"]);
            let output = run.run()?.ok()?;
            let expected: u64 = 200_000;
            ensure!(
                output.stdout.lines().count() as u64 == expected,
                "{} lines",
                output.stdout.lines().count()
            );
            ensure!(output.stdout.ends_with("\n200000\n"), "the end is missing");
            Ok(())
        })
    }
);

test!(
    fn standard_input_arrives_and_ends(t: &Test) -> Result {
        with_each(t, |containerd| {
            let (reader, mut writer) = std::io::pipe()?;
            let (run, id) = containerd.run(&["--rm"], &["sh", "-c", "cat; echo end"]);
            let run = run.stdin(std::process::Stdio::from(reader)).spawn()?;
            writer.write_all(b"one\ntwo\n")?;
            // ctr 1.6 forgets an end that comes before the task.
            containerd.wait(&id, "RUNNING")?;
            drop(writer);
            run.wait()?.prints("one\ntwo\nend")?;
            Ok(())
        })
    }
);

test!(
    fn a_container_from_an_image_has_its_snapshot_mounted_and_unmounted(t: &Test) -> Result {
        with_each(t, |containerd| {
            let image = "registry.k8s.io/e2e-test-images/busybox:1.29-4";
            let archive = containerd.peer_file("images/busybox.tar");
            let local = if containerd.is_2() { &["--local"][..] } else { &[] };
            let import = containerd.ctr_command(["image", "import", "--snapshotter", "native"]);
            import.args(local).args([&archive]).run()?.ok()?;
            let id = t.id();
            let runtime = containerd.runtime();
            let script = "echo kept > /file; cat /file; ls /bin/busybox";
            containerd
                .ctr_command([
                    "run",
                    "--rm",
                    "--snapshotter",
                    "native",
                    "--runtime",
                    &runtime,
                    image,
                    &id,
                ])
                .args(["sh", "-c", script])
                .run()?
                .prints("kept\n/bin/busybox")?;
            containerd.ctr(["image", "rm", image])?.ok()?;
            Ok(())
        })
    }
);

test!(
    fn a_detached_task_runs_is_listed_executes_is_killed_and_removed(t: &Test) -> Result {
        with_each(t, |containerd| {
            let id = containerd.start(&[], &["sleep", "1000"])?;
            containerd.wait(&id, "RUNNING")?;
            let pid = containerd.task_pid(&id)?;
            ensure!(process::is_alive(pid), "pid {pid}");
            containerd
                .exec(&id, &["sh", "-c", "echo in; exit 5"])?
                .code(5)?
                .stdout_is("in\n")?;
            let ps = containerd.ctr(["task", "ps", &id])?.ok()?;
            ensure!(ps.stdout.contains(&pid.to_string()), "{ps}");
            containerd.ctr(["task", "kill", "--signal", "KILL", &id])?.ok()?;
            containerd.wait(&id, "STOPPED")?;
            containerd.remove_ended(&id, 137)
        })
    }
);

/// Waits until `ctr events` has subscribed: it sees containers come and go then.
fn subscribed(containerd: &Daemon<'_>, seen: &Path) -> Result {
    until("ctr events to subscribe", || {
        let probe = containerd.t.id();
        containerd.ctr([
            "namespace",
            "label",
            &containerd.t.namespace(),
            &format!("probe={probe}"),
        ])?;
        Ok((fs::metadata(seen)?.len() > 0).then_some(()))
    })
}

test!(
    fn events_come_in_their_order(t: &Test) -> Result {
        with_each(t, |containerd| {
            let events = containerd.ctr_command(["events"]).spawn()?;
            let seen = events.stdout.clone();
            // Subscribed once it sees what happens after it: an image of its own to label does not exist, so a container.
            let probe = t.id();
            containerd
                .start(&[], &["true"])
                .map(|id| (probe, id))
                .and_then(|(_, id)| {
                    containerd.wait(&id, "STOPPED")?;
                    containerd.ctr(["task", "rm", &id])?.ok()?;
                    containerd.ctr(["container", "rm", &id])?.ok()?;
                    Ok(())
                })?;
            let id = containerd.start(&[], &["sleep", "1000"])?;
            containerd.exec(&id, &["true"])?.ok()?;
            containerd.remove(&id)?;
            let expected = [
                "/tasks/create",
                "/tasks/start",
                "/tasks/exec-added",
                "/tasks/exec-started",
                "/tasks/exit",
                "/tasks/exit",
                "/tasks/delete",
            ];
            let topics = || -> Result<Vec<String>> {
                let text = fs::read_to_string(&seen)?;
                let of_this = text.lines().filter(|line| line.contains(&id));
                let topics = of_this
                    .filter_map(|line| line.split_whitespace().find(|word| word.starts_with("/tasks/")));
                Ok(topics.map(str::to_owned).collect())
            };
            let found = until("the last event", || {
                Ok(Some(topics()?).filter(|topics| topics.iter().any(|topic| topic == "/tasks/delete")))
            });
            ensure!(found? == expected, "{:?}", topics()?);
            events.kill()?;
            Ok(())
        })
    }
);

test!(
    fn pause_stops_every_process_until_resume(t: &Test) -> Result {
        with_each(t, |containerd| {
            let log = t.path("log");
            let uri = format!("file://{}", log.display());
            let script = "while :; do echo x; sleep 0.05; done";
            let id = containerd.start(&["--log-uri", &uri], &["sh", "-c", script])?;
            let length = || fs::metadata(&log).map_or(0, |file| file.len());
            let grown = |from| until("output", || Ok((length() > from).then_some(())));
            grown(0)?;
            containerd.ctr(["task", "pause", &id])?.ok()?;
            containerd.wait(&id, "PAUSED")?;
            let paused = length();
            std::thread::sleep(std::time::Duration::from_millis(300));
            ensure!(length() <= paused + 2, "it goes on while it is paused");
            containerd.ctr(["task", "resume", &id])?.ok()?;
            containerd.wait(&id, "RUNNING")?;
            grown(paused + 2)?;
            containerd.remove(&id)
        })
    }
);

test!(
    fn metrics_tell_memory_processes_and_processor_time(t: &Test) -> Result {
        with_each(t, |containerd| {
            let id = containerd.start(&[], &["sh", "-c", "sleep 1000 & sleep 1000 & wait"])?;
            until("two sleeps", || {
                let count = containerd.ctr(["task", "ps", &id])?.ok()?.lines().len();
                Ok((count >= 4).then_some(()))
            })?;
            let output = containerd
                .ctr(["task", "metrics", "--format", "json", &id])?
                .ok()?;
            let metrics: Value = serde_json::from_str(&output.stdout).with_context(|| output.to_string())?;
            let number = |paths: &[&str]| {
                let found = paths
                    .iter()
                    .find_map(|path| metrics.pointer(path))
                    .and_then(Value::as_u64);
                found.with_context(|| format!("none of {paths:?}: {metrics}"))
            };
            // cgroup v1 and v2.
            ensure!(number(&["/pids/current"])? == 3, "{metrics}");
            ensure!(
                number(&["/memory/usage/usage", "/memory/usage"])? > 4096,
                "{metrics}"
            );
            ensure!(number(&["/cpu/usage/total", "/cpu/usage_usec"])? > 0, "{metrics}");
            containerd.remove(&id)
        })
    }
);

test!(
    fn a_terminal_is_typed_in_and_resized(t: &Test) -> Result {
        with_each(t, |containerd| {
            let (mut terminal, slave) = Terminal::open()?;
            terminal.resize(33, 101)?;
            let (run, _) = containerd.run(&["--rm", "--tty"], &["sh"]);
            let run = run.terminal(slave).spawn()?;
            // The size follows the start.
            terminal.type_in("until [ \"$(stty size 2>/dev/null)\" = '33 101' ]; do sleep 0.1; done\n")?;
            terminal.type_in("tty; echo in-$((40+2))\n")?;
            let text = terminal.wait_for("in-42")?;
            ensure!(text.contains("/dev/pts/0"), "{text:?}");
            terminal.type_in("exit 9\n")?;
            run.wait()?.code(9)?;
            Ok(())
        })
    }
);

test!(
    fn a_file_gets_the_output(t: &Test) -> Result {
        with_each(t, |containerd| {
            let log = t.path("log");
            let uri = format!("file://{}", log.display());
            let id = containerd.start(&["--log-uri", &uri], &["sh", "-c", "echo out; echo err >&2"])?;
            containerd.wait(&id, "STOPPED")?;
            // All of it is there when the end is known; containerd's own shim is sometimes late.
            let text = || fs::read_to_string(&log);
            let complete = |text: &str| text.contains("out\n") && text.contains("err\n");
            if t.shim_is_ours() {
                ensure!(complete(&text()?), "{:?}", text());
            }
            until("both streams", || Ok(complete(&text()?).then_some(())))?;
            containerd.remove(&id)
        })
    }
);

test!(
    fn a_logger_program_gets_both_streams_and_what_the_address_says(t: &Test) -> Result {
        with_each(t, |containerd| {
            let (log, logger) = (t.path("log"), t.path("logger"));
            let script = "#!/bin/busybox sh\n\
                 # stdout is 3, stderr is 4; closing 5 says that we are ready.\n\
                 exec 5>&-\n(cat <&3; echo \"end of $CONTAINER_ID $*\") >\"$2.out\" &\ncat <&4 >\"$2.err\"\nwait\n";
            fs::write(&logger, script)?;
            fs::set_permissions(&logger, fs::Permissions::from_mode(0o755))?;
            let uri = format!("binary://{}?to={}", logger.display(), log.display());
            let id = containerd.start(&["--log-uri", &uri], &["sh", "-c", "echo out; echo err >&2"])?;
            containerd.wait(&id, "STOPPED")?;
            containerd.remove(&id)?;
            let read = |kind: &str| fs::read_to_string(format!("{}.{kind}", log.display()));
            let end = format!("out\nend of {id} to {}\n", log.display());
            until("the logger's last word", || {
                Ok((read("out")? == end).then_some(()))
            })
            .with_context(|| format!("{:?}", read("out")))?;
            ensure!(read("err")? == "err\n", "{:?}", read("err"));
            Ok(())
        })
    }
);

test!(
    fn a_checkpoint_is_an_image_or_says_why_not(t: &Test) -> Result {
        let works = crate::criu::works(&crate::criu::search_path()) && t.shim_is_ours();
        with_each(t, |containerd| {
            let id = containerd.start(&[], &["sleep", "1000000"])?;
            let output = containerd.ctr(["task", "checkpoint", &id])?;
            if works {
                output.ok()?;
                let images = containerd.ctr(["image", "ls", "--quiet"])?;
                images.mentions(&format!("containerd.io/checkpoint/{id}"))?;
            } else {
                let texts: &[&str] = if t.shim_is_ours() { &["checkpoint"] } else { &[] };
                output.fails_with(texts)?;
            }
            containerd.wait(&id, "RUNNING")?;
            containerd.remove(&id)
        })
    }
);

test!(
    fn a_program_that_is_not_there_is_named_and_leaves_nothing(t: &Test) -> Result {
        with_each(t, |containerd| {
            let (run, id) = containerd.run(&["--rm"], &["/no/such/program"]);
            run.run()?.fails_with(&["/no/such/program"])?;
            ensure!(containerd.task(&id)?.is_none(), "a task is there");
            Ok(())
        })
    }
);

test!(
    fn a_container_beyond_its_memory_is_killed_and_an_event_says_why(t: &Test) -> Result {
        t.needs_controller("memory")?;
        with_each(t, |containerd| {
            let events = containerd.ctr_command(["events"]).spawn()?;
            let seen = events.stdout.clone();
            subscribed(containerd, &seen)?;
            let limit = (16_u32 << 20).to_string();
            let eater = "sleep 0.5; dd if=/dev/zero of=/dev/null bs=64M count=1 & wait $!; exit 3";
            let id = containerd.start(&["--memory-limit", &limit], &["sh", "-c", eater])?;
            containerd.wait(&id, "STOPPED")?;
            until("the event /tasks/oom", || {
                let text = fs::read_to_string(&seen)?;
                Ok(text
                    .lines()
                    .any(|line| line.contains("/tasks/oom") && line.contains(&id))
                    .then_some(()))
            })?;
            events.kill()?;
            containerd.remove(&id)
        })
    }
);

test!(
    fn many_containers_at_once_each_end_with_their_own_status(t: &Test) -> Result {
        with_each(t, |containerd| {
            let mut running = Vec::new();
            for number in 0..6 {
                let script = format!("echo {number}; exit {number}");
                let (run, _) = containerd.run(&["--rm"], &["sh", "-c", &script]);
                running.push(run.spawn()?);
            }
            for (number, run) in running.into_iter().enumerate() {
                let output = run.wait()?.code(i32::try_from(number)?)?;
                ensure!(output.stdout == format!("{number}\n"), "{output}");
            }
            Ok(())
        })
    }
);

test!(
    fn standard_input_of_an_exec_can_be_a_pipe_that_stays_open(t: &Test) -> Result {
        with_each(t, |containerd| {
            let id = containerd.start(&[], &["sleep", "1000"])?;
            let (reader, mut writer) = std::io::pipe()?;
            let exec = containerd.ctr_command(["task", "exec", "--exec-id", "cat", &id, "head", "-n", "1"]);
            let exec = exec.stdin(std::process::Stdio::from(reader)).spawn()?;
            writer.write_all(b"line\n")?;
            let output = exec.wait()?.ok()?;
            ensure!(output.stdout == "line\n", "{output}");
            containerd.remove(&id)
        })
    }
);
