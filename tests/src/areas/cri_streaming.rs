//! Exec, Attach and PortForward as a person uses them: crictl over SPDY and WebSocket, terminals, ports, what ends meanwhile.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cri::{Container, Cri, namespaces, only_ours, with};
use crate::host::process;
use crate::output::Output;
use crate::registry::Result;
use crate::terminal::Terminal;
use crate::test;
use crate::test::Running;
use crate::wait::until;

/// containerd 2.4 answers crictl 1.37's WebSocket with 403.
fn transports(cri: &Cri<'_>) -> &'static [&'static str] {
    if cri.is_ours() {
        &["spdy", "websocket"]
    } else {
        &["spdy"]
    }
}

/// `crictl exec -i`, with this on its standard input.
fn exec_with(cri: &Cri<'_>, transport: &str, container: &str, script: &str, input: &[u8]) -> Result<Output> {
    let file = cri.t.path("input");
    fs::write(&file, input)?;
    let args = [
        "exec",
        "--transport",
        transport,
        "-i",
        container,
        "sh",
        "-c",
        script,
    ];
    cri.crictl_command(&args).stdin(File::open(file)?).run()
}

/// Processes of a container with this in their command lines.
fn processes(container: &Container<'_, '_>, text: &str) -> Result<usize> {
    let list = container.sh("cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | tr '\\n' ' '; true")?;
    Ok(list.matches(text).count())
}

test!(
    fn a_person_runs_a_command_over_each_transport(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let container = pod.run("web", "sleep 1000")?;
            for transport in transports(cri) {
                let args = [
                    "exec",
                    "--transport",
                    transport,
                    &container.id,
                    "sh",
                    "-c",
                    "echo out; echo err >&2",
                ];
                let output = cri.crictl(&args)?.ok()?;
                ensure!(
                    output.stdout == "out\n" && output.stderr.contains("err\n"),
                    "{output}"
                );
                let output = exec_with(cri, transport, &container.id, "cat; echo end", b"in\n")?;
                output.prints("in\nend")?;
                // It has more to say than the client.
                exec_with(cri, transport, &container.id, "exec 0<&-; echo closed", b"in\n")?
                    .prints("closed")?;
                let args = [
                    "exec",
                    "--transport",
                    transport,
                    &container.id,
                    "sh",
                    "-c",
                    "exit 7",
                ];
                let output = cri.crictl(&args)?;
                ensure!(
                    output.code == 1 && output.stderr.contains("exit code 7"),
                    "{output}"
                );
                let args = ["exec", "--transport", transport, &container.id, "/none"];
                cri.crictl(&args)?.fails_with(&["/none"])?;
            }
            Ok(())
        })
    }
);

test!(
    fn much_goes_both_ways_at_once_and_whole(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let container = pod.run("web", "sleep 1000")?;
            let mut input = Vec::new();
            let mut state = 88_172_645_463_325_252_u64;
            while input.len() < 8 << 20 {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                input.extend(state.to_le_bytes());
            }
            let file = t.path("input");
            fs::write(&file, &input)?;
            for transport in transports(cri) {
                let args = ["exec", "--transport", transport, "-i", &container.id, "cat"];
                let running = cri.crictl_command(&args).stdin(File::open(&file)?).spawn()?;
                let out = running.stdout.clone();
                let output = running.wait();
                // It is not text.
                ensure!(
                    fs::read(&out)? == input,
                    "{transport}: {} bytes",
                    fs::metadata(&out)?.len()
                );
                drop(output);
            }
            Ok(())
        })
    }
);

/// Bytes of the server in memory.
fn memory(cri: &Cri<'_>) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", cri.pid()?))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kilobytes.context("no VmRSS")? << 10)
}

test!(
    fn a_slow_reader_holds_up_its_command_and_not_the_server(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let pod = cri.pod()?;
            let container = pod.run("web", "sleep 1000")?;
            // The first takes memory that stays.
            exec_with(
                cri,
                "spdy",
                &container.id,
                "head -c 1000000 /dev/zero | wc -c",
                b"",
            )?
            .ok()?;
            let before = memory(cri)?;
            let fifo = t.path("slow");
            nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU)?;
            for transport in transports(cri) {
                let redirect = format!(">{}", fifo.display());
                let script = "head -c 50000000 /dev/zero; echo whole >/tmp/whole";
                container.sh("rm -f /tmp/whole")?;
                let args = [
                    "exec",
                    "--transport",
                    transport,
                    &container.id,
                    "sh",
                    "-c",
                    script,
                ];
                let running = cri.crictl_command(&args).redirect(&redirect).spawn()?;
                let mut slow = File::open(&fifo)?;
                std::thread::sleep(Duration::from_millis(700));
                let grown = memory(cri)?.saturating_sub(before);
                ensure!(grown < 12 << 20, "{transport}: the server has {grown} bytes more");
                ensure!(
                    container.sh("ls /tmp")?.is_empty(),
                    "{transport}: nothing held it up"
                );
                // Others are served meanwhile.
                container.exec(&["true"])?.ok()?;
                let mut count = 0;
                let mut buffer = vec![0; 1 << 20];
                loop {
                    match slow.read(&mut buffer)? {
                        0 => break,
                        length => count += length,
                    }
                }
                ensure!(count == 50_000_000, "{transport}: {count} bytes");
                running.wait()?.ok()?;
            }
            Ok(())
        })
    }
);

test!(
    fn a_terminal_has_the_size_of_the_persons(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let container = pod.run("web", "sleep 1000")?;
            for transport in transports(cri) {
                let (mut terminal, slave) = Terminal::open()?;
                terminal.resize(33, 91)?;
                let args = ["exec", "--transport", transport, "-it", &container.id, "sh"];
                let running = cri.crictl_command(&args).terminal(slave).spawn()?;
                terminal.type_in("stty size; echo re''ady\n")?;
                terminal.wait_for("33 91")?;
                terminal.wait_for("ready")?;
                terminal.resize(44, 123)?;
                until("the new size", || {
                    terminal.type_in("stty size\n")?;
                    std::thread::sleep(Duration::from_millis(100));
                    Ok(terminal
                        .wait_for("stty size")
                        .is_ok()
                        .then(|| terminal.text())
                        .filter(|text| text.contains("44 123")))
                })?;
                terminal.type_in("tty; exit 3\n")?;
                let output = running.wait()?;
                ensure!(output.code != 0, "{transport}: the exit code is lost: {output}");
                ensure!(
                    terminal.read_to_end()?.contains("/dev/pts/"),
                    "{}",
                    terminal.text()
                );
            }
            Ok(())
        })
    }
);

test!(
    fn a_person_attaches_to_what_runs(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            for transport in transports(cri) {
                let script = "while read line; do echo got $line; done; echo over";
                let container = pod.run_with(&format!("once-{transport}"), script, |config| {
                    config.stdin = true;
                    config.stdin_once = true;
                })?;
                let file = t.path("input");
                fs::write(&file, "one\ntwo\n")?;
                let args = ["attach", "--transport", transport, "-i", &container.id];
                let output = cri.crictl_command(&args).stdin(File::open(file)?).run()?.ok()?;
                ensure!(output.stdout.contains("got one\ngot two\n"), "{output}");
                // Its input has ended with that of the client, for good.
                let status = container.ended()?;
                ensure!(status.exit_code == 0, "{status:?}");
                container.logged("over")?;
            }
            Ok(())
        })
    }
);

test!(
    fn who_detaches_leaves_the_container_as_it_is(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let container = pod.run_with("echo", "while read line; do echo got $line; done", |config| {
                config.stdin = true;
            })?;
            for (number, transport) in transports(cri).iter().enumerate() {
                let (reader, mut writer) = std::io::pipe()?;
                let args = ["attach", "--transport", transport, "-i", &container.id];
                let running = cri.crictl_command(&args).stdin(reader).spawn()?;
                let line = format!("line-{number}");
                until("the attached client's line", || {
                    // What is said before it is attached is the pipe's.
                    writeln!(writer, "{line}")?;
                    std::thread::sleep(Duration::from_millis(50));
                    let seen = fs::read_to_string(&running.stdout)?;
                    Ok(seen.contains(&format!("got {line}")).then_some(()))
                })?;
                running.kill()?;
                container.logged(&line)?;
            }
            ensure!(container.status()?.exit_code == 0, "it has ended");
            container.exec(&["true"])?.ok()?;
            Ok(())
        })
    }
);

/// `crictl port-forward`, once it listens.
fn forwarding(cri: &Cri<'_>, transport: &str, pod: &str, port: u16) -> Result<(Running, u16)> {
    let local = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
    let ports = format!("{local}:{port}");
    let running = cri
        .crictl_command(&["port-forward", "--transport", transport, pod, &ports])
        .spawn()?;
    until("crictl to forward", || {
        let out = fs::read_to_string(&running.stdout)?;
        Ok(out.contains("Forwarding from 127.0.0.1").then_some(()))
    })?;
    Ok((running, local))
}

/// All that comes from a port of this machine for what is said to it.
fn talk(port: u16, text: &str) -> Result<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(text.as_bytes())?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

test!(
    fn a_person_reaches_a_port_of_a_pod(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            // Counts what comes until the end of the input: only a half that is closed lets it answer.
            let container = pod.run("web", "echo ready; nc -ll -p 8080 -e wc -c")?;
            container.logged("ready")?;
            for transport in transports(cri) {
                let (running, port) = forwarding(cri, transport, &pod.id, 8080)?;
                for _ in 0..3 {
                    let answer = until("an answer", || {
                        Ok(talk(port, "twelve bytes").ok().filter(|text| !text.is_empty()))
                    })?;
                    ensure!(answer.trim() == "12", "{transport}: {answer:?}");
                }
                running.kill()?;
            }
            Ok(())
        })
    }
);

test!(
    fn a_port_that_nobody_listens_on_ends_no_other_connection(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let container = pod.run("web", "echo ready; nc -ll -p 8080 -e cat")?;
            container.logged("ready")?;
            for transport in transports(cri) {
                let (running, port) = forwarding(cri, transport, &pod.id, 8080)?;
                let (other, closed) = forwarding(cri, transport, &pod.id, 9)?;
                let mut lives = TcpStream::connect(("127.0.0.1", port))?;
                lives.set_read_timeout(Some(Duration::from_secs(20)))?;
                let mut echo = |text: &[u8]| -> Result {
                    lives.write_all(text)?;
                    let mut back = vec![0; text.len()];
                    lives.read_exact(&mut back)?;
                    ensure!(back == text, "{back:?}");
                    Ok(())
                };
                echo(b"before")?;
                ensure!(
                    talk(closed, "x").unwrap_or_default().is_empty(),
                    "somebody listens"
                );
                until("the reason", || {
                    let told = fs::read_to_string(&other.stderr)? + &fs::read_to_string(&other.stdout)?;
                    Ok(told.contains("onnection refused").then_some(()))
                })?;
                echo(b"after")?;
                running.kill()?;
                other.kill()?;
            }
            Ok(())
        })
    }
);

test!(
    fn what_a_client_that_vanished_had_started_is_ended(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let pod = cri.pod()?;
            let container = pod.run("web", "sleep 1000")?;
            for transport in transports(cri) {
                // With a child of its own, and one that is deaf to signals.
                let script = "trap '' TERM HUP INT PIPE; sleep 7777 & while true; do echo x; sleep 0.1; done";
                let args = [
                    "exec",
                    "--transport",
                    transport,
                    "-i",
                    &container.id,
                    "sh",
                    "-c",
                    script,
                ];
                let (reader, _writer) = std::io::pipe()?;
                let running = cri.crictl_command(&args).stdin(reader).spawn()?;
                until("the command", || {
                    Ok((processes(&container, "7777")? >= 2).then_some(()))
                })?;
                running.kill()?;
                until("the command to be ended", || {
                    Ok((processes(&container, "sleep 7777")? == 0).then_some(()))
                })?;
            }
            container.exec(&["true"])?.ok()?;
            Ok(())
        })
    }
);

test!(
    fn a_container_that_ends_ends_what_was_run_in_it(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            for transport in transports(cri) {
                let name = format!("web-{transport}");
                let container = pod.run(&name, "trap 'exit 0' TERM; sleep 1000 & wait")?;
                let args = [
                    "exec",
                    "--transport",
                    transport,
                    &container.id,
                    "sh",
                    "-c",
                    "echo here; sleep 1000",
                ];
                let running = cri.crictl_command(&args).spawn()?;
                let attached = cri
                    .crictl_command(&["attach", "--transport", transport, &container.id])
                    .spawn()?;
                until("the command", || {
                    Ok(fs::read_to_string(&running.stdout)?
                        .contains("here")
                        .then_some(()))
                })?;
                container.stop(5)?;
                let begun = Instant::now();
                let output = running.wait()?;
                ensure!(output.code != 0 && output.stderr.contains("137"), "{output}");
                attached.wait()?;
                ensure!(
                    begun.elapsed() < Duration::from_secs(15),
                    "it took {:?}",
                    begun.elapsed()
                );
            }
            Ok(())
        })
    }
);

test!(
    fn a_server_that_ends_ends_its_streams_and_nothing_runs_on(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let pod = cri.pod()?;
            let container = pod.run("web", "echo ready; nc -ll -p 8080 -e cat")?;
            container.logged("ready")?;
            for signal in [Signal::SIGTERM, Signal::SIGKILL] {
                let mut clients = Vec::new();
                for transport in transports(cri) {
                    let args = [
                        "exec",
                        "--transport",
                        transport,
                        &container.id,
                        "sh",
                        "-c",
                        "echo here; sleep 7777",
                    ];
                    clients.push(cri.crictl_command(&args).spawn()?);
                }
                for client in &clients {
                    until("the command", || {
                        Ok(fs::read_to_string(&client.stdout)?.contains("here").then_some(()))
                    })?;
                }
                let (forward, port) = forwarding(cri, "spdy", &pod.id, 8080)?;
                let mut connection = TcpStream::connect(("127.0.0.1", port))?;
                connection.write_all(b"x")?;
                connection.read_exact(&mut [0])?;
                let begun = Instant::now();
                cri.signal(signal)?;
                ensure!(
                    begun.elapsed() < Duration::from_secs(10),
                    "{signal}: {:?}",
                    begun.elapsed()
                );
                for client in clients {
                    let output = client.wait()?;
                    // Clients of SPDY take the end of a connection for success: they must be told of it before.
                    if signal == Signal::SIGTERM {
                        output.fails_with(&["rtc-cri ends"])?;
                    }
                }
                // It may wait for more clients of its own.
                drop(connection);
                let _ = kill(Pid::from_raw(forward.pid()), Signal::SIGTERM);
                forward.wait()?;
                cri.start_server()?;
                until("the commands to be ended", || {
                    Ok((processes(&container, "sleep 7777")? == 0).then_some(()))
                })?;
                container.exec(&["true"])?.ok()?;
            }
            ensure!(process::is_alive(cri.pid()?), "the server");
            Ok(())
        })
    }
);

test!(
    fn a_port_of_the_machine_is_reached_through_a_pod_of_its_network(t: &Test) -> Result {
        with(t, |cri| {
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let there = listener.local_addr()?.port();
            std::thread::spawn(move || {
                for mut client in listener.incoming().flatten() {
                    let _ = client.write_all(b"of the machine");
                }
            });
            let pod = cri.pod_with(|config| {
                namespaces(config).network = 2;
                config.hostname.clear();
            })?;
            let (running, port) = forwarding(cri, "spdy", &pod.id, there)?;
            let answer = until("an answer", || {
                Ok(talk(port, "").ok().filter(|text| !text.is_empty()))
            })?;
            ensure!(answer == "of the machine", "{answer:?}");
            running.kill()
        })
    }
);
