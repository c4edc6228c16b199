//! config.toml of rtc-cri, its socket, and what it says of them.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use anyhow::ensure;

use crate::cri::proto::*;
use crate::cri::{Client, Cri, Setup, check, names, only_ours, place};
use crate::registry::Result;
use crate::test;
use crate::wait::until;

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

test!(
    fn who_is_not_on_the_list_is_not_served(t: &Test) -> Result {
        only_ours(t)?;
        let setup = Setup {
            keys: "socket_gid = 1234\nallowed_uids = [4321]\nallowed_gids = [77]".into(),
            ..Setup::default()
        };
        setup.with(t, |cri| {
            // Where everybody can come.
            let socket = "/run/rtc-cri/s";
            fs::write(socket, "")?;
            place::busybox(&["mount", "-o", "bind", &cri.socket().to_string_lossy(), socket])?;
            let crictl = "/run/rtc-cri/crictl";
            fs::copy(cri.peer_file("cri-tools/bin/crictl"), crictl)?;
            let is_served = |uid: u32, gid: u32| -> Result<bool> {
                let output = Command::new(crictl)
                    .args([
                        "--runtime-endpoint",
                        "unix:///run/rtc-cri/s",
                        "--timeout",
                        "3s",
                        "version",
                    ])
                    .uid(uid)
                    .gid(gid)
                    .current_dir("/")
                    .output()?;
                Ok(output.status.success())
            };
            // The socket's mode lets the first two in.
            let served = [is_served(4321, 1234)?, is_served(4322, 1234)?, is_served(0, 0)?];
            place::busybox(&["umount", socket])?;
            fs::remove_file(socket)?;
            fs::remove_file(crictl)?;
            ensure!(served == [true, false, true], "{served:?}");
            names(
                &fs::read_to_string(cri.log())?,
                &["a client of uid 4322, gid 1234 is refused"],
            )
        })
    }
);

test!(
    fn it_serves_with_no_configuration_at_all(t: &Test) -> Result {
        only_ours(t)?;
        place::enter()?;
        let cri = Cri::configured(t, Setup::default())?;
        let place = "/etc/rtc-cri";
        if fs::exists(place)? {
            place::busybox(&["mount", "-t", "tmpfs", "none", place])?;
        }
        let mut child = cri
            .command()?
            .env("PATH", t.shim.parent().unwrap_or(place.as_ref()))
            .spawn()?;
        let client = Client::new("/run/rtc-cri/rtc-cri.sock".as_ref())?;
        let served = until("the server to answer", || {
            ensure!(child.try_wait()?.is_none(), "it ended: {}", cri.last_words());
            Ok(client.version(VersionRequest::default()).ok())
        });
        let status = client.status(StatusRequest { verbose: true });
        client.hang_up();
        let pid = nix::unistd::Pid::from_raw(child.id().cast_signed());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM)?;
        let ended = child.wait()?;
        served?;
        ensure!(ended.success(), "{ended}: {}", cri.last_words());
        let status = check("Status", status)?;
        let condition = |name: &str| {
            let conditions = status.status.iter().flat_map(|status| &status.conditions);
            conditions
                .clone()
                .any(|condition| condition.r#type == name && condition.status)
        };
        ensure!(condition("RuntimeReady"), "{status:?}");
        names(&status.info["config"], &["/var/lib/rtc-cri", "/etc/cni/net.d"])
    }
);

test!(
    fn a_handler_whose_runtime_comes_later_is_asked_again(t: &Test) -> Result {
        only_ours(t)?;
        let runtime = t.path("late");
        let setup = Setup {
            tables: format!("[handlers.late]\nbinary = \"{}\"", runtime.display()),
            ..Setup::default()
        };
        setup.with(t, |cri| {
            let has_rro = || -> Result<bool> {
                let status = check("Status", cri.status(StatusRequest::default()))?;
                let all = &status.runtime_handlers;
                ensure!(all.len() == 3, "{all:?}");
                let late = all.iter().find(|handler| handler.name == "late");
                let features = late.and_then(|handler| handler.features);
                Ok(features.is_some_and(|features| features.recursive_read_only_mounts))
            };
            ensure!(!has_rro()?, "of a runtime that is not there");
            fs::write(
                &runtime,
                "#!/bin/busybox sh\necho '{\"ociVersionMin\": \"1.0.0\", \"ociVersionMax\": \"1.2.0\", \"mountOptions\": [\"rro\"]}'\n",
            )?;
            fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755))?;
            ensure!(has_rro()?, "it was not asked again");
            Ok(())
        })
    }
);
