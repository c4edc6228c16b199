//! The process: what runs, with which environment.

use oci_spec::runtime::Process;

/// The process of an exec in a container: the container's own user, environment, directory and confinement, with another
/// command. Never more than the container's first process has.
pub(crate) fn for_exec(init: &Process, command: &[String], tty: bool) -> Process {
    let mut process = init.clone();
    process.set_args(Some(command.to_vec()));
    process.set_terminal(Some(tty));
    process
}
