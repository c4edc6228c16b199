//! File descriptors: what the container gets, and what it never sees.

use anyhow::ensure;

use crate::output::Output;
use crate::test;

fn numbers(output: &Output) -> Vec<&str> {
    output
        .lines()
        .iter()
        .filter_map(|line| line.split(' ').next())
        .collect()
}

test!(
    fn a_program_has_its_three_streams_and_nothing_else(t: &Test) -> Result {
        let output = t.bundle().payload(&["fds"]).run()?.ok()?;
        ensure!(numbers(&output) == ["0", "1", "2"], "{output}");
        Ok(())
    }
);

test!(
    fn descriptors_the_caller_leaves_open_do_not_reach_the_program(t: &Test) -> Result {
        let run = t.bundle().payload(&["fds"]).command("run", &[])?;
        let output = run
            .redirect("3</etc/group 4</ 7>/dev/null 9</proc/self/status")
            .run()?
            .ok()?;
        ensure!(numbers(&output) == ["0", "1", "2"], "{output}");
        Ok(())
    }
);

test!(
    fn exec_has_its_three_streams_and_nothing_else(t: &Test) -> Result {
        let bundle = t.bundle().sleeper();
        bundle.add_payload();
        let container = bundle.start()?;
        let exec = container.exec_command(&[], &["/bin/rtc-tests", "payload", "fds"]);
        let output = exec.redirect("3</etc/group 4</ 7>/dev/null").run()?.ok()?;
        ensure!(numbers(&output) == ["0", "1", "2"], "{output}");
        Ok(())
    }
);

test!(
    fn the_descriptors_to_preserve_reach_the_program_and_no_more(t: &Test) -> Result {
        let run = t
            .bundle()
            .payload(&["fds"])
            .command("run", &["--preserve-fds", "2"])?;
        let output = run
            .redirect("3</etc/group 4</etc/passwd 5</etc/hostname")
            .run()?
            .ok()?;
        ensure!(numbers(&output) == ["0", "1", "2", "3", "4"], "{output}");
        Ok(())
    }
);

test!(
    fn a_preserved_descriptor_can_be_read_after_create_and_start(t: &Test) -> Result {
        let source = t.path("source");
        std::fs::write(&source, "through the descriptor\n")?;
        let bundle = t.bundle().sh("cat <&3");
        t.delete_at_end(&bundle.id);
        let create = bundle
            .command("create", &["--preserve-fds", "1"])?
            .redirect(&format!("3<{}", source.display()))
            .spawn()?;
        let stdout = create.stdout.clone();
        create.wait()?.ok()?;
        t.rtc(["start", &bundle.id])?.ok()?;
        crate::wait::until("the text", || {
            Ok(std::fs::read_to_string(&stdout)?
                .contains("through the descriptor")
                .then_some(()))
        })
    }
);

test!(
    fn a_preserved_descriptor_reaches_exec(t: &Test) -> Result {
        let source = t.path("source");
        std::fs::write(&source, "through the descriptor\n")?;
        let container = t.bundle().sleeper().start()?;
        let exec = container.exec_command(&["--preserve-fds", "1"], &["sh", "-c", "cat <&3"]);
        exec.redirect(&format!("3<{}", source.display()))
            .run()?
            .prints("through the descriptor")?;
        Ok(())
    }
);

test!(
    fn a_closed_descriptor_to_preserve_is_refused_or_left_out(t: &Test) -> Result {
        let output = t
            .bundle()
            .payload(&["fds"])
            .command("run", &["--preserve-fds", "5"])?
            .run()?;
        ensure!(
            output.code != 0 || numbers(&output) == ["0", "1", "2"],
            "{output}"
        );
        Ok(())
    }
);

test!(
    fn the_waiting_init_holds_nothing_of_the_host_open_but_its_streams(t: &Test) -> Result {
        let container = t.bundle().sleeper().create()?;
        let pid = container.pid()?;
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
            let path = entry?.path();
            let number = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let Ok(target) = std::fs::read_link(&path) else {
                continue;
            };
            let name = target.to_string_lossy().into_owned();
            // What a runtime may keep until start: sockets and pipes of its own, the gate, a sealed copy of itself, its log.
            let harmless = ["socket:", "pipe:", "anon_inode:", "/memfd:", "memfd:"]
                .iter()
                .any(|kind| name.starts_with(kind));
            let gate = target.starts_with(&t.root) && !target.is_dir();
            let own_binary = target.file_name() == t.rtc.file_name();
            ensure!(
                harmless || gate || own_binary || matches!(&*number, "0" | "1" | "2"),
                "descriptor {number}: {name}"
            );
        }
        Ok(())
    }
);
