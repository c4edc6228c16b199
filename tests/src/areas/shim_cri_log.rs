//! `cri://`: the log of a container as the kubelet reads it (CRI's `docs` on logging: `TIMESTAMP STREAM TAG TEXT`).

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::json;

use crate::registry::Result;
use crate::shim::extension::{attach, reopen_log};
use crate::shim::{Code, Containerd, Process, Reader, Refusal, Refused, Streams, fifo};
use crate::test;
use crate::wait::until;

/// One line: stream, tag and text.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    stream: String,
    tag: String,
    text: String,
}

/// Reads a log, and checks each line's form and that time does not run backwards.
fn read(path: &Path) -> Result<Vec<Line>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    ensure!(
        text.is_empty() || text.ends_with('\n'),
        "the last line is not whole"
    );
    let mut last = String::new();
    let mut lines = Vec::new();
    for line in text.lines() {
        let parts: Vec<&str> = line.splitn(4, ' ').collect();
        let [time, stream, tag, text] = parts[..] else {
            anyhow::bail!("{line:?}");
        };
        // 2016-10-06T00:17:09.669794202Z, or with an offset.
        let bytes = time.as_bytes();
        let is_time = bytes.len() >= 20
            && [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')]
                .iter()
                .all(|&(at, byte)| bytes[at] == byte);
        ensure!(is_time, "time {time:?}");
        ensure!(time >= last.as_str(), "{time} after {last}");
        time.clone_into(&mut last);
        ensure!(
            matches!(stream, "stdout" | "stderr") && matches!(tag, "F" | "P"),
            "{line:?}"
        );
        lines.push(Line {
            stream: stream.to_owned(),
            tag: tag.to_owned(),
            text: text.to_owned(),
        });
    }
    Ok(lines)
}

fn line(stream: &str, tag: &str, text: &str) -> Line {
    Line {
        stream: stream.to_owned(),
        tag: tag.to_owned(),
        text: text.to_owned(),
    }
}

fn uri(path: &Path, query: &str) -> Streams {
    Streams::uri(&format!("cri://{}{query}", path.display()))
}

/// A started container whose log is at this path.
fn logged<'t>(containerd: &Containerd<'t>, path: &Path, query: &str, script: &str) -> Result<Process<'t>> {
    let bundle = containerd.bundle().sh(script);
    let task = containerd.start(&bundle)?.create(&bundle, uri(path, query))?;
    task.start()?;
    Ok(task)
}

test!(
    fn lines_of_both_streams_are_in_the_form_of_cri(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let path = t.path("log");
        let task = logged(
            &containerd,
            &path,
            "",
            "echo one; echo; printf 'a  b \\n'; printf end",
        )?;
        task.exits_with(0)?;
        let exec_log = t.path("exec-log");
        let other = logged(&containerd, &exec_log, "", "echo error >&2")?;
        other.exits_with(0)?;
        let lines = read(&path)?;
        // What has no newline at the end of the stream is partial.
        let expected = [
            line("stdout", "F", "one"),
            line("stdout", "F", ""),
            line("stdout", "F", "a  b "),
            line("stdout", "P", "end"),
        ];
        ensure!(lines == expected, "{lines:?}");
        ensure!(
            read(&exec_log)? == [line("stderr", "F", "error")],
            "{:?}",
            read(&exec_log)?
        );
        Ok(())
    }
);

test!(
    fn long_lines_are_cut_into_partial_ones(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let path = t.path("log");
        let script = "head -c 40000 /dev/zero | tr '\\0' x; echo; echo short";
        let task = logged(&containerd, &path, "", script)?;
        task.exits_with(0)?;
        let lines = read(&path)?;
        let (last, parts) = lines.split_last().context("no line")?;
        ensure!(*last == line("stdout", "F", "short"), "{last:?}");
        let whole: String = parts.iter().map(|part| part.text.as_str()).collect();
        ensure!(whole == "x".repeat(40000), "{} bytes", whole.len());
        let tags: String = parts.iter().map(|part| part.tag.as_str()).collect();
        ensure!(
            parts.len() >= 3 && tags.trim_start_matches('P') == "F",
            "tags {tags}"
        );
        ensure!(
            parts.iter().all(|part| part.text.len() <= 16384),
            "a part is longer than 16 KiB"
        );
        Ok(())
    }
);

test!(
    fn a_line_longer_than_the_limit_in_the_uri_is_cut_there(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let path = t.path("log");
        let task = logged(
            &containerd,
            &path,
            "?max-line=100",
            "head -c 250 /dev/zero | tr '\\0' x; echo",
        )?;
        task.exits_with(0)?;
        let lengths: Vec<(usize, String)> = read(&path)?
            .into_iter()
            .map(|line| (line.text.len(), line.tag))
            .collect();
        let expected = [(100, "P".to_owned()), (100, "P".to_owned()), (50, "F".to_owned())];
        ensure!(lengths == expected, "{lengths:?}");
        Ok(())
    }
);

test!(
    fn a_hundred_thousand_lines_are_all_there(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let path = t.path("log");
        let task = logged(&containerd, &path, "", "seq 1 100000")?;
        task.exits_with(0)?;
        let lines = read(&path)?;
        ensure!(lines.len() == 100_000, "{} lines", lines.len());
        for (number, line) in lines.iter().enumerate() {
            ensure!(line.text == (number + 1).to_string(), "line {number}: {line:?}");
        }
        Ok(())
    }
);

test!(
    fn a_log_reopened_again_and_again_loses_no_line(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let path = t.path("log");
        let script = "i=0; while [ $i -lt 3000 ]; do echo $i; i=$((i+1)); [ $((i % 20)) = 0 ] && sleep 0.01; done; true";
        let task = logged(&containerd, &path, "", script)?;
        let mut files = Vec::new();
        for number in 0..20 {
            let old = path.with_extension(number.to_string());
            fs::rename(&path, &old)?;
            match reopen_log(&task) {
                Ok(_) => files.push(old),
                Err(error) => {
                    // The container has ended in the meantime.
                    let refused = error.downcast::<Refused>()?;
                    let ended = matches!(refused.code, Code::FAILED_PRECONDITION | Code::UNAVAILABLE);
                    ensure!(ended, "{refused}");
                    fs::rename(&old, &path)?;
                    break;
                }
            }
        }
        task.exits_with(0)?;
        files.push(path);
        let mut all = Vec::new();
        for file in &files {
            all.extend(read(file)?);
        }
        ensure!(files.len() >= 2, "reopened {} times", files.len() - 1);
        ensure!(all.len() == 3000, "{} lines in {} files", all.len(), files.len());
        for (number, line) in all.iter().enumerate() {
            ensure!(
                line.text == number.to_string() && line.tag == "F",
                "line {number}: {line:?}"
            );
        }
        Ok(())
    }
);

test!(
    fn a_log_with_a_size_limit_is_rotated_within_it(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let directory = t.path("logs");
        fs::create_dir(&directory)?;
        let path = directory.join("log");
        let task = logged(&containerd, &path, "?max-size=20000&max-files=3", "seq 1 20000")?;
        task.exits_with(0)?;
        let mut sizes = Vec::new();
        for entry in fs::read_dir(&directory)? {
            let entry = entry?;
            sizes.push((entry.file_name(), entry.metadata()?.len()));
        }
        ensure!(
            sizes.len() <= 3 && sizes.iter().all(|&(_, size)| size <= 20000),
            "{sizes:?}"
        );
        let last = read(&path)?;
        ensure!(
            last.last().is_some_and(|line| line.text == "20000"),
            "{:?}",
            last.last()
        );
        Ok(())
    }
);

test!(
    fn a_terminals_log_is_in_the_form_of_cri_too(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let path = t.path("log");
        let bundle = containerd
            .bundle()
            .set("/process/terminal", json!(true))
            .sh("tty > /dev/null && echo yes");
        let mut streams = uri(&path, "");
        streams.stderr.clear();
        streams.terminal = true;
        let task = containerd.start(&bundle)?.create(&bundle, streams)?;
        task.start()?;
        task.exits_with(0)?;
        let lines = read(&path)?;
        ensure!(lines.len() == 1 && lines[0].text.trim_end() == "yes", "{lines:?}");
        Ok(())
    }
);

test!(
    fn a_log_that_cannot_be_written_fails_create(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().sleeper();
        let shim = containerd.start(&bundle)?;
        for path in ["/proc/no/such/log", "/dev"] {
            ensure!(
                shim.create(&bundle, uri(Path::new(path), "")).is_err(),
                "{path}: created"
            );
            containerd.nothing_is_left_of(&bundle)?;
        }
        for query in ["?max-size=x", "?nonsense=1", "?max-files=0"] {
            shim.create(&bundle, uri(&t.path("log"), query))
                .refused(Code::INVALID_ARGUMENT)
                .with_context(|| query.to_owned())?;
        }
        shim.ends()
    }
);

test!(
    fn a_log_writer_that_is_killed_leaves_a_container_that_answers(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let path = t.path("log");
        let task = logged(
            &containerd,
            &path,
            "",
            "trap '' PIPE; while sleep 0.01; do echo line; done",
        )?;
        until("a line", || Ok((!read(&path)?.is_empty()).then_some(())))?;
        let shim = task.shim.pid();
        let mut writers = Vec::new();
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<i32>().ok())
            else {
                continue;
            };
            let has_log = fs::read_dir(entry.path().join("fd"))
                .into_iter()
                .flatten()
                .flatten()
                .any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target == path));
            if has_log && pid != shim {
                writers.push(pid);
            }
        }
        ensure!(writers.len() == 1, "processes with the log open: {writers:?}");
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(writers[0]),
            nix::sys::signal::Signal::SIGKILL,
        )?;
        task.output_of("e1", "true")?;
        let _ = task.kill(libc::SIGKILL);
        task.wait()?;
        task.delete()?;
        task.shim.ends()
    }
);

test!(
    fn attach_gives_a_copy_of_the_output_and_never_holds_up_the_log(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let path = t.path("log");
        let task = logged(
            &containerd,
            &path,
            "",
            "i=0; while sleep 0.01; do echo line $i; i=$((i+1)); done",
        )?;
        let (reads, idle) = (fifo(t, "attached")?, fifo(t, "idle")?);
        let reader = Reader::new(&reads)?;
        let _unread = fs::File::options().read(true).write(true).open(&idle)?;
        attach(&task, &reads, None)?;
        attach(&task, &idle, None)?;
        let seen = reader.wait_for("\n")?;
        ensure!(seen.starts_with("line "), "{seen:?}");
        let before = read(&path)?.len();
        until("more of the log", || {
            Ok((read(&path)?.len() > before + 5).then_some(()))
        })?;
        task.kill(libc::SIGKILL)?;
        task.exits_with(137)?;
        reader.to_end()?;
        task.delete()?;
        Ok(())
    }
);
