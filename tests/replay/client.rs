//! The clients of the recordings.

use std::{io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt, BufStream},
    time::timeout,
};

use super::{
    said::Said,
    transcript::{Frame, Transcript, Who},
    wire,
};

/// A server that neither answers nor closes is given up; that it did not is then the difference.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Says what the recorded client said, and returns what it hears. After a 101 it listens until it has heard all
/// that was recorded, the server's Close or the end; not at all if no message was recorded.
pub(crate) async fn replay(
    io: impl AsyncRead + AsyncWrite + Unpin,
    server: Who,
    transcript: &Transcript,
) -> io::Result<Said> {
    let mut io = BufStream::new(io);
    let request = transcript.request();
    io.write_all(&wire::http(request)).await?;
    io.flush().await?;
    let waited = timeout(PATIENCE, wire::read_head(&mut io)).await;
    let mut answer = waited.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no answer"))??;
    let mut said = Said::default();
    let upgraded = answer.line.contains(" 101 ");
    if !upgraded && !request.line.starts_with("HEAD ") {
        let body = timeout(PATIENCE, wire::read_body(&mut io, &answer)).await;
        answer.body = body.map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "a body without an end"))??;
    }
    said.answer(&answer);
    if upgraded {
        for frame in transcript.frames(Who::Client, server) {
            io.write_all(&wire::frame(frame)).await?;
        }
        io.flush().await?;
        if transcript.frames(server, Who::Client).next().is_some() {
            let recorded = transcript.said(server);
            // Time is up: what was heard until then counts.
            let _ = timeout(PATIENCE, listen(&mut io, &mut said, &recorded)).await;
        }
    }
    Ok(said)
}

async fn listen(io: &mut (impl AsyncRead + Unpin), said: &mut Said, recorded: &Said) {
    let heard_all = |said: &Said| {
        let mut answer = recorded.0.iter().filter(|(name, _)| !name.starts_with("hop"));
        answer.all(|(name, value)| said.0.get(name) == Some(value))
    };
    while !heard_all(said) {
        match wire::read_frame(io).await {
            // Only to see whether we live.
            Ok(Frame { opcode: 9, .. }) => {}
            Ok(frame) => said.frame(&frame),
            Err(_) => return,
        }
        let one_close = |said: &Said| said.0.get("CLOSE").is_some_and(|codes| !codes.contains(','));
        if one_close(said) && one_close(recorded) {
            return;
        }
    }
}
