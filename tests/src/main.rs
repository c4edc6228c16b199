//! `rtc-tests`: the outside tests. They drive the real binary as root and look at it from the host's side.
//!
//! One static program that needs nothing but `/bin/busybox` (static) on the machine it runs on:
//!
//! ```text
//! rtc-tests                  runner: picks tests, runs them in parallel, prints the report
//!   rtc-tests supervise T    one per test: subreaper of all the test starts; time limit; looks for leftovers
//!     rtc-tests child T      the test itself
//!       rtc ...              the runtime under test, or the shim, to which the test plays containerd (`shim/`),
//!                            or rtc-cri, to which it plays the kubelet (`cri/`)
//! rtc-tests bench-cri PODS   the benchmark of CRI servers (hack/bench/cri), with a harness of the tests
//! rtc-tests bench-drivers ROUNDS   the benchmark of runtimes by driver of cgroups (hack/bench/drivers)
//! rtc-tests bench-kubelet PODS   that of nodes with a kubelet (hack/bench/kubelet)
//! rtc-tests payload P        what some tests run inside a container, where busybox has no applet for it
//! ```
//!
//! Tests are in `areas/`, one file per area; `test!` registers them.

mod areas;
mod bench;
mod bundle;
mod callers;
mod container;
mod containerd;
mod cri;
mod criu;
mod fuse;
mod gate;
mod health;
mod host;
mod image_registry;
mod kubelet;
mod leftovers;
mod lists;
mod options;
mod output;
mod payload;
mod registry;
mod resctrl;
mod runner;
mod shim;
mod supervisor;
mod sys;
mod terminal;
mod test;
mod user;
mod wait;

use std::process::ExitCode;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match words.as_slice() {
        ["payload", name, rest @ ..] => payload::main(name, rest),
        ["supervise", path] => supervisor::main(path),
        ["bench-cri", pods] => bench::main(pods),
        ["bench-drivers", rounds] => bench::drivers::main(rounds),
        ["bench-kubelet", pods] => kubelet::bench(pods),
        ["child", path] => test::main(path),
        _ => options::Options::parse(&words).and_then(|options| runner::main(&options)),
    };
    result.unwrap_or_else(|error| {
        eprintln!("rtc-tests: {error:#}");
        ExitCode::from(2)
    })
}
