//! The kubelet of the recordings: it says what it said then, and tells what it was asked.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufStream},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};

use super::{
    transcript::{Http, Spdy, Step, Transcript, What, Who},
    wire,
};

/// A listener on a free port. Every connection is answered as the recording that was set last.
#[derive(Debug)]
pub(crate) struct Kubelet {
    pub(crate) address: SocketAddr,
    script: Arc<Mutex<Vec<Step>>>,
    asked: mpsc::UnboundedReceiver<Http>,
}

impl Kubelet {
    pub(crate) async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let script = Arc::<Mutex<Vec<Step>>>::default();
        let (ask, asked) = mpsc::unbounded_channel();
        let current = script.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let script = current.lock().expect("nobody panics with it").clone();
                // Its end is the API server's to see.
                tokio::spawn(play(tcp, script, ask.clone()));
            }
        });
        Ok(Self { address, script, asked })
    }

    /// From now on: what this recording's kubelet said.
    pub(crate) fn play(&mut self, transcript: &Transcript) {
        let steps = transcript.steps.iter().filter(|step| [step.from, step.to].contains(&Who::Kubelet));
        *self.script.lock().expect("nobody panics with it") = steps.cloned().collect();
        self.asked();
    }

    /// The requests since the last look. A server has asked before it answers.
    pub(crate) fn asked(&mut self) -> Vec<Http> {
        std::iter::from_fn(|| self.asked.try_recv().ok()).collect()
    }
}

async fn play(tcp: TcpStream, script: Vec<Step>, ask: mpsc::UnboundedSender<Http>) -> io::Result<()> {
    let mut io = BufStream::new(tcp);
    let _ = ask.send(wire::read_head(&mut io).await?);
    let mut upgraded = false;
    let mut first = true;
    // The request itself is the first step.
    for step in script.iter().skip(1) {
        match (step.from, &step.what) {
            (Who::Kubelet, What::Http(answer)) => {
                upgraded = answer.line.contains(" 101 ");
                io.write_all(&wire::http(answer)).await?;
            }
            (Who::Kubelet, What::WebSocket(frame)) => io.write_all(&wire::frame(frame)).await?,
            (Who::Kubelet, What::Spdy(frame)) => io.write_all(&wire::spdy(frame, &mut first)).await?,
            (_, What::Spdy(Spdy::SynStream(stream))) => wire::read_syn_stream(&mut io, *stream).await?,
            _ => {}
        }
        io.flush().await?;
    }
    if upgraded {
        tokio::io::copy(&mut io, &mut tokio::io::sink()).await?;
    } else {
        io.shutdown().await?;
        let mut rest = Vec::new();
        io.read_to_end(&mut rest).await?;
    }
    Ok(())
}
