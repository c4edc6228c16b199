//! What a worker is: a copy with little of its original.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, ensure};
use rtc_runtime::process::worker;
use rtc_runtime::sys::Errno;
use rtc_runtime::sys::process::{Exit, pidfd_send_signal};

use crate::place::{Place, hear};

pub(crate) fn descriptors(_: &Place) -> Result<()> {
    let kept = File::open("/etc/passwd")?;
    let _other = File::open("/etc/group")?;
    let (read, write) = nix::unistd::pipe()?;
    let null = File::open("/dev/null")?;
    let stdio = [null.as_fd(), write.as_fd(), write.as_fd()];
    let number = kept.as_raw_fd();
    let worker = worker::fork(Some(stdio), &[number], |reporter| {
        println!("out");
        let mut open: Vec<i32> = fs::read_dir("/proc/self/fd")?
            .flatten()
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .collect();
        // But for the one that reads the directory.
        open.retain(|fd| fs::read_link(format!("/proc/self/fd/{fd}")).is_ok());
        open.retain(|fd| *fd != reporter.as_fd().as_raw_fd());
        Ok(serde_json::to_vec(&open)?)
    })?;
    drop(write);
    let said = hear(worker)?;
    let mut expected = vec![0, 1, 2, number];
    expected.sort_unstable();
    let mut open: Vec<i32> = serde_json::from_slice(&said.result?)?;
    open.sort_unstable();
    ensure!(open == expected, "{open:?}, not {expected:?}");
    let mut text = String::new();
    File::from(read).read_to_string(&mut text)?;
    ensure!(text == "out\n", "{text:?}");
    Ok(())
}

pub(crate) fn signals(_: &Place) -> Result<()> {
    use nix::sys::signal::{SigSet, SigmaskHow, sigprocmask};
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(&SigSet::all()), None)?;
    let worker = worker::fork(None, &[], |_| Ok(fs::read("/proc/self/status")?));
    sigprocmask(SigmaskHow::SIG_UNBLOCK, Some(&SigSet::all()), None)?;
    let status = String::from_utf8(hear(worker?)?.result?)?;
    ensure!(status.contains("SigBlk:\t0000000000000000"), "{status}");
    ensure!(status.contains("SigCgt:\t0000000000000000"), "{status}");
    Ok(())
}

pub(crate) fn result(_: &Place) -> Result<()> {
    let (read, write) = nix::unistd::pipe()?;
    let worker = worker::fork(None, &[read.as_raw_fd()], |_| {
        let mut byte = [0];
        nix::unistd::read(&read, &mut byte)?;
        Ok(vec![b'x'; worker::RESULT_MAX])
    })?;
    let nothing = worker.receive().expect_err("it has said nothing yet");
    ensure!(nothing.errno == Errno::EAGAIN, "{nothing}");
    nix::unistd::write(&write, b"x")?;
    let said = hear(worker)?;
    ensure!(said.result?.len() == worker::RESULT_MAX && said.exit == Exit::Code(0));
    let said = hear(worker::fork(None, &[], |_| Ok(vec![0; worker::RESULT_MAX + 1]))?)?;
    ensure!(said.result.is_err() && said.exit == Exit::Code(1));
    Ok(())
}

pub(crate) fn failure(_: &Place) -> Result<()> {
    let said = hear(worker::fork(None, &[], |_| {
        Err(anyhow::anyhow!("inner").context("outer"))
    })?)?;
    let error = said.result.expect_err("a failure").to_string();
    ensure!(error == "outer: inner" && said.exit == Exit::Code(1), "{error}");
    let said = hear(worker::fork(None, &[], |_| panic!("on purpose"))?)?;
    let error = said.result.expect_err("a panic").to_string();
    ensure!(error.contains("on purpose"), "{error}");
    let said = hear(worker::fork(None, &[], |reporter| {
        rtc_runtime::log::warn("of the library");
        reporter.warning("of the body");
        Ok(Vec::new())
    })?)?;
    ensure!(
        said.warnings == ["of the library", "of the body"],
        "{:?}",
        said.warnings
    );
    Ok(())
}

pub(crate) fn destructors(place: &Place) -> Result<()> {
    struct Writes(PathBuf);
    impl Drop for Writes {
        fn drop(&mut self) {
            let file = File::options().create(true).append(true).open(&self.0);
            let _ = file.and_then(|mut file| file.write_all(b"x"));
        }
    }
    let path = place.directory.join("dropped");
    let guard = Writes(path.clone());
    hear(worker::fork(None, &[], |_| {
        Ok(guard.0.as_os_str().as_encoded_bytes().to_vec())
    })?)?
    .result?;
    ensure!(!path.exists(), "the copy has run it");
    drop(guard);
    ensure!(fs::read(&path)? == b"x");
    Ok(())
}

pub(crate) fn killed(_: &Place) -> Result<()> {
    let worker = worker::fork(None, &[], |_| {
        std::thread::sleep(Duration::from_secs(1000));
        Ok(Vec::new())
    })?;
    let strays = worker::strays(&[])?;
    ensure!(
        strays.len() == 1 && strays[0].pid == worker.child.pid,
        "{strays:?}"
    );
    ensure!(worker::strays(&[worker.child.pid])?.is_empty());
    pidfd_send_signal(&worker.child.pidfd, libc::SIGKILL)?;
    let said = hear(worker)?;
    ensure!(said.exit == Exit::Signal(libc::SIGKILL) && said.result.is_err());
    Ok(())
}
