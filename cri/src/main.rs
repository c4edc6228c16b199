//! `rtc-cri`: the CRI v1 server of rtc.
#![forbid(unsafe_code)]

mod client;
mod cni;
mod config;
mod container;
mod error;
mod events;
mod id;
mod image;
mod journal;
mod log;
mod metrics;
mod node;
mod notify;
mod recovery;
mod sandbox;
mod server;
mod service;
mod shim;
mod spec;
mod stats;
mod status;
mod streaming;

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::signal::SigSet;
use rtc_cri::proto;
use tokio::signal::unix::{SignalKind, signal};

use crate::client::Before;
use crate::config::Config;
use crate::error::Result;
use crate::node::Node;

/// How long threads may take to end what they do, once the server has ended.
const THREADS: Duration = Duration::from_secs(1);

const USAGE: &str = "\
rtc-cri: CRI v1 server, and a small client of it

  rtc-cri [--config FILE]           the server
CLIENT
  --config FILE   default /etc/rtc-cri/config.toml, which need not exist
  --socket PATH   the server that the client asks; default: config.toml's
  --print-config  the default configuration, with every key, and end
  --version

Each object and each verb of the client has --help: rtc-cri pod --help, rtc-cri pod run --help.
";

/// What it guards. A panic of somebody who had it is a defect of one call, which ends that call only.
fn locked<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn usage() -> String {
    USAGE.replace("CLIENT\n", client::USAGE)
}

fn main() -> ExitCode {
    let mut arguments = std::env::args_os().skip(1).peekable();
    // A process of ours, not a person's word: it is in no usage.
    if arguments
        .next_if(|first| first == image::unpack::ARGUMENT)
        .is_some()
    {
        return image::unpack::main(arguments);
    }
    let mut given = Before::default();
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--config") => match arguments.next() {
                Some(path) => given.config = Some(path.into()),
                None => return wrong("--config needs a value: FILE"),
            },
            Some("--socket") => match arguments.next() {
                Some(path) => given.socket = Some(path.into()),
                None => return wrong("--socket needs a value: PATH"),
            },
            Some(object) if client::OBJECTS.contains(&object) => {
                let words = std::iter::once(argument).chain(arguments);
                let words = words.map(|word| word.to_string_lossy().into_owned());
                return client::main(given, words.collect());
            }
            Some("--print-config") => {
                print!("{}", config::DEFAULT);
                return ExitCode::SUCCESS;
            }
            Some("--version") => {
                println!("rtc-cri {}", env!("CARGO_PKG_VERSION"));
                return ExitCode::SUCCESS;
            }
            Some("--help" | "-h") => {
                print!("{}", usage());
                return ExitCode::SUCCESS;
            }
            _ => return wrong(&format!("unknown argument {argument:?}")),
        }
    }
    if given.socket.is_some() {
        return wrong("--socket is the client's: the server's is a key of config.toml");
    }
    match run(given.config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            log::error(error);
            ExitCode::FAILURE
        }
    }
}

fn wrong(what: &str) -> ExitCode {
    eprint!("rtc-cri: {what}\n\n{}", usage());
    ExitCode::from(2)
}

fn run(path: Option<PathBuf>) -> Result<()> {
    // Whoever started us may have blocked some: we would not end, and shims and CNI plugins would have it from us.
    let _ = SigSet::all().thread_unblock();
    let required = path.is_some();
    let config = Config::read(&path.unwrap_or_else(|| config::PATH.into()), required)?;
    log::init(config.debug);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)?;
    let served = runtime.block_on(async {
        let node = Node::open(config)?;
        recovery::recover(&node).await;
        let mut terminate = signal(SignalKind::terminate()).map_err(anyhow::Error::from)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(anyhow::Error::from)?;
        log::info(format_args!(
            "rtc-cri {} on {}",
            env!("CARGO_PKG_VERSION"),
            node.config.socket.display()
        ));
        server::serve(node, async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        })
        .await
    });
    // A thread may hang in a file system, or remove a large directory: the next start does the rest.
    runtime.shutdown_timeout(THREADS);
    served
}
