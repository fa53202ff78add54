//! Bytes between a data stream and a pod: FIN for FIN, reset for reset.

use std::{
    io,
    pin::Pin,
    sync::atomic::Ordering,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::Traffic;
use crate::{
    port_forward::Connection,
    spdy::{RecvEnd, Stream},
    upgrade::buffer::Buffer,
};

/// Steps in one direction before others get a turn; reading a buffer is one, writing it another.
const ROUNDS: usize = 8;

/// How it ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// Both directions came to their ends, and both sides know.
    Finished,
    /// The client reset the stream, or is gone. The pod is reset.
    Aborted,
    /// The pod reset the connection, or is gone. It remains to reset the stream.
    PodFailed(io::Error),
}

/// From the client to the pod.
enum Up {
    Open,
    /// The pod has yet to take `buffer[at..end]`. An idle pair holds no buffer.
    Holding {
        buffer: Buffer,
        at: usize,
        end: usize,
    },
    /// FIN came.
    Finishing,
    Finished,
    /// The pod takes no more. What comes is dropped, for what the pod still says may be the answer to what it took.
    Refused,
}

/// From the pod to the client.
#[derive(PartialEq, Eq)]
enum Down {
    Open,
    /// The pod's end of file came; FIN is on its way.
    Finishing,
    Finished,
    /// The client's connection is over.
    Over,
}

/// Carries one connection.
pub(super) struct Pump<'a, C: Connection> {
    data: Stream,
    pod: Guard<C>,
    up: Up,
    down: Down,
    /// The pod was written to.
    unflushed: bool,
    /// Writing to the pod failed in a way that is no orderly end.
    broken: Option<io::Error>,
    traffic: &'a Traffic,
}

impl<'a, C: Connection> Pump<'a, C> {
    pub(super) fn new(data: Stream, pod: C, traffic: &'a Traffic) -> Self {
        let pod = Guard(Some(pod));
        Self { data, pod, up: Up::Open, down: Down::Open, unflushed: false, broken: None, traffic }
    }

    /// Resets the pod, unless both directions have ended.
    pub(super) fn into_data(self) -> Stream {
        self.data
    }

    /// Whether the pod's direction came to its end, and the client knows.
    pub(super) fn pod_has_ended(&self) -> bool {
        self.down == Down::Finished
    }

    /// Ready once.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        match self.try_poll(cx) {
            Ok(false) => Poll::Pending,
            Ok(true) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Err(outcome) => {
                if matches!(outcome, Outcome::Finished) {
                    // It is closed in order.
                    self.pod.0.take();
                }
                Poll::Ready(outcome)
            }
        }
    }

    /// `true`: there is more to do at once.
    fn try_poll(&mut self, cx: &mut Context<'_>) -> Result<bool, Outcome> {
        if self.down != Down::Over {
            self.check_client(cx)?;
        }
        let more_up = rounds(|| self.poll_up(cx))?;
        let more_down = rounds(|| self.poll_down(cx))?;
        match (&self.up, &self.down) {
            (Up::Finished | Up::Refused, Down::Finished) | (Up::Finished, Down::Over) => Err(Outcome::Finished),
            (Up::Refused, Down::Over) => Err(Outcome::Aborted),
            _ => Ok(more_up || more_down),
        }
    }

    /// A client whose connection is over may have finished its direction before: the pod gets the rest of that.
    fn check_client(&mut self, cx: &mut Context<'_>) -> Result<(), Outcome> {
        match self.data.poll_aborted(cx) {
            Poll::Pending => {}
            Poll::Ready(RecvEnd::Reset(_)) => return Err(Outcome::Aborted),
            Poll::Ready(_) => self.down = Down::Over,
        }
        Ok(())
    }

    /// `false`: nothing to do for now, or for ever.
    fn poll_up(&mut self, cx: &mut Context<'_>) -> Result<bool, Outcome> {
        match &mut self.up {
            Up::Open | Up::Refused => {
                let mut buffer = Buffer::borrow();
                let mut read = ReadBuf::new(&mut buffer);
                let Poll::Ready(result) = Pin::new(&mut self.data).poll_read(cx, &mut read) else {
                    if self.unflushed {
                        let flushed = self.pod.poll_flush(cx);
                        match flushed {
                            Poll::Pending => {}
                            Poll::Ready(Ok(())) => self.unflushed = false,
                            Poll::Ready(Err(error)) => self.refuse(error),
                        }
                    }
                    return Ok(false);
                };
                let end = read.filled().len();
                let refused = matches!(self.up, Up::Refused);
                if result.is_err() || end == 0 {
                    if self.data.ended() != Some(RecvEnd::Fin) {
                        return Err(Outcome::Aborted);
                    }
                    if !refused {
                        self.up = Up::Finishing;
                    }
                    return Ok(!refused);
                }
                if !refused {
                    self.up = Up::Holding { buffer, at: 0, end };
                }
                Ok(true)
            }
            Up::Holding { buffer, at, end } => {
                let Poll::Ready(result) = self.pod.poll_write(cx, &buffer[*at..*end]) else { return Ok(false) };
                match result {
                    Ok(0) => self.refuse(io::ErrorKind::WriteZero.into()),
                    Ok(written) => {
                        *at += written;
                        self.traffic.up.fetch_add(written as u64, Ordering::Relaxed);
                        self.unflushed = true;
                        if at == end {
                            self.up = Up::Open;
                        }
                    }
                    Err(error) => self.refuse(error),
                }
                Ok(true)
            }
            Up::Finishing => {
                let Poll::Ready(result) = self.pod.poll_shutdown(cx) else { return Ok(false) };
                match result {
                    Ok(()) => self.up = Up::Finished,
                    Err(error) => self.refuse(error),
                }
                Ok(false)
            }
            Up::Finished => Ok(false),
        }
    }

    /// The pod takes no more. A broken pipe says that it ended its own direction before, in order; another error is
    /// told once, so that reading would end as if in order.
    fn refuse(&mut self, error: io::Error) {
        self.up = Up::Refused;
        self.unflushed = false;
        if error.kind() != io::ErrorKind::BrokenPipe {
            self.broken = Some(error);
        }
    }

    /// As [`Self::poll_up`]. Reads no more than the client's stream has room for, and so holds nothing.
    fn poll_down(&mut self, cx: &mut Context<'_>) -> Result<bool, Outcome> {
        match self.down {
            Down::Open => {
                let Poll::Ready(room) = self.data.poll_capacity(cx) else { return Ok(false) };
                let Ok(room) = room else { return self.client_over(cx) };
                let mut buffer = Buffer::borrow();
                let room = room.min(buffer.len());
                let mut read = ReadBuf::new(&mut buffer[..room]);
                match (self.pod.poll_read(cx, &mut read), self.broken.take()) {
                    (Poll::Ready(Ok(())), broken) if !read.filled().is_empty() => {
                        self.broken = broken;
                        self.write_down(cx, read.filled())
                    }
                    (_, Some(error)) => Err(Outcome::PodFailed(error)),
                    (Poll::Pending, None) => Ok(false),
                    (Poll::Ready(Ok(())), None) => {
                        self.down = Down::Finishing;
                        Ok(true)
                    }
                    (Poll::Ready(Err(error)), None) => Err(Outcome::PodFailed(error)),
                }
            }
            Down::Finishing => match Pin::new(&mut self.data).poll_shutdown(cx) {
                Poll::Pending => Ok(false),
                Poll::Ready(Ok(())) => {
                    self.down = Down::Finished;
                    Ok(false)
                }
                Poll::Ready(Err(_)) => self.client_over(cx),
            },
            Down::Finished | Down::Over => Ok(false),
        }
    }

    fn write_down(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Result<bool, Outcome> {
        match Pin::new(&mut self.data).poll_write(cx, bytes) {
            Poll::Ready(Ok(written)) => {
                debug_assert_eq!(written, bytes.len(), "there was room");
                self.traffic.down.fetch_add(written as u64, Ordering::Relaxed);
                Ok(true)
            }
            // It was reset since.
            Poll::Ready(Err(_)) | Poll::Pending => self.client_over(cx),
        }
    }

    /// The stream takes no more.
    fn client_over(&mut self, cx: &mut Context<'_>) -> Result<bool, Outcome> {
        self.down = Down::Over;
        match self.data.poll_aborted(cx) {
            Poll::Ready(RecvEnd::Reset(_)) => Err(Outcome::Aborted),
            _ => Ok(false),
        }
    }
}

/// Takes steps while there are any, but leaves room for others. `true`: there are more.
fn rounds(mut step: impl FnMut() -> Result<bool, Outcome>) -> Result<bool, Outcome> {
    for _ in 0..ROUNDS {
        if !step()? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A connection into a pod that is reset where it is dropped: a pod must not take a part for the whole.
struct Guard<C: Connection>(Option<C>);

impl<C: Connection> Guard<C> {
    fn pod(&mut self) -> Pin<&mut C> {
        Pin::new(self.0.as_mut().expect("taken only behind the end"))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.pod().poll_read(cx, buf)
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.pod().poll_write(cx, bytes)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.pod().poll_flush(cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.pod().poll_flush(cx))?;
        self.pod().poll_shutdown(cx)
    }
}

impl<C: Connection> Drop for Guard<C> {
    fn drop(&mut self) {
        if let Some(pod) = self.0.take() {
            pod.reset();
        }
    }
}
