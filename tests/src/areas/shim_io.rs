//! Standard streams of a shim's containers: FIFOs, files, nothing.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, ensure};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use serde_json::json;

use crate::bundle::Bundle;
use crate::registry::Result;
use crate::shim::{Containerd, Status, Streams, fifo};
use crate::test;
use crate::test::Test;
use crate::wait::until;

/// A FIFO that its test reads by hand.
fn open_reader(path: &str) -> Result<File> {
    let file = File::options()
        .read(true)
        .custom_flags(OFlag::O_NONBLOCK.bits())
        .open(path)?;
    Ok(file)
}

/// Reads until the text has come.
fn read_until(file: &mut File, text: &str) -> Result<String> {
    fcntl(&*file, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let mut all = Vec::new();
    let waited = until(&format!("output {text:?}"), || {
        let mut buffer = [0; 4096];
        match file.read(&mut buffer) {
            Ok(length) => all.extend(&buffer[..length]),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error.into()),
        }
        let seen = String::from_utf8_lossy(&all).into_owned();
        Ok(Some(seen).filter(|seen| seen.contains(text)))
    });
    waited.with_context(|| format!("read {:?}", String::from_utf8_lossy(&all)))
}

/// FIFOs that nobody has opened.
fn unopened(t: &Test) -> Result<Streams> {
    Ok(Streams {
        stdout: fifo(t, "stdout")?.to_string_lossy().into_owned(),
        stderr: fifo(t, "stderr")?.to_string_lossy().into_owned(),
        ..Streams::default()
    })
}

fn create<'t>(
    containerd: &Containerd<'t>,
    bundle: &Bundle<'t>,
    streams: Streams,
) -> Result<crate::shim::Process<'t>> {
    containerd.start(bundle)?.create(bundle, streams)
}

test!(
    fn all_that_was_written_is_there_after_the_exit(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let script =
            "i=0; while [ $i -lt 500 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done; printf end";
        let task = containerd.run(&containerd.bundle().sh(script))?;
        task.exits_with(0)?;
        task.delete()?;
        let (out, err) = (task.streams.out.text_to_end()?, task.streams.err.text_to_end()?);
        let lines = |name: &str| (0..500).map(|i| format!("{name} {i}\n")).collect::<String>();
        ensure!(out == lines("out") + "end", "{} bytes of stdout", out.len());
        ensure!(err == lines("err"), "{} bytes of stderr", err.len());
        Ok(())
    }
);

test!(
    fn ten_megabytes_come_whole_and_in_order(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().args(&["seq", "1", "1500000"]))?;
        task.exits_with(0)?;
        let out = task.streams.out.to_end()?;
        let mut expected = Vec::with_capacity(out.len());
        for number in 1..=1_500_000 {
            writeln!(expected, "{number}")?;
        }
        ensure!(
            out.len() == expected.len(),
            "{} of {} bytes",
            out.len(),
            expected.len()
        );
        ensure!(out == expected, "something in between is different");
        Ok(())
    }
);

test!(
    fn output_reaches_its_reader_while_the_container_runs(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sh("printf begun; sleep 1000000"))?;
        task.streams.out.wait_for("begun")?;
        task.end()?;
        ensure!(task.streams.out.text_to_end()? == "begun", "stdout");
        Ok(())
    }
);

test!(
    fn a_reader_that_does_not_read_holds_up_its_own_container_alone(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let pod = containerd.bundle();
        let annotations = json!({"io.kubernetes.cri.sandbox-id": pod.id});
        let pod = pod
            .set("/annotations", annotations.clone())
            .sh("seq 1 1000000; echo done >&2");
        let other = containerd.bundle().set("/annotations", annotations).sleeper();
        let streams = Streams {
            stdout: fifo(t, "stdout")?.to_string_lossy().into_owned(),
            ..Streams::output(t)?
        };
        let idle = open_reader(&streams.stdout)?;
        let slow = create(&containerd, &pod, streams)?;
        slow.start()?;
        let task = slow.shim.create(&other, Streams::output(t)?)?;
        task.start()?;
        for number in 0..3 {
            ensure!(
                task.output_of(&format!("e{number}"), "echo here")? == "here\n",
                "exec"
            );
            slow.is(Status::RUNNING)?;
        }
        ensure!(
            slow.output_of("e1", "echo here")? == "here\n",
            "exec in the one held up"
        );
        ensure!(!slow.streams.err.text().contains("done"), "nothing held it up");
        task.end()?;
        slow.kill(libc::SIGKILL)?;
        slow.exits_with(137)?;
        drop(idle);
        slow.delete()?;
        Ok(())
    }
);

test!(
    fn a_container_lives_on_when_its_reader_goes(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle =
            containerd
                .bundle()
                .writable()
                .mount("/gate", "bind", &t.directory.to_string_lossy(), &["bind"]);
        let go = t.path("go");
        let name = go.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let script =
            format!("echo one; until [ -e /gate/{name} ]; do sleep 0.02; done; echo two; echo three; exit 5");
        let streams = unopened(t)?;
        let mut reader = open_reader(&streams.stdout)?;
        let errors = open_reader(&streams.stderr)?;
        let task = create(&containerd, &bundle.sh(&script), streams)?;
        task.start()?;
        read_until(&mut reader, "one\n")?;
        drop((reader, errors));
        File::create(go)?;
        task.exits_with(5)?;
        Ok(())
    }
);

test!(
    fn a_reader_that_comes_back_misses_nothing(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd
            .bundle()
            .sh("echo one; read line; echo two; read line; echo three; read line");
        let streams = Streams {
            stdin: fifo(t, "stdin")?.to_string_lossy().into_owned(),
            ..unopened(t)?
        };
        let path = streams.stdout.clone();
        let mut reader = open_reader(&path)?;
        let _errors = open_reader(&streams.stderr)?;
        let task = create(&containerd, &bundle, streams)?;
        task.start()?;
        read_until(&mut reader, "one\n")?;
        drop(reader);
        let stdin = task.streams.type_in("\n")?;
        drop(stdin);
        let mut reader = open_reader(&path)?;
        let seen = read_until(&mut reader, "two\n")?;
        ensure!(seen == "two\n", "{seen:?}");
        let _stdin = task.streams.type_in("\n")?;
        read_until(&mut reader, "three\n")?;
        task.end()
    }
);

test!(
    fn fifos_that_nobody_opens_hold_up_no_call(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().sh("echo out; echo err >&2; sleep 1000000");
        let streams = Streams {
            stdin: fifo(t, "stdin")?.to_string_lossy().into_owned(),
            ..unopened(t)?
        };
        let path = streams.stdout.clone();
        let task = create(&containerd, &bundle, streams)?;
        task.start()?;
        let exec = task.exec_by(
            &task.exec_request("e1", &["sh", "-c", "echo; exit 2"], &unopened(t)?),
            unopened(t)?,
        )?;
        exec.start()?;
        exec.exits_with(2)?;
        exec.delete()?;
        let mut late = open_reader(&path)?;
        read_until(&mut late, "out\n")?;
        task.end()
    }
);

test!(
    fn what_is_typed_reaches_the_container_and_close_io_ends_it(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().args(&["cat"]);
        let task = create(&containerd, &bundle, Streams::all(t)?)?;
        // Before the start, too.
        let stdin = task.streams.type_in("one\n")?;
        task.start()?;
        task.streams.out.wait_for("one\n")?;
        drop(stdin);
        let stdin = task.streams.type_in("two\n")?;
        task.streams.out.wait_for("one\ntwo\n")?;
        task.is(Status::RUNNING)
            .context("a writer has gone, and may come back")?;
        drop(stdin);
        task.close_stdin()?;
        task.exits_with(0)?;
        Ok(())
    }
);

test!(
    fn close_io_before_the_writer_goes_loses_nothing(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().args(&["wc", "-c"]);
        let task = create(&containerd, &bundle, Streams::all(t)?)?;
        task.start()?;
        let mut stdin = task.streams.open_stdin()?;
        let chunk = vec![b'x'; 1 << 20];
        for _ in 0..5 {
            stdin.write_all(&chunk)?;
        }
        task.close_stdin()?;
        drop(stdin);
        task.exits_with(0)?;
        let counted = task.streams.out.text_to_end()?;
        ensure!(
            counted.trim() == (5 << 20).to_string(),
            "{counted:?} of {}",
            5 << 20
        );
        Ok(())
    }
);

test!(
    fn standard_input_of_an_exec_works_the_same(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let streams = Streams::all(t)?;
        let exec = task.exec_by(&task.exec_request("e1", &["cat"], &streams), streams)?;
        exec.start()?;
        let stdin = exec.streams.type_in("hello\n")?;
        exec.streams.out.wait_for("hello\n")?;
        drop(stdin);
        exec.close_stdin()?;
        exec.exits_with(0)?;
        exec.delete()?;
        Ok(())
    }
);

test!(
    fn a_container_that_reads_nothing_of_its_input_still_ends(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().sleeper();
        let task = create(&containerd, &bundle, Streams::all(t)?)?;
        task.start()?;
        let stdin = task.streams.open_stdin()?;
        fcntl(&stdin, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        // Until nothing more fits, wherever it is kept.
        let mut rounds = 0;
        until("full pipes", || {
            rounds += 1;
            Ok(((&stdin).write(&[b'x'; 4096]).is_err() && rounds > 100).then_some(()))
        })?;
        task.is(Status::RUNNING)?;
        task.end()
    }
);

test!(
    fn no_streams_are_dev_null(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let script = "for n in 0 1 2; do [ $(readlink /proc/$$/fd/$n) = /dev/null ] || exit 9; done; read x && exit 8; exit 7";
        let task = create(&containerd, &containerd.bundle().sh(script), Streams::default())?;
        task.start()?;
        task.exits_with(7)?;
        Ok(())
    }
);

test!(
    fn one_stream_alone_is_that_one_and_the_others_are_empty(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let streams = Streams {
            stderr: String::new(),
            ..Streams::output(t)?
        };
        let task = create(
            &containerd,
            &containerd
                .bundle()
                .sh("echo out; echo err >&2 || exit 3; read x && exit 4; exit 0"),
            streams,
        )?;
        task.start()?;
        task.exits_with(0)?;
        ensure!(task.streams.out.text_to_end()? == "out\n", "stdout");
        Ok(())
    }
);

test!(
    fn output_goes_to_a_file_behind_what_is_there(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let path = t.path("log");
        fs::write(&path, "before\n")?;
        let uri = format!("file://{}", path.display());
        let task = create(
            &containerd,
            &containerd.bundle().sh("echo out; echo err >&2"),
            Streams::uri(&uri),
        )?;
        task.start()?;
        task.exits_with(0)?;
        task.delete()?;
        let text = fs::read_to_string(&path)?;
        let (both, swapped) = ("before\nout\nerr\n", "before\nerr\nout\n");
        ensure!(text == both || text == swapped, "{text:?}");
        Ok(())
    }
);

test!(
    fn the_directory_of_an_output_file_is_made(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let path = t.path("logs").join("deeper/log");
        let uri = format!("file://{}", path.display());
        let task = create(&containerd, &containerd.bundle().sleeper(), Streams::uri(&uri))?;
        task.start()?;
        let own = path.with_file_name("exec");
        let streams = Streams::uri(&format!("file://{}", own.display()));
        let exec = task.exec_by(&task.exec_request("e1", &["echo", "exec"], &streams), streams)?;
        exec.start()?;
        exec.exits_with(0)?;
        exec.delete()?;
        task.end()?;
        ensure!(path.exists(), "no log of the container");
        ensure!(fs::read_to_string(own)? == "exec\n", "log of the exec");
        Ok(())
    }
);

test!(
    fn a_megabyte_in_a_file_is_whole(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let path = t.path("log");
        let uri = format!("file://{}", path.display());
        let task = create(
            &containerd,
            &containerd.bundle().args(&["seq", "1", "200000"]),
            Streams::uri(&uri),
        )?;
        task.start()?;
        task.exits_with(0)?;
        task.delete()?;
        let text = fs::read_to_string(&path)?;
        ensure!(
            text.lines().count() == 200_000 && text.ends_with("\n200000\n"),
            "{} bytes",
            text.len()
        );
        Ok(())
    }
);

test!(
    fn another_user_can_open_its_output_again(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd
            .bundle()
            .set("/process/user", json!({"uid": 1000, "gid": 1000}))
            .sh("echo one > /dev/stdout && echo two > /dev/stderr && echo three > /proc/self/fd/1");
        let task = containerd.run(&bundle)?;
        task.exits_with(0)?;
        ensure!(
            task.streams.out.text_to_end()? == "one\nthree\n",
            "stdout: {:?}",
            task.streams.out.text()
        );
        ensure!(
            task.streams.err.text_to_end()? == "two\n",
            "stderr: {:?}",
            task.streams.err.text()
        );
        Ok(())
    }
);

test!(
    fn an_exec_as_another_user_can_open_its_output_again(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let streams = Streams::output(t)?;
        let mut spec = task.spec.clone();
        spec["user"] = json!({"uid": 1000, "gid": 1000});
        spec["args"] = json!(["sh", "-c", "echo one > /dev/stdout && echo two > /dev/stderr"]);
        let exec = task.exec_by(&task.exec_request_of("e1", &spec, &streams), streams)?;
        exec.start()?;
        exec.exits_with(0)?;
        ensure!(exec.streams.out.text_to_end()? == "one\n", "stdout");
        ensure!(exec.streams.err.text_to_end()? == "two\n", "stderr");
        exec.delete()?;
        Ok(())
    }
);

test!(
    fn both_outputs_in_one_fifo_keep_their_order(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let mut streams = Streams::output(t)?;
        streams.stderr = streams.stdout.clone();
        let task = create(
            &containerd,
            &containerd.bundle().sh("echo one; echo two >&2; echo three"),
            streams,
        )?;
        task.start()?;
        task.exits_with(0)?;
        task.delete()?;
        let text = task.streams.out.text_to_end()?;
        let mut lines: Vec<&str> = text.lines().collect();
        if !t.shim_is_ours() {
            // Two pipes, two copies.
            lines.sort_unstable();
            ensure!(lines == ["one", "three", "two"], "{text:?}");
            return Ok(());
        }
        ensure!(lines == ["one", "two", "three"], "{text:?}");
        Ok(())
    }
);

test!(
    fn a_background_process_keeps_its_output_after_an_exec_has_ended(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().writable().sleeper())?;
        let script = "(until [ -e /go ]; do sleep 0.02; done; echo late; touch /done) & echo early";
        let exec = task.exec_sh("e1", script)?;
        exec.exits_with(0)?;
        exec.streams.out.wait_for("early\n")?;
        task.output_of("e2", "touch /go; until [ -e /done ]; do sleep 0.02; done")?;
        task.end()
    }
);
