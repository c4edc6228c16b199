//! SHIM TO BE DROPPED AT MERGE: the signatures that `commands` is written against, until the lead's `container` is there.
#![expect(missing_docs, reason = "dropped at merge")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use oci_spec::runtime::LinuxResources;
use serde::Serialize;

use crate::bundle::Bundle;

pub mod exec_process;

pub use exec_process::ExecProcess;

#[derive(Debug)]
pub struct StateRoot {
    pub path: PathBuf,
}

impl StateRoot {
    pub fn open(path: &Path) -> Result<StateRoot> {
        Ok(StateRoot {
            path: path.to_path_buf(),
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerId(String);

impl ContainerId {
    pub fn parse(id: &str) -> Result<ContainerId> {
        let ok = |b: u8| b.is_ascii_alphanumeric() || b"_+.-".contains(&b);
        if id.is_empty() || id == "." || id == ".." || !id.bytes().all(ok) {
            bail!("invalid container ID: {id:?}");
        }
        Ok(ContainerId(id.to_string()))
    }
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Debug)]
pub struct CreateOptions {
    pub id: ContainerId,
    pub bundle: Bundle,
    pub console_socket: Option<PathBuf>,
    pub pidfd_socket: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,
    pub no_pivot: bool,
    pub no_new_keyring: bool,
    pub preserve_fds: u32,
    pub systemd_cgroup: bool,
}

#[derive(Debug, Clone, Copy)]
pub struct RunOptions {
    pub detach: bool,
    pub keep: bool,
    pub no_subreaper: bool,
}

#[derive(Debug)]
pub struct ExecOptions {
    pub process: ExecProcess,
    pub console_socket: Option<PathBuf>,
    pub pidfd_socket: Option<PathBuf>,
    pub pid_file: Option<PathBuf>,
    pub detach: bool,
    pub preserve_fds: u32,
    pub cgroup: Vec<String>,
    pub ignore_paused: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StateReport {
    pub oci_version: String,
    pub id: String,
    pub pid: i32,
    pub status: String,
    pub bundle: PathBuf,
    pub rootfs: PathBuf,
    pub created: String,
    pub owner: String,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    pub annotations: HashMap<String, String>,
}

fn missing<T>(id: &ContainerId) -> Result<T> {
    bail!("container {:?} does not exist", id.as_str())
}

pub fn create(_: &StateRoot, options: CreateOptions) -> Result<()> {
    missing(&options.id)
}
pub fn run(_: &StateRoot, options: CreateOptions, _: RunOptions) -> Result<i32> {
    missing(&options.id)
}
pub fn start(_: &StateRoot, id: &ContainerId) -> Result<()> {
    missing(id)
}
pub fn kill(_: &StateRoot, id: &ContainerId, _signal: i32, _all: bool) -> Result<()> {
    missing(id)
}
pub fn delete(_: &StateRoot, id: &ContainerId, _force: bool) -> Result<()> {
    missing(id)
}
pub fn state(_: &StateRoot, id: &ContainerId) -> Result<StateReport> {
    missing(id)
}
pub fn list(_: &StateRoot) -> Result<Vec<StateReport>> {
    Ok(Vec::new())
}
pub fn pause(_: &StateRoot, id: &ContainerId) -> Result<()> {
    missing(id)
}
pub fn resume(_: &StateRoot, id: &ContainerId) -> Result<()> {
    missing(id)
}
pub fn processes(_: &StateRoot, id: &ContainerId) -> Result<Vec<i32>> {
    missing(id)
}
pub fn update(_: &StateRoot, id: &ContainerId, _: &LinuxResources) -> Result<()> {
    missing(id)
}
pub fn exec(_: &StateRoot, id: &ContainerId, _: ExecOptions) -> Result<i32> {
    missing(id)
}
