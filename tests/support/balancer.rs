//! A TCP balancer.

use std::net::{Ipv4Addr, SocketAddr};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
    task::{AbortHandle, JoinSet},
};

use super::Outcome;

/// Connections go to the servers in turn; one that is not there is passed over.
pub struct Balancer {
    address: SocketAddr,
    accepting: AbortHandle,
}

impl Balancer {
    /// In front of servers at these `https://HOST:PORT`.
    pub async fn start(servers: &[String]) -> Outcome<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.map_err(|error| error.to_string())?;
        let address = listener.local_addr().map_err(|error| error.to_string())?;
        let servers: Vec<String> = servers.iter().map(|url| url.trim_start_matches("https://").to_owned()).collect();
        let accepting = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            for turn in 0.. {
                let Ok((mut client, _)) = listener.accept().await else { return };
                let mut servers = servers.clone();
                let first = turn % servers.len();
                servers.rotate_left(first);
                connections.spawn(async move {
                    for server in servers {
                        if let Ok(mut server) = TcpStream::connect(server).await {
                            // Either side's error is the end of the other.
                            let _ = copy_bidirectional(&mut client, &mut server).await;
                            return;
                        }
                    }
                });
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, accepting: accepting.abort_handle() })
    }

    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// Lets one connection pass, so that the next goes to the other server.
    pub async fn skip(&self) -> Outcome {
        TcpStream::connect(self.address).await.map(drop).map_err(|error| error.to_string())
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}
