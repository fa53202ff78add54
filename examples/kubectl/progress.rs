//! A bar on a terminal: bytes, rate, time left. Nothing where stderr is none.

use std::{
    io::{self, IsTerminal as _, Write as _},
    pin::Pin,
    task::{Context, Poll},
};

use indicatif::{ProgressBar, ProgressStyle};
use tokio::io::AsyncWrite;

const KNOWN: &str = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta} left";
const UNKNOWN: &str = "{msg} {spinner} {bytes} {bytes_per_sec}";

#[derive(Clone)]
pub(crate) struct Progress(Option<ProgressBar>);

impl Progress {
    pub(crate) fn new(what: &str) -> Self {
        let bar = io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template(UNKNOWN).expect("the template is whole");
            ProgressBar::no_length().with_style(style).with_message(what.to_owned())
        });
        Self(bar)
    }

    /// Whether anybody looks.
    pub(crate) fn is_shown(&self) -> bool {
        self.0.is_some()
    }

    /// How many bytes there will be, about.
    pub(crate) fn total(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.set_style(ProgressStyle::with_template(KNOWN).expect("the template is whole"));
            bar.set_length(bytes.max(bar.position()));
        }
    }

    /// So many bytes more.
    pub(crate) fn add(&self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(bytes);
            if bar.length().is_some_and(|length| length < bar.position()) {
                bar.set_length(bar.position());
            }
        }
    }

    /// From the beginning again.
    pub(crate) fn restart(&self) {
        if let Some(bar) = &self.0 {
            bar.reset();
        }
    }

    /// A line on stderr that the bar does not write over.
    pub(crate) fn say(&self, line: &str) {
        // If nobody reads it, that ends no copy.
        let _ = match &self.0 {
            Some(bar) => bar.suspend(|| writeln!(io::stderr(), "{line}")),
            None => writeln!(io::stderr(), "{line}"),
        };
    }

    pub(crate) fn end(&self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// stderr, beside the bar. Messages of tar are few and short: writing them may block.
impl AsyncWrite for Progress {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Poll::Ready(match &self.0 {
            Some(bar) => bar.suspend(|| io::stderr().write(buf)),
            None => io::stderr().write(buf),
        })
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
