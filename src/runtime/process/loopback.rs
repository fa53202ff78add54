//! Port-forward without isolation: a pod's ports are this host's.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use tokio::net::TcpStream;

use crate::{BoxError, port_forward::Dial};

/// Dials this host's loopback: what a pod of [`ProcessRuntime`](super::ProcessRuntime) has for a network.
#[derive(Clone, Copy, Debug, Default)]
#[non_exhaustive]
pub struct Loopback {}

impl Dial for Loopback {
    type Connection = TcpStream;

    /// IPv4 first, then IPv6, as containerd.
    async fn dial(&self, port: u16) -> Result<TcpStream, BoxError> {
        let v4 = match connect(Ipv4Addr::LOCALHOST.into(), port).await {
            // Somebody was there.
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => error,
            there => return Ok(there?),
        };
        match connect(Ipv6Addr::LOCALHOST.into(), port).await {
            Err(error) if error.kind() != io::ErrorKind::ConnectionReset => {
                Err(format!("failed to connect to localhost:{port}, IPv4: {v4}, IPv6: {error}").into())
            }
            there => Ok(there?),
        }
    }
}

async fn connect(ip: IpAddr, port: u16) -> io::Result<TcpStream> {
    let tcp = TcpStream::connect((ip, port)).await?;
    tcp.set_nodelay(true)?;
    Ok(tcp)
}
