//! Namespaces joined by path that are the caller's own, or a user namespace that somebody else has set up.

use std::fs;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, ensure};
use nix::sched::{CloneFlags, unshare};
use serde_json::json;

use super::namespaces::with_user_namespace;
use crate::host::process;
use crate::registry::Result;
use crate::test;
use crate::wait::until;

test!(
    fn a_joined_network_namespace_that_is_the_callers_takes_no_kernel_parameters(t: &Test) -> Result {
        const FILE: &str = "/proc/sys/net/core/somaxconn";
        // One of the test's own, which the runtime is started in: whatever goes wrong, the machine's stays as it is.
        unshare(CloneFlags::CLONE_NEWNET).context("unshare")?;
        let before = fs::read_to_string(FILE)?;
        let other = before.trim().parse::<u64>()? + 1;
        for path in [
            "/proc/self/ns/net".to_owned(),
            format!("/proc/{}/ns/net", std::process::id()),
        ] {
            let bundle = t
                .bundle()
                .sleeper()
                .namespace(json!({"type": "network", "path": path}))
                .set("/linux/sysctl", json!({"net.core.somaxconn": other.to_string()}));
            bundle
                .command("create", &[])?
                .run()?
                .fails_naming(&["net.core.somaxconn"])?;
            ensure!(fs::read_to_string(FILE)? == before, "{path}");
        }
        Ok(())
    }
);

test!(
    fn a_joined_uts_namespace_that_is_the_callers_takes_no_host_name(t: &Test) -> Result {
        unshare(CloneFlags::CLONE_NEWUTS).context("unshare")?;
        let before = nix::unistd::gethostname()?;
        for path in [
            "/proc/self/ns/uts".to_owned(),
            format!("/proc/{}/ns/uts", std::process::id()),
        ] {
            for field in ["hostname", "domainname"] {
                let bundle = t
                    .bundle()
                    .sleeper()
                    .unset("/hostname")
                    .namespace(json!({"type": "uts", "path": path}))
                    .set(&format!("/{field}"), json!("taken-over"));
                bundle
                    .command("create", &[])?
                    .run()?
                    .fails_naming(&[field])
                    .with_context(|| path.clone())?;
                ensure!(nix::unistd::gethostname()? == before, "{path}");
                let domain = fs::read_to_string("/proc/sys/kernel/domainname")?;
                ensure!(domain.trim() != "taken-over", "{path}");
            }
        }
        Ok(())
    }
);

test!(
    fn a_joined_user_namespace_with_other_mappings_than_the_configured_ones_is_refused(t: &Test) -> Result {
        let first = with_user_namespace(t)?.sleeper().start()?;
        let path = format!("/proc/{}/ns/user", first.pid()?);
        let others = json!([{"containerID": 0, "hostID": 200_000, "size": 65536}]);
        let joining = || -> Result<_> {
            Ok(with_user_namespace(t)?
                .args(&["true"])
                .namespace(json!({"type": "user", "path": path})))
        };
        for field in ["uidMappings", "gidMappings"] {
            let bundle = joining()?.set(&format!("/linux/{field}"), others.clone());
            bundle.run()?.fails_naming(&[field])?;
        }
        joining()?.run()?.ok().context("with its own mappings")?;
        first.is("running")
    }
);

/// A process in a new user namespace of the mappings of [`with_user_namespace`] that denies setgroups(2).
fn process_without_setgroups() -> Result<Child> {
    let child = Command::new("/bin/busybox")
        .args(["unshare", "-U", "/bin/busybox", "sleep", "1000000"])
        .stdin(Stdio::null())
        .spawn()?;
    let pid = child.id();
    let own = process::namespace("self", "user")?;
    until("the user namespace", || {
        let found = process::namespace(&pid.to_string(), "user")?;
        Ok((found != own).then_some(()))
    })?;
    for (file, text) in [
        ("setgroups", "deny"),
        ("uid_map", "0 100000 65536"),
        ("gid_map", "0 100000 65536"),
    ] {
        let path = format!("/proc/{pid}/{file}");
        fs::write(&path, text).with_context(|| path.clone())?;
    }
    Ok(child)
}

test!(
    fn a_joined_user_namespace_that_denies_setgroups_works_without_additional_groups(t: &Test) -> Result {
        let mut holder = process_without_setgroups()?;
        let joining = || -> Result<_> {
            Ok(with_user_namespace(t)?
                .unset("/linux/uidMappings")
                .unset("/linux/gidMappings")
                .namespace(json!({"type": "user", "path": format!("/proc/{}/ns/user", holder.id())})))
        };
        let script = "id -u; id -g; cat /proc/self/setgroups";
        joining()?.sh(script).run()?.prints("0\n0\ndeny")?;
        let container = joining()?.sleeper().start()?;
        container.exec(&["sh", "-c", script])?.prints("0\n0\ndeny")?;
        container.verb("delete", &["--force"])?.ok()?;
        let bundle = joining()?.set("/process/user/additionalGids", json!([5]));
        bundle.run()?.fails_naming(&["additionalGids"])?;
        holder.kill()?;
        holder.wait()?;
        Ok(())
    }
);
