//! What goes to the client: one frame at a time.

use std::{
    io, mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::Instant,
};

use super::{CHUNK, Phase, Session};
use crate::{
    remote_command::over_websocket::pipes::HEADROOM,
    upgrade::Cause,
    websocket::{
        ControlFrame, Payload,
        channel::{self, Encoding},
    },
};

impl<Io: AsyncRead + AsyncWrite + Unpin> Session<Io> {
    /// Writes until there is nothing to write, or no room. True if anything changed.
    pub(super) fn poll_out(&mut self, cx: &mut Context<'_>) -> bool {
        let mut moved = false;
        loop {
            if let Phase::Over = self.phase {
                return moved;
            }
            match self.poll_frame(cx) {
                Poll::Ready(Ok(())) => {}
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "writing to the client failed");
                    self.lost(Cause::ClientLost, "the connection to the client was lost");
                    return true;
                }
                Poll::Pending => {
                    self.blocked = true;
                    return moved;
                }
            }
            self.blocked = false;
            if self.next_frame(cx) {
                moved = true;
                continue;
            }
            if !self.unflushed {
                return moved | self.shut_down(cx);
            }
            match Pin::new(&mut self.io).poll_flush(cx) {
                Poll::Ready(Ok(())) => {
                    self.unflushed = false;
                    self.out = Vec::new();
                    if let Phase::Ending { close: None, .. } = self.phase {
                        self.phase =
                            Phase::Closing { until: Instant::now() + self.limits.close_handshake, shut: false };
                    }
                    moved = true;
                }
                Poll::Ready(Err(error)) => {
                    tracing::debug!(%error, "writing to the client failed");
                    self.lost(Cause::ClientLost, "the connection to the client was lost");
                    return true;
                }
                Poll::Pending => {
                    self.blocked = true;
                    return moved;
                }
            }
        }
    }

    /// Half-closes after both Closes. The peer's bytes are still read: what is unread when a socket is dropped makes
    /// its system throw away what it has not read itself.
    fn shut_down(&mut self, cx: &mut Context<'_>) -> bool {
        let Phase::Closing { shut: shut @ false, .. } = &mut self.phase else { return false };
        if !self.peer_closed {
            return false;
        }
        match Pin::new(&mut self.io).poll_shutdown(cx) {
            Poll::Ready(Ok(())) => *shut = true,
            Poll::Ready(Err(_)) => self.phase = Phase::Over,
            Poll::Pending => return false,
        }
        true
    }

    /// Writes the rest of a frame.
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.out_at < self.out.len() {
            let written = ready!(Pin::new(&mut self.io).poll_write(cx, &self.out[self.out_at..]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out_at += written;
            self.unflushed = true;
        }
        self.out.clear();
        self.out_at = 0;
        Poll::Ready(Ok(()))
    }

    /// Puts the next frame into `out`. Control frames first: they are small, and someone waits for them.
    fn next_frame(&mut self, cx: &mut Context<'_>) -> bool {
        if let Phase::Closing { .. } = self.phase {
            return false;
        }
        if let Some(pong) = self.pong.take() {
            self.out.extend_from_slice(&ControlFrame::pong(&pong, None));
            return true;
        }
        if mem::take(&mut self.ping) {
            self.out.extend_from_slice(&ControlFrame::ping(&Payload::default(), None));
            return true;
        }
        for turn in 0..2 {
            let at = (self.first + turn) % 2;
            if let Some((id, output)) = &self.outputs[at]
                && output.take(&mut self.out, cx)
            {
                let id = *id;
                let counted = if id == channel::STDOUT { &mut self.bytes.stdout } else { &mut self.bytes.stderr };
                *counted += (self.out.len() - HEADROOM) as u64;
                self.last_payload = Instant::now();
                self.first = 1 - at;
                self.frame_output(id);
                return true;
            }
        }
        let Phase::Ending { status, close, until } = &mut self.phase else { return false };
        if !status.is_empty() {
            until.get_or_insert_with(|| Instant::now() + self.limits.status_write);
            let now = status.len().min(CHUNK / 4 * 3);
            self.out.resize(HEADROOM, 0);
            self.out.extend(status.drain(..now));
            self.frame_output(channel::ERROR);
            return true;
        }
        if let Some(close) = close.take() {
            until.get_or_insert_with(|| Instant::now() + self.limits.status_write);
            self.out.extend_from_slice(&close);
            return true;
        }
        false
    }

    /// Makes a message of `out`, which holds headroom and payload.
    fn frame_output(&mut self, id: u8) {
        match self.protocol.encoding() {
            Encoding::Binary => {
                let head = channel::head(Encoding::Binary, id, self.out.len() - HEADROOM);
                self.out_at = HEADROOM - head.len();
                self.out[self.out_at..HEADROOM].copy_from_slice(&head);
            }
            Encoding::Base64 => {
                let text = BASE64_STANDARD.encode(&self.out[HEADROOM..]);
                self.out.clear();
                self.out.extend_from_slice(&channel::head(Encoding::Base64, id, text.len()));
                self.out.extend_from_slice(text.as_bytes());
            }
        }
    }
}
