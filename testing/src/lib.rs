//! Fakes and peers for the tests of `tower-kube-streaming`: real sockets, and bytes that tests decide about.
//!
//! | module | one idea |
//! |---|---|
//! | [`kubelet`] | a kubelet that speaks SPDY by a script, and dies in the middle of it |
//! | [`relay`] | a TCP relay that is slow, stalls, or cuts |
//! | [`client`] | clients that send and read exactly when they are told to |
//! | [`http`] | the head of a request or an answer, and nothing behind it |

#![allow(missing_docs, reason = "tests are its only users")]

pub mod client;
pub mod http;
pub mod kubelet;
pub mod relay;

use tokio::{io::AsyncReadExt, net::TcpStream};

/// How a peer leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Death {
    /// It closes: what it sent arrives.
    Fin,
    /// It resets the connection.
    Rst,
    /// It neither closes nor reads nor says anything more.
    Silence,
}

impl Death {
    /// Ends `tcp` so. `Silence` never returns.
    pub async fn of(self, mut tcp: TcpStream) {
        use tokio::io::AsyncWriteExt;
        match self {
            Self::Fin => {
                let _ = tcp.shutdown().await;
                // Bytes that nobody reads would turn the close into a reset.
                let mut buffer = [0; 4096];
                while let Ok(1..) = tcp.read(&mut buffer).await {}
            }
            Self::Rst => {
                let _ = tcp.set_zero_linger();
            }
            Self::Silence => std::future::pending().await,
        }
    }

    /// As the test names it in a command line.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fin => "fin",
            Self::Rst => "rst",
            Self::Silence => "silence",
        }
    }

    /// The death of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Fin, Self::Rst, Self::Silence].into_iter().find(|death| death.name() == name)
    }
}
