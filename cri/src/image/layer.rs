//! A layer on its way in: from whoever downloads it to the process that unpacks it.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use nix::fcntl::{FcntlArg, fcntl};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, ChildStdin, Command};
use tokio::sync::watch;

use super::layers::{Arrival, Claim, Claimed, Layers, Use, chains};
use super::mend;
use super::unpack::{self, Outcome, Summary};
use crate::error::{Error, Kind, Result};

/// What the unpacker may say, in bytes: all that it remembers, as JSON.
const OUTCOME_MAX: u64 = 64 << 20;
/// Fewer changes between the two processes; more than is allowed is not needed.
const PIPE: i32 = 1 << 20;

/// Another pull that brings the same layer is not waited for any longer where so little comes in so long a time, ...
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 10 });
const LEAST: u64 = 1 << 20;
/// ... and in the end not at all: it may be slow because somebody wants it so.
const LONGEST_WAIT: Duration = Duration::from_secs(300);

/// A layer that is here, held by one pull.
type Held = Option<Use>;

/// A layer of an image that is being pulled.
#[derive(Debug)]
pub(crate) struct Wanted {
    layers: Arc<Layers>,
    /// Its chain id.
    chain: String,
    diff_id: String,
    held: watch::Sender<Held>,
    /// This pull's layers below it, the lowest first.
    below: Vec<watch::Receiver<Held>>,
    /// Another pull was waited for in vain: this one brings all its layers itself.
    alone: Arc<AtomicBool>,
}

impl Wanted {
    /// The layers of an image, the lowest first.
    pub(super) fn all(layers: &Arc<Layers>, diff_ids: &[String]) -> Vec<Self> {
        let alone = Arc::default();
        let mut all: Vec<Self> = Vec::with_capacity(diff_ids.len());
        for (chain, diff_id) in chains(diff_ids).into_iter().zip(diff_ids) {
            all.push(Self {
                layers: Arc::clone(layers),
                held: watch::Sender::new(layers.find(&chain)),
                below: all.iter().map(|below| below.held.subscribe()).collect(),
                alone: Arc::clone(&alone),
                chain,
                diff_id: diff_id.clone(),
            });
        }
        all
    }

    pub(super) fn number(&self) -> Option<u32> {
        self.held.borrow().as_ref().map(|used| used.number)
    }

    /// Starts to unpack it. `None`: it is here, or another pull has just brought it (waited for, but not for ever).
    ///
    /// This waits for other pulls, and `Writer::finish` for the layers below. Begin with the lowest.
    ///
    /// # Errors
    ///
    /// A media type that is no layer's, by name; no room; no process.
    pub(crate) async fn begin(&self, media_type: &str) -> Result<Option<Writer>> {
        check_media_type(media_type)?;
        if self.number().is_some() {
            return Ok(None);
        }
        let mut waiting = Waiting::default();
        loop {
            match self.layers.claim(&self.chain, self.alone.load(Ordering::Relaxed)) {
                Claimed::Here(used) => {
                    self.held.send_replace(Some(used));
                    return Ok(None);
                }
                Claimed::Mine(claim) => return self.start(claim).await.map(Some),
                Claimed::Coming(arrival) => {
                    let has_below = self.below.iter().all(|below| below.borrow().is_some());
                    if !waiting.wait(arrival, has_below).await {
                        self.alone.store(true, Ordering::Relaxed);
                    }
                }
            }
        }
    }

    async fn start(&self, claim: Claim) -> Result<Writer> {
        let path = claim.path();
        let below = path.clone();
        let limits = tokio::task::spawn_blocking(move || make_directory(&below))
            .await
            .context("make a layer's directory")??;
        let mut child = command(&path, limits)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .context("start the unpacker")?;
        let stdin = child.stdin.take().context("the unpacker's input")?;
        let _ = fcntl(&stdin, FcntlArg::F_SETPIPE_SZ(PIPE));
        Ok(Writer {
            child,
            stdin: Some(stdin),
            claim,
            below: self.below.clone(),
            diff_id: self.diff_id.clone(),
            held: self.held.clone(),
        })
    }
}

/// A wait for another pull.
struct Waiting {
    begun: Instant,
    /// When it had gone on, and how far it was.
    last: Instant,
    bytes: u64,
}

impl Default for Waiting {
    fn default() -> Self {
        Self {
            begun: Instant::now(),
            last: Instant::now(),
            bytes: 0,
        }
    }
}

impl Waiting {
    /// Waits until it is here or given up, or for a moment. `false`: it was waited for long enough. `has_below`: this pull has
    /// the layers below; the other one may wait for them.
    async fn wait(&mut self, mut arrival: watch::Receiver<Arrival>, has_below: bool) -> bool {
        let end = arrival.wait_for(|arrival| arrival.is_here);
        if tokio::time::timeout(PATIENCE / 10, end).await.is_ok() {
            return true;
        }
        let now = *arrival.borrow();
        // Fewer: it is another one.
        if now.bytes.abs_diff(self.bytes) >= LEAST || (now.is_whole && !has_below) {
            self.last = Instant::now();
            self.bytes = now.bytes;
        }
        self.last.elapsed() < PATIENCE && self.begun.elapsed() < LONGEST_WAIT
    }
}

fn make_directory(path: &Path) -> anyhow::Result<unpack::Limits> {
    // One of this number that was left by a server that died.
    if let Some(parent) = path.parent() {
        super::removal::remove(parent).with_context(|| format!("remove {parent:?}"))?;
    }
    std::fs::create_dir_all(path).with_context(|| format!("mkdir {path:?}"))?;
    let disk = nix::sys::statvfs::statvfs(path).with_context(|| format!("statvfs {path:?}"))?;
    Ok(unpack::Limits::of(&disk))
}

#[cfg(not(test))]
fn command(path: &Path, limits: unpack::Limits) -> Command {
    // The program that runs, whatever is at its path by now.
    let mut command = Command::new("/proc/self/exe");
    command.arg0("rtc-cri").arg(unpack::ARGUMENT);
    with_limits(&mut command, path, limits);
    command
}

/// The tests' own program, which has a test that is the unpacker.
#[cfg(test)]
fn command(path: &Path, limits: unpack::Limits) -> Command {
    let mut command = Command::new("sh");
    let test = "image::unpack::tests::process::the_unpacker --exact --ignored --nocapture --test-threads=1";
    command.args([
        "-c",
        &format!(
            "export LAYER=\"$*\"; exec {:?} {test}",
            std::env::current_exe().unwrap()
        ),
        "sh",
    ]);
    with_limits(&mut command, path, limits);
    command
}

fn with_limits(command: &mut Command, path: &Path, limits: unpack::Limits) {
    command
        .arg(limits.bytes.to_string())
        .arg(limits.entries.to_string())
        .arg(path)
        .env_clear()
        .current_dir("/");
}

/// Layers as OCI and Docker name them; what is in them is told by their first bytes.
fn check_media_type(media_type: &str) -> Result<()> {
    let known = [
        "application/vnd.oci.image.layer.",
        "application/vnd.docker.image.rootfs.",
    ];
    let plain = media_type.split_once(';').map_or(media_type, |(plain, _)| plain);
    let end = [".tar", ".tar+gzip", ".tar+zstd", ".tar.gzip", ".tar.zstd"];
    if known.iter().any(|start| plain.starts_with(start)) && end.iter().any(|end| plain.ends_with(end)) {
        return Ok(());
    }
    Err(Error::invalid(format_args!(
        "a layer of media type {media_type:?}: only tar, gzip and zstd can be unpacked"
    )))
}

/// Takes a layer as it is downloaded: compressed, from the first byte to the last. Dropped: nothing is left of it.
#[derive(Debug)]
pub(crate) struct Writer {
    child: Child,
    stdin: Option<ChildStdin>,
    claim: Claim,
    below: Vec<watch::Receiver<Held>>,
    diff_id: String,
    held: watch::Sender<Held>,
}

impl Writer {
    /// The next bytes; waits for the unpacker to take them.
    ///
    /// # Errors
    ///
    /// The layer can't be unpacked: it is bad (`finish` is not needed), or there is no room.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(stdin) = &mut self.stdin else {
            return Err(anyhow!("layer {}: it was given up", self.diff_id).into());
        };
        let Err(error) = stdin.write_all(bytes).await else {
            self.claim.came(bytes.len() as u64);
            return Ok(());
        };
        // It ended before its input, and says why.
        match self.outcome().await {
            Ok(_) => Err(anyhow!(error).context(format!("layer {}", self.diff_id)).into()),
            Err(error) => Err(error),
        }
    }

    /// All was written, and its digest is right. Checks the diff id, waits for the layers below.
    ///
    /// # Errors
    ///
    /// It is bad: nothing is left of it.
    pub(crate) async fn finish(mut self) -> Result<()> {
        let summary = self.outcome().await?;
        if summary.diff_id != self.diff_id {
            return Err(Error::text(
                Kind::Unknown,
                format_args!(
                    "layer {}: what was downloaded is {}: the image's configuration and its layers do not belong together",
                    self.diff_id, summary.diff_id
                ),
            ));
        }
        self.claim.came_whole();
        let mut below = Vec::with_capacity(self.below.len());
        for lower in self.below.iter_mut().rev() {
            let Ok(held) = lower.wait_for(Option::is_some).await else {
                let why = format_args!("layer {}: one below it was not brought", self.diff_id);
                return Err(Error::text(Kind::Unavailable, why));
            };
            below.extend(held.as_ref().map(Use::path));
        }
        let (bytes, inodes) = (summary.bytes, summary.inodes);
        self.mend(below, summary).await?;
        self.held.send_replace(Some(self.claim.complete(bytes, inodes)));
        Ok(())
    }

    async fn mend(&self, below: Vec<PathBuf>, summary: Summary) -> Result<()> {
        let path = self.claim.path();
        let mended = tokio::task::spawn_blocking(move || mend::mend(&path, &below, summary));
        let mended = mended.await.context("mend a layer")?;
        Ok(mended.with_context(|| format!("layer {}", self.diff_id))?)
    }

    /// What the unpacker says at its end.
    async fn outcome(&mut self) -> Result<Summary> {
        self.stdin = None;
        let mut text = Vec::new();
        if let Some(stdout) = self.child.stdout.take() {
            let read = stdout.take(OUTCOME_MAX).read_to_end(&mut text).await;
            read.context("read from the unpacker")?;
        }
        let status = self.child.wait().await.context("wait for the unpacker")?;
        #[cfg(test)]
        let text = text
            .into_iter()
            .skip_while(|byte| *byte != b'{')
            .collect::<Vec<u8>>();
        let failed = |kind, text: &dyn std::fmt::Display| {
            Err(Error::text(kind, format_args!("layer {}: {text}", self.diff_id)))
        };
        match serde_json::from_slice(&text) {
            Ok(Outcome::Done(summary)) => Ok(summary),
            Ok(Outcome::Full(error)) => failed(Kind::ResourceExhausted, &error),
            Ok(Outcome::Failed(error)) => failed(Kind::Unknown, &error),
            Err(_) => failed(Kind::Unknown, &format_args!("the unpacker ended: {status}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_media_type_that_is_no_layers_is_refused_by_name() {
        for good in [
            "application/vnd.oci.image.layer.v1.tar",
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.oci.image.layer.v1.tar+zstd",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            "application/vnd.docker.image.rootfs.diff.tar.zstd",
        ] {
            assert!(check_media_type(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "text/plain",
            "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
        ] {
            let error = check_media_type(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
    }
}
