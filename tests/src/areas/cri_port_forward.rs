//! PortForward: through crictl as a person uses it, and by a client of SPDY that does what no tool does.

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::process::{Command, Stdio};

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cri::proto::*;
use crate::cri::spdy::{Frame, Spdy};
use crate::cri::{Code, Container, Cri, Pod, check, namespaces, only_ours, refused, with};
use crate::registry::Result;
use crate::test;
use crate::wait::until;

/// An echo, and one that counts what it is told and says so after the end of it.
const ECHO: u16 = 7000;
const COUNT: u16 = 7001;

/// A pod with these two servers.
fn pod<'c, 't>(cri: &'c Cri<'t>) -> Result<(Pod<'c, 't>, Container<'c, 't>)> {
    let pod = cri.pod()?;
    let script = format!("nc -ll -p {ECHO} -e cat & nc -ll -p {COUNT} -e wc -c & wait");
    let servers = pod.run("servers", &script)?;
    until("the pod's servers", || {
        let listening = servers.sh("netstat -ltn")?;
        let all = [ECHO, COUNT]
            .iter()
            .all(|port| listening.contains(&format!(":{port} ")));
        Ok(all.then_some(()))
    })?;
    Ok((pod, servers))
}

fn url(cri: &Cri<'_>, pod: &str) -> Result<String> {
    let request = PortForwardRequest {
        pod_sandbox_id: pod.to_owned(),
        port: vec![],
    };
    Ok(check("PortForward", cri.port_forward(request))?.url)
}

fn client(cri: &Cri<'_>, pod: &Pod<'_, '_>) -> Result<Spdy> {
    Spdy::open(&url(cri, &pod.id)?, "portforward.k8s.io")
}

/// A connection: its error stream, whose own half the client closes as kubectl does, and its data stream.
fn connect(client: &mut Spdy, port: u16, request: usize) -> Result<(u32, u32)> {
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
    Ok((error, client.stream(&of("data"))?))
}

/// What comes on a stream until it ends, and whether it was reset; frames of others are kept.
#[derive(Default)]
struct Streams(BTreeMap<u32, (Vec<u8>, Option<bool>)>);

impl Streams {
    fn until(
        &mut self,
        client: &mut Spdy,
        id: u32,
        enough: impl Fn(&[u8]) -> bool,
    ) -> Result<(String, Option<bool>)> {
        loop {
            if let Some((data, end)) = self.0.get(&id)
                && (end.is_some() || enough(data))
            {
                return Ok((String::from_utf8_lossy(data).into_owned(), *end));
            }
            match client.frame()?.context("the connection ended")? {
                Frame::Data(id, data) => self.0.entry(id).or_default().0.extend(data),
                Frame::Fin(id) => self.0.entry(id).or_default().1 = Some(false),
                Frame::Reset(id, _) => self.0.entry(id).or_default().1 = Some(true),
                _ => {}
            }
        }
    }

    fn end(&mut self, client: &mut Spdy, id: u32) -> Result<(String, bool)> {
        let (text, end) = self.until(client, id, |_| false)?;
        Ok((text, end.context("no end")?))
    }
}

/// How many descriptors the server has.
fn descriptors(cri: &Cri<'_>) -> Result<usize> {
    Ok(fs::read_dir(format!("/proc/{}/fd", cri.pid()?))?.count())
}

test!(
    fn crictl_port_forward_reaches_a_pods_ports(t: &Test) -> Result {
        with(t, |cri| {
            let (pod, _servers) = pod(cri)?;
            let mut crictl = Command::new(cri.peer_file("cri-tools/bin/crictl"))
                .arg("--runtime-endpoint")
                .arg(format!("unix://{}", cri.socket().display()))
                .args([
                    "port-forward",
                    &pod.id,
                    &format!("18000:{ECHO}"),
                    &format!("18001:{COUNT}"),
                ])
                .stdout(Stdio::piped())
                .spawn()?;
            let mut said = BufReader::new(crictl.stdout.take().context("stdout")?).lines();
            // A line for each address of each port.
            while !said
                .next()
                .context("crictl said nothing")??
                .contains("127.0.0.1:18001")
            {}
            for _ in 0..3 {
                let mut echo = TcpStream::connect("127.0.0.1:18000")?;
                let mut count = TcpStream::connect("127.0.0.1:18001")?;
                echo.write_all(b"hello")?;
                let mut text = [0; 5];
                echo.read_exact(&mut text)?;
                ensure!(&text == b"hello", "{text:?}");
                count.write_all(&vec![b'x'; 1 << 20])?;
                count.shutdown(Shutdown::Write)?;
                let mut counted = String::new();
                count.read_to_string(&mut counted)?;
                ensure!(counted.trim() == "1048576", "{counted:?}");
            }
            kill(Pid::from_raw(crictl.id().cast_signed()), Signal::SIGKILL)?;
            crictl.wait()?;
            Ok(())
        })
    }
);

test!(
    fn a_connection_that_fails_ends_no_other_of_its_client(t: &Test) -> Result {
        with(t, |cri| {
            let (pod, _servers) = pod(cri)?;
            let (mut client, mut streams) = (client(cri, &pod)?, Streams::default());
            let (_, lives) = connect(&mut client, ECHO, 0)?;
            // Nobody listens.
            let (error, data) = connect(&mut client, 9, 1)?;
            let (text, _) = streams.end(&mut client, error)?;
            ensure!(text.contains("error forwarding port 9 to pod"), "{text}");
            ensure!(text.to_lowercase().contains("connection refused"), "{text}");
            streams.end(&mut client, data)?;
            // Closed by the pod after what it says, and by the client in the middle.
            let (_, counts) = connect(&mut client, COUNT, 2)?;
            client.send(counts, b"four")?;
            client.fin(counts)?;
            let (text, reset) = streams.end(&mut client, counts)?;
            ensure!(text.trim() == "4" && !reset, "{text} {reset}");
            let (_, broken) = connect(&mut client, ECHO, 3)?;
            client.send(broken, b"x")?;
            client.control(3, &[&broken.to_be_bytes(), &5_u32.to_be_bytes()])?;
            client.send(lives, b"still")?;
            let (text, end) = streams.until(&mut client, lives, |data| data == b"still")?;
            ensure!(end.is_none(), "{text} {end:?}");
            Ok(())
        })
    }
);

test!(
    fn five_hundred_connections_of_one_client_are_forwarded_at_once(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let pod = cri.pod_with(|config| {
                config.hostname.clear();
                namespaces(config).network = NamespaceMode::Node.into();
            })?;
            // The host's network is that of the test. Each connection says its number back when all are there.
            let listener = TcpListener::bind("127.0.0.1:0")?;
            let port = listener.local_addr()?.port();
            let (mut client, mut streams) = (client(cri, &pod)?, Streams::default());
            let mut connections = Vec::new();
            for number in 0..500 {
                let (_, data) = connect(&mut client, port, number)?;
                let (socket, _) = listener.accept()?;
                client.send(data, number.to_string().as_bytes())?;
                client.fin(data)?;
                connections.push((data, socket));
            }
            for (number, (data, mut socket)) in connections.into_iter().enumerate() {
                let mut text = String::new();
                socket.read_to_string(&mut text)?;
                ensure!(text == number.to_string(), "{text}");
                socket.write_all(text.as_bytes())?;
                drop(socket);
                let (back, reset) = streams.end(&mut client, data)?;
                ensure!(back == text && !reset, "{back} {reset}");
            }
            Ok(())
        })
    }
);

test!(
    fn too_many_streams_are_refused_and_the_others_live(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let (pod, _servers) = pod(cri)?;
            let (mut client, mut streams) = (client(cri, &pod)?, Streams::default());
            let (_, lives) = connect(&mut client, ECHO, 0)?;
            let port = ECHO.to_string();
            let mut refused = 0;
            // Error streams, that wait for their data streams.
            for number in 1..1500 {
                let request = number.to_string();
                let headers = [("streamtype", "error"), ("port", &port), ("requestid", &request)];
                let id = client.stream(&headers)?;
                if number > 1024 {
                    let (text, _) = streams.end(&mut client, id)?;
                    ensure!(text.contains("wait for their other one"), "{text}");
                    refused += 1;
                }
            }
            ensure!(refused == 475, "{refused}");
            client.send(lives, b"still")?;
            streams.until(&mut client, lives, |data| data == b"still")?;
            Ok(())
        })
    }
);

test!(
    fn what_is_not_spdy_ends_its_connection_and_leaves_nothing(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let (pod, servers) = pod(cri)?;
            let before = descriptors(cri)?;
            let frames: [(&str, &[u8]); 6] = [
                ("noise", &[0xff; 64]),
                ("version 2", &[0x80, 2, 0, 1, 0, 0, 0, 10]),
                ("a long SYN_STREAM", &[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff]),
                ("a short PING", &[0x80, 3, 0, 6, 0, 0, 0, 1, 0]),
                (
                    "headers that are none",
                    &[0x80, 3, 0, 8, 0, 0, 0, 6, 0, 0, 0, 1, 0xff, 0xff],
                ),
                ("data of stream 0", &[0, 0, 0, 0, 0, 0, 0, 1, 0]),
            ];
            for (what, bytes) in frames {
                let (mut client, mut streams) = (client(cri, &pod)?, Streams::default());
                let (_, data) = connect(&mut client, ECHO, 0)?;
                client.send(data, b"x")?;
                streams.until(&mut client, data, |data| data == b"x")?;
                client.socket().write_all(bytes)?;
                let mut last = None;
                while let Some(frame) = client.frame()? {
                    last = Some(frame);
                }
                ensure!(last == Some(Frame::GoAway), "{what}: {last:?}");
            }
            // Those who vanish, with or without the middle of a frame.
            for rest in [&[][..], &[0, 0, 0, 3, 0, 0, 1, 0, b'x']] {
                let mut client = client(cri, &pod)?;
                connect(&mut client, ECHO, 0)?;
                client.socket().write_all(rest)?;
            }
            until("the server to have let go", || {
                let open = descriptors(cri)?;
                let pods = servers.sh("netstat -tn | grep -c ESTABLISHED || true")?;
                Ok((open <= before && pods == "0").then_some(()))
            })
        })
    }
);

test!(
    fn forwarding_ends_with_its_pod(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let (pod, _servers) = pod(cri)?;
            let mut client = client(cri, &pod)?;
            connect(&mut client, ECHO, 0)?;
            let late = url(cri, &pod.id)?;
            pod.stop()?;
            while client.frame()?.is_some() {}
            // A token from before is of no use.
            let mut late = Spdy::open(&late, "portforward.k8s.io")?;
            while late.frame()?.is_some() {}
            let request = PortForwardRequest {
                pod_sandbox_id: pod.id.clone(),
                port: vec![80],
            };
            refused(
                cri.port_forward(request),
                Code::FailedPrecondition,
                &["not ready"],
            )
        })
    }
);

test!(
    fn port_forward_refuses_what_can_not_be(t: &Test) -> Result {
        with(t, |cri| {
            only_ours(t)?;
            let pod = cri.pod()?;
            let request = |id: &str, port| PortForwardRequest {
                pod_sandbox_id: id.to_owned(),
                port: vec![80, port],
            };
            refused(cri.port_forward(request("none", 80)), Code::NotFound, &["none"])?;
            refused(
                cri.port_forward(request("", 80)),
                Code::InvalidArgument,
                &["sandbox_id"],
            )?;
            for port in [0, -1, 65536] {
                refused(
                    cri.port_forward(request(&pod.id, port)),
                    Code::InvalidArgument,
                    &["port[1]", &port.to_string()],
                )?;
            }
            // Good once.
            let url = url(cri, &pod.id)?;
            Spdy::open(&url, "portforward.k8s.io")?;
            let again = Spdy::open(&url, "portforward.k8s.io").unwrap_err();
            ensure!(again.to_string().starts_with("HTTP/1.1 404 "), "{again}");
            Ok(())
        })
    }
);
