//! config.toml of rtc-cri, its socket, and what it says of them.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use anyhow::ensure;

use crate::cri::proto::*;
use crate::cri::{Cri, Setup, check, names, only_ours};
use crate::registry::Result;
use crate::test;

/// The server doesn't start with this configuration, and its last words name these.
fn refused(cri: &Cri<'_>, text: &str, parts: &[&str]) -> Result {
    fs::write(cri.config(), text)?;
    let status = cri.command()?.arg("--config").arg(cri.config()).status()?;
    ensure!(status.code() == Some(1), "{text:?}: {status}");
    names(&fs::read_to_string(cri.log())?, parts)?;
    Ok(fs::write(cri.log(), "")?)
}

test!(
    fn a_key_that_is_not_known_or_wrong_is_named_with_its_line(t: &Test) -> Result {
        only_ours(t)?;
        Setup::default().with(t, |cri| {
            let good = fs::read_to_string(cri.config())?;
            cri.signal(nix::sys::signal::Signal::SIGTERM)?;
            let file = cri.config().display().to_string();
            refused(
                cri,
                "root = \"/x\"\nsokcet = \"/y\"\n",
                &[&file, "line 2", "sokcet"],
            )?;
            refused(
                cri,
                "\n[cni]\nconf_dri = \"/x\"\n",
                &[&file, "line 3", "conf_dri"],
            )?;
            refused(cri, "debug = \"yes\"\n", &[&file, "line 1", "debug"])
                .or_else(|_| refused(cri, "debug = \"yes\"\n", &[&file, "line 1"]))?;
            refused(cri, "root = \"relative\"\n", &["root", "relative"])?;
            refused(cri, "cgroup_driver = \"none\"\n", &[&file, "line 1", "none"])?;
            refused(cri, "root = \n", &[&file, "line 1"])?;
            fs::remove_file(cri.config())?;
            let status = cri.command()?.arg("--config").arg(cri.config()).status()?;
            ensure!(
                status.code() == Some(1),
                "a file that was named and is not there: {status}"
            );
            fs::write(cri.config(), good)?;
            cri.start_server()
        })
    }
);

test!(
    fn the_socket_is_for_root_and_its_group(t: &Test) -> Result {
        only_ours(t)?;
        let setup = Setup {
            keys: "socket_gid = 1234".into(),
            ..Setup::default()
        };
        setup.with(t, |cri| {
            let socket = fs::metadata(cri.socket())?;
            ensure!(
                socket.permissions().mode() & 0o7777 == 0o660,
                "{:o}",
                socket.permissions().mode()
            );
            ensure!(
                socket.gid() == 1234 && socket.uid() == 0,
                "{}:{}",
                socket.uid(),
                socket.gid()
            );
            for directory in [cri.root(), cri.state()] {
                let mode = fs::metadata(&directory)?.permissions().mode();
                ensure!(mode & 0o007 <= 0o001, "{}: {mode:o}", directory.display());
            }
            Ok(())
        })
    }
);

test!(
    fn a_socket_that_a_killed_server_left_is_no_hindrance(t: &Test) -> Result {
        only_ours(t)?;
        Setup::default().with(t, |cri| {
            cri.signal(nix::sys::signal::Signal::SIGKILL)?;
            ensure!(cri.socket().exists(), "the socket is there");
            cri.start_server()?;
            check("Version", cri.version(VersionRequest::default()))?;
            // A second server does not take it from the first.
            let status = cri.command()?.arg("--config").arg(cri.config()).status()?;
            ensure!(status.code() == Some(1), "two servers on one socket: {status}");
            check("Version", cri.version(VersionRequest::default()))?;
            Ok(())
        })
    }
);

test!(
    fn credentials_are_in_no_message(t: &Test) -> Result {
        only_ours(t)?;
        Setup::default().with(t, |cri| {
            cri.start_registry()?;
            let request = |image: &str| PullImageRequest {
                image: Some(ImageSpec {
                    image: image.into(),
                    ..ImageSpec::default()
                }),
                auth: Some(AuthConfig {
                    username: "ann".into(),
                    password: "s3cret-1".into(),
                    auth: "YW5uOnMzY3JldC0x".into(),
                    identity_token: "s3cret-2".into(),
                    registry_token: "s3cret-3".into(),
                    ..AuthConfig::default()
                }),
                ..PullImageRequest::default()
            };
            check("PullImage", cri.pull_image(request(crate::cri::BUSYBOX)))?;
            let mut said = String::new();
            for image in ["registry.k8s.io/no/such:image", "UPPER/case", ""] {
                let status = cri.pull_image(request(image)).err();
                said += &format!("{status:?}");
            }
            let info = check("Status", cri.status(StatusRequest { verbose: true }))?;
            said += &format!("{info:?}");
            said += &fs::read_to_string(cri.log())?;
            for secret in ["s3cret", "YW5uOnMzY3JldC0x"] {
                ensure!(!said.contains(secret), "{secret} in {said}");
            }
            Ok(())
        })
    }
);

test!(
    fn nobody_else_can_take_the_lock_that_keeps_a_second_server_away(t: &Test) -> Result {
        only_ours(t)?;
        Setup::default().with(t, |cri| {
            let lock = cri.state().join("lock");
            let mode = || fs::metadata(&lock).map(|found| found.permissions().mode() & 0o777);
            ensure!(mode()? == 0o600);
            // As an earlier release made it.
            fs::set_permissions(&lock, fs::Permissions::from_mode(0o644))?;
            cri.signal(nix::sys::signal::Signal::SIGTERM)?;
            cri.start_server()?;
            ensure!(mode()? == 0o600);
            let status = cri.command()?.arg("--config").arg(cri.config()).status()?;
            ensure!(status.code() == Some(1), "a second server: {status}");
            names(&fs::read_to_string(cri.log())?, &["another rtc-cri runs there"])
        })
    }
);
