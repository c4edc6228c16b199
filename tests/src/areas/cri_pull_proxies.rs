//! PullImage through proxies, whom NO_PROXY spares, and `rtc-cri image explain`, which tells it beforehand.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context, ensure};

use super::cri_pull::{pull, puller, request};
use super::cri_pull_hosts::{IMAGE, Tls, hosts};
use crate::cri::{Code, Cri, Setup, only_ours, refused};
use crate::image_registry::ImageRegistry;
use crate::output::Output;
use crate::registry::Result;
use crate::test;

fn with_environment(variables: &[(&str, String)]) -> Setup {
    let owned = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), value.clone()));
    Setup {
        environment: owned.collect(),
        ..puller()
    }
}

fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")
        .context("a free port")?
        .local_addr()?
        .port())
}

/// A proxy on loopback for CONNECT and SOCKS 5 (RFC 1928, 1929), which leads everything to one address: what it was asked,
/// with the user's name and password in front.
fn proxy(port: u16, to: &'static str, answer: &'static str) -> Result<Receiver<String>> {
    let listener = TcpListener::bind(("127.0.0.1", port)).context("a proxy on loopback")?;
    let (asked, receiver) = channel();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let asked = asked.clone();
            // A client that hangs up ends its own thread.
            std::thread::spawn(move || -> Result {
                let mut client = client;
                let mut first = [0];
                client.read_exact(&mut first)?;
                let what = if first[0] == 5 {
                    socks(&mut client)?
                } else {
                    connect(&mut client, answer)?
                };
                asked.send(what)?;
                if !answer.contains(" 200 ") {
                    return Ok(());
                }
                let mut server = TcpStream::connect(to)?;
                let (mut from, mut back) = (client.try_clone()?, server.try_clone()?);
                std::thread::spawn(move || std::io::copy(&mut from, &mut back));
                std::io::copy(&mut server, &mut client)?;
                Ok(client.shutdown(std::net::Shutdown::Both)?)
            });
        }
    });
    Ok(receiver)
}

fn connect(client: &mut TcpStream, answer: &str) -> Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte)?;
        head.push(byte[0]);
    }
    client.write_all(format!("{answer}\r\n\r\n").as_bytes())?;
    let head = String::from_utf8_lossy(&head).into_owned();
    let user = head.lines().find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("proxy-authorization")
            .then(|| value.trim().to_owned())
    });
    let place = head.split_whitespace().nth(1).unwrap_or_default();
    Ok(format!("{} {place}", user.unwrap_or_default()))
}

fn socks(client: &mut TcpStream) -> Result<String> {
    let text = |client: &mut TcpStream| -> Result<String> {
        let mut length = [0];
        client.read_exact(&mut length)?;
        let mut text = vec![0; usize::from(length[0])];
        client.read_exact(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    };
    let methods = text(client)?;
    let with_user = methods.contains('\u{2}');
    client.write_all(&[5, if with_user { 2 } else { 0 }])?;
    let mut user = String::new();
    if with_user {
        client.read_exact(&mut [0])?;
        user = format!("{}:{}", text(client)?, text(client)?);
        client.write_all(&[1, 0])?;
    }
    let mut head = [0; 4];
    client.read_exact(&mut head)?;
    ensure!(head[3] == 3, "a name is asked for: {head:?}");
    let name = text(client)?;
    let mut port = [0; 2];
    client.read_exact(&mut port)?;
    client.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
    Ok(format!("{user} {name}:{}", u16::from_be_bytes(port)))
}

test!(
    fn a_registry_is_reached_through_proxies_of_each_kind(t: &Test) -> Result {
        for (scheme, user) in [("http", "Basic YW5uOnMzY3JldA=="), ("socks5", "ann:s3cret")] {
            let port = free_port()?;
            let address = format!("{scheme}://ann:s3cret@127.0.0.1:{port}");
            with_environment(&[("HTTPS_PROXY", address)]).with(t, |cri| {
                let _registry = Tls::start(cri, false)?;
                let asked = proxy(port, "127.0.0.1:5443", "HTTP/1.1 200 OK")?;
                hosts(
                    cri,
                    "registry.test",
                    "server = \"https://far.test\"\nskip_verify = true\n",
                )?;
                pull(cri, IMAGE)?;
                let all: Vec<String> = asked.try_iter().collect();
                let expected = format!("{user} far.test:443");
                ensure!(
                    !all.is_empty() && all.iter().all(|what| *what == expected),
                    "{all:?}"
                );
                if cri.is_ours() {
                    let log = fs::read_to_string(cri.log())?;
                    ensure!(!log.contains("s3cret"), "{log}");
                }
                Ok(())
            })?;
        }
        Ok(())
    }
);

test!(
    fn a_proxy_may_speak_tls_itself(t: &Test) -> Result {
        let authority = t.path("ca.pem");
        fs::write(&authority, include_str!("../../certificates/ca.pem"))?;
        let setup = with_environment(&[
            ("HTTP_PROXY", "https://127.0.0.1:5443".to_owned()),
            ("SSL_CERT_FILE", authority.display().to_string()),
        ]);
        setup.with(t, |cri| {
            // The registry takes whole addresses, too.
            let _registry = Tls::start(cri, false)?;
            hosts(cri, "registry.test", "server = \"http://far.test\"\n")?;
            pull(cri, IMAGE).map(drop)
        })
    }
);

test!(
    fn a_proxy_that_fails_is_named_without_its_password(t: &Test) -> Result {
        only_ours(t)?;
        let (port, closed) = (free_port()?, free_port()?);
        let environment = |https: String| with_environment(&[("HTTPS_PROXY", https)]);
        let fails = |cri: &Cri<'_>, code: Code, texts: &[&str]| -> Result {
            hosts(cri, "registry.test", "server = \"https://far.test\"\n")?;
            let result = cri.pull_image(request(IMAGE));
            if let Err(status) = &result {
                ensure!(!status.message().contains("s3cret"), "{status:?}");
            }
            refused(result, code, texts)
        };
        environment(format!("http://ann:s3cret@127.0.0.1:{port}")).with(t, |cri| {
            let _asked = proxy(port, "127.0.0.1:1", "HTTP/1.1 407 Proxy Authentication Required")?;
            let place = format!("proxy http://127.0.0.1:{port} (HTTPS_PROXY)");
            let texts = [
                "https://far.test",
                &place,
                "CONNECT far.test:443 with 407 Proxy Authentication",
            ];
            fails(cri, Code::Unavailable, &texts)
        })?;
        environment(format!("http://ann:s3cret@127.0.0.1:{closed}")).with(t, |cri| {
            let place = format!("proxy http://127.0.0.1:{closed} (HTTPS_PROXY)");
            fails(cri, Code::Unavailable, &[&place, "Connection refused"])
        })?;
        environment("gopher://ann:s3cret@127.0.0.1".to_owned()).with(t, |cri| {
            fails(cri, Code::Unavailable, &["HTTPS_PROXY: gopher", "socks5"])
        })
    }
);

test!(
    fn whom_no_proxy_names_is_reached_without_one(t: &Test) -> Result {
        let port = free_port()?;
        let exceptions = "10.77.0.0/16, 10.88.0.1:8080,.inner.test,*.star.test,outer.test:81,fd00::1";
        let setup = with_environment(&[
            ("http_proxy", format!("127.0.0.1:{port}")),
            ("no_proxy", exceptions.to_owned()),
        ]);
        setup.with(t, |cri| {
            let proxy = ImageRegistry::start_on(port)?;
            let mut number = 0;
            for (server, direct) in [
                ("10.77.1.2", true),
                ("10.78.1.2", false),
                ("10.88.0.1:8080", true),
                ("10.88.0.1", false),
                ("a.inner.test", true),
                ("inner.test", false),
                ("a.star.test", true),
                ("outer.test:81", true),
                ("outer.test", false),
                ("[fd00::1]", true),
                ("[fd00::2]", false),
            ] {
                hosts(
                    cri,
                    "registry.test",
                    &format!("server = \"http://{server}\"\ndial_timeout = \"1s\"\n"),
                )?;
                number += 1;
                let tag = number.to_string();
                proxy.push("app", &tag, &[&[(&tag, b"1")]]);
                let result = cri.pull_image(request(&format!("registry.test/app:{tag}")));
                let through = !proxy.requests().is_empty();
                ensure!(
                    through != direct && result.is_ok() == through,
                    "{server}: {result:?}"
                );
            }
            Ok(())
        })
    }
);

/// `rtc-cri image explain WORDS` of the server's configuration.
fn explain(cri: &Cri<'_>, words: &[&str]) -> Result<Output> {
    let config = cri.config().display().to_string();
    let command = cri.t.bare(["image", "explain", "--config", &config]);
    command.program(&cri.t.cri).args(words).run()
}

test!(
    fn a_person_is_told_which_hosts_a_pull_would_ask(t: &Test) -> Result {
        only_ours(t)?;
        let setup = with_environment(&[
            ("HTTPS_PROXY", "http://ann:s3cret@proxy.test:3128".to_owned()),
            ("NO_PROXY", "near.test".to_owned()),
        ]);
        setup.with(t, |cri| {
            let registry = ImageRegistry::start()?;
            let text = format!(
                "server = \"http://{}\"\n\
                 [host.\"https://mirror.test:5000\"]\ncapabilities = [\"pull\"]\nca = \"none.pem\"\n\
                 client = [[\"mine.pem\", \"\"]]\n\
                 [host.\"https://mirror.test:5000\".header]\nauthorization = \"s3cret\"\nx-key = [\"s3cret\", \"b\"]\n\
                 [host.\"https://near.test/proxy\"]\noverride_path = true\nskip_verify = true\ndial_timeout = \"2s\"\n",
                registry.address()
            );
            hosts(cri, "registry.test", &text)?;
            let told = explain(cri, &["registry.test/app:1"])?.ok()?;
            ensure!(!told.stdout.contains("s3cret"), "{told}");
            let at = |text: &str| told.stdout.find(text).with_context(|| format!("no {text:?} in {told}"));
            let file = cri.directory.join("certs.d/registry.test/hosts.toml").display().to_string();
            let ours = format!("http://{}/v2/app/manifests/1?ns=registry.test", registry.address());
            // In this order.
            let parts = [
                "image     registry.test/app:1",
                &format!("those of the environment of rtc-cri (pid {})", cri.pid()?),
                "1  https://mirror.test:5000/v2/app/manifests/1?ns=registry.test",
                &format!("{file}: host.\"https://mirror.test:5000\""),
                "content, not what the tag means (capabilities: no resolve)",
                "registry.test/none.pem",
                "registry.test/mine.pem",
                "authorization, x-key",
                "http://proxy.test:3128 (HTTPS_PROXY)",
                "none: those of a pull are for registry.test",
                "PROBLEM      the pull fails:",
                "2  https://near.test/proxy/app/manifests/1?ns=registry.test",
                "not verified (skip_verify",
                "within 2 s",
                &format!("3  {ours}"),
                &format!("{file}: server"),
                "none: plain HTTP",
                "those of the pull, when it asks for them",
            ];
            let mut last = 0;
            for part in parts {
                let found = at(part)?;
                ensure!(found >= last, "{part:?} is in the wrong place\n{told}");
                last = found;
            }
            ensure!(registry.requests().is_empty(), "nobody is asked");
            // The default of the test's server, and what is built in.
            let told = explain(cri, &["busybox"])?.ok()?;
            ensure!(told.stdout.contains("docker.io/library/busybox:latest"), "{told}");
            ensure!(told.stdout.contains("_default: has a hosts.toml"), "{told}");
            ensure!(told.stdout.contains("2  https://registry-1.docker.io/v2/library/busybox/manifests/latest\n"), "{told}");
            explain(cri, &["docker.io/UPPER"])?.fails_with(&["docker.io/UPPER"])?;
            hosts(cri, "registry.test", "server = 1")?;
            explain(cri, &["registry.test/app"])?.fails_with(&["hosts.toml", "server: must be a text"])?;
            Ok(())
        })
    }
);

test!(
    fn a_person_is_told_what_each_host_answers(t: &Test) -> Result {
        only_ours(t)?;
        puller().with(t, |cri| {
            let (one, two) = (ImageRegistry::start()?, ImageRegistry::start()?);
            let text = format!(
                "server = \"http://{}\"\n[host.\"http://127.0.0.1:1\"]\n[host.\"http://{}\"]\n",
                two.address(),
                one.address()
            );
            hosts(cri, "registry.test", &text)?;
            let pushed = two.push("app", "1", &[&[("one", b"1")]]);
            let told = explain(cri, &["--probe", "registry.test/app:1"])?.ok()?;
            for expected in [
                "1  http://127.0.0.1:1: 127.0.0.1:1:".to_owned(),
                format!(
                    "2  http://{}: manifests/1: 404 Not Found (NOT_THERE: no such thing)",
                    one.address()
                ),
                format!("3  http://{}: has it: {}", two.address(), pushed.manifest),
            ] {
                ensure!(told.stdout.contains(&expected), "{expected}\n{told}");
            }
            Ok(())
        })
    }
);

test!(
    fn an_error_names_hosts_that_were_given_up_before_too(t: &Test) -> Result {
        only_ours(t)?;
        puller().with(t, |cri| {
            let itself = ImageRegistry::start()?;
            let text = format!(
                "server = \"http://{}\"\n[host.\"http://127.0.0.1:1\"]\n",
                itself.address()
            );
            hosts(cri, "registry.test", &text)?;
            let pushed = itself.push("app", "1", &[&[("one", b"1")]]);
            let gone = pushed.layers[0].clone();
            itself.misbehave(move |request, reply| {
                if request.path.contains(&gone) {
                    reply.become_status(404);
                }
            });
            refused(
                cri.pull_image(request("registry.test/app:1")),
                Code::NotFound,
                &[
                    "http://127.0.0.1:1: ",
                    "Connection refused",
                    &pushed.layers[0],
                    "404",
                ],
            )
        })
    }
);
