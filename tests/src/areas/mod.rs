//! The tests, one file per area. How to add one:
//!
//! ```text
//! test!(
//!     fn a_sentence_that_says_what_is_shown(t: &Test) -> Result {
//!         let container = t.bundle().set("/hostname", json!("web")).sleeper().start()?;   // run --detach
//!         container.exec(&["hostname"])?.prints("web")?;
//!         Ok(())                                                  // deleted, and looked after, by the runner
//!     }
//! );
//! ```
//!
//! - Wait for a condition with `wait::until`, never for a time; assert nothing about how long something took.
//! - Names that are global (cgroups, units, profiles) contain `t.unique`; files go under `t.path("name")`.
//! - Error texts: `fails_with` where callers match the text, `fails_naming` where it is ours alone.
//! - What a machine cannot show is skipped with `t.skip("reason")?`, and the reason goes on that machine's list
//!   (`skips/`); what a peer is known to fail goes on the peer's (`exceptions/`).

mod attributes;
mod bad_input;
mod caller_containerd;
mod caller_docker;
mod caller_machine;
mod caller_podman;
mod cgroups;
mod checkpoint;
mod checkpoint_bad_input;
mod command_line;
mod concurrency;
mod containerd_crashes;
mod containerd_cri;
mod containerd_docker;
mod containerd_tasks;
mod cri_bad_input;
mod cri_cancel;
mod cri_client;
mod cri_config;
mod cri_containers;
mod cri_crictl;
mod cri_crictl_shapes;
mod cri_cves;
mod cri_events;
mod cri_exec;
mod cri_mounts;
mod cri_network;
mod cri_pods;
mod cri_port_forward;
mod cri_pull;
mod cri_pull_auth;
mod cri_pull_hosts;
mod cri_pull_proxies;
mod cri_pull_registries;
mod cri_restart;
mod cri_security;
mod cri_stats;
mod cri_streaming;
mod cri_streaming_bad_input;
mod cri_systemd;
mod crun_extras;
mod descriptors;
mod devices;
mod exec;
mod hooks;
mod idmapped_mounts;
mod interrupted;
mod joined_namespaces;
mod kill;
mod kubelet_bad_manifests;
mod kubelet_exec;
mod kubelet_lifecycle;
mod kubelet_logs;
mod kubelet_port_forward;
mod kubelet_probes;
mod kubelet_resources;
mod kubelet_restarts;
mod kubelet_security;
mod kubelet_sharing;
mod kubelet_static_pod;
mod kubelet_stats;
mod kubelet_volumes;
mod lifecycle;
mod machine;
mod mounts;
mod namespaces;
mod notify;
mod process;
mod resources;
mod rootfs;
mod rootless;
mod rootless_cgroups;
mod rootless_state;
mod seccomp;
mod security;
mod security_identity;
mod security_races;
mod shim_bad_input;
mod shim_bootstrap;
mod shim_checkpoint;
mod shim_crash;
mod shim_cri_log;
mod shim_events;
mod shim_exec;
mod shim_extension;
mod shim_foreign;
mod shim_io;
mod shim_kill;
mod shim_lifecycle;
mod shim_logger;
mod shim_sandbox;
mod shim_signals;
mod shim_terminal;
mod small_things;
mod sockets;
mod systemd;
mod systemd_user;
mod terminal;
mod time;
mod user_namespace;
