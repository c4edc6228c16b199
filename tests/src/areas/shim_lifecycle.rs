//! The shim's Task service: what each call does in each state, and how a shim begins and ends.

use anyhow::ensure;

use crate::registry::Result;
use crate::shim::{Code, Containerd, Refusal, Status};
use crate::test;
use crate::test::Test;

test!(
    fn a_task_is_created_runs_stops_and_is_deleted(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.create(&containerd.bundle().sh("echo out; echo err >&2; exit 3"))?;
        task.is(Status::CREATED)?;
        ensure!(task.pid() > 0, "no pid");
        task.start()?;
        let exited = task.exits_with(3)?;
        task.is(Status::STOPPED)?;
        let deleted = task.delete()?;
        ensure!(deleted.pid == task.pid().unsigned_abs(), "pid {}", deleted.pid);
        ensure!(deleted.exit_status == 3, "exit status {}", deleted.exit_status);
        ensure!(
            crate::shim::Exited::new(3, deleted.exited_at.as_ref()) == exited,
            "Wait and Delete differ in the time: {exited:?}, {:?}",
            deleted.exited_at
        );
        ensure!(task.streams.out.text_to_end()? == "out\n", "stdout");
        ensure!(task.streams.err.text_to_end()? == "err\n", "stderr");
        task.state().refused_exactly(Code::NOT_FOUND)?;
        task.shim.ends()
    }
);
