//! Signals to the shim itself: systemd sends them at the end of the machine, or to a service.

use std::thread::sleep;
use std::time::Duration;

use anyhow::ensure;
use nix::sys::signal::Signal;

use crate::shim::{Containerd, Status};
use crate::test;

/// What shells and admins send; containerd's own shim ends at the first two.
const ENDS: [Signal; 3] = [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP];

test!(
    fn a_shim_asked_to_end_lives_as_long_as_its_container(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let bundle = containerd.bundle().sleeper();
        let task = containerd.run(&bundle)?;
        for signal in ENDS {
            task.shim.signal(signal)?;
        }
        sleep(Duration::from_millis(100));
        task.becomes(Status::RUNNING)?;
        task.kill(Signal::SIGKILL as i32)?;
        // Its end was told by then.
        task.shim.gone()?;
        ensure!(!task.shim.socket().exists(), "the socket is left");
        containerd.events.wait_for(&task.id, "exit 137")?;
        containerd.delete_dead(&bundle)?;
        containerd.nothing_is_left_of(&bundle)
    }
);

test!(
    fn a_shim_without_a_container_ends_when_asked(t: &Test) -> Result {
        for signal in ENDS {
            let containerd = Containerd::new(t)?;
            let shim = containerd.start(&containerd.bundle())?;
            shim.signal(signal)?;
            shim.gone()?;
            ensure!(!shim.socket().exists(), "{signal}: the socket is left");
        }
        Ok(())
    }
);

test!(
    fn other_signals_do_not_end_a_shim(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        // As kill -USR1 asks containerd's own for its stacks; the second as a client that goes.
        for signal in [Signal::SIGUSR1, Signal::SIGPIPE, Signal::SIGCHLD] {
            task.shim.signal(signal)?;
        }
        sleep(Duration::from_millis(100));
        task.becomes(Status::RUNNING)
    }
);

test!(
    fn a_container_and_an_exec_inherit_no_handling_of_signals(t: &Test) -> Result {
        let containerd = Containerd::new(t)?;
        // Without a shell, which ignores some itself.
        let show = ["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"];
        let init = containerd.run(&containerd.bundle().args(&show))?;
        init.exits_with(0)?;
        let task = containerd.run(&containerd.bundle().sleeper())?;
        let exec = task.exec("e", &show)?;
        exec.start()?;
        exec.exits_with(0)?;
        for (whose, process) in [("init", &init), ("exec", &exec)] {
            let text = process.streams.out.text_to_end()?;
            for line in text.lines() {
                let mask = line.split_whitespace().last().unwrap_or_default();
                // Those from 32 on are no standard signals: whoever runs the tests may have changed them.
                let standard = u64::from_str_radix(mask, 16)? & 0x7fff_ffff;
                ensure!(standard == 0, "{whose}: {line}");
            }
            ensure!(text.lines().count() == 2, "{whose}: {text:?}");
        }
        Ok(())
    }
);
