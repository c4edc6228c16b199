//! How a shim begins and ends: the ways containerd's versions start it, one shim for a pod, Shutdown.

use std::fs;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use containerd_shim_protos::bootstrap_api::{Extension, LogLevel};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::shim::oci::Options;
use containerd_shim_protos::types::introspection::RuntimeInfo;
use serde_json::json;

use crate::bundle::Bundle;
use crate::host::{cgroup, process};
use crate::registry::Result;
use crate::shim::{Containerd, OPTIONS_URL, Shim, Status, Streams, any_message, run};
use crate::test;
use crate::test::Test;
use crate::wait::until;

/// A container that prints can be created, started and deleted.
fn works(shim: &Shim<'_>, bundle: &Bundle<'_>) -> Result {
    let task = shim.create(bundle, Streams::output(shim.t)?)?;
    task.start()?;
    task.exits_with(0)?;
    ensure!(task.streams.out.text_to_end()? == "works\n", "stdout");
    task.delete()?;
    Ok(())
}

test!(
    fn flags_and_environment_of_containerd_1_6_start_a_shim_that_answers_with_its_address(
        t: &Test,
    ) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().sh("echo works");
        bundle.write()?;
        let mut command = containerd.command(&bundle.directory, &bundle.id, &["start"]);
        for newer in ["GRPC_ADDRESS", "NAMESPACE", "MAX_SHIM_VERSION"] {
            command.env_remove(newer);
        }
        let output = run(command, &[])?;
        ensure!(output.status.success(), "{output:?}");
        let answer = String::from_utf8(output.stdout)?;
        ensure!(
            answer.starts_with("unix:///") && !answer.contains(char::is_whitespace),
            "answer {answer:?}"
        );
        // The same address for a second `start` of the id, since the first shim is there.
        let shim = containerd.start(&bundle)?;
        ensure!(shim.answer().address == answer, "{}", shim.answer());
        works(&shim, &bundle)
    }
);

test!(
    fn flags_and_environment_of_containerd_2_0_start_a_shim(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().sh("echo works");
        let shim = containerd.start(&bundle)?;
        works(&shim, &bundle)
    }
);

test!(
    fn parameters_on_standard_input_start_a_shim_of_version_3(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().sh("echo works");
        let shim = containerd.bootstrap(&bundle, &containerd.bootstrap_params(&bundle.id))?;
        let answer = shim.answer();
        ensure!(answer.version == 3 && answer.protocol == "ttrpc", "{answer}");
        works(&shim, &bundle)?;
        containerd
            .events
            .are(&bundle.id, &["create", "start", "exit 0", "delete"])
    }
);

test!(
    fn both_names_of_the_task_service_are_served(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().sh("echo works");
        let shim = containerd.start(&bundle)?;
        for version in [2, 3] {
            shim.speak_version(version);
            works(&shim, &bundle).with_context(|| format!("version {version}"))?;
        }
        Ok(())
    }
);

test!(
    fn the_socket_is_put_where_the_parameters_say(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        // Short: an address holds 107 bytes.
        let directory = PathBuf::from(format!("/tmp/rtc-s-{}", t.unique));
        fs::create_dir(&directory)?;
        let remove = directory.clone();
        t.at_end(move || fs::remove_dir(&remove).context("something is left in the directory of sockets"));
        let bundle = containerd.bundle().sh("echo works");
        let mut params = containerd.bootstrap_params(&bundle.id);
        params.socket_dir = Some(directory.to_string_lossy().into_owned());
        let shim = containerd.bootstrap(&bundle, &params)?;
        ensure!(shim.socket().parent() == Some(&*directory), "{}", shim.answer());
        works(&shim, &bundle)
    }
);

test!(
    fn the_socket_is_for_root_alone(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let shim = containerd.start(&containerd.bundle())?;
        let metadata = fs::metadata(shim.socket())?;
        ensure!(metadata.file_type().is_socket(), "no socket");
        let mode = metadata.permissions().mode() & 0o777;
        ensure!(mode == 0o600, "mode {mode:o}");
        Ok(())
    }
);

test!(
    fn debug_is_taken_in_both_ways(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().sh("echo works");
        let shim = containerd.start_by(&bundle, &["-debug", "start"], &[])?;
        works(&shim, &bundle)?;
        shim.ends()?;
        let bundle = containerd.bundle().sh("echo works");
        let mut params = containerd.bootstrap_params(&bundle.id);
        params.log_level = LogLevel::LOG_LEVEL_DEBUG.into();
        works(&containerd.bootstrap(&bundle, &params)?, &bundle)
    }
);

/// Options with a cgroup for the shim, which is made here in the hierarchies of some controllers.
fn shim_cgroup(t: &Test) -> Result<(Options, cgroup::Cgroup)> {
    let group = cgroup::Cgroup {
        path: format!("{}/shim", t.cgroup.path),
    };
    for controller in ["memory", "pids"] {
        let directory = group.directory(controller)?;
        fs::create_dir_all(&directory)?;
        t.at_end(move || {
            until("the shim's cgroup to go", || {
                Ok(fs::remove_dir(&directory)
                    .ok()
                    .or((!directory.exists()).then_some(())))
            })
        });
    }
    let mut options = Options::new();
    options.shim_cgroup.clone_from(&group.path);
    Ok((options, group))
}

fn is_in(shim: &Shim<'_>, group: &cgroup::Cgroup) -> Result {
    let path = group.directory("pids")?.join("cgroup.procs");
    let pids = fs::read_to_string(path)?;
    ensure!(
        pids.lines().any(|pid| pid == shim.pid().to_string()),
        "the shim is not in its cgroup: {pids:?}"
    );
    Ok(())
}

test!(
    fn the_shims_cgroup_comes_from_the_options_on_standard_input(t: &Test) -> Result {
        t.needs_controller("pids")?;
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().sh("echo works");
        let (options, group) = shim_cgroup(t)?;
        let options = any_message(OPTIONS_URL, &options)?;
        let shim = containerd.start_with(&bundle, Some(&options))?;
        is_in(&shim, &group)?;
        works(&shim, &bundle)
    }
);

test!(
    fn the_shims_cgroup_comes_from_the_options_in_the_parameters(t: &Test) -> Result {
        t.needs_controller("pids")?;
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().sh("echo works");
        let (options, group) = shim_cgroup(t)?;
        let mut params = containerd.bootstrap_params(&bundle.id);
        let mut extension = Extension::new();
        extension.value = Some(any_message(OPTIONS_URL, &options)?).into();
        params.extensions.push(extension);
        let shim = containerd.bootstrap(&bundle, &params)?;
        is_in(&shim, &group)?;
        works(&shim, &bundle)
    }
);

test!(
    fn a_shim_is_a_little_more_likely_to_be_killed_for_memory_than_containerd(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let shim = containerd.start(&containerd.bundle())?;
        let score = |pid: &str| -> Result<i32> {
            Ok(fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?
                .trim()
                .parse()?)
        };
        let (ours, its) = (score("self")?, score(&shim.pid().to_string())?);
        ensure!(its == ours + 1, "containerd has {ours}, the shim {its}");
        Ok(())
    }
);

test!(
    fn the_containers_of_a_pod_share_a_shim(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        for annotation in ["io.kubernetes.cri.sandbox-id", "io.containerd.runc.v2.group"] {
            let pod = containerd.bundle().sleeper();
            let annotations = json!({annotation: pod.id});
            let pod = pod.set("/annotations", annotations.clone());
            let other = containerd.bundle().sleeper().set("/annotations", annotations);
            let first = containerd.start(&pod)?;
            let one = first.create(&pod, Streams::output(t)?)?;
            one.start()?;
            let second = containerd.start(&other)?;
            ensure!(
                first.answer().address == second.answer().address,
                "{annotation}: two addresses"
            );
            ensure!(first.pid() == second.pid(), "{annotation}: two shims");
            let two = second.create(&other, Streams::output(t)?)?;
            two.start()?;
            one.end()?;
            first.shutdown()?;
            two.is(Status::RUNNING).context("after Shutdown")?;
            two.end()?;
            second.ends()?;
        }
        Ok(())
    }
);

test!(
    fn containers_of_no_pod_have_a_shim_each(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let one = containerd.run(&containerd.bundle().sleeper())?;
        let two = containerd.run(&containerd.bundle().sleeper())?;
        ensure!(one.shim.pid() != two.shim.pid(), "one shim");
        one.end()?;
        one.shim.ends()?;
        two.is(Status::RUNNING)
    }
);

test!(
    fn shutdown_ends_the_shim_only_when_no_task_is_left(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().args(&["true"]))?;
        task.shim.shutdown()?;
        task.exits_with(0)?;
        task.shim.shutdown()?;
        task.is(Status::STOPPED)?;
        task.delete()?;
        task.shim.ends()?;
        let socket = task.shim.socket();
        ensure!(!socket.exists(), "{} is left", socket.display());
        Ok(())
    }
);

test!(
    fn a_shim_without_a_task_can_be_shut_down(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        containerd.start(&containerd.bundle())?.ends()
    }
);

test!(
    fn a_shim_that_was_killed_can_be_started_again_for_the_same_id(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().sh("echo works");
        let shim = containerd.start(&bundle)?;
        shim.signal(nix::sys::signal::Signal::SIGKILL)?;
        shim.gone()?;
        // Its socket is there, and nobody listens.
        works(&containerd.start(&bundle)?, &bundle)
    }
);

test!(
    fn the_daemon_has_nothing_of_its_starter_open_and_is_its_own_session(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle();
        let shim = containerd.start(&bundle)?;
        let pid = shim.pid();
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let entry = entry?;
            let target = fs::read_link(entry.path()).unwrap_or_default();
            let allowed = target.starts_with(&bundle.directory)
                || target == Path::new("/dev/null")
                || ["socket:", "anon_inode:", "pipe:"]
                    .iter()
                    .any(|kind| target.to_string_lossy().starts_with(kind));
            ensure!(allowed, "{} is {}", entry.path().display(), target.display());
        }
        let own = nix::unistd::getsid(None)?.as_raw();
        let its = nix::unistd::getsid(Some(nix::unistd::Pid::from_raw(pid)))?.as_raw();
        ensure!(own != its, "the shim is in containerd's session");
        let threads = process::status_field(pid, "Threads")?;
        ensure!(threads == "1" || !t.shim_is_ours(), "{threads} threads");
        Ok(())
    }
);

test!(
    fn info_says_name_version_and_features(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle();
        let mut command = std::process::Command::new(&t.shim);
        command.arg("-info").current_dir(&bundle.directory);
        let options = any_message(OPTIONS_URL, &Options::new())?;
        let output = run(command, &options.write_to_bytes()?)?;
        ensure!(output.status.success(), "{output:?}");
        let info = RuntimeInfo::parse_from_bytes(&output.stdout)?;
        ensure!(info.name.starts_with("io.containerd."), "name {:?}", info.name);
        ensure!(!info.version.version.is_empty(), "no version: {info}");
        ensure!(
            info.options.type_url == OPTIONS_URL || !t.shim_is_ours(),
            "options {:?}",
            info.options
        );
        // runc 1.1 has no features.
        ensure!(
            info.features.type_url.contains("runtime-spec") || !t.shim_is_ours(),
            "features {:?}",
            info.features
        );
        Ok(())
    }
);

test!(
    fn info_without_options_works_too(t: &Test) -> Result {
        let mut command = std::process::Command::new(&t.shim);
        command.arg("-info").stdin(std::process::Stdio::null());
        let output = run(command, &[])?;
        ensure!(output.status.success(), "{output:?}");
        RuntimeInfo::parse_from_bytes(&output.stdout)?;
        Ok(())
    }
);

test!(
    fn the_version_is_printed(t: &Test) -> Result {
        for flag in ["-v", "-version"] {
            let mut command = std::process::Command::new(&t.shim);
            command.arg(flag);
            let output = run(command, &[])?;
            ensure!(output.status.success(), "{flag}: {output:?}");
            let name = t.shim.file_name().unwrap_or_default().to_string_lossy();
            let text = String::from_utf8(output.stdout)?;
            ensure!(
                text.contains(&*name) && text.contains("Version"),
                "{flag}: {text:?}"
            );
        }
        Ok(())
    }
);

test!(
    fn start_without_a_namespace_fails_and_leaves_no_shim(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle();
        bundle.write()?;
        let mut command = std::process::Command::new(&t.shim);
        command.args(["-id", &bundle.id, "-address", &containerd.address, "start"]);
        let output = run(
            {
                command.current_dir(&bundle.directory);
                command
            },
            &[],
        )?;
        ensure!(
            !output.status.success(),
            "started without a namespace: {output:?}"
        );
        ensure!(!output.stderr.is_empty(), "no message");
        Ok(())
    }
);

test!(
    fn an_unknown_action_or_flag_fails(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle();
        bundle.write()?;
        for action in [&["-nonsense", "start"] as &[&str], &["nonsense"]] {
            if !t.shim_is_ours() && action == ["nonsense"] {
                // It takes any other word for "serve".
                continue;
            }
            let output = run(containerd.command(&bundle.directory, &bundle.id, action), &[])?;
            ensure!(!output.status.success(), "{action:?}: {output:?}");
            ensure!(!output.stderr.is_empty(), "{action:?}: no message");
        }
        Ok(())
    }
);
