//! Docker and Podman where there are AppArmor and systemd: what only such a machine shows of the callers.

use std::path::Path;

use anyhow::ensure;
use serde_json::json;

use crate::callers::docker::{with_configured, with_docker};
use crate::callers::podman::{Manager, with_manager, with_podman};
use crate::callers::{isolation, limits};
use crate::registry::Result;
use crate::test;
use crate::test::Test;

fn needs_apparmor(t: &Test) -> Result {
    if !Path::new("/sys/kernel/security/apparmor/profiles").exists() {
        t.skip("no AppArmor")?;
    }
    Ok(())
}

fn needs_systemd(t: &Test) -> Result {
    if !Path::new("/run/systemd/system").is_dir() {
        t.skip("systemd does not run")?;
    }
    Ok(())
}

test!(
    fn docker_confines_by_apparmor(t: &Test) -> Result {
        needs_apparmor(t)?;
        with_docker(t, |docker| {
            isolation::apparmor(&docker.engine, "docker-default (enforce)")
        })
    }
);

test!(
    fn docker_lets_systemd_make_cgroups(t: &Test) -> Result {
        needs_systemd(t)?;
        let slice = format!("rtctest{}.slice", t.unique);
        let settings = json!({"exec-opts": ["native.cgroupdriver=systemd"], "cgroup-parent": slice});
        with_configured(t, &settings, |docker| {
            let engine = &docker.engine;
            limits::limits(engine)?;
            let name = engine.sleeper(&[])?;
            let cgroup = engine.cgroup(&name)?.path;
            let id = engine.inspect(&name, "{{.Id}}")?;
            ensure!(cgroup == format!("/{slice}/docker-{id}.scope"), "{cgroup}");
            engine.remove(&name)
        })
    }
);

test!(
    fn podman_confines_by_apparmor(t: &Test) -> Result {
        needs_apparmor(t)?;
        with_podman(t, |podman| {
            isolation::apparmor(&podman.engine, "containers-default-")
        })
    }
);

test!(
    fn podman_lets_systemd_make_cgroups(t: &Test) -> Result {
        needs_systemd(t)?;
        with_manager(t, Manager::Systemd, |podman| {
            let engine = &podman.engine;
            limits::limits(engine)?;
            let name = engine.sleeper(&[])?;
            let cgroup = engine.cgroup(&name)?.path;
            let id = engine.inspect(&name, "{{.Id}}")?;
            ensure!(cgroup.contains(&format!("libpod-{id}.scope")), "{cgroup}");
            engine.remove(&name)
        })
    }
);
