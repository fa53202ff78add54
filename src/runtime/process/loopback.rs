//! Port-forward without isolation: a pod's ports are this host's.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

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
        let dial = |ip: IpAddr| TcpStream::connect((ip, port));
        let v4 = match dial(Ipv4Addr::LOCALHOST.into()).await {
            Ok(tcp) => return Ok(ready(tcp)?),
            Err(error) => error,
        };
        match dial(Ipv6Addr::LOCALHOST.into()).await {
            Ok(tcp) => Ok(ready(tcp)?),
            Err(v6) => Err(format!("failed to connect to localhost:{port}, IPv4: {v4}, IPv6: {v6}").into()),
        }
    }
}

fn ready(tcp: TcpStream) -> std::io::Result<TcpStream> {
    tcp.set_nodelay(true)?;
    Ok(tcp)
}
