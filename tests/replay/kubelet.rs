//! The kubelet of the recordings: it says what it said then, and tells what it was asked.

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncWriteExt, BufStream},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    time::timeout,
};

use super::{
    client::PATIENCE,
    said::Said,
    transcript::{Http, Spdy, Step, Transcript, What, Who},
    wire::{self, Streams},
};

/// A listener on a free port. Every connection is answered as the recording that was set last.
#[derive(Debug)]
pub(crate) struct Kubelet {
    pub(crate) address: SocketAddr,
    script: Arc<Mutex<Vec<Step>>>,
    heard: mpsc::UnboundedReceiver<Heard>,
}

/// What a connection has brought.
enum Heard {
    Request(Http),
    /// All streams of one that is over.
    Streams(Streams),
}

impl Kubelet {
    pub(crate) async fn start() -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let script = Arc::<Mutex<Vec<Step>>>::default();
        let (hear, heard) = mpsc::unbounded_channel();
        let current = script.clone();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let script = current.lock().expect("nobody panics with it").clone();
                // Its end is the API server's to see.
                tokio::spawn(play(tcp, script, hear.clone()));
            }
        });
        Ok(Self { address, script, heard })
    }

    /// From now on: what this recording's kubelet said.
    pub(crate) fn play(&mut self, transcript: &Transcript) {
        let steps = transcript.steps.iter().filter(|step| [step.from, step.to].contains(&Who::Kubelet));
        *self.script.lock().expect("nobody panics with it") = steps.cloned().collect();
        while self.heard.try_recv().is_ok() {}
    }

    /// Adds what the API server has asked and sent since. It asks before it answers; what it sends is complete when it has
    /// closed, which is waited for.
    pub(crate) async fn said(&mut self, transcript: &Transcript, said: &mut Said) {
        let mut ended = !transcript.has_streams();
        loop {
            let next = match self.heard.try_recv() {
                Err(_) if ended => return,
                // Without an end, what is heard by then is what differs.
                Err(_) => timeout(PATIENCE, self.heard.recv()).await.ok().flatten(),
                Ok(heard) => Some(heard),
            };
            match next {
                Some(Heard::Request(request)) => said.hop(&request),
                Some(Heard::Streams(streams)) => {
                    said.streams(&streams);
                    ended = true;
                }
                None => ended = true,
            }
        }
    }
}

async fn play(tcp: TcpStream, script: Vec<Step>, hear: mpsc::UnboundedSender<Heard>) -> io::Result<()> {
    let mut io = BufStream::new(tcp);
    let _ = hear.send(Heard::Request(wire::read_head(&mut io).await?));
    if script.iter().any(|step| matches!(step.what, What::Spdy(_))) {
        let mut streams = Streams::default();
        let ended = play_streams(&mut io, &script, &mut streams).await;
        let _ = hear.send(Heard::Streams(streams));
        return ended;
    }
    let mut upgraded = false;
    for step in script.iter().filter(|step| step.from == Who::Kubelet) {
        match &step.what {
            What::Http(answer) => {
                upgraded = answer.line.contains(" 101 ");
                io.write_all(&wire::http(answer)).await?;
            }
            What::WebSocket(frame) => io.write_all(&wire::frame(frame)).await?,
            What::Spdy(_) => unreachable!("it is played above"),
        }
        io.flush().await?;
    }
    if !upgraded {
        io.shutdown().await?;
    }
    tokio::io::copy(&mut io, &mut tokio::io::sink()).await?;
    Ok(())
}

/// Speaks in turn: waits for what was heard before what was said. Ends with the connection.
async fn play_streams(io: &mut BufStream<TcpStream>, script: &[Step], streams: &mut Streams) -> io::Result<()> {
    let mut recorded = Streams::default();
    let mut first = true;
    for step in script {
        match (step.from, &step.what) {
            (Who::Kubelet, What::Http(answer)) => io.write_all(&wire::http(answer)).await?,
            (Who::Kubelet, What::Spdy(frame)) => io.write_all(&wire::spdy(frame, &mut first)).await?,
            (_, What::Spdy(Spdy::SynStream(stream))) => streams.until_open(io, *stream).await?,
            (_, What::Spdy(Spdy::Data { stream, flags, payload })) => {
                recorded.add(*stream, flags & 1 == 1, payload);
                streams.until_heard(io, *stream, &recorded).await?;
            }
            _ => {}
        }
        io.flush().await?;
    }
    loop {
        streams.read(io).await?;
    }
}
