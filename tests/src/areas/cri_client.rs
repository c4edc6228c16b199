//! `rtc-cri pod ...` and `rtc-cri image ...`: the client in the server's program, as a person without crictl uses it.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::cri::proto::{ContainerStatusRequest, ReopenContainerLogRequest};
use crate::cri::{BUSYBOX, Cri, check, only_ours, with};
use crate::host::mounts;
use crate::output::Output;
use crate::registry::Result;
use crate::terminal::Terminal;
use crate::test;
use crate::test::Rtc;
use crate::wait::until;

/// The client, on the test's server.
fn client<'c>(cri: &'c Cri<'_>, args: &[&str]) -> Rtc<'c> {
    let socket = cri.socket().display().to_string();
    let before = ["--socket", &socket];
    cri.t.bare(before).program(&cri.t.cri).args(args)
}

/// The same, to its end.
fn said(cri: &Cri<'_>, args: &[&str]) -> Result<Output> {
    client(cri, args).run()
}

/// `pod run` of this manifest, its files in the test's directory.
fn runs<'c>(cri: &'c Cri<'_>, manifest: &str) -> Result<Rtc<'c>> {
    let (file, data, logs) = (cri.t.path("pod.yaml"), data(cri), logs(cri));
    fs::write(&file, manifest)?;
    let paths = [file, data, logs].map(|path| path.display().to_string());
    let args = [
        "pod",
        "run",
        &paths[0],
        "--data",
        &paths[1],
        "--logs",
        &paths[2],
        "--cgroup-parent",
        &cri.t.cgroup.path,
    ];
    Ok(client(cri, &args))
}

fn data(cri: &Cri<'_>) -> PathBuf {
    cri.directory.join("volumes")
}

fn logs(cri: &Cri<'_>) -> PathBuf {
    cri.directory.join("logs")
}

/// A pod of this name and spec, whose containers' image is `IMAGE`.
fn pod(name: &str, spec: &str) -> String {
    let spec: String = spec.lines().map(|line| format!("  {line}\n")).collect();
    let text = format!(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\nspec:\n  restartPolicy: Never\n{spec}"
    );
    text.replace("IMAGE", BUSYBOX)
}

/// One container with this script.
fn one(name: &str, script: &str) -> String {
    pod(
        name,
        &format!(
            "terminationGracePeriodSeconds: 1\ncontainers:\n- name: main\n  image: IMAGE\n  command: [sh, -c, {script:?}]"
        ),
    )
}

/// Nothing is left of pods in directories, and no tmpfs.
fn nothing_left(cri: &Cri<'_>) -> Result {
    for directory in [data(cri), logs(cri)] {
        let mut left = fs::read_dir(&directory).into_iter().flatten().flatten();
        if let Some(entry) = left.next() {
            anyhow::bail!("{} is left", entry.path().display());
        }
    }
    let volumes = data(cri);
    let mounted = mounts::of("self")?
        .into_iter()
        .find(|mount| mount.target.starts_with(&volumes));
    ensure!(mounted.is_none(), "{mounted:?} is left");
    Ok(())
}

test!(
    fn a_pod_of_a_manifest_is_run_listed_read_entered_and_removed(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            cri.start_registry()?;
            let manifest = pod(
                "web",
                "terminationGracePeriodSeconds: 1\n\
                 initContainers:\n\
                 - {name: page, image: IMAGE, command: [sh, -c, echo $(GREETING) >/www/index.html], env: [{name: GREETING, value: hello}], volumeMounts: [{name: www, mountPath: /www}]}\n\
                 - {name: helper, image: IMAGE, restartPolicy: Always, command: [sleep, '1000']}\n\
                 containers:\n\
                 - {name: server, image: IMAGE, command: [sh, -c, httpd -p 80 -h /www; echo serving; sleep 1000], volumeMounts: [{name: www, mountPath: /www, readOnly: true}]}\n\
                 - {name: reader, image: IMAGE, command: [sh, -c, 'until wget -q -O - http://127.0.0.1; do sleep 0.1; done; sleep 1000']}\n\
                 volumes: [{name: www, emptyDir: {medium: Memory, sizeLimit: 1Mi}}]",
            );
            let run = runs(cri, &manifest)?.run()?.ok()?;
            ensure!(run.value_of("name:")? == "default/web", "{run}");
            ensure!(run.value_of("ip:")?.starts_with("10.88."), "{run}");
            ensure!(run.stderr.contains(&format!("pulled {BUSYBOX}")), "{run}");
            ensure!(!run.stderr.contains('\r'), "a bar without a terminal\n{run}");
            let id = run.value_of("id:")?;
            let list = said(cri, &["pod", "ls"])?.ok()?;
            for text in [
                &id[..12],
                "web",
                "ready",
                "page ended, helper running, server running, reader running",
            ] {
                ensure!(list.stdout.contains(text), "{text}\n{list}");
            }
            until("the reader's log", || {
                let logs = said(cri, &["pod", "logs", "-c", "reader", "web"])?.ok()?;
                Ok((logs.stdout == "hello\n").then_some(()))
            })?;
            let logs = said(cri, &["pod", "logs", "web"])?.prints("serving")?;
            ensure!(
                logs.stderr
                    .contains("container \"server\" of page, helper, server, reader"),
                "{logs}"
            );
            said(
                cri,
                &[
                    "pod",
                    "exec",
                    "-c",
                    "server",
                    "default/web",
                    "--",
                    "cat",
                    "/www/index.html",
                ],
            )?
            .prints("hello")?;
            said(
                cri,
                &[
                    "pod",
                    "exec",
                    "-c",
                    "server",
                    &id[..8],
                    "--",
                    "sh",
                    "-c",
                    "echo no >&2; exit 7",
                ],
            )?
            .code(7)?
            .fails_with(&["no\n"])?;
            runs(cri, &manifest)?
                .run()?
                .fails_with(&["pod default/web: is there already", "rtc-cri pod rm default/web"])?;
            said(cri, &["pod", "rm", "web"])?.prints("default/web")?;
            said(cri, &["pod", "ls", "-q"])?.prints("")?;
            nothing_left(cri)
        })
    }
);

test!(
    fn input_goes_to_a_command_and_both_its_outputs_come_back(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            cri.busybox()?;
            runs(cri, &one("web", "sleep 1000"))?.run()?.ok()?;
            let input = cri.t.path("input");
            // More than fits into all the pipes and queues on its way, there and back.
            let mut file = File::create(&input)?;
            for line in 0..200_000 {
                writeln!(file, "line {line}")?;
            }
            let expected = fs::read_to_string(&input)?;
            client(cri, &["pod", "exec", "-i", "web", "--", "cat"])
                .stdin(File::open(&input)?)
                .run()?
                .ok()?
                .stdout_is(&expected)?;
            let both = said(
                cri,
                &["pod", "exec", "web", "--", "sh", "-c", "echo out; echo err >&2"],
            )?
            .prints("out")?;
            ensure!(both.stderr == "err\n", "{both}");
            // Who does not read on has read enough.
            let head = client(cri, &["pod", "exec", "web", "--", "yes"])
                .redirect("| /bin/busybox head -n 1")
                .run()?
                .prints("y")?;
            ensure!(head.stderr.is_empty(), "{head}");
            said(cri, &["pod", "exec", "web", "--", "/no/such"])?.fails_with(&["/no/such"])?;
            said(cri, &["pod", "exec", "web"])?
                .code(2)?
                .fails_with(&["the command is missing", "--help"])?;
            said(cri, &["pod", "exec", "-t", "web", "--", "sh"])?
                .code(2)?
                .fails_with(&["no terminal"])?;
            said(cri, &["pod", "rm", "web"])?.ok()?;
            nothing_left(cri)
        })
    }
);

test!(
    fn a_terminal_is_the_command_s_until_its_end_and_has_its_size(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            cri.busybox()?;
            runs(cri, &one("web", "sleep 1000"))?.run()?.ok()?;
            let (mut terminal, slave) = Terminal::open()?;
            terminal.resize(33, 77)?;
            let before = nix::sys::termios::tcgetattr(&slave)?;
            let watched = slave.try_clone()?;
            let shell = client(cri, &["pod", "exec", "-it", "web", "--", "sh"])
                .terminal(slave)
                .spawn()?;
            terminal.type_in("stty size; echo a$((1+1))\n")?;
            terminal.wait_for("a2")?;
            terminal.wait_for("33 77")?;
            terminal.resize(44, 88)?;
            // It may be told after the command's line: the shell is asked until it knows.
            terminal.type_in("until stty size | grep 88; do sleep 0.1; done\n")?;
            terminal.wait_for("44 88")?;
            // Ctrl-C is the shell's.
            terminal.type_in("\x03echo still; exit 9\n")?;
            terminal.wait_for("still")?;
            shell.wait()?.code(9)?;
            let after = nix::sys::termios::tcgetattr(&watched)?;
            ensure!(before == after, "the terminal is not as it was");
            said(cri, &["pod", "rm", "web"])?.ok()?;
            nothing_left(cri)
        })
    }
);

test!(
    fn a_log_is_followed_through_its_rotation_until_the_container_ends(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            cri.busybox()?;
            let script =
                "echo one; printf part; echo err >&2; until [ -e /go ]; do sleep 0.1; done; echo two; exit 0";
            let run = runs(cri, &one("web", script))?.run()?.ok()?;
            let id = run.value_of("id:")?;
            let follow = client(cri, &["pod", "logs", "-f", "web"]).spawn()?;
            until("the first line", || {
                Ok(fs::read_to_string(&follow.stdout)?
                    .contains("one\n")
                    .then_some(()))
            })?;
            // As the kubelet: renamed, then the writer is told.
            let list = cri.containers()?;
            let request = ContainerStatusRequest {
                container_id: list[0].clone(),
                verbose: false,
            };
            let status = check("ContainerStatus", cri.container_status(request))?.status;
            let log = PathBuf::from(status.context("no status")?.log_path);
            ensure!(
                log.ends_with("main/0.log") && log.starts_with(logs(cri)),
                "{}",
                log.display()
            );
            fs::rename(&log, log.with_extension("log.20261128-070000"))?;
            let request = ReopenContainerLogRequest {
                container_id: list[0].clone(),
            };
            check("ReopenContainerLog", cri.reopen_container_log(request))?;
            said(cri, &["pod", "exec", &id[..10], "--", "touch", "/go"])?.ok()?;
            let followed = follow.wait()?.ok()?;
            ensure!(followed.stdout == "one\nparttwo\n", "{followed}");
            ensure!(followed.stderr == "err\n", "{followed}");
            said(cri, &["pod", "logs", "--tail", "1", "web"])?.prints("parttwo")?;
            said(cri, &["pod", "exec", "web", "--", "true"])?
                .fails_with(&["\"main\": does not run", "pod logs"])?;
            said(cri, &["pod", "ls"])?.mentions("main ended")?;
            said(cri, &["pod", "rm", "web"])?.ok()?;
            nothing_left(cri)
        })
    }
);

test!(
    fn volumes_and_limits_and_users_are_the_manifest_s(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            cri.busybox()?;
            let host = cri.t.path("host");
            fs::create_dir(&host)?;
            fs::write(host.join("greeting"), "from the host")?;
            let manifest = pod(
                "web",
                &format!(
                    "terminationGracePeriodSeconds: 1\n\
                     securityContext: {{runAsUser: 1000, runAsGroup: 1000, fsGroup: 77}}\n\
                     shareProcessNamespace: true\n\
                     hostname: other\n\
                     dnsPolicy: None\n\
                     dnsConfig: {{nameservers: [192.0.2.9]}}\n\
                     containers:\n\
                     - name: main\n  \
                       image: IMAGE\n  \
                       command: [sleep, '1000']\n  \
                       workingDir: /tmp\n  \
                       env: [{{name: A, value: '1'}}, {{name: B, value: $(A)2}}]\n  \
                       resources: {{limits: {{memory: 64Mi, cpu: 500m}}}}\n  \
                       volumeMounts:\n  \
                       - {{name: host, mountPath: /host, readOnly: true}}\n  \
                       - {{name: scratch, mountPath: /scratch}}\n  \
                       - {{name: scratch, mountPath: /part, subPath: a/b}}\n\
                     volumes:\n\
                     - {{name: host, hostPath: {{path: {host:?}, type: Directory}}}}\n\
                     - {{name: scratch, emptyDir: {{}}}}"
                ),
            );
            runs(cri, &manifest)?.run()?.ok()?;
            let script = "id; hostname; pwd; echo $B; cat /host/greeting; touch /host/x; echo in >/part/file || echo root; \
                          touch /scratch/mine && stat -c %g /scratch/mine; cat /etc/resolv.conf; ps | grep -c '[s]leep 1000'";
            let inside = said(cri, &["pod", "exec", "web", "--", "sh", "-c", script])?.ok()?;
            for text in [
                "uid=1000",
                "gid=1000",
                "77",
                "other\n",
                "/tmp\n",
                "12\n",
                "from the host",
                "nameserver 192.0.2.9",
            ] {
                ensure!(inside.stdout.contains(text), "{text:?}\n{inside}");
            }
            ensure!(inside.stderr.contains("Read-only file system"), "{inside}");
            let request = ContainerStatusRequest {
                container_id: cri.containers()?.remove(0),
                verbose: false,
            };
            let status = check("ContainerStatus", cri.container_status(request))?.status;
            let resources = status
                .and_then(|status| status.resources?.linux)
                .context("no resources")?;
            let limits = (
                resources.memory_limit_in_bytes,
                resources.cpu_quota,
                resources.cpu_shares,
            );
            ensure!(limits == (64 << 20, 50_000, 512), "{resources:?}");
            said(cri, &["pod", "rm", "-t", "0", "web"])?.ok()?;
            ensure!(host.join("greeting").exists(), "the host's own files are gone");
            nothing_left(cri)
        })
    }
);

test!(
    fn what_fails_or_is_interrupted_is_taken_back(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            cri.busybox()?;
            let failing = pod(
                "web",
                "initContainers: [{name: first, image: IMAGE, command: [sh, -c, 'echo why >&2; exit 3']}]\n\
                 containers: [{name: main, image: IMAGE, volumeMounts: [{name: v, mountPath: /v}]}]\n\
                 volumes: [{name: v, emptyDir: {medium: Memory}}]",
            );
            runs(cri, &failing)?
                .run()?
                .code(1)?
                .fails_with(&["init container \"first\" ended with 3", "why"])?;
            let missing = one("web", "true").replace("command: [sh, -c, \"true\"]", "command: [/no/such]");
            runs(cri, &missing)?
                .run()?
                .code(1)?
                .fails_with(&["container \"main\"", "/no/such"])?;
            let never = one("web", "true").replace(BUSYBOX, "registry.k8s.io/no/such:1");
            runs(
                cri,
                &never.replace("  command:", "  imagePullPolicy: Never\n    command:"),
            )?
            .run()?
            .fails_with(&["image registry.k8s.io/no/such:1: is not here, and imagePullPolicy is Never"])?;
            runs(cri, &never)?.run()?.fails_with(&["PullImage", "no/such"])?;
            let waiting = failing.replace("echo why >&2; exit 3", "sleep 1000");
            let run = runs(cri, &waiting)?.spawn()?;
            until("the init container", || {
                Ok((!cri.containers()?.is_empty()).then_some(()))
            })?;
            kill(Pid::from_raw(run.pid()), Signal::SIGINT)?;
            run.wait()?
                .code(130)?
                .fails_with(&["interrupted", "taken back"])?;
            said(cri, &["pod", "ls", "-q"])?.prints("")?;
            nothing_left(cri)
        })
    }
);

test!(
    fn of_two_runs_with_one_uid_one_fails_and_leaves_the_other_alone(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            cri.start_registry()?;
            let uid = "6b1d3f7e-0000-4000-8000-000000000001";
            let manifest = one("web", "echo serving; sleep 1000")
                .replace("metadata:\n", &format!("metadata:\n  uid: {uid}\n"));
            // Both begin before there is a pod, since both must pull.
            let second = runs(cri, &manifest)?.redirect(">second 2>&1");
            let first = runs(cri, &manifest)?.redirect(">first 2>&1").spawn()?;
            let second = second.spawn()?;
            let codes = [first.wait()?.code, second.wait()?.code];
            let said_by = |name: &str| fs::read_to_string(cri.t.directory.join(name));
            let (first, second) = (said_by("first")?, said_by("second")?);
            let failed = match codes {
                [0, 1] => &second,
                [1, 0] => &first,
                _ => anyhow::bail!("{codes:?}\n{first}\n{second}"),
            };
            ensure!(
                ["is there already", "a pod has it"]
                    .iter()
                    .any(|text| failed.contains(text)),
                "{failed}"
            );
            ensure!(data(cri).join(uid).is_dir(), "the pod's volumes are gone");
            until("the log", || {
                let logs = said(cri, &["pod", "logs", "web"])?.ok()?;
                Ok((logs.stdout == "serving\n").then_some(()))
            })?;
            said(cri, &["pod", "exec", "web", "--", "echo", "in"])?.prints("in")?;
            said(cri, &["pod", "rm", "web"])?.ok()?;
            nothing_left(cri)?;
            // Somebody's logs of that name stay.
            let others = logs(cri).join(format!("default_web_{uid}"));
            fs::create_dir_all(&others)?;
            runs(cri, &manifest)?.run()?.code(1)?.fails_with(&[
                uid,
                "a pod has it",
                &others.display().to_string(),
            ])?;
            fs::remove_dir(&others).context("the logs that were there")?;
            nothing_left(cri)
        })
    }
);

test!(
    fn a_removal_that_failed_is_done_again(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            cri.busybox()?;
            let run = runs(cri, &one("web", "sleep 1000"))?.run()?.ok()?;
            let mut entries = fs::read_dir(data(cri))?.flatten();
            let mark = entries.next().context("no volumes")?.path().join(".rtc-cri-pod");
            fs::remove_file(&mark)?;
            said(cri, &["pod", "rm", "web"])?
                .code(1)?
                .fails_with(&["pod default/web", "is not removed"])?;
            said(cri, &["pod", "ls", "-q"])?.prints(run.value_of("id:")?)?;
            ensure!(fs::read_dir(logs(cri))?.next().is_none(), "its logs are left");
            fs::write(&mark, "")?;
            said(cri, &["pod", "rm", "web"])?.prints("default/web")?;
            said(cri, &["pod", "ls", "-q"])?.prints("")?;
            nothing_left(cri)
        })
    }
);

test!(
    fn a_bad_manifest_is_refused_before_anything_is_made(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            for (manifest, told) in [
                (
                    one("web", "true").replace("command:", "comand:"),
                    "spec.containers[0].comand: is no field of a Pod: is \"command\" meant? (line 11)",
                ),
                (one("Web", "true"), "metadata.name: \"Web\": must be"),
                (
                    one("web", "true") + "  volumes: [{name: v, secret: {secretName: s}}]\n",
                    "spec.volumes[0].secret: needs a cluster",
                ),
                (
                    one("web", "true") + "    envFrom: [{configMapRef: {name: c}}]\n",
                    "spec.containers[0].envFrom: there are no ConfigMaps",
                ),
                ("{\"kind\": ".into(), "JSON: EOF"),
                ("a: [".into(), "YAML: "),
                (String::new(), "is empty: a Pod is expected"),
            ] {
                runs(cri, &manifest)?
                    .run()?
                    .code(1)?
                    .fails_with(&["pod.yaml", told])?;
            }
            said(cri, &["pod", "run", "/no/such.yaml"])?
                .code(1)?
                .fails_with(&["/no/such.yaml", "No such file"])?;
            said(cri, &["pod", "run"])?
                .code(2)?
                .fails_with(&["FILE must be given", "rtc-cri pod run --help"])?;
            said(cri, &["pod", "frobnicate"])?
                .code(2)?
                .fails_with(&["\"frobnicate\"", "run, ls, logs, exec, rm"])?;
            said(cri, &["pod", "logs", "web"])?.fails_with(&["pod \"web\": there is none"])?;
            said(cri, &["pod", "rm", "web"])?
                .code(1)?
                .fails_with(&["pod \"web\": there is none"])?;
            nothing_left(cri)
        })
    }
);

test!(
    fn a_probe_is_warned_of_and_a_pod_comes_from_standard_input_as_json(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            cri.busybox()?;
            let manifest = serde_json::json!({
                "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web", "namespace": "shop"},
                "spec": {
                    "hostNetwork": true,
                    "terminationGracePeriodSeconds": 0,
                    "containers": [{"name": "main", "image": BUSYBOX, "command": ["sleep", "1000"],
                                    "livenessProbe": {"exec": {"command": ["true"]}}}],
                },
            });
            let file = cri.t.path("pod.json");
            fs::write(&file, manifest.to_string())?;
            let (data, logs) = (data(cri).display().to_string(), logs(cri).display().to_string());
            let cgroup = &cri.t.cgroup.path;
            let run = client(
                cri,
                &[
                    "pod",
                    "run",
                    "-",
                    "--data",
                    &data,
                    "--logs",
                    &logs,
                    "--cgroup-parent",
                    cgroup,
                ],
            )
            .stdin(File::open(&file)?)
            .run()?
            .ok()?;
            ensure!(
                run.stderr
                    .contains("warning: spec.containers[0].livenessProbe: ignored: probes need a kubelet"),
                "{run}"
            );
            ensure!(run.value_of("ip:")? == "the host's", "{run}");
            let name = "shop_web_";
            let found = fs::read_dir(&logs)?
                .flatten()
                .any(|entry| entry.file_name().to_string_lossy().starts_with(name));
            ensure!(found, "no directory of logs begins with {name}");
            said(cri, &["pod", "rm", "--all"])?.prints("shop/web")?;
            nothing_left(cri)
        })
    }
);

test!(
    fn images_are_pulled_listed_and_removed(t: &Test) -> Result {
        only_ours(t)?;
        with(t, |cri| {
            cri.start_registry()?;
            let pull = said(cri, &["image", "pull", BUSYBOX])?.ok()?;
            ensure!(pull.stdout.starts_with("sha256:"), "{pull}");
            ensure!(
                pull.stderr.contains("pulling ") && pull.stderr.contains("pulled "),
                "{pull}"
            );
            let id = pull.stdout.trim();
            said(cri, &["image", "ls"])?.mentions(BUSYBOX)?;
            said(cri, &["image", "ls", "--quiet"])?.prints(id)?;
            said(cri, &["image", "pull", "registry.k8s.io/no/such:1"])?
                .code(1)?
                .fails_with(&["no/such"])?;
            said(cri, &["image", "rm", "registry.k8s.io/no/such:1", BUSYBOX])?
                .code(1)?
                .fails_with(&["no/such:1: there is no such image"])?
                .stdout_is(&format!("{BUSYBOX}\n"))?;
            said(cri, &["image", "ls", "-q"])?.prints("")?;
            // On a terminal there is a bar, and nothing is left of it.
            let (mut terminal, slave) = Terminal::open()?;
            let bar = client(cri, &["image", "pull", BUSYBOX]).terminal(slave).spawn()?;
            let shown = terminal.read_to_end()?;
            bar.wait()?.ok()?;
            ensure!(
                shown.contains("\r\u{1b}[K") && shown.contains("pulled "),
                "{shown:?}"
            );
            Ok(())
        })
    }
);

test!(
    fn who_has_no_server_is_told_so(t: &Test) -> Result {
        only_ours(t)?;
        let socket = t.path("s").display().to_string();
        let call = |args: &[&str]| t.bare(args).program(&t.cri).run();
        call(&["--socket", &socket, "pod", "ls"])?.code(1)?.fails_with(&[
            "no server",
            &socket,
            "start rtc-cri",
            "--socket",
        ])?;
        drop(std::os::unix::net::UnixListener::bind(&socket)?);
        call(&["image", "ls", "--socket", &socket])?
            .code(1)?
            .fails_with(&["no server: nobody listens on", &socket])?;
        let config = t.path("config.toml");
        fs::write(&config, format!("socket = {socket:?}\n"))?;
        let config = config.display().to_string();
        call(&["--config", &config, "pod", "ls"])?
            .code(1)?
            .fails_with(&[&socket])?;
        call(&["pod", "ls", "--config", "/no/such.toml"])?
            .code(1)?
            .fails_with(&["/no/such.toml"])?;
        for (args, told) in [
            (&["--help"][..], "rtc-cri pod run FILE"),
            (&["pod", "--help"], "rtc-cri pod exec POD -- COMMAND"),
            (&["pod", "run", "--help"], "--cgroup-parent CGROUP"),
            (&["image", "--help"], "rtc-cri image pull IMAGE"),
        ] {
            call(args)?.mentions(told)?;
        }
        call(&["--socket", &socket])?
            .code(2)?
            .fails_with(&["--socket is the client's"])?;
        call(&["frobnicate"])?
            .code(2)?
            .fails_with(&["frobnicate", "rtc-cri pod run FILE"])
            .context("help")?;
        Ok(())
    }
);
