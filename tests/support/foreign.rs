//! Servers that take no port 0.

use std::{net::TcpListener, path::Path, time::Duration};

use tokio::{net::TcpStream, process::Command, time::timeout};

use super::{Outcome, process::Process, skip};

const LIMIT: Duration = Duration::from_secs(30);

/// Starts it on free ports. `None`: it is not installed, which is a SKIP.
pub async fn listening<const PORTS: usize>(
    program: &str,
    command: impl FnOnce([u16; PORTS]) -> Outcome<Command>,
) -> Outcome<Option<(Process, [u16; PORTS])>> {
    if !Path::new(program).exists() {
        skip(&format!("{program} is missing; scripts/test installs it"));
        return Ok(None);
    }
    let ports = free_ports()?;
    let mut process = Process::start(program, &mut command(ports)?)?;
    match timeout(LIMIT, accepts(&mut process, &ports)).await {
        Ok(Ok(())) => Ok(Some((process, ports))),
        failed => Err(format!("{program} does not listen at {ports:?}: {failed:?}: {}", process.stderr.text())),
    }
}

async fn accepts(process: &mut Process, ports: &[u16]) -> Outcome {
    for port in ports {
        while TcpStream::connect(("127.0.0.1", *port)).await.is_err() {
            if !process.runs() {
                return Err("it has ended".into());
            }
            tokio::task::yield_now().await;
        }
    }
    Ok(())
}

fn free_ports<const PORTS: usize>() -> Outcome<[u16; PORTS]> {
    let mut ports = [0; PORTS];
    // Held until all are there: no port is had twice.
    let mut held = Vec::new();
    for port in &mut ports {
        let listener = TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string())?;
        *port = listener.local_addr().map_err(|error| error.to_string())?.port();
        held.push(listener);
    }
    Ok(ports)
}
