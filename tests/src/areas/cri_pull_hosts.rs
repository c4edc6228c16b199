//! PullImage: which hosts are asked, by which names, through what: `hosts.toml`, TLS, proxies, DNS.

use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use super::cri_pull::{pull, puller, request};
use crate::cri::{Code, Cri, Setup, only_ours, refused};
use crate::image_registry::{ImageRegistry, Request};
use crate::registry::Result;
use crate::test;
use crate::wait;

const LAYERS: &[&[(&str, &[u8])]] = &[&[("one", b"1")]];

/// Writes the `hosts.toml` of a registry.
pub(super) fn hosts(cri: &Cri<'_>, registry: &str, text: &str) -> Result {
    let directory = cri.directory.join("certs.d").join(registry);
    fs::create_dir_all(&directory)?;
    Ok(fs::write(directory.join("hosts.toml"), text)?)
}

test!(
    fn mirrors_are_asked_in_their_order_and_then_the_server(t: &Test) -> Result {
        puller().with(t, |cri| {
            let registries = [
                ImageRegistry::start()?,
                ImageRegistry::start()?,
                ImageRegistry::start()?,
            ];
            let text = format!(
                "server = \"http://{}\"\n[host.\"http://{}\"]\n[host.\"http://{}\"]\n",
                registries[2].address(),
                registries[1].address(),
                registries[0].address()
            );
            hosts(cri, "registry.test", &text)?;
            let pushed = registries[2].push("app", "1", LAYERS);
            ensure!(
                pull(cri, "registry.test/app:1")? == pushed.config,
                "from the server"
            );
            for registry in &registries {
                ensure!(
                    !registry.requests().is_empty(),
                    "{} is not asked",
                    registry.address()
                );
            }
            let pushed = registries[1].push("app", "2", LAYERS);
            ensure!(
                pull(cri, "registry.test/app:2")? == pushed.config,
                "from the first mirror"
            );
            ensure!(
                registries[0].requests().is_empty() && registries[2].requests().is_empty(),
                "no other is asked"
            );
            let asked = registries[1].requests();
            ensure!(
                asked
                    .iter()
                    .all(|request| request.path.contains("?ns=registry.test")),
                "{asked:?}"
            );
            Ok(())
        })
    }
);

test!(
    fn an_error_names_every_host_that_was_asked(t: &Test) -> Result {
        puller().with(t, |cri| {
            only_ours(t)?;
            let (one, two) = (ImageRegistry::start()?, ImageRegistry::start()?);
            two.misbehave(|_, reply| reply.become_status(403));
            let text = format!(
                "server = \"http://{}\"\n[host.\"http://127.0.0.1:1\"]\n[host.\"http://{}\"]\n",
                two.address(),
                one.address()
            );
            hosts(cri, "registry.test", &text)?;
            let expected = [
                "registry.test/app:1",
                "http://127.0.0.1:1",
                "Connection refused",
                &one.address(),
                "404",
                &two.address(),
                "403",
            ];
            refused(
                cri.pull_image(request("registry.test/app:1")),
                Code::PermissionDenied,
                &expected,
            )
        })
    }
);

test!(
    fn a_mirror_with_wrong_content_does_not_stop_a_pull(t: &Test) -> Result {
        puller().with(t, |cri| {
            only_ours(t)?;
            let (mirror, itself) = (ImageRegistry::start()?, ImageRegistry::start()?);
            let text = format!(
                "server = \"http://{}\"\n[host.\"http://{}\"]\n",
                itself.address(),
                mirror.address()
            );
            hosts(cri, "registry.test", &text)?;
            let content = vec![7; 4 << 20];
            // A file's content; a header, so that it can't be unpacked; and that, but never to its end.
            for (tag, wrong, cut) in [("1", 600, None), ("2", 1, None), ("3", 1, Some(3 << 20))] {
                let layers: &[&[(&str, &[u8])]] = &[&[(tag, &content)]];
                mirror.push("app", tag, layers);
                let pushed = itself.push("app", tag, layers);
                let layer = pushed.layers[0].clone();
                mirror.misbehave(move |request, reply| {
                    if request.path.contains(&layer) {
                        reply.body[wrong] ^= 1;
                        if let Some(bytes) = cut {
                            reply.cut_after(bytes);
                        }
                    }
                });
                let id =
                    pull(cri, &format!("registry.test/app:{tag}")).with_context(|| format!("app:{tag}"))?;
                ensure!(id == pushed.config, "the id");
            }
            Ok(())
        })
    }
);

test!(
    fn a_host_that_gave_what_was_wrong_is_asked_again_where_no_other_has_it(t: &Test) -> Result {
        puller().with(t, |cri| {
            only_ours(t)?;
            let (mirror, itself) = (ImageRegistry::start()?, ImageRegistry::start()?);
            let text = format!(
                "server = \"http://{}\"\n[host.\"http://{}\"]\n",
                itself.address(),
                mirror.address()
            );
            hosts(cri, "registry.test", &text)?;
            let pushed = mirror.push("app", "1", LAYERS);
            itself.push("app", "1", LAYERS);
            // Wrong once for the manifest; the layer is nowhere else.
            let mut wrong = true;
            mirror.misbehave(move |request, reply| {
                if request.path.contains("/manifests/") && std::mem::take(&mut wrong) {
                    reply.become_status(418);
                }
            });
            itself.misbehave(|request, reply| {
                if request.is_blob() {
                    reply.become_status(404);
                }
            });
            ensure!(pull(cri, "registry.test/app:1")? == pushed.config, "the id");
            Ok(())
        })
    }
);

test!(
    fn capabilities_headers_and_paths_of_a_host_hold(t: &Test) -> Result {
        puller().with(t, |cri| {
            let (mirror, itself) = (ImageRegistry::start()?, ImageRegistry::start()?);
            let text = format!(
                "server = \"http://{}\"\n[host.\"http://{}/proxy/v2\"]\ncapabilities = [\"pull\"]\noverride_path = true\n\
                 [host.\"http://{}/proxy/v2\".header]\nx-test = \"yes\"\n",
                itself.address(),
                mirror.address(),
                mirror.address()
            );
            hosts(cri, "registry.test", &text)?;
            mirror.push("app", "1", LAYERS);
            let pushed = itself.push("app", "1", LAYERS);
            ensure!(pull(cri, "registry.test/app:1")? == pushed.config, "the id");
            let (asked, resolved) = (mirror.requests(), itself.requests());
            ensure!(!asked.iter().any(|request| request.path.contains("/manifests/1")), "{asked:?}");
            ensure!(asked.iter().any(Request::is_blob), "{asked:?}");
            let right = |request: &Request| request.header("x-test") == "yes" && request.path.starts_with("/proxy/v2/app/");
            ensure!(asked.iter().all(right), "{asked:?}");
            ensure!(resolved.iter().all(|request| request.header("x-test").is_empty()), "{resolved:?}");
            Ok(())
        })
    }
);

test!(
    fn a_hosts_file_is_read_for_each_pull_and_its_faults_are_named(t: &Test) -> Result {
        puller().with(t, |cri| {
            only_ours(t)?;
            let registry = ImageRegistry::start()?;
            let pushed = registry.push("app", "1", LAYERS);
            for (text, expected) in [
                ("server = ", "hosts.toml"),
                ("[host.\"ftp://a\"]", "ftp"),
                ("[host.\"https://a\"]\nca = \"none.pem\"", "none.pem"),
            ] {
                hosts(cri, "registry.test", text)?;
                let result = cri.pull_image(request("registry.test/app:1"));
                refused(
                    result,
                    Code::FailedPrecondition,
                    &["certs.d/registry.test", expected],
                )?;
            }
            hosts(
                cri,
                "registry.test",
                &format!("server = \"http://{}\"", registry.address()),
            )?;
            ensure!(pull(cri, "registry.test/app:1")? == pushed.config, "the id");
            Ok(())
        })
    }
);

test!(
    fn proxies_of_the_environment_are_used_but_not_for_this_machine(t: &Test) -> Result {
        let proxy = std::net::TcpListener::bind("127.0.0.1:0")
            .context("a free port")?
            .local_addr()?
            .port();
        let environment = |name: &str, value: String| (name.to_owned(), value);
        let setup = Setup {
            environment: vec![
                environment("HTTP_PROXY", format!("http://ann:s3cret@127.0.0.1:{proxy}")),
                environment("NO_PROXY", "direct.test".into()),
            ],
            ..puller()
        };
        setup.with(t, |cri| {
            let (proxy, itself) = (ImageRegistry::start_on(proxy)?, ImageRegistry::start()?);
            let pushed = proxy.push("app", "1", LAYERS);
            hosts(cri, "registry.test", "server = \"http://far.test\"")?;
            ensure!(
                pull(cri, "registry.test/app:1")? == pushed.config,
                "through the proxy"
            );
            let asked = proxy.requests();
            let through = |request: &Request| request.path.starts_with("http://far.test/v2/app/");
            ensure!(asked.iter().all(through), "{asked:?}");
            if cri.is_ours() {
                let known =
                    |request: &Request| request.header("proxy-authorization") == "Basic YW5uOnMzY3JldA==";
                ensure!(asked.iter().all(known), "{asked:?}");
            }
            itself.push("app", "2", LAYERS);
            hosts(
                cri,
                "registry.test",
                &format!("server = \"http://{}\"", itself.address()),
            )?;
            pull(cri, "registry.test/app:2")?;
            hosts(cri, "registry.test", "server = \"http://direct.test\"")?;
            ensure!(
                cri.pull_image(request("registry.test/app:3")).is_err(),
                "nobody is there"
            );
            ensure!(proxy.requests().is_empty(), "not through the proxy");
            Ok(())
        })
    }
);

/// A file of the test's over one of the machine, in the test's own mount namespace.
struct Cover(PathBuf);

impl Drop for Cover {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn cover(file: &Path, text: &str, over: &str) -> Result<Cover> {
    fs::write(file, text)?;
    let over = fs::canonicalize(over).with_context(|| over.to_owned())?;
    mount(Some(file), &over, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .with_context(|| over.display().to_string())?;
    Ok(Cover(over))
}

/// A name server that knows one answer, 127.0.0.1, to whatever is asked for an A (RFC 1035, 4.1).
fn name_server() -> Result {
    let socket = UdpSocket::bind("127.0.0.1:53").context("port 53")?;
    std::thread::spawn(move || {
        let mut packet = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut packet) {
            let question = &packet[12..length];
            let end = question.iter().position(|byte| *byte == 0).unwrap_or(0) + 5;
            let is_a = question.get(end - 4..end - 2) == Some(&[0, 1]);
            let mut answer = packet[..2].to_vec();
            answer.extend([0x81, 0x80, 0, 1, 0, u8::from(is_a), 0, 0, 0, 0]);
            answer.extend(&question[..end]);
            if is_a {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 127, 0, 0, 1]);
            }
            // Who does not wait for it misses it.
            let _ = socket.send_to(&answer, from);
        }
    });
    Ok(())
}

test!(
    fn names_are_found_in_the_hosts_file_and_by_the_name_servers(t: &Test) -> Result {
        puller().with(t, |cri| {
            let registry = ImageRegistry::start()?;
            let port = registry.address().rsplit(':').next().context("port")?.to_owned();
            let pushed = registry.push("app", "1", LAYERS);
            let _hosts = cover(
                &cri.directory.join("hosts"),
                "127.0.0.1 local.test\n",
                "/etc/hosts",
            )?;
            let _resolver = cover(
                &cri.directory.join("resolv.conf"),
                "nameserver 127.0.0.1\n",
                "/etc/resolv.conf",
            )?;
            name_server()?;
            for name in ["local.test", "far.test"] {
                hosts(
                    cri,
                    "registry.test",
                    &format!("server = \"http://{name}:{port}\""),
                )?;
                ensure!(pull(cri, "registry.test/app:1")? == pushed.config, "{name}");
                ensure!(!registry.requests().is_empty(), "{name} is not asked");
            }
            Ok(())
        })
    }
);

/// The peers' registry behind TLS; certificates: `tests/certificates/README`.
pub(super) struct Tls(Child);

impl Tls {
    pub(super) fn start(cri: &Cri<'_>, client: bool) -> Result<Self> {
        // The machine has this program, not its sources.
        for (name, text) in [
            ("ca.pem", include_str!("../../certificates/ca.pem")),
            ("server.pem", include_str!("../../certificates/server.pem")),
            ("client.pem", include_str!("../../certificates/client.pem")),
        ] {
            fs::write(cri.directory.join(name), text)?;
        }
        let directory = cri.directory.display();
        let authorities = if client {
            format!(", clientcas: [{directory}/ca.pem]")
        } else {
            String::new()
        };
        let text = format!(
            "version: 0.1\nlog: {{level: warn, accesslog: {{disabled: true}}}}\n\
             storage: {{filesystem: {{rootdirectory: {}}}, maintenance: {{readonly: {{enabled: true}}}}}}\n\
             http: {{addr: 127.0.0.1:5443, tls: {{certificate: {directory}/server.pem, key: {directory}/server.pem{authorities}}}}}\n",
            cri.peer_file("images/storage")
        );
        let config = cri.directory.join("tls.yml");
        fs::write(&config, text)?;
        let child = Command::new(cri.peer_file("registry/bin/docker-registry"))
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("docker-registry")?;
        let tls = Self(child);
        wait::until("the registry to listen", || {
            Ok(std::net::TcpStream::connect("127.0.0.1:5443").ok())
        })?;
        Ok(tls)
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        // It may have ended itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) const IMAGE: &str = "registry.test/e2e-test-images/busybox:1.29-4";

test!(
    fn a_registrys_certificate_is_checked(t: &Test) -> Result {
        puller().with(t, |cri| {
            let _registry = Tls::start(cri, false)?;
            let server = "server = \"https://127.0.0.1:5443\"\n";
            hosts(cri, "registry.test", server)?;
            let result = cri.pull_image(request(IMAGE));
            let code = if cri.is_ours() {
                Code::Unavailable
            } else {
                Code::Unknown
            };
            refused(result, code, &["127.0.0.1:5443", "certificate", "UnknownIssuer"])?;
            hosts(
                cri,
                "registry.test",
                &format!("{server}ca = \"{}/ca.pem\"\n", cri.directory.display()),
            )?;
            let id = pull(cri, IMAGE)?;
            hosts(cri, "registry.test", &format!("{server}skip_verify = true\n"))?;
            ensure!(pull(cri, IMAGE)? == id, "the same image");
            Ok(())
        })
    }
);

test!(
    fn a_certificate_of_ours_is_shown_to_a_registry(t: &Test) -> Result {
        puller().with(t, |cri| {
            let _registry = Tls::start(cri, true)?;
            let ca = format!(
                "server = \"https://127.0.0.1:5443\"\nca = \"{}/ca.pem\"\n",
                cri.directory.display()
            );
            hosts(cri, "registry.test", &ca)?;
            ensure!(cri.pull_image(request(IMAGE)).is_err(), "without a certificate");
            let client = format!("{ca}client = \"{}/client.pem\"\n", cri.directory.display());
            hosts(cri, "registry.test", &client)?;
            pull(cri, IMAGE)?;
            // As Docker keeps them.
            let directory = cri.directory.join("certs.d/127.0.0.1:5443");
            fs::create_dir_all(&directory)?;
            for (from, to) in [
                ("ca.pem", "ca.crt"),
                ("client.pem", "client.cert"),
                ("client.pem", "client.key"),
            ] {
                fs::copy(cri.directory.join(from), directory.join(to))?;
            }
            pull(cri, &IMAGE.replace("registry.test", "127.0.0.1:5443"))?;
            Ok(())
        })
    }
);

test!(
    fn a_registry_on_loopback_is_spoken_to_without_tls_where_it_speaks_none(t: &Test) -> Result {
        puller().with(t, |cri| {
            let registry = ImageRegistry::start()?;
            let pushed = registry.push("app", "1", LAYERS);
            fs::remove_dir_all(cri.directory.join("certs.d"))?;
            let port = registry.address().rsplit(':').next().context("port")?.to_owned();
            ensure!(
                pull(cri, &format!("localhost:{port}/app:1"))? == pushed.config,
                "the id"
            );
            Ok(())
        })
    }
);
