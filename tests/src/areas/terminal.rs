//! Terminals: over a console socket, in the foreground, sizes, ownership.

use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use serde_json::json;

use crate::bundle::Bundle;
use crate::container::Container;
use crate::registry::Result;
use crate::terminal::{Terminal, listen};
use crate::test;
use crate::test::Test;

fn with_terminal(t: &Test) -> Bundle<'_> {
    t.bundle().set("/process/terminal", json!(true))
}

fn console_socket(t: &Test) -> Result<(PathBuf, UnixListener)> {
    let path = t.path("console");
    let listener = listen(&path)?;
    Ok((path, listener))
}

/// Creates the bundle's container with a console socket; gives it and its terminal.
fn create<'t>(
    bundle: &Bundle<'t>,
    socket: &Path,
    listener: &UnixListener,
) -> Result<(Container<'t>, Terminal)> {
    let container = bundle.create_with(&["--console-socket", &socket.to_string_lossy()])?;
    Ok((container, Terminal::receive(listener)?))
}

test!(
    fn a_terminal_is_sent_over_the_console_socket(t: &Test) -> Result {
        let (socket, listener) = console_socket(t)?;
        let bundle = with_terminal(t).sh("tty; read line; echo got $line");
        let (container, mut terminal) = create(&bundle, &socket, &listener)?;
        container.start()?.ok()?;
        terminal.wait_for("/dev/pts/0")?;
        terminal.type_in("typed\n")?;
        terminal.wait_for("got typed")?;
        container.wait("stopped")
    }
);

test!(
    fn lines_on_the_callers_terminal_are_passed_through_unchanged(t: &Test) -> Result {
        let (mut terminal, slave) = Terminal::open()?;
        let running = with_terminal(t)
            .sh("echo one; echo two")
            .command("run", &[])?
            .terminal(slave)
            .spawn()?;
        let text = terminal.wait_for("two")?;
        ensure!(
            text.starts_with("one\n") || text.starts_with("one\r\n"),
            "{text:?}"
        );
        running.wait()?.ok()?;
        Ok(())
    }
);

test!(
    fn the_size_of_the_console_is_the_configured_one(t: &Test) -> Result {
        let (socket, listener) = console_socket(t)?;
        let bundle = with_terminal(t).set("/process/consoleSize", json!({"height": 23, "width": 145}));
        let (container, mut terminal) = create(&bundle.args(&["stty", "size"]), &socket, &listener)?;
        container.start()?.ok()?;
        let text = terminal.read_to_end()?;
        ensure!(text.trim() == "23 145", "{text:?}");
        Ok(())
    }
);

test!(
    fn the_terminal_controls_the_programs_session_and_is_dev_console(t: &Test) -> Result {
        let (socket, listener) = console_socket(t)?;
        let script = "cut -d' ' -f7 /proc/self/stat; stat -c %t:%T /dev/console; stat -c %t:%T /dev/pts/0; echo x >/dev/tty";
        let (container, mut terminal) = create(&with_terminal(t).sh(script), &socket, &listener)?;
        container.start()?.ok()?;
        let text = terminal.read_to_end()?;
        let lines: Vec<&str> = text.lines().collect();
        // 136:0 is the first pseudo-terminal: 34816 as one number.
        ensure!(lines == ["34816", "88:0", "88:0", "x"], "{text:?}");
        Ok(())
    }
);

test!(
    fn the_terminal_belongs_to_the_containers_user(t: &Test) -> Result {
        let (socket, listener) = console_socket(t)?;
        let bundle = with_terminal(t).set("/process/user", json!({"uid": 1000, "gid": 1000}));
        let (container, mut terminal) = create(
            &bundle.args(&["stat", "-c", "%u:%g", "/dev/pts/0"]),
            &socket,
            &listener,
        )?;
        container.start()?.ok()?;
        let text = terminal.read_to_end()?;
        ensure!(text.trim() == "1000:5", "{text:?}");
        Ok(())
    }
);

test!(
    fn a_console_socket_path_longer_than_an_address_works(t: &Test) -> Result {
        let directory = t.path("deep").join("x".repeat(100)).join("y".repeat(100));
        fs::create_dir_all(&directory)?;
        let socket = directory.join("console");
        let listener = listen(&socket)?;
        let (container, mut terminal) = create(&with_terminal(t).sh("echo far"), &socket, &listener)?;
        container.start()?.ok()?;
        terminal.wait_for("far")?;
        Ok(())
    }
);

test!(
    fn a_terminal_and_a_console_socket_need_each_other_when_detached(t: &Test) -> Result {
        let output = with_terminal(t).command("create", &[])?.run()?;
        output.fails_with(&["console socket"])?;
        let (socket, _listener) = console_socket(t)?;
        let flags = ["--console-socket", &socket.to_string_lossy()];
        t.bundle()
            .command("create", &flags)?
            .run()?
            .fails_with(&["console socket"])?;
        with_terminal(t)
            .command("run", &flags)?
            .run()?
            .fails_with(&["console socket"])?;
        Ok(())
    }
);

test!(
    fn a_console_socket_nobody_listens_at_fails_the_create_and_leaves_nothing(t: &Test) -> Result {
        let flags = ["--console-socket", "/nonexistent/console"];
        with_terminal(t)
            .command("create", &flags)?
            .run()?
            .fails_naming(&["/nonexistent/console"])?;
        Ok(())
    }
);

test!(
    fn a_foreground_run_passes_the_callers_terminal_through(t: &Test) -> Result {
        let (mut terminal, slave) = Terminal::open()?;
        let bundle = with_terminal(t).sh("tty; read line; echo got $line; exit 9");
        let running = bundle.command("run", &[])?.terminal(slave).spawn()?;
        terminal.wait_for("/dev/pts/0")?;
        terminal.type_in("typed\n")?;
        terminal.wait_for("got typed")?;
        running.wait()?.code(9)?;
        Ok(())
    }
);

test!(
    fn a_foreground_run_has_the_size_of_the_callers_terminal_and_follows_it(t: &Test) -> Result {
        let (mut terminal, slave) = Terminal::open()?;
        terminal.resize(31, 77)?;
        let script = "trap 'stty size' WINCH; stty size; while [ \"$(stty size)\" != '32 99' ]; do sleep 0.05; done; echo followed";
        let running = with_terminal(t)
            .sh(script)
            .command("run", &[])?
            .terminal(slave)
            .spawn()?;
        terminal.wait_for("31 77")?;
        terminal.resize(32, 99)?;
        terminal.wait_for("followed")?;
        running.wait()?.ok()?;
        Ok(())
    }
);

test!(
    fn a_foreground_run_that_ends_at_once_gives_all_its_output(t: &Test) -> Result {
        for round in 0..10 {
            let (mut terminal, slave) = Terminal::open()?;
            let bundle = with_terminal(t).sh("seq 1 300; echo last");
            let running = bundle.command("run", &[])?.terminal(slave).spawn()?;
            terminal
                .wait_for("last")
                .with_context(|| format!("round {round}"))?;
            running.wait()?.ok()?;
        }
        Ok(())
    }
);

test!(
    fn interrupt_typed_at_the_callers_terminal_reaches_the_program(t: &Test) -> Result {
        let (mut terminal, slave) = Terminal::open()?;
        let bundle = with_terminal(t)
            .sh("trap 'echo interrupted; exit 3' INT; echo ready; while :; do sleep 0.05; done");
        let running = bundle.command("run", &[])?.terminal(slave).spawn()?;
        terminal.wait_for("ready")?;
        terminal.type_in("\u{3}")?;
        terminal.wait_for("interrupted")?;
        running.wait()?.code(3)?;
        Ok(())
    }
);

test!(
    fn without_a_terminal_there_is_none(t: &Test) -> Result {
        t.bundle()
            .sh("tty; [ ! -e /dev/console ] || [ ! -c /dev/console ] || echo console")
            .run()?
            .mentions("not a tty")?;
        Ok(())
    }
);

test!(
    fn exec_with_a_terminal_gets_one_of_its_own(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        let (mut terminal, slave) = Terminal::open()?;
        let exec = container.exec_command(
            &["--tty"],
            &["sh", "-c", "tty; cut -d' ' -f7 /proc/self/stat; exit 4"],
        );
        let running = exec.terminal(slave).spawn()?;
        terminal.wait_for("/dev/pts/0")?;
        terminal.wait_for("34816")?;
        running.wait()?.code(4)?;
        Ok(())
    }
);

test!(
    fn exec_detached_with_a_terminal_sends_it_over_the_console_socket(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        let (socket, listener) = console_socket(t)?;
        let flags = ["--tty", "--detach", "--console-socket", &socket.to_string_lossy()];
        let running = container
            .exec_command(&flags, &["sh", "-c", "tty; read line; echo got $line"])
            .spawn()?;
        let mut terminal = Terminal::receive(&listener)?;
        running.wait()?.ok()?;
        terminal.wait_for("/dev/pts/0")?;
        terminal.type_in("typed\n")?;
        terminal.wait_for("got typed")?;
        terminal.read_to_end()?;
        Ok(())
    }
);

test!(
    fn exec_of_a_missing_program_with_a_terminal_says_so_there(t: &Test) -> Result {
        let container = t.bundle().sleeper().start()?;
        let (mut terminal, slave) = Terminal::open()?;
        let running = container
            .exec_command(&["--tty"], &["no-such-program"])
            .terminal(slave)
            .spawn()?;
        terminal.wait_for("no-such-program")?;
        running.wait()?.code(255)?;
        Ok(())
    }
);
