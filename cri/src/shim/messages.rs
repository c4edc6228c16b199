//! What shims have to say: lines in the FIFO `log` of their bundle, which become ours.
//!
//! A shim holds both ends of it, so that lines wait for an rtc-cri that restarts; its end is the end of the FIFO.

use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::stat::Mode;
use tokio::io::{AsyncBufReadExt as _, BufReader};
use tokio::net::unix::pipe;

use crate::error::Result;
use crate::log;

fn fifo(bundle: &Path) -> PathBuf {
    bundle.join("log")
}

/// Makes the FIFO of a bundle, before its shim is started.
///
/// # Errors
///
/// As mkfifo(3).
pub(super) fn make(bundle: &Path) -> Result<()> {
    match nix::unistd::mkfifo(&fifo(bundle), Mode::S_IRUSR | Mode::S_IWUSR) {
        Ok(()) | Err(Errno::EEXIST) => Ok(()),
        Err(errno) => Err(anyhow::Error::from(errno)
            .context(format!("mkfifo {}", fifo(bundle).display()))
            .into()),
    }
}

/// Reads what a shim that runs says, until it ends.
pub(super) fn relay(sandbox: &str, bundle: &Path) {
    let fifo = fifo(bundle);
    let receiver = match pipe::OpenOptions::new().open_receiver(&fifo) {
        Ok(receiver) => receiver,
        Err(error) => {
            log::warn(format_args!("messages of the shim: {}: {error}", fifo.display()));
            return;
        }
    };
    let sandbox = sandbox.get(..13).unwrap_or(sandbox).to_owned();
    tokio::spawn(async move {
        // A line is shorter: the shim writes each at once.
        let mut lines = BufReader::with_capacity(512, receiver).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let (level, message) = parse(&line);
            let message = format!("shim {sandbox}: {message}");
            match level {
                "debug" | "trace" => log::debug(|| message),
                "info" => log::info(message),
                "warning" => log::warn(message),
                _ => log::error(message),
            }
        }
    });
}

/// Level and message of a line in logrus' form; of another line, all of it.
fn parse(line: &str) -> (&str, &str) {
    let parts = || {
        let (_, rest) = line.split_once(" level=")?;
        let (level, rest) = rest.split_once(" msg=\"")?;
        let end = rest.rfind("\" id=\"").or_else(|| rest.rfind('"'))?;
        Some((level, rest.get(..end)?))
    };
    parts().unwrap_or(("error", line))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_keeps_its_level() {
        let line = "time=\"2026-11-28T00:00:00.1Z\" level=warning msg=\"say \\\"a\\\"\" id=\"x\" namespace=\"k8s.io\"";
        assert_eq!(parse(line), ("warning", "say \\\"a\\\""));
        assert_eq!(parse("thread panicked"), ("error", "thread panicked"));
    }
}
