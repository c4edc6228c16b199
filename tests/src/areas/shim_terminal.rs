//! Terminals of a shim's containers and execs.

use std::io::Write;

use anyhow::ensure;
use serde_json::json;

use crate::bundle::Bundle;
use crate::registry::Result;
use crate::shim::{Code, Containerd, Process, Refusal, Status, Streams};
use crate::test;

/// A started container with a terminal.
fn run<'t>(containerd: &Containerd<'t>, bundle: Bundle<'t>) -> Result<Process<'t>> {
    let bundle = bundle.set("/process/terminal", json!(true));
    let shim = containerd.start(&bundle)?;
    let task = shim.create(&bundle, Streams::terminal(shim.t)?)?;
    task.start()?;
    Ok(task)
}

/// A started exec with a terminal.
fn exec<'t>(task: &Process<'t>, id: &str, script: &str) -> Result<Process<'t>> {
    let streams = Streams::terminal(task.shim.t)?;
    let exec = task.exec_by(&task.exec_request(id, &["sh", "-c", script], &streams), streams)?;
    exec.start()?;
    Ok(exec)
}

test!(
    fn a_container_with_a_terminal_has_it_on_all_streams(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let script = "[ -t 0 ] && [ -t 1 ] && [ -t 2 ] && tty && echo error >&2";
        let task = run(&containerd, containerd.bundle().sh(script))?;
        task.exits_with(0)?;
        let text = task.streams.out.text_to_end()?;
        ensure!(text.contains("/dev/") && text.contains("error"), "{text:?}");
        task.delete()?;
        Ok(())
    }
);

test!(
    fn what_is_typed_comes_back_and_reaches_the_program(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = run(
            &containerd,
            containerd.bundle().sh("read line; echo got $line; exit 6"),
        )?;
        let _stdin = task.streams.type_in("hello\n")?;
        task.exits_with(6)?;
        let text = task.streams.out.text_to_end()?;
        ensure!(text.contains("hello") && text.contains("got hello"), "{text:?}");
        task.delete()?;
        Ok(())
    }
);

test!(
    fn the_size_is_the_one_asked_for_and_a_change_is_told(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.02; done";
        let task = run(&containerd, containerd.bundle().sh(script))?;
        task.streams.out.wait_for("ready")?;
        task.resize(100, 30)?;
        task.exits_with(0)?;
        let text = task.streams.out.text_to_end()?;
        ensure!(text.contains("30 100"), "{text:?}");
        task.delete()?;
        Ok(())
    }
);

test!(
    fn the_size_of_the_configuration_holds_from_the_start(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd
            .bundle()
            .set("/process/consoleSize", json!({"height": 33, "width": 77}))
            .sh("stty size");
        let task = run(&containerd, bundle)?;
        task.exits_with(0)?;
        let text = task.streams.out.text_to_end()?;
        ensure!(text.contains("33 77"), "{text:?}");
        task.delete()?;
        Ok(())
    }
);

test!(
    fn an_exec_has_a_terminal_of_its_own_size(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = run(&containerd, containerd.bundle().sleeper())?;
        let exec = exec(&task, "e1", "read line; stty size; tty")?;
        exec.resize(81, 25)?;
        let _stdin = exec.streams.type_in("\n")?;
        exec.exits_with(0)?;
        let text = exec.streams.out.text_to_end()?;
        ensure!(text.contains("25 81"), "{text:?}");
        exec.resize(80, 24).refused(Code::FAILED_PRECONDITION)?;
        exec.delete()?;
        task.end()
    }
);

test!(
    fn control_c_interrupts_and_control_d_ends_the_input(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = run(&containerd, containerd.bundle().sleeper())?;
        let interrupted = exec(
            &task,
            "e1",
            "trap 'exit 7' INT; echo ready; while :; do sleep 0.02; done",
        )?;
        interrupted.streams.out.wait_for("ready")?;
        let _stdin = interrupted.streams.type_in("\x03")?;
        interrupted.exits_with(7)?;
        let ended = exec(&task, "e2", "cat; echo end")?;
        let mut stdin = ended.streams.type_in("text\n")?;
        ended.streams.out.wait_for("text\r\ntext")?;
        stdin.write_all(b"\x04")?;
        ended.exits_with(0)?;
        ensure!(
            ended.streams.out.text_to_end()?.contains("end"),
            "{:?}",
            ended.streams.out.text()
        );
        interrupted.delete()?;
        ended.delete()?;
        task.end()
    }
);

test!(
    fn a_megabyte_on_a_terminal_is_whole(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = run(&containerd, containerd.bundle().args(&["seq", "1", "150000"]))?;
        task.exits_with(0)?;
        let text = task.streams.out.text_to_end()?;
        let expected: String = (1..=150_000).map(|number| format!("{number}\r\n")).collect();
        ensure!(
            text.len() == expected.len(),
            "{} of {} bytes",
            text.len(),
            expected.len()
        );
        ensure!(text == expected, "something in between is different");
        task.delete()?;
        Ok(())
    }
);

test!(
    fn a_terminal_whose_reader_does_not_read_holds_up_no_call(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd
            .bundle()
            .set("/process/terminal", json!(true))
            .args(&["seq", "1", "1000000"]);
        let shim = containerd.start(&bundle)?;
        let mut streams = Streams::terminal(t)?;
        // One that only its own descriptor opens, and that nobody reads.
        streams.stdout = crate::shim::fifo(t, "unread")?.to_string_lossy().into_owned();
        let _unread = std::fs::File::options()
            .read(true)
            .write(true)
            .open(&streams.stdout)?;
        let task = shim.create(&bundle, streams)?;
        task.start()?;
        for number in 0..3 {
            ensure!(
                task.output_of(&format!("e{number}"), "echo here")? == "here\n",
                "exec"
            );
        }
        task.is(Status::RUNNING)?;
        task.kill(libc::SIGKILL)?;
        task.exits_with(137)?;
        Ok(())
    }
);

test!(
    fn a_terminal_goes_on_when_its_client_goes(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = run(
            &containerd,
            containerd
                .bundle()
                .sh("while read line; do echo got $line; done; exit 8"),
        )?;
        let stdin = task.streams.type_in("one\n")?;
        task.streams.out.wait_for("got one")?;
        drop(stdin);
        let _stdin = task.streams.type_in("two\n")?;
        task.streams.out.wait_for("got two")?;
        task.end()
    }
);

test!(
    fn a_terminal_outlives_its_first_process_for_others_of_the_container(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = run(&containerd, containerd.bundle().sleeper())?;
        let exec = exec(
            &task,
            "e1",
            "trap '' HUP; (trap '' HUP; sleep 0.3; touch /dev/shm/done) & echo early",
        )?;
        exec.exits_with(0)?;
        ensure!(
            exec.streams.out.text().contains("early") || exec.streams.out.wait_for("early").is_ok(),
            "output"
        );
        task.output_of("e2", "until [ -e /dev/shm/done ]; do sleep 0.02; done")?;
        exec.delete()?;
        task.end()
    }
);

test!(
    fn resizing_where_there_is_no_terminal_changes_nothing(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        // Some refuse it, some do nothing.
        let _ = task.resize(80, 24);
        task.is(Status::RUNNING)?;
        task.end()
    }
);
