//! Checkpoint, and Create from one, over the shim's Task service.

use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};

use crate::criu;
use crate::registry::Result;
use crate::shim::{Code, Containerd, Process, Refusal, Status, Streams, any_message, api};
use crate::test;
use crate::wait::until;

const OPTIONS: &str = "containerd.runc.v1.CheckpointOptions";

fn checkpoint(task: &Process<'_>, path: &Path, exit: bool) -> Result {
    let mut request = api::CheckpointTaskRequest::new();
    request.id.clone_from(&task.id);
    request.path = path.to_string_lossy().into_owned();
    // Field 1 of the options.
    let options = containerd_shim_protos::shim::oci::CheckpointOptions {
        exit,
        ..Default::default()
    };
    request.options = Some(any_message(OPTIONS, &options)?).into();
    let _: api::Empty = task.shim.call("Checkpoint", &request)?;
    Ok(())
}

fn last_number(task: &Process<'_>) -> Result<u64> {
    until("the counter", || {
        let text = String::from_utf8_lossy(&task.streams.out.bytes()).into_owned();
        // The last line may not be whole.
        let whole = text.rsplit_once('\n').map(|(whole, _)| whole.to_owned());
        Ok(whole.and_then(|whole| whole.lines().last()?.parse().ok()))
    })
}

test!(
    fn a_task_is_written_to_an_image_and_made_of_it_again(t: &Test) -> Result {
        criu::path(t)?;
        let containerd = Containerd::new(t)?;
        let bundle = containerd
            .bundle()
            .writable()
            .sh("n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done");
        let image = t.path("image");
        let task = containerd.run(&bundle)?;
        last_number(&task)?;
        checkpoint(&task, &image, false)?;
        task.is(Status::RUNNING)?;
        checkpoint(&task, &image, true)?;
        task.exits_with(137)?;
        task.delete()?;
        let before = last_number(&task)?;
        task.shim.ends()?;
        fs::remove_dir_all(&bundle.directory).ok();
        let again = containerd
            .bundle()
            .writable()
            .sh("n=0; while :; do n=$((n+1)); echo $n; sleep 0.05; done");
        let shim = containerd.start(&again)?;
        let streams = Streams::output(t)?;
        let mut request = shim.create_request(&again, &streams)?;
        request.checkpoint = image.to_string_lossy().into_owned();
        let restored = shim.create_by(&request, &again, streams)?;
        restored.start()?;
        restored.is(Status::RUNNING)?;
        let after = last_number(&restored)?;
        ensure!(after > before && after < before + 100, "{after} after {before}");
        restored.kill(9)?;
        restored.exits_with(137)?;
        restored.delete()?;
        restored.shim.ends()
    }
);

test!(
    fn a_create_from_no_checkpoint_leaves_nothing(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().sleeper();
        let shim = containerd.start(&bundle)?;
        let streams = Streams::output(t)?;
        let mut request = shim.create_request(&bundle, &streams)?;
        request.checkpoint = t.path("image").to_string_lossy().into_owned();
        let created = shim.create_by(&request, &bundle, streams);
        let error = format!("{:#}", created.err().context("it was made of nothing")?);
        ensure!(error.contains("--image-path"), "{error}");
        let task = shim.create(&bundle, Streams::output(t)?)?;
        task.end()
    }
);

test!(
    fn a_checkpoint_to_a_relative_path_is_refused(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        checkpoint(&task, Path::new("image"), false).refused(Code::INVALID_ARGUMENT)?;
        task.is(Status::RUNNING)?;
        task.end()
    }
);
