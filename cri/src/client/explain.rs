//! `rtc-cri image explain`: which endpoints a pull would ask, and how. It asks no server; a running one is looked at for
//! its environment, since its proxies count, not those of who asks.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use nix::sys::socket::{getsockopt, sockopt};

use super::arguments::{Arguments, Flag};
use super::terminal::say;
use super::{Before, Verb, configuration};
use crate::image::explain::{Environment, explain, probe};
use crate::image::registry::proxy::Proxies;

pub(super) const EXPLAIN: Verb = Verb {
    object: "image",
    name: "explain",
    operands: "IMAGE",
    about: "Shows which hosts a pull would ask, in which order and how, and where each is configured.",
    flags: &[Flag::switch(
        "probe",
        None,
        "also ask each of them for the image, without credentials",
    )],
};

/// `image explain`.
pub(super) fn run(before: &Before, arguments: &Arguments) -> Result<ExitCode> {
    let name = arguments.one("IMAGE")?;
    let config = configuration(before, arguments)?;
    let socket = super::socket(before, arguments)?;
    let plain = |error| anyhow::anyhow!("{error}");
    let images = &config.images;
    say(&explain(name, &images.certs_dir, &environment(&socket)).map_err(plain)?);
    if arguments.has("probe") {
        let tokio = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let stall = Duration::from_secs(images.stall_timeout.get());
        let asked = probe(name, &images.certs_dir, environment(&socket), stall);
        say(&tokio.block_on(asked).map_err(plain)?);
    }
    Ok(ExitCode::SUCCESS)
}

/// The server's, where one runs and we may look; else our own.
fn environment(socket: &Path) -> Environment {
    let of_server = || {
        let stream = UnixStream::connect(socket).ok()?;
        let pid = getsockopt(&stream, sockopt::PeerCredentials).ok()?.pid();
        let variables = std::fs::read(format!("/proc/{pid}/environ")).ok()?;
        let proxies = Proxies::read(|name| {
            let mut all = variables.split(|byte| *byte == 0);
            let value = all.find_map(|entry| entry.strip_prefix(name.as_bytes())?.strip_prefix(b"="))?;
            Some(String::from_utf8_lossy(value).into_owned())
        });
        let whose = format!("rtc-cri (pid {pid})");
        Some(Environment { whose, proxies })
    };
    of_server().unwrap_or_else(|| Environment {
        whose: "this shell: no server was found".into(),
        proxies: Proxies::of_environment(),
    })
}
