//! Exec and PortForward over SPDY: from the call to the end, and how much goes through.

use std::time::Instant;

use anyhow::{Context, ensure};
use rtc_cri::proto::*;

use super::{Column, EXECS, milliseconds};
use crate::cri::spdy::{Frame, Spdy};
use crate::cri::{Container, Cri, Pod, check};
use crate::registry::Result;
use crate::wait::until;

/// Rounds of what is large.
const LARGE: usize = 5;
/// What is large, in MiB.
const MIB: usize = 256;
/// Ports of the pod: an echo, and one that says a lot.
const ECHO: u16 = 7000;
const SOURCE: u16 = 7001;

/// What is measured, by turns.
pub(super) fn measure(columns: &mut [Column<'_>]) -> Result {
    let mut measured = vec![Vec::new(); columns.len()];
    {
        let running: Vec<_> = columns
            .iter()
            .map(|column| column.pod(true))
            .collect::<Result<_>>()?;
        let mut ports = Vec::new();
        for (pod, ..) in &running {
            ports.push(servers(pod)?);
        }
        for round in 0..EXECS {
            for (number, column) in columns.iter().enumerate() {
                let (pod, web, _) = &running[number];
                let mut add = |row, value| measured[number].push((row, value));
                let (began, cpu) = (Instant::now(), column.cpu());
                ensure!(out(web, &["true"])? == 0, "output of true");
                add("Exec(true) over SPDY, ms", milliseconds(began));
                add("Exec(true) over SPDY, CPU ms", column.cpu() - cpu);
                let (took, cpu) = echo(pod, column)?;
                add("PortForward, call to first byte, ms", took);
                add("PortForward, call to first byte, CPU ms", cpu);
                if round < LARGE {
                    let cpu = column.cpu();
                    add(
                        "Exec's output, MB/s",
                        speed(|| out(web, &["sh", "-c", &source()]))?,
                    );
                    add("Exec's output, CPU ms per 100 MB", part(column.cpu() - cpu));
                    let cpu = column.cpu();
                    add("PortForward's output, MB/s", speed(|| forwarded(pod))?);
                    add(
                        "PortForward's output, CPU ms per 100 MB",
                        part(column.cpu() - cpu),
                    );
                }
            }
        }
        for (pod, ..) in &running {
            pod.stop()?;
            pod.remove()?;
        }
    }
    for (column, measured) in columns.iter_mut().zip(measured) {
        for (row, value) in measured {
            column.add(row, value);
        }
    }
    Ok(())
}

fn source() -> String {
    format!("exec dd if=/dev/zero bs=65536 count={} 2>/dev/null", MIB * 16)
}

/// The pod's two servers, in a container of their own.
fn servers<'c, 't>(pod: &Pod<'c, 't>) -> Result<Container<'c, 't>> {
    let script = format!(
        "nc -ll -p {ECHO} -e cat & nc -ll -p {SOURCE} -e sh -c '{}' & wait",
        source()
    );
    let servers = pod.run("servers", &script)?;
    until("the pod's servers", || {
        let listening = servers.sh("netstat -ltn")?;
        let all = [ECHO, SOURCE]
            .iter()
            .all(|port| listening.contains(&format!(":{port} ")));
        Ok(all.then_some(()))
    })?;
    Ok(servers)
}

fn speed(run: impl FnOnce() -> Result<usize>) -> Result<f64> {
    let began = Instant::now();
    let bytes = run()?;
    ensure!(bytes == MIB << 20, "{bytes} bytes have come");
    Ok(bytes as f64 / 1e6 / began.elapsed().as_secs_f64())
}

fn part(cpu: f64) -> f64 {
    cpu * 100e6 / (MIB << 20) as f64
}

/// Exec, connected.
fn exec(web: &Container<'_, '_>, cmd: &[&str]) -> Result<Spdy> {
    let request = ExecRequest {
        container_id: web.id.clone(),
        cmd: cmd.iter().map(|&word| word.to_owned()).collect(),
        stdout: true,
        ..ExecRequest::default()
    };
    let url = check("Exec", web.cri.exec(request))?.url;
    Spdy::open(&url, "v4.channel.k8s.io")
}

/// Runs a command to its end; how many bytes it printed.
fn out(web: &Container<'_, '_>, cmd: &[&str]) -> Result<usize> {
    let mut client = exec(web, cmd)?;
    let error = client.stream(&[("streamtype", "error")])?;
    client.stream(&[("streamtype", "stdout")])?;
    until_closed(&mut client, error)
}

/// Reads until the error stream has its end; how many bytes came on the others.
fn until_closed(client: &mut Spdy, error: u32) -> Result<usize> {
    let (mut bytes, mut status) = (0, Vec::new());
    loop {
        match client
            .frame()?
            .context("the connection ended before the command")?
        {
            Frame::Data(id, data) if id == error => status.extend(data),
            Frame::Data(_, data) => bytes += data.len(),
            Frame::Fin(id) | Frame::Reset(id, _) if id == error => break,
            _ => {}
        }
    }
    let status = String::from_utf8_lossy(&status);
    ensure!(status.contains("\"Success\""), "{status}");
    Ok(bytes)
}

/// PortForward, connected to a port: error and data stream.
fn forward(cri: &Cri<'_>, pod: &Pod<'_, '_>, port: u16) -> Result<(Spdy, u32)> {
    let request = PortForwardRequest {
        pod_sandbox_id: pod.id.clone(),
        port: vec![port.into()],
    };
    let url = check("PortForward", cri.port_forward(request))?.url;
    let mut client = Spdy::open(&url, "portforward.k8s.io")?;
    let port = port.to_string();
    let of = |part| [("streamtype", part), ("port", port.as_str()), ("requestid", "0")];
    let error = client.stream(&of("error"))?;
    client.fin(error)?;
    let data = client.stream(&of("data"))?;
    Ok((client, data))
}

/// From the call until a byte is back, in milliseconds; and the CPU time that it took.
fn echo(pod: &Pod<'_, '_>, column: &Column<'_>) -> Result<(f64, f64)> {
    let (began, cpu) = (Instant::now(), column.cpu());
    let (mut client, data) = forward(&column.cri, pod, ECHO)?;
    client.send(data, b"x")?;
    loop {
        match client.frame()?.context("the connection ended before its echo")? {
            Frame::Data(id, text) if id == data => {
                ensure!(text == b"x", "{text:?}");
                break;
            }
            Frame::Data(_, text) => anyhow::bail!("{}", String::from_utf8_lossy(&text)),
            _ => {}
        }
    }
    Ok((milliseconds(began), column.cpu() - cpu))
}

/// How many bytes a port says.
fn forwarded(pod: &Pod<'_, '_>) -> Result<usize> {
    let (mut client, data) = forward(pod.cri, pod, SOURCE)?;
    let mut bytes = 0;
    loop {
        match client.frame()?.context("the connection ended too soon")? {
            Frame::Data(id, piece) if id == data => bytes += piece.len(),
            Frame::Data(_, text) => anyhow::bail!("{}", String::from_utf8_lossy(&text)),
            Frame::Fin(id) | Frame::Reset(id, _) if id == data => return Ok(bytes),
            _ => {}
        }
    }
}
