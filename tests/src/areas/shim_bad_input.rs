//! What no well-behaved containerd sends: each is refused with the right code, nothing is left, and the shim goes on.

use std::fs;

use anyhow::{Context, ensure};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use serde_json::json;

use crate::bundle::Bundle;
use crate::gate::Gate;
use crate::registry::Result;
use crate::shim::{
    Code, Connection, Containerd, OPTIONS_URL, Process, REQUEST, Refusal, Refused, Shim, Status, Streams,
    api, bytes, fifo, frame, mount,
};
use crate::test;
use crate::test::Test;
use crate::wait::until;

/// The shim answers, and makes a container of another bundle that runs.
fn lives(containerd: &Containerd<'_>, shim: &Shim<'_>) -> Result {
    let bundle = containerd.bundle().sh("echo lives");
    let task = shim.create(&bundle, Streams::output(shim.t)?)?;
    task.start()?;
    task.exits_with(0)?;
    ensure!(task.streams.out.text_to_end()? == "lives\n", "output");
    task.delete()?;
    Ok(())
}

/// A Create that is changed so that it must be refused.
fn refused_create(
    t: &Test,
    bundle: impl Fn(Bundle<'_>) -> Bundle<'_>,
    change: impl Fn(&mut api::CreateTaskRequest),
    code: Code,
) -> Result {
    let containerd = Containerd::new(t)?;
    let bundle = bundle(containerd.bundle().sleeper());
    let good = containerd.bundle();
    let shim = containerd.start(&good)?;
    let mut request = shim.create_request(&bundle, &Streams::default())?;
    change(&mut request);
    let created: Result<api::CreateTaskResponse> = shim.call("Create", &request);
    if created.is_ok() {
        shim.delete_at_end(&request.id);
    }
    created.refused(code)?;
    containerd.nothing_is_left_of(&bundle)?;
    lives(&containerd, &shim)?;
    shim.ends()?;
    let events = containerd.events.of(&bundle.id)?;
    ensure!(events.is_empty(), "events of what was not made: {events:?}");
    Ok(())
}

fn options(url: &str, value: &[u8]) -> Option<Any> {
    Some(Any {
        type_url: url.to_owned(),
        value: value.to_vec(),
        ..Any::default()
    })
}

test!(
    fn options_of_an_unknown_type_are_refused(t: &Test) -> Result {
        let change = |request: &mut api::CreateTaskRequest| {
            request.options = options("some.other.Options", b"").into();
        };
        refused_create(t, |bundle| bundle, change, Code::INVALID_ARGUMENT)
    }
);

test!(
    fn options_that_are_no_protobuf_are_refused(t: &Test) -> Result {
        let change = |request: &mut api::CreateTaskRequest| {
            request.options = options(OPTIONS_URL, b"\xff\xff\xff").into();
        };
        refused_create(t, |bundle| bundle, change, Code::INVALID_ARGUMENT)
    }
);

test!(
    fn a_state_root_that_is_not_absolute_is_refused(t: &Test) -> Result {
        // Field 7 of the options: root.
        let change = |request: &mut api::CreateTaskRequest| {
            request.options = options(OPTIONS_URL, b"\x3a\x04a/../").into();
        };
        refused_create(t, |bundle| bundle, change, Code::INVALID_ARGUMENT)
    }
);

test!(
    fn a_bundle_that_has_vanished_is_refused(t: &Test) -> Result {
        let change = |request: &mut api::CreateTaskRequest| {
            fs::remove_dir_all(&request.bundle).unwrap_or_else(|error| panic!("{error}"));
        };
        refused_create(t, |bundle| bundle, change, Code::INVALID_ARGUMENT)
    }
);

test!(
    fn a_bundle_whose_configuration_is_broken_is_refused(t: &Test) -> Result {
        for text in [
            "",
            "{",
            "[]",
            "{\"ociVersion\": \"1.0.2\", \"process\": 3}",
            "\u{0}\u{1}",
        ] {
            refused_create(t, |bundle| bundle.text(text), |_| (), Code::INVALID_ARGUMENT)
                .with_context(|| format!("{text:?}"))?;
        }
        Ok(())
    }
);

test!(
    fn ids_that_are_paths_are_refused(t: &Test) -> Result {
        for id in ["../x", "a/b", "", ".", "..", "a\u{0}b", "a b"] {
            let change = |request: &mut api::CreateTaskRequest| id.clone_into(&mut request.id);
            refused_create(t, |bundle| bundle, change, Code::INVALID_ARGUMENT)
                .with_context(|| format!("{id:?}"))?;
        }
        Ok(())
    }
);

test!(
    fn a_rootfs_that_cannot_be_mounted_fails_create_and_leaves_no_mount(t: &Test) -> Result {
        let cases = [
            vec![mount("bind", "/no/such/directory", &["rbind".to_owned()])],
            vec![mount("nofs", "none", &[])],
            vec![
                mount("tmpfs", "tmpfs", &[]),
                mount("bind", "/no/such/directory", &["rbind".to_owned()]),
            ],
        ];
        for rootfs in cases {
            let change = |request: &mut api::CreateTaskRequest| request.rootfs.clone_from(&rootfs);
            // The peer's: UNKNOWN; which of ours is the runtime's affair.
            let result = refused_create(t, |bundle| bundle, change, Code::UNKNOWN);
            result.with_context(|| format!("{rootfs:?}"))?;
        }
        Ok(())
    }
);

test!(
    fn a_stream_that_is_a_directory_or_of_an_unknown_kind_fails_create(t: &Test) -> Result {
        let directory = t.directory.to_string_lossy().into_owned();
        for stdout in [
            directory.as_str(),
            "/no/such/fifo",
            "nothing:///x",
            "file://",
            "binary://",
        ] {
            let change = |request: &mut api::CreateTaskRequest| stdout.clone_into(&mut request.stdout);
            let containerd = Containerd::new(t)?;
            let bundle = containerd.bundle().sleeper();
            let shim = containerd.start(&bundle)?;
            let mut request = shim.create_request(&bundle, &Streams::default())?;
            change(&mut request);
            let created: Result<api::CreateTaskResponse> = shim.call("Create", &request);
            ensure!(created.is_err(), "{stdout:?}: created");
            containerd
                .nothing_is_left_of(&bundle)
                .with_context(|| format!("{stdout:?}"))?;
            lives(&containerd, &shim)?;
            shim.ends()?;
            containerd.events.go_away()?;
        }
        Ok(())
    }
);

test!(
    fn an_exec_with_a_bad_stream_or_process_fails_and_the_container_goes_on(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let before = task.pids()?.len();
        let fails = |request: &api::ExecProcessRequest| -> Result {
            match task.exec_by(request, Streams::default()) {
                Err(_) => Ok(()),
                Ok(exec) => {
                    ensure!(exec.start().is_err(), "started");
                    exec.delete()?;
                    Ok(())
                }
            }
        };
        let directory = t.directory.to_string_lossy().into_owned();
        let mut request = task.exec_request("e1", &["true"], &Streams::default());
        request.stdout = directory;
        fails(&request).context("a directory as stdout")?;
        let mut request = task.exec_request("e2", &["true"], &Streams::default());
        request.spec = options("types.containerd.io/opencontainers/runtime-spec/1/Process", b"{").into();
        fails(&request).context("broken JSON")?;
        let mut request = task.exec_request("e3", &["true"], &Streams::default());
        request.spec = None.into();
        fails(&request).context("no process")?;
        ensure!(task.pids()?.len() == before, "{:?}", task.pids()?);
        task.output_of("good", "true")?;
        task.end()
    }
);

test!(
    fn exec_ids_that_are_paths_are_refused(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        for id in ["", "../x", "a/b", ".."] {
            let request = task.exec_request(id, &["true"], &Streams::default());
            task.exec_by(&request, Streams::default())
                .refused(Code::INVALID_ARGUMENT)
                .with_context(|| format!("{id:?}"))?;
        }
        task.is(Status::RUNNING)?;
        task.end()
    }
);

test!(
    fn a_payload_that_is_no_protobuf_is_refused_for_each_method(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let shim = containerd.start(&containerd.bundle())?;
        let mut connection = shim.connection()?;
        let methods = [
            "State",
            "Create",
            "Start",
            "Delete",
            "Pids",
            "Pause",
            "Resume",
            "Checkpoint",
            "Kill",
            "Exec",
            "ResizePty",
            "CloseIO",
            "Update",
            "Wait",
            "Stats",
            "Connect",
            "Shutdown",
        ];
        for method in methods {
            let stream = connection.send(&shim.service(), method, b"\xff\xff\xff\xff".to_vec())?;
            // Which code is the affair of the ttrpc library.
            let error = connection
                .receive(stream)
                .err()
                .with_context(|| method.to_owned())?;
            ensure!(error.downcast_ref::<Refused>().is_some(), "{method}: {error:#}");
        }
        lives(&containerd, &shim)
    }
);

test!(
    fn an_unknown_service_or_method_is_refused(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let shim = containerd.start(&containerd.bundle())?;
        let mut connection = shim.connection()?;
        let service = shim.service();
        let stream = connection.send(&service, "NoSuchMethod", Vec::new())?;
        connection.receive(stream).refused_exactly(Code::UNIMPLEMENTED)?;
        for service in [
            "no.such.Service",
            "",
            "containerd.services.events.ttrpc.v1.Events",
        ] {
            // UNIMPLEMENTED by the Go library, INVALID_ARGUMENT by the Rust one.
            let stream = connection.send(service, "State", Vec::new())?;
            let error = connection
                .receive(stream)
                .err()
                .with_context(|| service.to_owned())?;
            ensure!(error.downcast_ref::<Refused>().is_some(), "{service}: {error:#}");
        }
        lives(&containerd, &shim)
    }
);

/// Sends bytes that are no request on a connection of their own; whatever comes of that connection, the shim lives.
fn nonsense(what: &str, bytes: &[u8]) -> impl Fn(&Containerd<'_>, &Shim<'_>) -> Result {
    move |containerd, shim| {
        let mut connection = shim.connection()?;
        // It may hang up while it is still being talked to.
        let _ = connection.send_raw(bytes);
        lives(containerd, shim).with_context(|| what.to_owned())?;
        drop(connection);
        lives(containerd, shim).with_context(|| what.to_owned())
    }
}

test!(
    fn frames_that_are_none_harm_nobody(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let shim = containerd.start(&containerd.bundle())?;
        let long_header = [&u32::MAX.to_be_bytes()[..], &[0, 0, 0, 1, REQUEST, 0]].concat();
        let cases: [(&str, Vec<u8>); 8] = [
            ("half a header", vec![0, 0, 0]),
            (
                "a body that does not come",
                frame(1, REQUEST, &[0; 100])[..50].to_vec(),
            ),
            ("a body of 4 GiB", long_header),
            ("no protobuf", frame(1, REQUEST, b"\xff\xff\xff")),
            ("a response", frame(1, 2, b"")),
            ("data of no stream", frame(7, 3, b"abc")),
            ("an unknown type", frame(1, 99, b"abc")),
            ("an even stream", frame(2, REQUEST, b"")),
        ];
        for (what, bytes) in &cases {
            nonsense(what, bytes)(&containerd, &shim)?;
        }
        nonsense("noise", &[0x5a; 4096])(&containerd, &shim)
    }
);

test!(
    fn a_message_that_is_too_large_is_refused_and_the_next_is_answered(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let shim = containerd.start(&containerd.bundle())?;
        let mut connection = shim.connection()?;
        let stream = connection.send(&shim.service(), "State", vec![0; 5 << 20])?;
        // The peer answers RESOURCE_EXHAUSTED.
        let error = connection.receive(stream).expect_err("took 5 MiB");
        ensure!(error.downcast_ref::<Refused>().is_some(), "{error:#}");
        let _: api::ConnectResponse =
            connection.call(&shim.service(), "Connect", &api::ConnectRequest::new())?;
        lives(&containerd, &shim)
    }
);

test!(
    fn a_stream_number_used_twice_harms_nobody(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let mut connection = task.shim.connection()?;
        let mut wait = api::WaitRequest::new();
        wait.id.clone_from(&task.id);
        let mut again = task.shim.connection()?;
        connection.send(&task.shim.service(), "Wait", bytes(&wait)?)?;
        again.send(&task.shim.service(), "Wait", bytes(&wait)?)?;
        drop(again);
        lives(&containerd, &task.shim)?;
        task.end()
    }
);

/// Sends a request and hangs up at once.
fn hang_up(mut connection: Connection, service: &str, method: &str, request: Vec<u8>) -> Result {
    connection.send(service, method, request)?;
    drop(connection);
    Ok(())
}

test!(
    fn a_client_that_hangs_up_in_the_middle_of_create_has_it_created_all_the_same(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().sleeper();
        let shim = containerd.start(&bundle)?;
        let request = shim.create_request(&bundle, &Streams::default())?;
        hang_up(shim.connection()?, &shim.service(), "Create", bytes(&request)?)?;
        let task = shim.process(&bundle, Streams::default(), 0);
        until("the container", || Ok(task.is(Status::CREATED).ok()))?;
        task.start()?;
        task.end()?;
        lives(&containerd, &shim)?;
        shim.ends()
    }
);

test!(
    fn a_create_that_was_given_up_and_is_deleted_leaves_nothing(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let gate = Gate::new(t)?;
        let bundle = gate.hook(containerd.bundle().sleeper(), "createRuntime");
        let shim = containerd.start(&bundle)?;
        let request = shim.create_request(&bundle, &Streams::default())?;
        hang_up(shim.connection()?, &shim.service(), "Create", bytes(&request)?)?;
        gate.reached()?;
        // As containerd does where its Create took too long: it forgets a shim that has nothing to delete.
        let mut delete = api::DeleteRequest::new();
        delete.id.clone_from(&bundle.id);
        let deleting = shim.begin::<api::DeleteResponse>("Delete", &delete)?;
        gate.open()?;
        deleting.answer()?;
        containerd.nothing_is_left_of(&bundle)?;
        shim.ends()
    }
);

test!(
    fn a_client_that_hangs_up_in_the_middle_of_a_call_changes_nothing_for_others(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let service = task.shim.service();
        let send =
            |method: &str, request: Vec<u8>| hang_up(task.shim.connection()?, &service, method, request);
        let mut only_id = api::WaitRequest::new();
        only_id.id.clone_from(&task.id);
        for method in ["Wait", "State", "Pids", "Stats", "Connect"] {
            send(method, bytes(&only_id)?)?;
        }
        send(
            "Exec",
            bytes(&task.exec_request("e1", &["sleep", "1000000"], &Streams::default()))?,
        )?;
        let exec = Process::unknown(&task, &task.id, "e1");
        until("the exec", || Ok(exec.is(Status::CREATED).ok()))?;
        let mut start = api::StartRequest::new();
        (start.id, start.exec_id) = (task.id.clone(), "e1".to_owned());
        send("Start", bytes(&start)?)?;
        exec.becomes(Status::RUNNING)?;
        send("Pause", bytes(&only_id)?)?;
        task.becomes(Status::PAUSED)?;
        send("Resume", bytes(&only_id)?)?;
        task.becomes(Status::RUNNING)?;
        send("Kill", bytes(&exec.kill_request(libc::SIGKILL))?)?;
        exec.exits_with(137)?;
        send("Delete", bytes(&exec.delete_request())?)?;
        until("the exec to be deleted", || {
            Ok(exec.state().is_err().then_some(()))
        })?;
        let mut resources = api::UpdateTaskRequest::new();
        resources.id.clone_from(&task.id);
        send("Update", bytes(&resources)?)?;
        send("Kill", bytes(&task.kill_request(libc::SIGKILL))?)?;
        task.exits_with(137)?;
        send("Delete", bytes(&task.delete_request())?)?;
        until("the task to be deleted", || {
            Ok(task.state().is_err().then_some(()))
        })?;
        lives(&containerd, &task.shim)?;
        task.shim.ends()
    }
);

test!(
    fn two_hundred_connections_at_once_are_served(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let shim = containerd.start(&containerd.bundle())?;
        let mut connections = (0..200).map(|_| shim.connection()).collect::<Result<Vec<_>>>()?;
        for connection in &mut connections {
            let _: api::ConnectResponse =
                connection.call(&shim.service(), "Connect", &api::ConnectRequest::new())?;
        }
        drop(connections);
        lives(&containerd, &shim)
    }
);

test!(
    fn an_update_or_checkpoint_that_makes_no_sense_is_refused(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let mut request = api::UpdateTaskRequest::new();
        request.id.clone_from(&task.id);
        request.resources = options(
            "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources",
            b"{\"memory\": 3}",
        )
        .into();
        let updated: Result<api::Empty> = task.shim.call("Update", &request);
        updated.refused(Code::INVALID_ARGUMENT)?;
        task.update(&json!({"memory": {"limit": -5}}))
            .err()
            .context("a limit of -5")?;
        let mut request = api::CheckpointTaskRequest::new();
        request.id.clone_from(&task.id);
        let checkpointed: Result<api::Empty> = task.shim.call("Checkpoint", &request);
        ensure!(checkpointed.is_err(), "checkpointed to nowhere");
        task.is(Status::RUNNING)?;
        task.end()
    }
);

test!(
    fn a_fifo_that_is_removed_after_create_harms_nobody(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().sh("echo out; exit 3");
        let shim = containerd.start(&bundle)?;
        let streams = Streams::output(t)?;
        let path = streams.stdout.clone();
        let task = shim.create(&bundle, streams)?;
        fs::remove_file(path)?;
        task.start()?;
        task.exits_with(3)?;
        task.delete()?;
        let _ = fifo(t, "unused")?;
        lives(&containerd, &shim)
    }
);
