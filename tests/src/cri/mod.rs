//! A CRI server for each test, `rtc-cri` or a peer, and the kubelet's part against it.
//!
//! ```text
//! with(t, |cri| {                                        // a server of the test's own, in namespaces of the test's own
//!     let pod = cri.pod()?;                              // RunPodSandbox; `pod_with` changes its configuration first
//!     let web = pod.run("web", "sleep 1000")?;           // CreateContainer, StartContainer: busybox with this script
//!     web.exec(&["echo", "in"])?.prints("in")?;          // ExecSync
//!     refused(cri.start_container(request), Code::NotFound, &["container"])?;   // any call, and how it is refused
//!     web.stop(1)
//! })
//! ```
//!
//! What the body leaves is removed as a kubelet would. Then nothing may be left: mounts, pinned namespaces, links,
//! addresses, processes, the server's descriptors, files of pods and containers (`leaks.rs`), cgroups (the supervisor).
//!
//! `Setup` says what differs from the usual: keys of `config.toml`, the network's conflist, no file at all. Images come
//! from a registry of the test's own, with what `hack/peers` put in it, as `registry.k8s.io/...` (`Cri::busybox`).
//! A test that holds for rtc-cri alone begins with `only_ours(t)?`; what containerd fails is on its list (`exceptions/`).

mod client;
mod leaks;
pub(crate) mod place;
mod pod;
mod server;
pub(crate) mod spdy;
pub(crate) mod websocket;

use anyhow::{Context, ensure};

use crate::registry::Result;
use crate::test::Test;

pub(crate) use client::{Client, check, refused};
pub(crate) use pod::{Container, Pod, namespaces, security};
pub(crate) use rtc_cri::proto;
pub(crate) use server::{Cri, Setup};
pub(crate) use tonic::{Code, Status};

/// busybox with all applets, as critest's images have it.
pub(crate) const BUSYBOX: &str = "registry.k8s.io/e2e-test-images/busybox:1.29-4";

/// Runs the body against a server of its own, and looks for what is left.
pub(crate) fn with(t: &Test, body: impl FnOnce(&Cri<'_>) -> Result) -> Result {
    Setup::default().with(t, body)
}

/// Ends the test as skipped where a peer is tested.
pub(crate) fn only_ours(t: &Test) -> Result {
    if !t.cri_peer.is_empty() {
        t.skip("only rtc-cri")?;
    }
    Ok(())
}

impl Setup {
    /// [`with`], set up so.
    pub(crate) fn with(self, t: &Test, body: impl FnOnce(&Cri<'_>) -> Result) -> Result {
        place::enter()?;
        let cri = Cri::start(t, self)?;
        let run = || {
            let before = leaks::Seen::now(&cri)?;
            body(&cri)?;
            cri.remove_pods().context("remove what the test left")?;
            before.nothing_more(&cri)?;
            cri.end()
        };
        match run() {
            Err(error) if error.is::<crate::test::Skip>() => {
                cri.remove_pods()?;
                cri.end()?;
                Err(error)
            }
            result => result.with_context(|| cri.last_words()),
        }
    }
}

/// The text names each of these.
pub(crate) fn names(text: &str, parts: &[&str]) -> Result {
    for part in parts {
        ensure!(text.contains(part), "{part:?} is not in {text:?}");
    }
    Ok(())
}
