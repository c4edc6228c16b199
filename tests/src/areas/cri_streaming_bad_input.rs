//! Streams and hostile clients: what is no HTTP, no SPDY, no WebSocket; tokens that were used; clients that vanish. Each ends
//! cleanly, nothing is left, and others are served (`cri/leaks.rs` counts descriptors and processes before and after).

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, ensure};
use nix::sys::socket::{setsockopt, sockopt};

use crate::cri::proto::*;
use crate::cri::spdy::{Frame, Spdy};
use crate::cri::websocket::{BINARY, PING, PONG, TEXT, WebSocket, ask};
use crate::cri::{Container, Pod, check, namespaces, only_ours, with};
use crate::registry::Result;
use crate::test;
use crate::wait::until;

const V4: &str = "v4.channel.k8s.io";
const V5: &str = "v5.channel.k8s.io";

fn request(container: &Container<'_, '_>, script: &str) -> ExecRequest {
    ExecRequest {
        container_id: container.id.clone(),
        cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
        stdin: true,
        stdout: true,
        stderr: true,
        ..ExecRequest::default()
    }
}

/// WebSocket's opcode of its last frame.
const CLOSE_FRAME: u8 = 8;

/// A frame of WebSocket with this first byte, masked by zeros.
fn raw(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![first];
    match u8::try_from(payload.len()) {
        Ok(length @ 0..=125) => frame.push(0x80 | length),
        _ => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.extend(payload);
    frame
}

/// The URL of an Exec.
fn url(container: &Container<'_, '_>, script: &str) -> Result<String> {
    Ok(check("Exec", container.cri.exec(request(container, script)))?.url)
}

fn forward_url(pod: &Pod<'_, '_>, ports: &[i32]) -> Result<String> {
    let request = PortForwardRequest {
        pod_sandbox_id: pod.id.clone(),
        port: ports.to_vec(),
    };
    Ok(check("PortForward", pod.cri.port_forward(request))?.url)
}

/// The streams of a command over SPDY: error, stdin, stdout, stderr.
fn streams(client: &mut Spdy) -> Result<[u32; 4]> {
    let mut all = [0; 4];
    for (place, kind) in all.iter_mut().zip(["error", "stdin", "stdout", "stderr"]) {
        *place = client.stream(&[("streamtype", kind)])?;
    }
    Ok(all)
}

/// What came on a stream until its end or the connection's.
fn all_of(client: &mut Spdy, stream: u32) -> Result<String> {
    let mut all = Vec::new();
    while let Some(frame) = client.frame()? {
        match frame {
            Frame::Data(id, data) if id == stream => all.extend(data),
            Frame::Fin(id) | Frame::Reset(id, _) if id == stream => break,
            _ => {}
        }
    }
    Ok(String::from_utf8_lossy(&all).into_owned())
}

/// The server and the container go on as if nothing was.
fn serves(container: &Container<'_, '_>) -> Result {
    let mut client = Spdy::open(&url(container, "echo fine; exit 5")?, V4)?;
    let [error, _, stdout, _] = streams(&mut client)?;
    ensure!(all_of(&mut client, stdout)? == "fine\n", "its output");
    let status = all_of(&mut client, error)?;
    ensure!(
        status.contains("NonZeroExitCode") && status.contains("\"5\""),
        "{status}"
    );
    Ok(())
}

/// Waits until nothing with this in its command line is in the container.
fn is_gone(container: &Container<'_, '_>, text: &str) -> Result {
    let script = format!(
        "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -c '[{}]{}'; true",
        &text[..1],
        &text[1..]
    );
    until(&format!("{text} to be gone"), || {
        Ok((container.sh(&script)? == "0").then_some(()))
    })
}

test!(
    fn a_token_is_good_once_and_for_its_own_verb(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let pod = cri.pod()?;
            let container = pod.run("web", "sleep 1000")?;
            let upgrade =
                format!("Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {V4}\r\n");
            let fails = |method: &str, url: &str, headers: &str, status: &str| -> Result {
                let (mut rest, head) = ask(method, url, headers)?;
                let mut body = String::new();
                rest.read_to_string(&mut body)?;
                ensure!(
                    head.starts_with(&format!("HTTP/1.1 {status} ")) && !body.is_empty(),
                    "{url}: {head}{body}"
                );
                Ok(())
            };
            let one = url(&container, "true")?;
            // None of these takes the token.
            let base = one.rsplit_once("/exec/").context("no /exec/")?.0.to_owned();
            let token = one.rsplit_once('/').context("no token")?.1.to_owned();
            fails("GET", &one, "", "400")?;
            fails("GET", &one, "Connection: Upgrade\r\nUpgrade: h2c\r\n", "400")?;
            fails(
                "POST",
                &one,
                "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\n",
                "400",
            )?;
            fails(
                "POST",
                &one,
                "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: v9\r\n",
                "403",
            )?;
            fails("DELETE", &one, &upgrade, "405")?;
            fails("POST", &format!("{base}/attach/{token}"), &upgrade, "404")?;
            fails("POST", &format!("{base}/exec/{token}x"), &upgrade, "404")?;
            fails("POST", &format!("{base}/exec/"), &upgrade, "404")?;
            fails("POST", &format!("{base}/exec/../exec/{token}"), &upgrade, "404")?;
            fails("GET", &format!("{base}/{}", "x".repeat(3000)), "", "404")?;
            let mut client = Spdy::open(&one, V4)?;
            streams(&mut client)?;
            fails("POST", &one, &upgrade, "404")?;
            drop(client);
            // What is no HTTP, and a head without an end.
            let address = base.trim_start_matches("http://");
            for bytes in [
                b"\x16\x03\x01\x02\x00\x01\x00".to_vec(),
                vec![b'x'; 200_000],
                b"GET / HTTP/1.1\r\n".to_vec(),
            ] {
                let mut socket = TcpStream::connect(address)?;
                // It may have enough before all is said.
                let _ = socket.write_all(&bytes);
            }
            serves(&container)
        })
    }
);

test!(
    fn what_is_no_spdy_ends_its_connection_and_no_other(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let pod = cri.pod()?;
            let container = pod.run("web", "sleep 1000")?;
            let mut other = Spdy::open(&url(&container, "cat")?, V4)?;
            let [_, stdin, stdout, _] = streams(&mut other)?;
            let syn = |length: u32| [&[0x80, 3, 0, 1, 0][..], &length.to_be_bytes()[1..]].concat();
            let mut bomb = syn(10 + 60_000);
            bomb.extend(1_u32.to_be_bytes());
            bomb.extend([0; 6]);
            bomb.extend(vec![0xaa; 60_000]);
            let cases: [(&str, Vec<u8>); 9] = [
                ("HTTP", b"GET / HTTP/1.1\r\n\r\n".to_vec()),
                (
                    "another version",
                    [0x80, 2, 0, 1, 0, 0, 0, 10].into_iter().chain([0; 10]).collect(),
                ),
                ("no such type", [0x80, 3, 0, 99, 0, 0, 0, 0].to_vec()),
                ("a frame of 16 MB", syn(0xff_ffff)),
                ("a short SYN_STREAM", [syn(2), vec![0, 1]].concat()),
                (
                    "headers that are no zlib",
                    [syn(20), vec![0, 0, 0, 1, 0, 0, 0, 0, 0, 0], vec![0xff; 10]].concat(),
                ),
                ("headers of nonsense", bomb),
                (
                    "data of no stream",
                    [&7_u32.to_be_bytes()[..], &[0, 0, 0, 1, b'x']].concat(),
                ),
                (
                    "a stream of the server's",
                    [syn(10), vec![0, 0, 0, 2, 0, 0, 0, 0, 0, 0]].concat(),
                ),
            ];
            for (what, bytes) in cases {
                let mut client = Spdy::open(&url(&container, "sleep 7777")?, V4)?;
                // It may have ended before all is said.
                let _ = client.socket().write_all(&bytes);
                let _ = client.socket().shutdown(std::net::Shutdown::Write);
                while client.frame().with_context(|| what.to_owned())?.is_some() {}
            }
            is_gone(&container, "sleep 7777")?;
            other.send(stdin, b"still here\n")?;
            other.fin(stdin)?;
            ensure!(all_of(&mut other, stdout)? == "still here\n", "the other one");
            serves(&container)
        })
    }
);

test!(
    fn streams_of_no_known_type_are_refused_and_the_others_serve(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let pod = cri.pod()?;
            let container = pod.run("web", "sleep 1000")?;
            let mut client = Spdy::open(&url(&container, "cat")?, V4)?;
            let strange = client.syn_stream(&[("streamtype", "video")])?;
            let nameless = client.syn_stream(&[])?;
            let [_, stdin, stdout, _] = streams(&mut client)?;
            // A second one of a kind, too.
            let second = client.syn_stream(&[("streamtype", "stdout")])?;
            client.send(stdin, b"through\n")?;
            client.fin(stdin)?;
            let mut reset = Vec::new();
            let mut out = Vec::new();
            while let Some(frame) = client.frame()? {
                match frame {
                    Frame::Reset(id, _) => reset.push(id),
                    Frame::Data(id, data) if id == stdout => out.extend(data),
                    _ => {}
                }
            }
            ensure!(out == b"through\n", "{out:?}");
            for id in [strange, nameless, second] {
                ensure!(reset.contains(&id), "{id} is not reset: {reset:?}");
            }
            // Over WebSocket what is for no channel is dropped, as kubelets do.
            let mut client = WebSocket::open(&url(&container, "cat")?, V5)?;
            client.frame(BINARY, b"\x63nobody")?;
            client.frame(BINARY, b"")?;
            client.frame(BINARY, b"\x00here")?;
            client.frame(BINARY, b"\xff\x00")?;
            let text = said(&mut client)?;
            ensure!(text.contains("here") && text.contains("Success"), "{text}");
            serves(&container)
        })
    }
);

/// All messages to the end of the connection, as text.
fn said(client: &mut WebSocket) -> Result<String> {
    let mut text = String::new();
    while let Some((opcode, payload)) = client.next()? {
        if opcode == CLOSE_FRAME {
            client.frame(CLOSE_FRAME, &payload)?;
            break;
        }
        text.push_str(&String::from_utf8_lossy(&payload));
    }
    Ok(text)
}

test!(
    fn what_is_no_websocket_is_closed_with_its_reason(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let pod = cri.pod()?;
            let container = pod.run("web", "sleep 1000")?;
            let mut unmasked = raw(0x82, b"\x00x");
            unmasked[1] &= 0x7f;
            let huge = [&[0x82, 0xff][..], &(1_u64 << 40).to_be_bytes(), &[0; 4]].concat();
            let negative = [&[0x82, 0xff][..], &u64::MAX.to_be_bytes(), &[0; 4]].concat();
            let cases: [(&str, Vec<u8>, u16); 10] = [
                ("no mask", unmasked, 1002),
                ("reserved bits", raw(0xf2, b"\x00x"), 1002),
                ("no such opcode", raw(0x83, b"\x00x"), 1002),
                ("a ping in pieces", raw(PING, b"x"), 1002),
                ("a ping that is long", raw(0x80 | PING, &[b'x'; 200]), 1002),
                ("a continuation of nothing", raw(0x80, b"x"), 1002),
                ("a message of a TB", huge, 1009),
                ("a length that is negative", negative, 1009),
                ("text that is none", raw(0x80 | TEXT, b"\x00\xff\xfe"), 1007),
                ("the end of a channel that is not", raw(0x82, b"\xff\x09"), 1002),
            ];
            for (what, bytes, expected) in cases {
                let mut client = WebSocket::open(&url(&container, "sleep 7777")?, V5)?;
                client.raw(&bytes)?;
                let mut code = None;
                while let Some((opcode, payload)) = client.next().with_context(|| what.to_owned())? {
                    if opcode == CLOSE_FRAME {
                        code = payload.first_chunk().map(|code| u16::from_be_bytes(*code));
                        break;
                    }
                }
                ensure!(code == Some(expected), "{what}: {code:?}");
            }
            is_gone(&container, "sleep 7777")?;
            // What is allowed, and rare: a message in pieces, with a ping between.
            let mut client = WebSocket::open(&url(&container, "cat")?, V5)?;
            client.raw(&raw(BINARY, b"\x00one"))?;
            client.frame(PING, b"there?")?;
            client.raw(&raw(0x80, b" two\n"))?;
            client.frame(BINARY, b"\xff\x00")?;
            let (mut text, mut ponged) = (String::new(), false);
            while let Some((opcode, payload)) = client.next()?
                && opcode != CLOSE_FRAME
            {
                ponged |= opcode == PONG && payload == b"there?";
                text.push_str(&String::from_utf8_lossy(&payload));
            }
            ensure!(ponged && text.contains("one two\n"), "{ponged} {text}");
            serves(&container)
        })
    }
);

/// What closes is reset, as of a machine that has lost power and comes back.
fn reset_at_close(socket: &TcpStream) -> Result {
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    Ok(setsockopt(socket, sockopt::Linger, &linger)?)
}

test!(
    fn clients_that_vanish_leave_nothing_whatever_they_were_at(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let pod = cri.pod()?;
            let container = pod.run("web", "echo ready; nc -ll -p 8080 -e cat")?;
            container.logged("ready")?;
            for hard in [false, true] {
                let end = |socket: &TcpStream| if hard { reset_at_close(socket) } else { Ok(()) };
                // Before its streams; with some; while it is written to, and takes nothing; while it writes.
                let mut client = Spdy::open(&url(&container, "sleep 7777")?, V4)?;
                end(client.socket())?;
                drop(client);
                let mut client = Spdy::open(&url(&container, "sleep 7777")?, V4)?;
                client.stream(&[("streamtype", "error")])?;
                end(client.socket())?;
                drop(client);
                for script in [
                    "cat /dev/zero; sleep 7777",
                    "trap '' PIPE TERM; echo x; sleep 7777",
                    "sleep 7777",
                ] {
                    let mut client = Spdy::open(&url(&container, script)?, V4)?;
                    let [_, stdin, ..] = streams(&mut client)?;
                    client.send(stdin, &[b'x'; 100_000])?;
                    std::thread::sleep(Duration::from_millis(100));
                    end(client.socket())?;
                    drop(client);
                    let mut client = WebSocket::open(&url(&container, script)?, V5)?;
                    client.frame(BINARY, b"\x00unfinished")?;
                    client.raw(&[0x82, 0xfe, 0xff])?;
                    std::thread::sleep(Duration::from_millis(50));
                    end(client.socket())?;
                    drop(client);
                }
                let mut client = Spdy::open(&forward_url(&pod, &[8080])?, "portforward.k8s.io")?;
                let [_, data] = connection(&mut client, 8080, "1")?;
                client.send(data, b"unfinished")?;
                end(client.socket())?;
                drop(client);
            }
            is_gone(&container, "sleep 7777")?;
            is_gone(&container, "cat /dev/zero")?;
            serves(&container)
        })
    }
);

/// The streams of a connection to a port: error and data.
fn connection(client: &mut Spdy, port: u16, request: &str) -> Result<[u32; 2]> {
    let port = port.to_string();
    let mut open = |kind| client.stream(&[("streamtype", kind), ("port", &port), ("requestid", request)]);
    Ok([open("error")?, open("data")?])
}

test!(
    fn a_terminal_resized_to_nonsense_is_a_terminal(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let pod = cri.pod()?;
            let container = pod.run("web", "sleep 1000")?;
            let with_terminal = |script: &str| -> Result<String> {
                let request = ExecRequest {
                    tty: true,
                    stderr: false,
                    ..request(&container, script)
                };
                Ok(check("Exec", cri.exec(request))?.url)
            };
            let script = "while read line; do stty size; done; echo over";
            let nonsense: [&[u8]; 11] = [
                br#"{"Width":0,"Height":0}"#,
                br#"{"Width":65535,"Height":65535}"#,
                br#"{"Width":65536,"Height":-1}"#,
                br#"{"Width":1e99,"Height":"x"}"#,
                b"{}",
                b"null",
                b"[1,2]",
                br#"{"Width":80"#,
                b"\xff\xfe\x00garbage",
                &[b'{'; 10_000],
                &[b'9'; 100_000],
            ];
            for bytes in nonsense {
                let mut client = WebSocket::open(&with_terminal(script)?, V5)?;
                client.frame(BINARY, b"\x04{\"Width\":91,\"Height\":33}")?;
                client.frame(BINARY, &[b"\x04", bytes].concat())?;
                client.frame(BINARY, b"\x00\n")?;
                client.frame(BINARY, b"\x00\x04")?;
                let text = said(&mut client)?;
                ensure!(
                    text.contains("over") && text.contains("Success"),
                    "{:?}: {text}",
                    &bytes[..bytes.len().min(30)]
                );
            }
            let mut client = Spdy::open(&with_terminal(script)?, V4)?;
            let error = client.stream(&[("streamtype", "error")])?;
            let stdin = client.stream(&[("streamtype", "stdin")])?;
            let stdout = client.stream(&[("streamtype", "stdout")])?;
            let resize = client.stream(&[("streamtype", "resize")])?;
            client.send(resize, br#"{"Width":0,"Height":0}{"Width":91,"#)?;
            client.send(resize, br#""Height":33}"#)?;
            std::thread::sleep(Duration::from_millis(300));
            client.send(stdin, b"\n")?;
            std::thread::sleep(Duration::from_millis(300));
            client.send(stdin, b"\x04")?;
            let text = all_of(&mut client, stdout)?;
            ensure!(text.contains("33 91"), "{text}");
            ensure!(all_of(&mut client, error)?.contains("Success"), "the status");
            serves(&container)
        })
    }
);

/// A server on a port of this machine that counts what comes until its end, and then says it.
fn counting() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut client = client;
                let mut all = Vec::new();
                // A client that vanishes gets no answer.
                if client.read_to_end(&mut all).is_ok() {
                    let _ = write!(client, "{}", all.len());
                }
            });
        }
    });
    Ok(port)
}

test!(
    fn a_thousand_streams_at_once_are_served_each_with_halves_that_close_by_themselves(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let port = counting()?;
            let pod = cri.pod_with(|config| namespaces(config).network = 2)?;
            let mut client = Spdy::open(&forward_url(&pod, &[port.into()])?, "portforward.k8s.io")?;
            let mut data = Vec::new();
            for number in 0..500_u32 {
                let [error, stream] = connection(&mut client, port, &number.to_string())?;
                client.fin(error)?;
                data.push((stream, number));
            }
            for (stream, number) in &data {
                client.send(*stream, &vec![b'x'; *number as usize])?;
            }
            // The last first: none waits for another.
            for (stream, _) in data.iter().rev() {
                client.fin(*stream)?;
            }
            let mut answers = std::collections::HashMap::new();
            let mut ended = 0;
            while ended < data.len() {
                match client.frame()?.context("the connection ended")? {
                    Frame::Data(id, bytes) => answers.entry(id).or_insert_with(Vec::new).extend(bytes),
                    Frame::Fin(id) if data.iter().any(|(stream, _)| *stream == id) => ended += 1,
                    Frame::Reset(id, status) => anyhow::bail!("stream {id} is reset: {status}"),
                    _ => {}
                }
            }
            for (stream, number) in data {
                let answer = answers.remove(&stream).unwrap_or_default();
                ensure!(
                    answer == number.to_string().as_bytes(),
                    "stream {stream}: {number}: {answer:?}"
                );
            }
            Ok(())
        })
    }
);

test!(
    fn a_connection_to_no_port_is_told_why_and_others_go_on(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let port = counting()?;
            let pod = cri.pod_with(|config| namespaces(config).network = 2)?;
            let mut client = Spdy::open(&forward_url(&pod, &[])?, "portforward.k8s.io")?;
            let [_, lives] = connection(&mut client, port, "0")?;
            client.send(lives, b"123")?;
            for (number, text, expected) in [
                ("1", "1", "refused"),
                ("2", "0", "port"),
                ("3", "65536", "port"),
                ("4", "x", "port"),
            ] {
                let headers = |kind| [("streamtype", kind), ("port", text), ("requestid", number)];
                let error = client.syn_stream(&headers("error"))?;
                client.syn_stream(&headers("data"))?;
                let told = all_of(&mut client, error)?;
                // What can't be a port may be refused before it is opened.
                ensure!(
                    told.contains(expected) || (told.is_empty() && text != "1"),
                    "{text}: {told:?}"
                );
            }
            // Half of a pair, and one of neither kind.
            client.syn_stream(&[("streamtype", "data"), ("port", "1"), ("requestid", "8")])?;
            client.syn_stream(&[("streamtype", "stdin"), ("port", "1"), ("requestid", "9")])?;
            client.send(lives, b"45")?;
            client.fin(lives)?;
            ensure!(all_of(&mut client, lives)? == "5", "the one that lives");
            Ok(())
        })
    }
);
