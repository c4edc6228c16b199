//! `rtc-cri pod exec`: a command in a container, its streams over the URL that Exec answers with (`websocket.rs`).

use std::io::{IsTerminal as _, Read as _, Write};
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow, bail};
use rtc_cri::proto::{ContainerState, ExecRequest};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use super::arguments::{Arguments, Flag, Usage};
use super::connection::{Server, answer};
use super::interrupt::{Interrupt, Interrupted};
use super::terminal::Raw;
use super::websocket::{Channel, Receiver, Sender, Socket};
use super::{Verb, find};

pub(super) const EXEC: Verb = Verb {
    object: "pod",
    name: "exec",
    operands: "POD -- COMMAND [ARGUMENT...]",
    about: "Runs a command in a container; its exit status is the command's.",
    flags: &[
        Flag::switch("stdin", Some('i'), "standard input goes to the command"),
        Flag::switch("tty", Some('t'), "the command has a terminal, this one"),
        Flag::value(
            "container",
            Some('c'),
            "NAME",
            "default: the first that is no init container",
        ),
    ],
};

/// What is read of standard input at once, in bytes.
const PIECE: usize = 32 << 10;
/// Pieces that may wait for the connection.
const PIECES: usize = 8;

/// `pod exec`.
pub(super) async fn exec(server: Server, arguments: &Arguments) -> Result<ExitCode> {
    let command = match &arguments.command {
        Some(command) if !command.is_empty() => command.clone(),
        _ => return Err(Usage("the command is missing: it goes behind --".into()).into()),
    };
    let (stdin, tty) = (arguments.has("stdin"), arguments.has("tty"));
    if tty && !(std::io::stdin().is_terminal() && std::io::stdout().is_terminal()) {
        return Err(Usage("--tty: this is no terminal: leave it out".into()).into());
    }
    let pod = find::pod(&server, arguments.one("POD")?).await?;
    let container = find::container(&server, &pod, arguments.value("container")).await?;
    if container.state != i32::from(ContainerState::ContainerRunning) {
        let name = find::container_name(&container);
        bail!("container {name:?}: does not run: rtc-cri pod logs shows what it said");
    }
    let request = ExecRequest {
        container_id: container.id,
        cmd: command,
        tty,
        stdin,
        stdout: true,
        // With a terminal there is but one stream.
        stderr: !tty,
    };
    let url = answer("Exec", server.runtime().exec(request).await)?.url;
    let socket = Socket::open(&url).await.context("the streams of the command")?;
    // First: a signal's death would leave the terminal raw.
    let interrupt = Interrupt::listen()?;
    let raw = (tty && stdin).then(Raw::of_stdin).transpose()?;
    let outcome = stream(socket, interrupt, stdin, tty).await;
    drop(raw);
    match outcome {
        Err(error) if error.is::<Interrupted>() => Ok(ExitCode::from(130)),
        Err(error) => Err(error),
        Ok(Some(status)) => ended(&status),
        // Who does not read on has read enough.
        Ok(None) => Ok(ExitCode::SUCCESS),
    }
}

/// Moves bytes until the command has ended; answers what the server says of its end. `None`: nobody reads the output
/// any more.
async fn stream(socket: Socket, mut interrupt: Interrupt, stdin: bool, tty: bool) -> Result<Option<Vec<u8>>> {
    let (sender, receiver) = socket.split();
    // Side by side: a command that waits for its output to be taken takes no input.
    tokio::select! {
        status = receive(receiver) => status,
        Err(error) = send(sender, stdin, tty) => Err(error),
        // With a terminal of its own, Ctrl-C is the command's.
        () = interrupt.wait() => Err(Interrupted.into()),
    }
}

async fn receive(mut receiver: Receiver) -> Result<Option<Vec<u8>>> {
    let mut status = Vec::new();
    while let Some((channel, data)) = receiver.next().await? {
        let read = match channel {
            Channel::Stdout => write(&mut std::io::stdout(), &data)?,
            Channel::Stderr => write(&mut std::io::stderr(), &data)?,
            Channel::Error => {
                status.extend_from_slice(&data);
                true
            }
        };
        if !read {
            return Ok(None);
        }
    }
    Ok(Some(status))
}

/// Input and sizes, until there is nothing more to send.
async fn send(mut sender: Sender, stdin: bool, tty: bool) -> Result<()> {
    let mut resized = signal(SignalKind::window_change())?;
    let mut pieces = stdin.then(read_stdin);
    if tty {
        send_size(&mut sender).await?;
    }
    while tty || pieces.is_some() {
        tokio::select! {
            piece = next(&mut pieces) => match piece {
                Some(piece) => sender.stdin(&piece).await?,
                None => {
                    pieces = None;
                    sender.end_stdin().await?;
                }
            },
            _ = resized.recv(), if tty => send_size(&mut sender).await?,
        }
    }
    Ok(())
}

async fn next(pieces: &mut Option<mpsc::Receiver<Vec<u8>>>) -> Option<Vec<u8>> {
    match pieces {
        Some(pieces) => pieces.recv().await,
        None => std::future::pending().await,
    }
}

/// A thread reads it, since nothing else can wait for all that it may be; the program's end does not wait for it.
fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel(PIECES);
    std::thread::spawn(move || {
        let mut stdin = std::io::stdin().lock();
        let mut buffer = vec![0; PIECE];
        while let Ok(count @ 1..) = stdin.read(&mut buffer) {
            if sender.blocking_send(buffer[..count].to_vec()).is_err() {
                break;
            }
        }
    });
    receiver
}

async fn send_size(sender: &mut Sender) -> Result<()> {
    let size = rtc_runtime::sys::tty::size(std::io::stdout())?;
    sender.resize(size.columns, size.rows).await
}

/// `false`: nobody reads any more.
fn write(to: &mut impl Write, data: &[u8]) -> Result<bool> {
    match to.write_all(data).and_then(|()| to.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        written => written.map(|()| true).context("write the command's output"),
    }
}

/// By the `metav1.Status` of Kubernetes.
fn ended(status: &[u8]) -> Result<ExitCode> {
    let read: serde_json::Value = serde_json::from_slice(status).map_err(|_| {
        anyhow!("the connection ended before the command, or with it: its exit status is not known")
    })?;
    if read["status"] == "Success" {
        return Ok(ExitCode::SUCCESS);
    }
    let causes = read["details"]["causes"].as_array();
    let code = causes
        .into_iter()
        .flatten()
        .find(|cause| cause["reason"] == "ExitCode");
    let code = code.and_then(|cause| cause["message"].as_str()?.parse::<u8>().ok());
    match code {
        Some(code) => Ok(ExitCode::from(code)),
        None => bail!("{}", read["message"].as_str().unwrap_or("the command failed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_exit_status_is_the_command_s() {
        let shown = |status: &[u8]| ended(status).map(|code| format!("{code:?}"));
        let code = |code: u8| format!("{:?}", ExitCode::from(code));
        assert_eq!(shown(br#"{"metadata":{},"status":"Success"}"#).unwrap(), code(0));
        let failed = br#"{"status":"Failure","reason":"NonZeroExitCode",
            "details":{"causes":[{"reason":"ExitCode","message":"7"}]}}"#;
        assert_eq!(shown(failed).unwrap(), code(7));
        let error = shown(br#"{"status":"Failure","message":"no such program"}"#).unwrap_err();
        assert_eq!(error.to_string(), "no such program");
        assert!(shown(b"").unwrap_err().to_string().contains("is not known"));
    }
}
