//! What comes from the client: a read at a time, parsed whole.

use std::{
    cell::Cell,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::Instant,
};

use super::{CHUNK, Phase, Session};
use crate::{
    upgrade::Cause,
    websocket::{
        self, Event,
        channel::{self, ChannelEvent},
    },
};

thread_local! {
    /// A buffer to read into. A read is parsed whole before the poll returns, so a session needs none of its own.
    static BUFFER: Cell<Vec<u8>> = const { Cell::new(Vec::new()) };
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Session<Io> {
    /// Reads once. True if anything changed.
    pub(super) fn poll_in(&mut self, cx: &mut Context<'_>) -> bool {
        let room = match (&self.phase, &self.stdin) {
            (Phase::Over, _) => return false,
            // A read is never more than stdin has room for, so it can be parsed whole.
            (Phase::Running, Some(stdin)) => stdin.poll_room(cx),
            _ => Poll::Ready(CHUNK),
        };
        let Poll::Ready(room) = room else {
            if !self.paused {
                self.paused = true;
                self.last_sign = Instant::now();
            }
            return false;
        };
        self.paused = false;
        let mut buffer = BUFFER.take();
        buffer.resize(CHUNK, 0);
        let mut read = ReadBuf::new(&mut buffer[..room.min(CHUNK)]);
        let result = Pin::new(&mut self.io).poll_read(cx, &mut read);
        let filled = read.filled().len();
        match result {
            Poll::Ready(Ok(())) if filled > 0 => {
                self.quiet_since = None;
                self.parse(&mut buffer[..filled]);
            }
            Poll::Ready(Ok(())) => self.lost(Cause::ClientLost, "the client went away"),
            Poll::Ready(Err(ref error)) => {
                tracing::debug!(%error, "reading from the client failed");
                self.lost(Cause::ClientLost, "the connection to the client was lost");
            }
            Poll::Pending => {}
        }
        BUFFER.set(buffer);
        result.is_ready()
    }

    fn parse(&mut self, buf: &mut [u8]) {
        let mut at = 0;
        while at < buf.len() {
            let rest = &mut buf[at..];
            let consumed = self.decoder.step(rest).and_then(|step| {
                match step.event {
                    Some(Event::Data(data)) => self.data(&data, rest)?,
                    // One answer to several Pings is enough (RFC 6455, 5.5.3), and a flood of them takes no memory.
                    Some(Event::Ping(payload)) => self.pong = Some(payload),
                    Some(Event::Close(close)) => self.peer_closed(&close),
                    Some(Event::Pong(_)) | None => {}
                }
                Ok(step.consumed)
            });
            match consumed {
                Ok(consumed) => at += consumed,
                Err(error) => return self.violated(error),
            }
        }
    }

    fn data(&mut self, data: &websocket::Data, buf: &mut [u8]) -> Result<(), websocket::Error> {
        let Phase::Running = self.phase else { return Ok(()) };
        match self.demux.data(data, buf)? {
            Some(ChannelEvent::Data { id: channel::STDIN, range }) => {
                self.last_payload = Instant::now();
                self.bytes.stdin += range.len() as u64;
                if let Some(stdin) = &self.stdin {
                    stdin.push(&buf[range]);
                }
            }
            Some(ChannelEvent::Data { id: channel::RESIZE, range }) => {
                self.last_payload = Instant::now();
                if let Some((decoder, sizes)) = &mut self.resize
                    && let Some(size) = decoder.push(&buf[range])
                {
                    sizes.send_replace(Some(size));
                }
            }
            Some(ChannelEvent::Closed(channel::STDIN)) => {
                if let Some(stdin) = &self.stdin {
                    stdin.end();
                }
            }
            // The other channels are ours to write; Kubernetes ignores what comes in on them.
            Some(ChannelEvent::Data { .. } | ChannelEvent::Closed(_)) | None => {}
        }
        Ok(())
    }
}
