//! Events a shim forwards to containerd: what, in which order, and over containerd's absence.

use anyhow::{Context, ensure};
use containerd_shim_protos::events::task;
use containerd_shim_protos::protobuf::Message;
use serde_json::json;

use crate::registry::Result;
use crate::shim::{Code, Containerd, Events, Process, Refusal, Streams, envelope_message};
use crate::test;
use crate::wait::until;

/// The one event of a container with this topic.
fn event<M: Message>(events: &Events, topic: &str) -> Result<M> {
    let found = until(topic, || {
        Ok(events
            .envelopes()
            .into_iter()
            .find(|envelope| envelope.topic == topic))
    })?;
    envelope_message(&found)
}

test!(
    fn a_tasks_events_come_in_the_order_of_its_life(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sh("exit 3"))?;
        task.exits_with(3)?;
        task.delete()?;
        let expected = ["create", "start", "exit 3", "delete"];
        containerd.events.are(&task.id, &expected)?;
        task.shim.ends()?;
        // Nothing comes after it.
        containerd.events.are(&task.id, &expected)
    }
);

test!(
    fn events_say_whose_they_are_and_when(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().sh("exit 3");
        let task = containerd.run(&bundle)?;
        let exited = task.exits_with(3)?;
        let deleted = task.delete()?;
        containerd
            .events
            .are(&task.id, &["create", "start", "exit 3", "delete"])?;
        let pid = task.pid().unsigned_abs();
        let create: task::TaskCreate = event(&containerd.events, "/tasks/create")?;
        let io = create.io.clone().unwrap_or_default();
        ensure!(
            create.pid == pid && create.bundle == bundle.directory.to_string_lossy(),
            "{create}"
        );
        ensure!(
            io.stdout == task.streams.stdout && io.stderr == task.streams.stderr,
            "{io}"
        );
        let start: task::TaskStart = event(&containerd.events, "/tasks/start")?;
        ensure!(start.pid == pid, "{start}");
        let exit: task::TaskExit = event(&containerd.events, "/tasks/exit")?;
        ensure!(exit.pid == pid && exit.id == task.id, "{exit}");
        let at = crate::shim::Exited::new(3, exit.exited_at.as_ref());
        ensure!(at == exited, "the event says {at:?}, Wait {exited:?}");
        let delete: task::TaskDelete = event(&containerd.events, "/tasks/delete")?;
        ensure!(
            delete.pid == pid && delete.exit_status == 3 && delete.exited_at == deleted.exited_at,
            "{delete}"
        );
        let mut last = (0, 0);
        for envelope in containerd.events.envelopes() {
            ensure!(envelope.namespace == containerd.namespace, "{envelope}");
            let at = (envelope.timestamp.seconds, envelope.timestamp.nanos);
            ensure!(at >= last, "out of order: {envelope}");
            last = at;
        }
        Ok(())
    }
);

test!(
    fn an_execs_events_come_in_the_order_of_its_life_and_before_the_tasks_end(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let short = task.exec_sh("e1", "exit 4")?;
        short.exits_with(4)?;
        short.delete()?;
        let long = task.exec_sh("e2", "sleep 1000000")?;
        // Ends with its container.
        task.kill(libc::SIGKILL)?;
        long.exits_with(137)?;
        task.exits_with(137)?;
        long.delete()?;
        task.delete()?;
        let expected = [
            "create",
            "start",
            "exec-added e1",
            "exec-started e1",
            "exit e1 4",
            "exec-added e2",
            "exec-started e2",
            "exit e2 137",
            "exit 137",
            "delete",
        ];
        containerd.events.are(&task.id, &expected)
    }
);

test!(
    fn processes_that_end_at_once_have_started_before_they_exit(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let mut expected = vec!["create".to_owned(), "start".to_owned()];
        for number in 0..20 {
            let exec = task.exec(&format!("e{number}"), &["true"])?;
            exec.start()?;
            exec.exits_with(0)?;
            exec.delete()?;
            for event in ["exec-added", "exec-started"] {
                expected.push(format!("{event} e{number}"));
            }
            expected.push(format!("exit e{number} 0"));
        }
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        containerd.events.are(&task.id, &expected)?;
        for _ in 0..5 {
            let task = containerd.run(&containerd.bundle().args(&["true"]))?;
            task.exits_with(0)?;
            task.delete()?;
            containerd
                .events
                .are(&task.id, &["create", "start", "exit 0", "delete"])?;
        }
        Ok(())
    }
);

test!(
    fn a_task_killed_before_its_start_has_no_start(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.create(&containerd.bundle().sleeper())?;
        task.kill(libc::SIGKILL)?;
        task.exits_with(137)?;
        task.start().refused(Code::FAILED_PRECONDITION)?;
        task.delete()?;
        containerd.events.are(&task.id, &["create", "exit 137", "delete"])
    }
);

test!(
    fn what_did_not_happen_has_no_event(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().args(&["/no/such/program"]);
        let shim = containerd.start(&bundle)?;
        let streams = Streams::output(t)?;
        // Some runtimes look for the program at create, some at start.
        let created = shim.create(&bundle, streams);
        if let Ok(task) = &created {
            ensure!(task.start().is_err(), "a program that is not there was started");
            let _ = task.delete();
        }
        let task = shim.create(&containerd.bundle().sleeper(), Streams::output(t)?)?;
        task.start()?;
        ensure!(
            task.start().is_err() && task.resume().is_err() && task.delete().is_err(),
            "not refused"
        );
        let exec = task.exec("e1", &["/no/such/program"])?;
        ensure!(exec.start().is_err(), "a program that is not there was executed");
        exec.delete()?;
        task.kill(libc::SIGKILL)?;
        task.exits_with(137)?;
        task.delete()?;
        let expected = ["create", "start", "exec-added e1", "exit 137", "delete"];
        containerd.events.are(&task.id, &expected)?;
        let of_first = containerd.events.of(&bundle.id)?;
        ensure!(!of_first.contains(&"start".to_owned()), "{of_first:?}");
        Ok(())
    }
);

test!(
    fn pause_and_resume_are_told(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        task.pause()?;
        task.resume()?;
        task.end()?;
        let expected = ["create", "start", "paused", "resumed", "exit 137", "delete"];
        containerd.events.are(&task.id, &expected)
    }
);

test!(
    fn events_wait_for_containerd_to_come_back_and_keep_their_order(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        containerd.events.are(&task.id, &["create", "start"])?;
        containerd.events.go_away()?;
        // Every call is answered meanwhile.
        let mut expected: Vec<String> = vec!["create".into(), "start".into()];
        for number in 0..20 {
            let exec = task.exec_sh(&format!("e{number}"), "exit 1")?;
            exec.exits_with(1)?;
            exec.delete()?;
            for event in ["exec-added", "exec-started"] {
                expected.push(format!("{event} e{number}"));
            }
            expected.push(format!("exit e{number} 1"));
        }
        task.end()?;
        expected.extend(["exit 137".into(), "delete".into()]);
        containerd.events.come_back()?;
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        containerd.events.are(&task.id, &expected)
    }
);

test!(
    fn a_containerd_that_does_not_answer_holds_up_no_call(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        containerd.events.hold(true);
        let task = containerd.run(&containerd.bundle().sleeper())?;
        for number in 0..5 {
            task.output_of(&format!("e{number}"), "echo")?;
        }
        task.end()?;
        containerd.events.hold(false);
        containerd.events.wait_for(&task.id, "delete")?;
        let found = containerd.events.of(&task.id)?;
        let positions = [
            "create",
            "start",
            "exec-started e0",
            "exit e0 0",
            "exit 137",
            "delete",
        ]
        .map(|name| found.iter().position(|each| each == name));
        ensure!(positions.is_sorted() && positions[0].is_some(), "{found:?}");
        Ok(())
    }
);

test!(
    fn a_shim_told_to_shut_down_still_delivers_what_it_has(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().args(&["true"]))?;
        task.exits_with(0)?;
        task.delete()?;
        task.shim.ends()?;
        containerd
            .events
            .are(&task.id, &["create", "start", "exit 0", "delete"])
    }
);

/// A container that may have 16 MiB, and takes more in an exec.
fn out_of_memory(containerd: &Containerd<'_>) -> Result {
    let bundle = containerd
        .bundle()
        .set(
            "/linux/resources/memory",
            json!({"limit": 16 << 20, "swap": 16 << 20}),
        )
        .sleeper();
    let task = containerd.run(&bundle)?;
    let hungry = task.exec_sh("e1", "tail -c 64m < /dev/zero")?;
    let exited = hungry.wait()?;
    ensure!(exited.status != 0, "64 MiB fit into 16");
    containerd.events.wait_for(&task.id, "oom")?;
    if let Ok(()) = task.kill(libc::SIGKILL) {}
    Process::wait(&task)?;
    Ok(())
}

test!(
    fn running_out_of_memory_is_told(t: &Test) -> Result {
        t.needs_controller("memory")?;
        let containerd = Containerd::new(t)?;
        out_of_memory(&containerd).with_context(|| format!("{:?}", containerd.events.envelopes()))
    }
);

test!(
    fn a_task_that_is_only_killed_has_not_run_out_of_memory(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        task.end()?;
        task.shim.ends()?;
        containerd
            .events
            .are(&task.id, &["create", "start", "exit 137", "delete"])
    }
);
