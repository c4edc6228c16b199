//! Port-forward through the kubelet's own API: SPDY, channels of WebSocket, and SPDY in a WebSocket, as `kubectl` has it
//! since 1.31 (to the kubelet itself since 1.36).

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener};

use anyhow::{Context, ensure};
use serde_json::json;

use crate::cri::spdy::{Frame, Spdy};
use crate::cri::websocket::{BINARY, WebSocket};
use crate::cri::{names, only_ours};
use crate::kubelet::{Api, Node, StaticPod, busybox, of_pod, with};
use crate::registry::Result;
use crate::test;
use crate::wait::until;

/// An echo, one that counts what it is told and says so after the end of it; nobody.
const ECHO: u16 = 7000;
const COUNT: u16 = 7001;
const NOBODY: u16 = 9;

const SPDY: &str = "portforward.k8s.io";
const TUNNELLED: &str = "SPDY/3.1+portforward.k8s.io";

fn servers(node: &Node<'_>) -> Result<StaticPod> {
    let script = format!(
        "trap 'exit 0' TERM; nc -ll -p {ECHO} -e cat & nc -ll -p {COUNT} -e wc -c & while :; do sleep 1 & wait $!; done"
    );
    let pod = node.up("servers", json!({"containers": [busybox("main", &script)]}))?;
    until("the pod's servers", || {
        let listening = node.exec(&pod, "main", "netstat -ltn")?;
        let all = [ECHO, COUNT]
            .iter()
            .all(|port| listening.contains(&format!(":{port} ")));
        Ok(all.then_some(()))
    })?;
    Ok(pod)
}

fn url(api: &Api, pod: &StaticPod) -> String {
    api.url(&of_pod("portForward", pod))
}

/// A connection: its error stream, whose own half the client closes as kubectl does, and its data stream.
fn connect(client: &mut Spdy, port: u16, request: usize) -> Result<[u32; 2]> {
    let (port, request) = (port.to_string(), request.to_string());
    let of = |part| {
        [
            ("streamtype", part),
            ("port", port.as_str()),
            ("requestid", request.as_str()),
        ]
    };
    let error = client.stream(&of("error"))?;
    client.fin(error)?;
    Ok([error, client.stream(&of("data"))?])
}

/// What comes on a stream until it ends, or has come so far; frames of others are passed over.
fn text_of(client: &mut Spdy, stream: u32, enough: usize) -> Result<String> {
    let mut all = Vec::new();
    while all.len() < enough {
        match client.frame()?.context("the connection ended")? {
            Frame::Data(id, data) if id == stream => all.extend(data),
            Frame::Fin(id) | Frame::Reset(id, _) if id == stream => break,
            _ => {}
        }
    }
    Ok(String::from_utf8_lossy(&all).into_owned())
}

/// Several connections of one client: to an echo, much to one that counts, to nobody.
fn forwards(client: &mut Spdy) -> Result {
    let [_, echo] = connect(client, ECHO, 0)?;
    client.send(echo, b"hello")?;
    ensure!(text_of(client, echo, 5)? == "hello");
    let [error, data] = connect(client, NOBODY, 1)?;
    let text = text_of(client, error, usize::MAX)?.to_lowercase();
    names(&text, &["9", "connection refused"])?;
    // kubectl drops the data stream of a connection that failed.
    client.control(3, &[&data.to_be_bytes(), &5_u32.to_be_bytes()])?;
    let [_, count] = connect(client, COUNT, 2)?;
    for _ in 0..64 {
        client.send(count, &[b'x'; 50_000])?;
    }
    client.fin(count)?;
    ensure!(text_of(client, count, usize::MAX)?.trim() == "3200000");
    client.send(echo, b"still")?;
    ensure!(text_of(client, echo, 5)? == "still");
    Ok(())
}

test!(
    fn ports_of_a_pod_are_reached_over_spdy_and_one_that_fails_ends_no_other(t: &Test) -> Result {
        with(t, |node| {
            only_ours(t)?;
            let (pod, api) = (servers(node)?, node.api()?);
            for _ in 0..3 {
                forwards(&mut Spdy::open(&url(&api, &pod), SPDY)?)?;
            }
            until("the pod's connections to end", || {
                let open = node.exec(&pod, "main", "netstat -tn | grep -c ESTABLISHED; true")?;
                Ok((open == "0").then_some(()))
            })
        })
    }
);

test!(
    fn ports_of_a_pod_are_channels_of_a_web_socket(t: &Test) -> Result {
        with(t, |node| {
            let (pod, api) = (servers(node)?, node.api()?);
            let url = format!("{}?port={ECHO}&port={NOBODY}", url(&api, &pod));
            let mut client = WebSocket::open(&url, "v4.channel.k8s.io")?;
            // A data and an error channel for each port, which begin with the port's number.
            let (mut begun, mut refused, mut echo) = (Vec::new(), String::new(), String::new());
            client.send(0, b"hello")?;
            while begun.len() < 4 || !refused.contains("refused") || echo != "hello" {
                let (opcode, payload) = client.next()?.context("the end")?;
                ensure!(opcode == BINARY, "opcode {opcode}: {payload:?}");
                let (&channel, data) = payload.split_first().context("an empty frame")?;
                if begun.contains(&channel) {
                    let text = String::from_utf8_lossy(data).to_lowercase();
                    match channel {
                        0 => echo += &text,
                        3 => refused += &text,
                        _ => anyhow::bail!("channel {channel}: {text}"),
                    }
                } else if !data.is_empty() {
                    let port = if channel < 2 { ECHO } else { NOBODY };
                    ensure!(data == port.to_le_bytes(), "channel {channel}: {data:?}");
                    begun.push(channel);
                }
            }
            client.send(0, b" again")?;
            client.until(0, " again").map(drop)
        })
    }
);

/// Where a client of SPDY is carried in frames of a WebSocket that is opened with this URL.
fn carrier(url: String) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || -> Result {
        let (mut client, _) = listener.accept()?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            client.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let mut up = match WebSocket::open(&url, TUNNELLED) {
            Ok(socket) => socket,
            Err(error) => return Ok(write!(client, "{error:#}\r\n\r\n")?),
        };
        client.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n")?;
        let (mut down, mut from) = (up.try_clone()?, client.try_clone()?);
        std::thread::spawn(move || -> Result {
            let mut piece = [0; 16 << 10];
            loop {
                match from.read(&mut piece)? {
                    0 => return Ok(up.socket().shutdown(Shutdown::Both)?),
                    length => up.frame(BINARY, &piece[..length])?,
                }
            }
        });
        while let Some((opcode, payload)) = down.next()? {
            if opcode == BINARY {
                client.write_all(&payload)?;
            }
        }
        Ok(client.shutdown(Shutdown::Both)?)
    });
    Ok(format!("http://{address}/"))
}

test!(
    fn ports_of_a_pod_are_reached_over_spdy_in_a_web_socket(t: &Test) -> Result {
        with(t, |node| {
            only_ours(t)?;
            let (pod, api) = (servers(node)?, node.api()?);
            let carried = carrier(url(&api, &pod))?;
            if node.minor() < 36 {
                // Its API server ends the WebSocket.
                let refused = Spdy::open(&carried, SPDY).err().context("it is not refused")?;
                return names(&format!("{refused:#}"), &["HTTP/1.1 400 "]);
            }
            forwards(&mut Spdy::open(&carried, SPDY)?)
        })
    }
);

test!(
    fn a_pod_or_port_that_is_not_there_is_refused(t: &Test) -> Result {
        with(t, |node| {
            let (pod, api) = (servers(node)?, node.api()?);
            let none = api.url("/portForward/default/none-node");
            let refused = Spdy::open(&none, SPDY).err().context("it is not refused")?;
            names(&format!("{refused:#}"), &["HTTP/1.1 404 "])?;
            api.ask("POST", "/portForward/default/none-node")?
                .is(404, &["pod does not exist"])?;
            for port in ["", "?port=0", "?port=65536", "?port=web"] {
                let url = format!("{}{port}", url(&api, &pod));
                let refused = WebSocket::open(&url, "v4.channel.k8s.io").err();
                let refused = refused.with_context(|| format!("{port:?} is not refused"))?;
                names(&format!("{refused:#}"), &["HTTP/1.1 400 "])?;
            }
            Ok(())
        })
    }
);

test!(
    fn what_is_forwarded_ends_with_its_pod(t: &Test) -> Result {
        with(t, |node| {
            only_ours(t)?;
            let (pod, api) = (servers(node)?, node.api()?);
            let mut client = Spdy::open(&url(&api, &pod), SPDY)?;
            let [_, echo] = connect(&mut client, ECHO, 0)?;
            client.send(echo, b"hello")?;
            ensure!(text_of(&mut client, echo, 5)? == "hello");
            node.withdraw("servers")?;
            while client.frame()?.is_some() {}
            node.until_gone("servers")
        })
    }
);
