//! What tests run inside a container where busybox has no applet for it: `rtc-tests payload NAME ARGS...`.

use std::process::ExitCode;

use anyhow::{Result, bail};

/// Runs a payload.
pub(crate) fn main(name: &str, args: &[&str]) -> Result<ExitCode> {
    match (name, args) {
        ("fds", []) => open_descriptors()?,
        ("keyring", []) => println!("{}", crate::sys::session_keyring().unwrap_or(0)),
        ("health", [port, sick]) => crate::health::serve(port.parse()?, sick.as_ref())?,
        ("datagrams", [port, name]) => answer_datagrams(port.parse()?, name)?,
        ("notify", [message]) => notify(message)?,
        ("call", [number]) => println!("{}", crate::sys::call_by_number(number.parse()?)),
        _ => bail!("no such payload: {name} {args:?}"),
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints `N target` for each open descriptor but the one that reads the list.
fn open_descriptors() -> Result<()> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc/self/fd")? {
        let path = entry?.path();
        let Ok(target) = std::fs::read_link(&path) else {
            continue;
        };
        found.push((
            path.file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned(),
            target,
        ));
    }
    let listing = format!("/proc/{}/fd", std::process::id());
    found.retain(|(_, target)| target.to_string_lossy() != listing);
    found
        .iter()
        .for_each(|(number, target)| println!("{number} {}", target.display()));
    Ok(())
}

/// Answers each datagram at a port with a name and what came, for good.
fn answer_datagrams(port: u16, name: &str) -> Result<()> {
    let socket = std::net::UdpSocket::bind(("0.0.0.0", port))?;
    let mut text = [0; 1000];
    loop {
        let (length, from) = socket.recv_from(&mut text)?;
        let text = String::from_utf8_lossy(&text[..length]);
        // Whoever has gone meanwhile is no reason to end.
        let _ = socket.send_to(format!("{name} {text}").as_bytes(), from);
    }
}

/// Sends a message to `$NOTIFY_SOCKET` (sd_notify(3)) and stays.
fn notify(message: &str) -> Result<()> {
    let path = std::env::var("NOTIFY_SOCKET")?;
    std::os::unix::net::UnixDatagram::unbound()?.send_to(message.as_bytes(), path)?;
    std::thread::sleep(std::time::Duration::from_secs(1_000_000));
    Ok(())
}
