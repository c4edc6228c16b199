//! Users, capabilities, filters, file systems and shared namespaces, in the words that Docker and Podman share.

use std::fs;

use anyhow::{Context, ensure};
use serde_json::json;

use super::{Engine, root_is_whole};
use crate::host::process;
use crate::registry::Result;

/// User and groups, capabilities, no_new_privs, the seccomp filter, masked and read-only paths; `--privileged` without.
pub(crate) fn users_and_privileges(engine: &Engine<'_>) -> Result {
    engine
        .sh(
            &["--user", "1000:1000", "--group-add", "2000"],
            "id -u; id -g; id -G",
        )?
        .prints("1000\n1000\n1000 2000")?;
    engine
        .sh(&["--user", "user"], "id -u; echo $HOME")?
        .prints("1000\n/home/user")?;
    engine
        .sh(&["--user", "nobody-here"], "id")?
        .fails_with(&["nobody-here"])?;
    let status = |flags: &[&str], field: &str| -> Result<String> {
        let script = format!("grep ^{field}: /proc/self/status");
        let output = engine.sh(flags, &script)?.ok()?;
        Ok(output.value_of(field)?.to_owned())
    };
    let only = status(&["--cap-drop", "ALL", "--cap-add", "NET_RAW"], "CapEff")?;
    ensure!(only == "0000000000002000", "CapEff {only}");
    let none = status(&["--user", "1000"], "CapEff")?;
    ensure!(none == "0000000000000000", "CapEff {none}");
    ensure!(status(&[], "NoNewPrivs")? == "0");
    ensure!(status(&["--security-opt", "no-new-privileges"], "NoNewPrivs")? == "1");
    ensure!(status(&[], "Seccomp")? == "2", "no filter");
    ensure!(
        status(&["--security-opt", "seccomp=unconfined"], "Seccomp")? == "0",
        "a filter"
    );
    let profile = engine.t.path("seccomp.json");
    let rules = json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}],
    });
    fs::write(&profile, rules.to_string())?;
    let option = format!("seccomp={}", profile.display());
    engine
        .sh(&["--security-opt", &option], "mkdir /tmp/x")?
        .fails_with(&["No space left on device"])?;
    engine
        .sh(
            &[],
            "cat /proc/kcore; ls /proc/acpi /sys/firmware; echo x > /proc/sysrq-trigger || echo refused",
        )?
        .mentions("refused")?;
    if root_is_whole()? {
        let privileged = engine
            .sh(&["--privileged"], "grep ' /sys ' /proc/mounts; ls /dev | wc -l")?
            .ok()?;
        ensure!(privileged.stdout.contains(" rw,"), "{privileged}");
    }
    Ok(())
}

/// Binds, named volumes with what the image has there, tmpfs, a read-only root, devices, settings and limits of the kernel.
pub(crate) fn mounts_and_devices(engine: &Engine<'_>) -> Result {
    let host = engine.t.path("host");
    fs::create_dir(&host)?;
    fs::write(host.join("file"), "of the host\n")?;
    let (writable, read_only) = (
        format!("{}:/w", host.display()),
        format!("{}:/r:ro", host.display()),
    );
    let output = engine.sh(
        &["--volume", &writable, "--volume", &read_only],
        "cat /r/file; echo new > /w/new; cat /r/new; echo x > /r/x",
    )?;
    ensure!(
        output.code == 1 && output.stdout == "of the host\nnew\n",
        "{output}"
    );
    ensure!(output.stderr.contains("Read-only file system"), "{output}");
    ensure!(fs::read_to_string(host.join("new"))? == "new\n");
    let file = format!(
        "type=bind,source={}/file,target=/etc/one,readonly",
        host.display()
    );
    engine
        .sh(&["--mount", &file], "cat /etc/one")?
        .prints("of the host")?;
    engine.call(&["volume", "create", "kept"])?.ok()?;
    engine
        .sh(
            &["--volume", "kept:/etc"],
            "echo more >> /etc/group; grep -c . /etc/group",
        )?
        .prints("3")?;
    engine
        .sh(&["--volume", "kept:/mnt"], "grep -c . /mnt/group")?
        .prints("3")?;
    engine.call(&["volume", "rm", "kept"])?.ok()?;
    engine
        .sh(
            &["--tmpfs", "/t:size=1m,mode=700"],
            "stat -c %a /t; dd if=/dev/zero of=/t/big bs=1M count=2",
        )?
        .fails_with(&["No space left on device"])?
        .stdout_is("700\n")?;
    engine
        .sh(
            &["--read-only", "--tmpfs", "/tmp"],
            "echo x > /tmp/x && echo x > /etc/x",
        )?
        .fails_with(&["Read-only file system"])?;
    engine
        .sh(
            &["--shm-size", "1m"],
            "df -k /dev/shm | tail -n 1 | awk '{ print $2 }'",
        )?
        .prints("1024")?;
    engine
        .sh(
            &["--device", "/dev/null:/dev/other:rw"],
            "echo x > /dev/other; test -c /dev/other && echo there",
        )?
        .prints("there")?;
    engine
        .sh(
            &["--sysctl", "net.ipv4.ip_forward=1"],
            "cat /proc/sys/net/ipv4/ip_forward",
        )?
        .prints("1")?;
    engine
        .sh(
            &["--ulimit", "nofile=100:200", "--ulimit", "nproc=300:400"],
            "ulimit -Sn; ulimit -Hn",
        )?
        .prints("100\n200")?;
    Ok(())
}

/// `--init` reaps; `--pid`, `--ipc` and `--net` of another container or the host; a host name of its own.
pub(crate) fn shared_namespaces(engine: &Engine<'_>) -> Result {
    let name = engine.sleeper(&["--ipc", "shareable", "--hostname", "first"])?;
    let pid = engine.pid(&name)?.to_string();
    let of = |kind: &str| process::namespace(&pid, kind);
    for (flag, kind) in [("--pid", "pid"), ("--ipc", "ipc"), ("--network", "net")] {
        let joined = format!("container:{name}");
        let seen = engine
            .run(&[flag, &joined], &["readlink", &format!("/proc/self/ns/{kind}")])?
            .ok()?;
        ensure!(
            seen.stdout.trim() == of(kind)?,
            "{kind}: not {}\n{seen}",
            of(kind)?
        );
        let own = engine
            .run(&[], &["readlink", &format!("/proc/self/ns/{kind}")])?
            .ok()?;
        ensure!(own.stdout.trim() != of(kind)?, "{own}");
        let host = engine
            .run(&[flag, "host"], &["readlink", &format!("/proc/self/ns/{kind}")])?
            .ok()?;
        ensure!(
            host.stdout.trim() == process::namespace("self", kind)?,
            "{kind} of the host\n{host}"
        );
    }
    let joined = format!("container:{name}");
    engine
        .sh(&["--pid", &joined], "ps | grep -c '[s]leep 1000'")?
        .mentions("2")
        .or_else(|_| engine.sh(&["--pid", &joined], "ps")?.mentions("sleep 1000"))?;
    engine.remove(&name)?;
    engine
        .sh(
            &["--init"],
            "ps | head -n 2 | tail -n 1 | awk '{ print $1, $4 }'; exit 3",
        )?
        .code(3)?;
    let reaped = engine.start(&["--init"], &["sh", "-c", "(sleep 0.1 &) ; exec sleep 1000"])?;
    let init = engine.exec(&reaped, &["cat", "/proc/1/comm"])?.ok()?;
    ensure!(
        ["tini", "catatonit", "docker-init", "podman-init"]
            .iter()
            .any(|name| init.stdout.contains(name)),
        "{init}"
    );
    engine.call(&["stop", "--time", "50", &reaped])?.ok()?;
    engine.wait_for(&reaped, "{{.State.ExitCode}}", "143")?;
    engine.remove(&reaped)?;
    Ok(())
}

/// AppArmor: the caller's own profile, none, and one that is not there.
pub(crate) fn apparmor(engine: &Engine<'_>, default: &str) -> Result {
    let label = "cat /proc/self/attr/current";
    let own = engine.sh(&[], label)?.ok()?;
    ensure!(own.stdout.starts_with(default), "{own}");
    engine
        .sh(&["--security-opt", "apparmor=unconfined"], label)?
        .mentions("unconfined")?;
    let missing = engine.sh(&["--security-opt", "apparmor=not-there"], label)?;
    ensure!(missing.code != 0, "{missing}");
    missing
        .stderr
        .contains("not-there")
        .then_some(())
        .with_context(|| missing.to_string())
}
