//! `rtc-cri` as a service of systemd, by the unit that is shipped: it restarts again and again while pods come, work and
//! go. It is in the machine's own namespaces, as on a node; only its files and its slice are the test's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, bail, ensure};

use crate::cri::proto::*;
use crate::cri::{BUSYBOX, Client, Code, Cri, Setup, Status, check, only_ours};
use crate::host::mounts;
use crate::registry::Result;
use crate::test;
use crate::test::Test;
use crate::wait::{until, within};

const UNIT: &str = include_str!("../../../packaging/rtc-cri.service");
const BRIDGE: &str = "rtct0";
const RESTARTS: usize = 5;
const WORKERS: usize = 2;
/// How long a call may find nobody: a service that restarts on an emulated machine.
const PATIENCE: Duration = Duration::from_secs(100);

/// The unit, loaded and started; whatever becomes of the test, it goes with it.
struct Service {
    name: String,
    slice: String,
    file: PathBuf,
}

impl Service {
    fn start(t: &Test, cri: &Cri<'_>) -> Result<Self> {
        let name = format!("rtc-test-{}.service", t.unique);
        let service = Self {
            file: Path::new("/run/systemd/system").join(&name),
            slice: slice(t),
            name,
        };
        let command = format!(
            "ExecStart={} --config {}",
            t.cri.display(),
            cri.config().display()
        );
        let directory = format!("RuntimeDirectory=rtc-test-{}", t.unique);
        let text = UNIT
            .replace("ExecStart=/usr/local/bin/rtc-cri", &command)
            .replace("RuntimeDirectory=rtc-cri", &directory)
            .replace(
                "[Service]",
                &format!("[Service]\nStandardError=append:{}", cri.log().display()),
            );
        ensure!(
            text.contains(&command) && text.contains(&directory),
            "the unit is another:\n{UNIT}"
        );
        fs::write(&service.file, text)?;
        systemctl(&["daemon-reload"])?;
        service.ctl("start")?;
        Ok(service)
    }

    fn ctl(&self, verb: &str) -> Result {
        systemctl(&[verb, &self.name])
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.ctl("stop");
        // Nothing, where all went well: the service leaves its containers alone.
        let _ = fs::write(cgroup_of(&self.slice).join("cgroup.kill"), "1");
        let _ = fs::remove_file(&self.file);
        let _ = systemctl(&["stop", &self.slice]);
        let _ = systemctl(&["daemon-reload"]);
        let _ = Command::new("/sbin/ip").args(["link", "delete", BRIDGE]).output();
    }
}

fn systemctl(words: &[&str]) -> Result {
    // Another test may have systemd executed again.
    until(&format!("systemctl {words:?}"), || {
        let status = Command::new("systemctl").args(words).status()?;
        Ok(status.success().then_some(()))
    })
}

fn slice(t: &Test) -> String {
    format!("rtct{}.slice", t.unique)
}

fn cgroup_of(slice: &str) -> PathBuf {
    Path::new("/sys/fs/cgroup").join(slice)
}

/// Calls until somebody has answered: while the service restarts, nobody does.
fn answered<T>(what: &str, call: impl Fn() -> std::result::Result<T, Status>) -> Result<T> {
    within(PATIENCE, what, || match call() {
        Ok(answer) => Ok(Some(answer)),
        Err(status) if is_nobody(&status) => Ok(None),
        Err(status) => bail!("{what}: {:?}: {}", status.code(), status.message()),
    })
}

/// Whether the connection ended, not the call.
fn is_nobody(status: &Status) -> bool {
    let transport = [
        "transport error",
        "connection",
        "h2 protocol error",
        "error reading a body",
    ];
    status.code() == Code::Unavailable || transport.iter().any(|text| status.message().contains(text))
}

/// A pod of this name like another.
fn named(like: &PodSandboxConfig, name: &str) -> RunPodSandboxRequest {
    let mut config = like.clone();
    if let Some(metadata) = &mut config.metadata {
        metadata.name = name.to_owned();
        metadata.uid = format!("uid-{name}");
    }
    name.clone_into(&mut config.hostname);
    RunPodSandboxRequest {
        config: Some(config),
        ..RunPodSandboxRequest::default()
    }
}

fn container(pod: &str, config: Option<&PodSandboxConfig>) -> CreateContainerRequest {
    let namespaces = config
        .and_then(|config| config.linux.as_ref()?.security_context.as_ref())
        .and_then(|context| context.namespace_options.clone());
    CreateContainerRequest {
        pod_sandbox_id: pod.to_owned(),
        config: Some(ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: "main".into(),
                attempt: 0,
            }),
            image: Some(ImageSpec {
                image: BUSYBOX.into(),
                ..ImageSpec::default()
            }),
            command: [
                "sh",
                "-c",
                "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done",
            ]
            .map(str::to_owned)
            .to_vec(),
            log_path: format!("{pod}.log"),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: namespaces,
                    ..LinuxContainerSecurityContext::default()
                }),
                ..LinuxContainerConfig::default()
            }),
            ..ContainerConfig::default()
        }),
        sandbox_config: config.cloned(),
    }
}

/// A pod and its container, running; each call made again where its answer was lost, as a kubelet does.
fn start_one(client: &Client, request: &RunPodSandboxRequest) -> Result<(String, String)> {
    let pod = answered("RunPodSandbox", || client.run_pod_sandbox(request.clone()))?.pod_sandbox_id;
    let creation = container(&pod, request.config.as_ref());
    let id = answered("CreateContainer", || client.create_container(creation.clone()))?.container_id;
    within(PATIENCE, "the container to run", || {
        let start = StartContainerRequest {
            container_id: id.clone(),
        };
        match client.start_container(start) {
            Err(status) if is_nobody(&status) => {}
            // What a lost answer has started is not started again.
            Err(status) if state(client, &id)? != ContainerState::ContainerRunning as i32 => {
                bail!("StartContainer: {:?}: {}", status.code(), status.message())
            }
            _ => return Ok(Some(())),
        }
        Ok((state(client, &id)? == ContainerState::ContainerRunning as i32).then_some(()))
    })?;
    Ok((pod, id))
}

fn state(client: &Client, id: &str) -> Result<i32> {
    let request = ContainerStatusRequest {
        container_id: id.to_owned(),
        verbose: false,
    };
    let answer = answered("ContainerStatus", || client.container_status(request.clone()))?;
    Ok(answer.status.context("no status")?.state)
}

fn says(client: &Client, id: &str, word: &str) -> Result {
    let request = ExecSyncRequest {
        container_id: id.to_owned(),
        cmd: ["echo", word].map(str::to_owned).to_vec(),
        timeout: 60,
    };
    let answer = answered("ExecSync", || client.exec_sync(request.clone()))?;
    ensure!(
        answer.exit_code == 0 && answer.stdout == format!("{word}\n").as_bytes(),
        "{answer:?}"
    );
    Ok(())
}

fn end_one(client: &Client, pod: &str) -> Result {
    let stop = StopPodSandboxRequest {
        pod_sandbox_id: pod.to_owned(),
    };
    answered("StopPodSandbox", || client.stop_pod_sandbox(stop.clone()))?;
    let remove = RemovePodSandboxRequest {
        pod_sandbox_id: pod.to_owned(),
    };
    answered("RemovePodSandbox", || client.remove_pod_sandbox(remove.clone()))?;
    Ok(())
}

/// Pods one after the other until it is told to end.
fn work(
    client: &Client,
    like: &PodSandboxConfig,
    worker: usize,
    end: &AtomicBool,
    steps: &AtomicUsize,
) -> Result {
    for round in 0.. {
        if end.load(Ordering::Relaxed) {
            break;
        }
        let name = format!("w{worker}-{round}");
        let (pod, id) = start_one(client, &named(like, &name)).with_context(|| name.clone())?;
        for _ in 0..3 {
            says(client, &id, &name).with_context(|| name.clone())?;
            steps.fetch_add(1, Ordering::Relaxed);
        }
        end_one(client, &pod).with_context(|| name.clone())?;
    }
    Ok(())
}

/// The service restarts while others work; each time it is in the middle of something of theirs.
fn restart(service: &Service, steps: &AtomicUsize, failed: &AtomicBool) -> Result {
    for number in 1..=RESTARTS {
        let before = steps.load(Ordering::Relaxed);
        within(PATIENCE, "work to go on", || {
            ensure!(!failed.load(Ordering::Relaxed), "a worker failed");
            Ok((steps.load(Ordering::Relaxed) > before).then_some(()))
        })?;
        service
            .ctl("restart")
            .with_context(|| format!("restart {number}"))?;
    }
    Ok(())
}

fn under_load(cri: &Cri<'_>, service: &Service, like: &PodSandboxConfig) -> Result {
    let (end, failed, steps) = (
        AtomicBool::new(false),
        AtomicBool::new(false),
        AtomicUsize::new(0),
    );
    let clients: Vec<Client> = (0..WORKERS)
        .map(|_| cri.another_client())
        .collect::<Result<_>>()?;
    thread::scope(|scope| {
        let workers: Vec<_> = clients
            .into_iter()
            .enumerate()
            .map(|(number, client)| {
                let (end, failed, steps) = (&end, &failed, &steps);
                scope.spawn(move || {
                    let result = work(&client, like, number, end, steps);
                    failed.fetch_or(result.is_err(), Ordering::Relaxed);
                    result
                })
            })
            .collect();
        let restarted = restart(service, &steps, &failed);
        end.store(true, Ordering::Relaxed);
        for worker in workers {
            worker
                .join()
                .map_err(|_| anyhow::anyhow!("a worker panicked"))??;
        }
        restarted
    })
}

/// What is left of pods that are gone.
fn leftovers(t: &Test, cri: &Cri<'_>) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let places = [
        PathBuf::from("/run/netns"),
        cri.addresses(),
        cri.root().join("containers"),
        cri.state().join("sandboxes"),
    ];
    for place in places {
        for entry in fs::read_dir(&place).into_iter().flatten().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !matches!(name.as_str(), "pods" | "lock") && !name.starts_with("last_reserved") {
                found.push(entry.path().display().to_string());
            }
        }
    }
    let directory = cri.directory.to_string_lossy().into_owned();
    let mounts = mounts::of("1")?
        .into_iter()
        .map(|mount| mount.target.display().to_string());
    found.extend(mounts.filter(|target| target.starts_with(&directory)));
    let scopes = fs::read_dir(cgroup_of(&slice(t))).into_iter().flatten().flatten();
    found.extend(
        scopes
            .filter(|entry| entry.path().is_dir())
            .map(|entry| entry.path().display().to_string()),
    );
    for entry in fs::read_dir("/proc")?.flatten() {
        let process = entry.path();
        let inside = fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(cri.state()));
        if inside {
            found.push(
                fs::read_to_string(process.join("cmdline"))
                    .unwrap_or_default()
                    .replace('\0', " "),
            );
        }
    }
    Ok(found)
}

fn setup(t: &Test) -> Result<Cri<'_>> {
    let network = format!(
        r#"{{ "cniVersion": "1.0.0", "name": "pods", "plugins": [
        {{ "type": "bridge", "bridge": "{BRIDGE}", "isGateway": true,
          "ipam": {{ "type": "host-local", "dataDir": "ADDRESSES", "ranges": [[{{ "subnet": "10.99.0.0/16" }}]] }} }} ] }}"#
    );
    let setup = Setup {
        network: Some(network),
        ..Setup::default()
    };
    let cri = Cri::configured(t, setup)?;
    // As production is: systemd's cgroups, and the shims where they are by default.
    let text = fs::read_to_string(cri.config())?.replace("\"cgroupfs\"", "\"systemd\"");
    let lines = text.lines().filter(|line| !line.starts_with("shim_cgroup"));
    fs::write(cri.config(), lines.collect::<Vec<_>>().join("\n"))?;
    Ok(cri)
}

test!(
    fn restarts_of_the_service_under_load_lose_and_leak_nothing(t: &Test) -> Result {
        only_ours(t)?;
        if !Path::new("/run/systemd/system").exists() {
            t.skip("systemd does not run")?;
        }
        t.needs_cgroup_v2()?;
        let cri = setup(t)?;
        let service = Service::start(t, &cri)?;
        // A server of another test, or of the machine, may have its own.
        let before_all = leftovers(t, &cri)?;
        let left = || -> Result<Vec<String>> {
            let now = leftovers(t, &cri)?.into_iter();
            Ok(now.filter(|name| !before_all.contains(name)).collect())
        };
        let run = || {
            cri.busybox()?;
            let mut like = cri.pod_config()?;
            like.linux.get_or_insert_default().cgroup_parent = slice(t);
            let (pod, id) = start_one(&cri, &named(&like, "stays"))?;
            let procs = cgroup_of(&slice(t)).join(format!("rtc-{id}.scope/cgroup.procs"));
            let first = |text: String| text.lines().next().map(str::to_owned);
            let before = first(fs::read_to_string(&procs).with_context(|| procs.display().to_string())?);
            under_load(&cri, &service, &like)?;
            says(&cri, &id, "still")?;
            ensure!(first(fs::read_to_string(&procs)?) == before, "another process");
            let pods = check(
                "ListPodSandbox",
                cri.list_pod_sandbox(ListPodSandboxRequest::default()),
            )?;
            ensure!(pods.items.len() == 1, "{:?}", pods.items);
            ensure!(cri.containers()? == [id], "{:?}", cri.containers());
            end_one(&cri, &pod)?;
            let gone = until("nothing left", || Ok(left()?.is_empty().then_some(())));
            gone.with_context(|| format!("left: {:?}", left()))
        };
        run().with_context(|| cri.last_words())?;
        drop(service);
        cri.end()
    }
);

/// Whether a container may use the device it was given, as it was given, and no other.
fn device_rules_hold(client: &Client, id: &str, when: &str) -> Result {
    // Nodes it may make: with what it makes of them it gets nowhere.
    let script = "[ -e /denied ] || mknod /denied c 10 237; true </dev/allowed && echo allowed; \
        true >/dev/allowed || echo read; true </denied || echo denied";
    let request = ExecSyncRequest {
        container_id: id.to_owned(),
        cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
        timeout: 60,
    };
    let answer = answered("ExecSync", || client.exec_sync(request.clone()))?;
    let stderr = String::from_utf8_lossy(&answer.stderr);
    ensure!(
        answer.stdout == b"allowed\nread\ndenied\n" && stderr.matches("not permitted").count() == 2,
        "{when}: {answer:?}"
    );
    Ok(())
}

test!(
    fn device_rules_of_a_pod_outlive_reloads_and_upgrades_of_systemd(t: &Test) -> Result {
        only_ours(t)?;
        if !Path::new("/run/systemd/system").exists() {
            t.skip("systemd does not run")?;
        }
        t.needs_cgroup_v2()?;
        let cri = setup(t)?;
        let service = Service::start(t, &cri)?;
        let run = || {
            cri.busybox()?;
            let mut config = cri.pod_config()?;
            config.linux.get_or_insert_default().cgroup_parent = slice(t);
            let request = named(&config, "devices");
            let pod = answered("RunPodSandbox", || cri.run_pod_sandbox(request.clone()))?.pod_sandbox_id;
            let mut creation = container(&pod, request.config.as_ref());
            if let Some(config) = &mut creation.config {
                config.devices = vec![Device {
                    container_path: "/dev/allowed".into(),
                    host_path: "/dev/kmsg".into(),
                    permissions: "r".into(),
                }];
            }
            let id = answered("CreateContainer", || cri.create_container(creation.clone()))?.container_id;
            let start = StartContainerRequest {
                container_id: id.clone(),
            };
            answered("StartContainer", || cri.start_container(start.clone()))?;
            device_rules_hold(&cri, &id, "before")?;
            systemctl(&["daemon-reload"])?;
            device_rules_hold(&cri, &id, "reloaded")?;
            let update = UpdateContainerResourcesRequest {
                container_id: id.clone(),
                linux: Some(LinuxContainerResources {
                    memory_limit_in_bytes: 64 << 20,
                    ..LinuxContainerResources::default()
                }),
                ..UpdateContainerResourcesRequest::default()
            };
            check("UpdateContainerResources", cri.update_container_resources(update))?;
            service.ctl("restart")?;
            device_rules_hold(&cri, &id, "updated, and the service restarted")?;
            systemctl(&["daemon-reexec"])?;
            systemctl(&["daemon-reload"])?;
            device_rules_hold(&cri, &id, "systemd executed again")?;
            end_one(&cri, &pod)
        };
        run().with_context(|| cri.last_words())?;
        drop(service);
        cri.end()
    }
);
