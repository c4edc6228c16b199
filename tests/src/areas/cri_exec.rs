//! Exec and Attach over WebSocket, and their URLs: what clients do well, badly, and not to the end.

use std::fs;

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;

use crate::cri::proto::*;
use crate::cri::websocket::{
    BINARY, CLOSE, HEAD, PING, PONG, RESIZE, STDIN, STDOUT, Said, TEXT, WebSocket, ask,
};
use crate::cri::{Code, Container, Cri, check, only_ours, refused, with};
use crate::registry::Result;
use crate::test;
use crate::wait::until;

const V5: &str = "v5.channel.k8s.io";

/// Exec's request, with stdout and stderr.
fn request(container: &Container<'_, '_>, script: &str) -> ExecRequest {
    ExecRequest {
        container_id: container.id.clone(),
        cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
        stdout: true,
        stderr: true,
        ..ExecRequest::default()
    }
}

fn url(cri: &Cri<'_>, request: ExecRequest) -> Result<String> {
    Ok(check("Exec", cri.exec(request))?.url)
}

fn open(cri: &Cri<'_>, request: ExecRequest) -> Result<WebSocket> {
    WebSocket::open(&url(cri, request)?, V5)
}

fn run(cri: &Cri<'_>, container: &Container<'_, '_>, script: &str) -> Result<Said> {
    open(cri, request(container, script))?.all()
}

/// The status line of the answer to a request.
fn answer(method: &str, url: &str, head: &str) -> Result<String> {
    let (_, answer) = ask(method, url, head)?;
    Ok(answer.lines().next().unwrap_or_default().to_owned())
}

/// Waits until nothing in the container has this word in its command line.
fn is_gone(container: &Container<'_, '_>, word: &str) -> Result {
    until(&format!("the end of {word}"), || {
        let found = container.sh(&format!("ps | grep -v grep | grep -c '{word}' || true"))?;
        Ok((found == "0").then_some(()))
    })
}

test!(
    fn exec_prints_both_streams_and_its_exit_status_by_every_protocol(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let pod = cri.pod()?;
            let web = pod.run("web", "sleep 1000")?;
            let script = "echo out; echo err >&2; exit 3";
            for protocol in [V5, "v4.channel.k8s.io"] {
                let url = url(cri, request(&web, script))?;
                let said = WebSocket::open(&url, protocol)?.all()?;
                ensure!(said.stdout == "out\n" && said.stderr == "err\n", "{said:?}");
                ensure!(said.closed == Some(1000), "{said:?}");
                said.exited(3)?;
            }
            let base64 = url(cri, request(&web, script))?;
            let said = WebSocket::open(&base64, "v4.base64.channel.k8s.io")?.all()?;
            ensure!(said.stdout == "b3V0Cg==" && said.stderr == "ZXJyCg==", "{said:?}");
            let old = url(cri, request(&web, script))?;
            let said = WebSocket::open(&old, "channel.k8s.io")?.all()?;
            ensure!(said.error == "command terminated with exit code 3", "{said:?}");
            run(cri, &web, "true")?.exited(0)
        })
    }
);

test!(
    fn exec_reads_its_input_to_the_signal_that_closes_it(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let pod = cri.pod()?;
            let web = pod.run("web", "sleep 1000")?;
            let mut input = request(&web, "md5sum; echo done");
            input.stdin = true;
            let mut client = open(cri, input)?;
            for _ in 0..100 {
                client.send(STDIN, &[b'x'; 30_000])?;
            }
            // What a browser sends.
            client.frame(TEXT, b"\0y\n")?;
            client.frame(PING, b"there?")?;
            client.frame(BINARY, &[CLOSE, STDIN])?;
            let mut pong = false;
            let mut out = String::new();
            while !out.contains("done") {
                match client.next()?.context("the end")? {
                    (PONG, payload) => pong = payload == b"there?",
                    (_, payload) => out += &String::from_utf8_lossy(payload.get(1..).unwrap_or_default()),
                }
            }
            ensure!(pong, "no pong");
            let wanted = web.sh("{ head -c 3000000 /dev/zero | tr '\\0' x; echo y; } | md5sum")?;
            ensure!(out.starts_with(&wanted), "{out:?}: expected {wanted:?}");
            client.all()?.exited(0)
        })
    }
);

test!(
    fn exec_has_a_terminal_whose_size_follows_the_client_s(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let pod = cri.pod()?;
            let web = pod.run("web", "sleep 1000")?;
            let mut terminal = request(&web, "sh");
            (terminal.tty, terminal.stdin, terminal.stderr) = (true, true, false);
            let mut client = open(cri, terminal)?;
            for size in ["{\"Width\":-5,\"Height\":1e9}", "{\"Width\":91,\"Height\":17}"] {
                client.send(RESIZE, size.as_bytes())?;
            }
            client.send(
                STDIN,
                b"until stty size | grep '17 91'; do sleep 0.1; done; tty\n",
            )?;
            client.until(STDOUT, "/dev/pts/")?;
            client.send(RESIZE, b"no size at all")?;
            client.send(STDIN, b"exit 4\n")?;
            client.all()?.exited(4)
        })
    }
);

test!(
    fn what_an_exec_leaves_in_the_background_holds_up_nobody(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let pod = cri.pod()?;
            let web = pod.run("web", "sleep 1000")?;
            let said = run(cri, &web, "sleep 567 & echo first; exit 1")?;
            ensure!(said.stdout == "first\n", "{said:?}");
            said.exited(1)?;
            // It was not killed: nobody has gone.
            ensure!(web.sh("ps | grep -c 'sleep 56[7]'")? == "1");
            Ok(())
        })
    }
);

test!(
    fn an_exec_ends_with_its_client_whatever_it_does(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let pod = cri.pod()?;
            let web = pod.run("web", "sleep 1000")?;
            for script in [
                "sleep 4321 & sleep 4321",
                "trap '' HUP PIPE TERM; sleep 4321; sleep 4321",
                "yes sleep 4321",
                "sleep 4321 <&- >&- 2>&- & wait",
            ] {
                for fill in [false, true] {
                    let mut running = request(&web, &format!("echo up; {script}"));
                    running.stdin = true;
                    let mut client = open(cri, running)?;
                    client.until(STDOUT, "up")?;
                    if fill {
                        client.fill(STDIN)?;
                    }
                    drop(client);
                    is_gone(&web, "sleep 432[1]").with_context(|| format!("{script:?}, filled: {fill}"))?;
                }
            }
            Ok(())
        })
    }
);

test!(
    fn an_exec_ends_with_the_server_however_that_ends(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let pod = cri.pod()?;
            let web = pod.run("web", "sleep 1000")?;
            for signal in [Signal::SIGTERM, Signal::SIGKILL] {
                let mut client = open(cri, request(&web, "echo up; sleep 4321"))?;
                client.until(STDOUT, "up")?;
                cri.signal(signal)?;
                let said = client.all()?;
                ensure!(
                    said.error.contains("rtc-cri ends") || signal == Signal::SIGKILL,
                    "{said:?}"
                );
                cri.start_server()?;
                is_gone(&web, "sleep 432[1]")?;
            }
            run(cri, &web, "true")?.exited(0)
        })
    }
);

test!(
    fn an_exec_ends_with_its_container(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let pod = cri.pod()?;
            let web = pod.run("web", "sleep 1000")?;
            let mut client = open(cri, request(&web, "echo up; sleep 4321"))?;
            client.until(STDOUT, "up")?;
            web.stop(0)?;
            client.all()?.exited(137)
        })
    }
);

test!(
    fn a_program_that_is_not_there_is_told_on_the_error_stream(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let pod = cri.pod()?;
            let web = pod.run("web", "sleep 1000")?;
            let mut missing = request(&web, "");
            missing.cmd = vec!["/no/such/program".into()];
            let status = open(cri, missing)?.all()?.status()?;
            let message = status["message"].as_str().unwrap_or_default();
            ensure!(message.contains("/no/such/program"), "{status}");
            Ok(())
        })
    }
);

test!(
    fn a_url_is_good_once_and_for_who_opens_it_rightly(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let pod = cri.pod()?;
            let web = pod.run("web", "sleep 1000")?;
            let url = url(cri, request(&web, "echo hello"))?;
            let head = format!("{HEAD}Sec-WebSocket-Protocol: {V5}\r\n");
            let unknown = format!("{HEAD}Sec-WebSocket-Protocol: chat\r\n");
            let spdy = "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n";
            for (method, url, head, wanted) in [
                ("PUT", url.clone(), head.as_str(), "405"),
                ("GET", url.clone(), "", "400"),
                ("GET", url.clone(), spdy, "400"),
                ("POST", url.clone(), head.as_str(), "405"),
                ("GET", url.clone(), unknown.as_str(), "403"),
                ("GET", url.replace("/exec/", "/attach/"), head.as_str(), "404"),
                ("GET", url.replace("/exec/", "/execs/"), head.as_str(), "404"),
                ("GET", format!("{url}x"), head.as_str(), "404"),
            ] {
                let answer = answer(method, &url, head)?;
                ensure!(
                    answer.contains(wanted),
                    "{method} {url}: {answer}: expected {wanted}"
                );
            }
            // Nothing of that has used it up.
            let said = WebSocket::open(&url, V5)?.all()?;
            ensure!(said.stdout == "hello\n", "{said:?}");
            let again = answer("GET", &url, &head)?;
            ensure!(again.contains("404"), "{again}");
            Ok(())
        })
    }
);

test!(
    fn exec_and_attach_refuse_what_can_not_be_before_there_is_a_url(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let pod = cri.pod()?;
            let web = pod.run("web", "sleep 1000")?;
            let created = pod.create(pod.container_config("later", "true")?)?;
            let exec = |change: &dyn Fn(&mut ExecRequest)| {
                let mut request = request(&web, "true");
                change(&mut request);
                cri.exec(request)
            };
            refused(exec(&|one| one.cmd.clear()), Code::InvalidArgument, &["cmd"])?;
            refused(exec(&|one| one.tty = true), Code::InvalidArgument, &["stderr"])?;
            let silent = exec(&|one| (one.stdout, one.stderr) = (false, false));
            refused(silent, Code::InvalidArgument, &["stdin, stdout, stderr"])?;
            refused(
                exec(&|one| one.container_id.clear()),
                Code::InvalidArgument,
                &["container_id"],
            )?;
            refused(
                exec(&|one| one.container_id = "x".into()),
                Code::NotFound,
                &["\"x\""],
            )?;
            let idle = exec(&|one| one.container_id = created.id.clone());
            refused(idle, Code::FailedPrecondition, &["created"])?;
            let attach = AttachRequest {
                container_id: web.id.clone(),
                stdout: true,
                ..AttachRequest::default()
            };
            let other = AttachRequest {
                container_id: created.id.clone(),
                ..attach.clone()
            };
            refused(cri.attach(other), Code::FailedPrecondition, &["created"])?;
            let terminal = AttachRequest {
                tty: true,
                ..attach.clone()
            };
            refused(cri.attach(terminal), Code::InvalidArgument, &["tty"])?;
            // Those that nobody opens are not kept without end.
            let mut last = Ok(AttachResponse::default());
            for _ in 0..1001 {
                last = cri.attach(attach.clone());
            }
            refused(last, Code::ResourceExhausted, &["1000"])?;
            Ok(())
        })
    }
);

test!(
    fn frames_that_can_not_be_end_their_connection_and_its_process(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let pod = cri.pod()?;
            let web = pod.run("web", "sleep 1000")?;
            let frames: [(&str, &[u8], Option<u16>); 6] = [
                ("not masked", &[0x82, 2, 0, b'x'], Some(1002)),
                ("an unknown opcode", &[0x83, 0x80, 0, 0, 0, 0], Some(1002)),
                (
                    "too large",
                    &[0x82, 0xff, 0, 0, 0, 0, 0x7f, 0, 0, 0, 0, 0, 0, 0],
                    Some(1009),
                ),
                ("a ping in pieces", &[0x09, 0x80, 0, 0, 0, 0], Some(1002)),
                (
                    "a close signal for no channel",
                    &[0x82, 0x82, 0, 0, 0, 0, CLOSE, 9],
                    Some(1002),
                ),
                ("no WebSocket at all", b"GET / HTTP/1.1\r\n\r\n", Some(1002)),
            ];
            for (what, frame, code) in frames {
                let mut client = open(cri, request(&web, "echo up; sleep 4321"))?;
                client.until(STDOUT, "up")?;
                client.raw(frame)?;
                let said = client.all().with_context(|| what.to_owned())?;
                ensure!(said.closed == code, "{what}: {said:?}");
                is_gone(&web, "sleep 432[1]")?;
            }
            Ok(())
        })
    }
);

test!(
    fn attach_shows_what_comes_and_gives_the_input(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let pod = cri.pod()?;
            let attach = |container: &Container<'_, '_>, tty: bool| -> Result<WebSocket> {
                let request = AttachRequest {
                    container_id: container.id.clone(),
                    stdin: true,
                    stdout: true,
                    stderr: !tty,
                    tty,
                };
                WebSocket::open(&check("Attach", cri.attach(request))?.url, V5)
            };
            // Once: with the client's input the container's ends.
            let once = pod.run_with("once", "cat; echo eof >&2; exit 7", |config| {
                (config.stdin, config.stdin_once) = (true, true);
            })?;
            let mut client = attach(&once, false)?;
            client.send(STDIN, b"hello\n")?;
            client.until(STDOUT, "hello")?;
            client.frame(BINARY, &[CLOSE, STDIN])?;
            let said = client.all()?;
            ensure!(
                said.stderr == "eof\n" && said.status()?["status"] == "Success",
                "{said:?}"
            );
            ensure!(once.ended()?.exit_code == 7);
            once.logged("eof")?;
            // Not once: it goes on without its client, and takes another, also one that has gone without a word.
            let shell = pod.run_with(
                "shell",
                "while read -r line; do echo \"<$line>\"; done",
                |config| {
                    config.stdin = true;
                },
            )?;
            let mut gone = attach(&shell, false)?;
            gone.send(STDIN, b"one\n")?;
            gone.until(STDOUT, "<one>")?;
            drop(gone);
            let mut client = attach(&shell, false)?;
            client.send(STDIN, b"two\n")?;
            client.frame(BINARY, &[CLOSE, STDIN])?;
            let said = client.all()?;
            ensure!(
                said.stdout == "<two>\n" && said.status()?["status"] == "Success",
                "{said:?}"
            );
            shell.is(ContainerState::ContainerRunning)?;
            // A terminal.
            let terminal = pod.run_with("terminal", "sh", |config| {
                (config.tty, config.stdin, config.stdin_once) = (true, true, true);
            })?;
            let mut client = attach(&terminal, true)?;
            client.send(RESIZE, b"{\"Width\":91,\"Height\":17}")?;
            client.send(
                STDIN,
                b"until stty size | grep '17 91'; do sleep 0.1; done; echo $((6*7))\n",
            )?;
            client.until(STDOUT, "42")?;
            // Its client may come back, though its input is to be given once.
            drop(client);
            let mut client = attach(&terminal, true)?;
            client.send(STDIN, b"echo $((7*8))\n")?;
            client.until(STDOUT, "56")?;
            client.send(STDIN, b"exit\n")?;
            let said = client.all()?;
            ensure!(said.status()?["status"] == "Success", "{said:?}");
            Ok(())
        })
    }
);

test!(
    fn a_restarted_server_takes_its_input_from_no_container(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?; // containerd's is SPDY alone
            let pod = cri.pod()?;
            let script = "while read -r line; do echo \"<$line>\"; done; echo eof";
            let container = pod.run_with("once", script, |config| {
                (config.stdin, config.stdin_once) = (true, true);
            })?;
            let attach = || {
                let request = AttachRequest {
                    container_id: container.id.clone(),
                    stdin: true,
                    stdout: true,
                    ..AttachRequest::default()
                };
                WebSocket::open(&check("Attach", cri.attach(request))?.url, V5)
            };
            let mut client = attach()?;
            client.send(STDIN, b"one\n")?;
            client.until(STDOUT, "<one>")?;
            cri.end()?;
            cri.start_server()?;
            container.is(ContainerState::ContainerRunning)?;
            let mut client = attach()?;
            client.send(STDIN, b"two\n")?;
            client.until(STDOUT, "<two>")?;
            client.frame(BINARY, &[CLOSE, STDIN])?;
            client.all()?;
            ensure!(container.ended()?.exit_code == 0);
            container.logged("eof")?;
            Ok(())
        })
    }
);

test!(
    fn a_container_without_a_log_can_be_attached_to(t: &Test) -> Result {
        with(t, |cri| {
            let pod = cri.pod()?;
            let quiet = pod.run_with("quiet", "while sleep 0.1; do echo tick; done", |config| {
                config.log_path = String::new();
            })?;
            let request = AttachRequest {
                container_id: quiet.id.clone(),
                stdout: true,
                ..AttachRequest::default()
            };
            let url = check("Attach", cri.attach(request))?.url;
            WebSocket::open(&url, "v4.channel.k8s.io")?.until(STDOUT, "tick\ntick")?;
            Ok(())
        })
    }
);

test!(
    fn a_connection_that_is_idle_for_too_long_is_closed(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let pod = cri.pod()?;
            let web = pod.run("web", "sleep 1000")?;
            let text = fs::read_to_string(cri.config())?;
            cri.signal(Signal::SIGTERM)?;
            fs::write(
                cri.config(),
                format!("{text}\n[streaming]\nidle_timeout_seconds = 4\n"),
            )?;
            cri.start_server()?;
            let said = run(cri, &web, "sleep 4321")?;
            ensure!(said.error.contains("idle for too long"), "{said:?}");
            is_gone(&web, "sleep 432[1]")?;
            let said = run(cri, &web, "for i in 1 2 3; do sleep 1.5; echo $i; done")?;
            ensure!(said.stdout == "1\n2\n3\n", "{said:?}");
            Ok(())
        })
    }
);

test!(
    fn ports_are_forwarded_by_websocket_s_channels(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let pod = cri.pod()?;
            let web = pod.run("web", "echo ready; nc -ll -p 8080 -e cat")?;
            web.logged("ready")?;
            let url = |port: Vec<i32>| {
                let request = PortForwardRequest {
                    pod_sandbox_id: pod.id.clone(),
                    port,
                };
                Ok::<_, anyhow::Error>(check("PortForward", cri.port_forward(request))?.url)
            };
            let protocol = "v4.channel.k8s.io";
            // Of the call, or of the query: two channels for each, which begin with their port.
            for opened in [url(vec![8080, 9])?, format!("{}?port=8080,9", url(Vec::new())?)] {
                let mut client = WebSocket::open(&opened, protocol)?;
                for (channel, port) in [(0, 8080_u16), (1, 8080), (2, 9), (3, 9)] {
                    let first = [&[channel], port.to_le_bytes().as_slice()].concat();
                    ensure!(
                        client.next()? == Some((BINARY, first)),
                        "{opened}: channel {channel}"
                    );
                }
                client.until(3, "connect to localhost:9")?;
                client.send(0, b"over and back")?;
                client.until(0, "over and back")?;
            }
            let head = format!("{HEAD}Sec-WebSocket-Protocol: {protocol}\r\n");
            let none = answer("GET", &url(Vec::new())?, &head)?;
            ensure!(none.contains("400"), "{none}");
            Ok(())
        })
    }
);
