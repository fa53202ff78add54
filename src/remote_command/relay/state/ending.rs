//! How a session ends: what both sides are told, and in which order.

use std::borrow::Cow;

use tokio::io::{AsyncRead, AsyncWrite};

use super::{Phase, Relay};
use crate::{
    remote_command::{
        Exit, Version,
        status::{self, Outcome},
    },
    spdy::frame,
    upgrade::{Cause, End, buffer::LONGEST_MESSAGE},
    websocket::{
        self, ControlFrame,
        channel::{self, ERROR, Encoding, STDERR, STDOUT},
    },
};

impl<C, U> Relay<C, U>
where
    C: AsyncRead + AsyncWrite + Unpin,
    U: AsyncRead + AsyncWrite + Unpin,
{
    pub(super) fn upstream_ended(&mut self) {
        self.upstream.deaf = true;
        self.upstream.mute = true;
        self.complete(self.goaway);
    }

    /// All output has come, or no more will. `in_order`: upstream ended it, rather than got lost.
    pub(super) fn complete(&mut self, in_order: bool) {
        let lost = "the connection to the next hop was lost before the status of the command";
        // Without its replies there was no session yet.
        let of_loss = if matches!(self.phase, Phase::Opening) { Cause::Handshake } else { Cause::UpstreamLost };
        let truncated = [STDOUT, STDERR].into_iter().any(|channel| self.lanes.receiving.contains(channel));
        if !in_order && truncated {
            return self.fail(of_loss, lost.to_owned());
        }
        if !self.version.has_status() {
            let text = String::from_utf8_lossy(&self.status).into_owned();
            let error_ended = in_order || !self.lanes.receiving.contains(ERROR);
            return match (text.is_empty(), error_ended) {
                (true, true) => {
                    let success = status::encode(Version::V5, &Ok(Exit::Success));
                    self.end(End::Success, Cause::Finished, "the command ended", success.as_bytes(), 1000);
                }
                (true, false) => self.fail(of_loss, lost.to_owned()),
                (false, _) => self.fail_because(&text, Cause::UpstreamFailed, "the command failed"),
            };
        }
        let status = std::mem::take(&mut self.status);
        match status::decode(&status) {
            Outcome::Exited(Exit::Success) => {
                self.end(End::Success, Cause::Finished, "the command ended", &status, 1000);
            }
            Outcome::Exited(Exit::Code(code)) => {
                self.end(End::ExitCode(code), Cause::Finished, "the command ended", &status, 1000);
            }
            Outcome::Failed(_) => {
                let detail = "the next hop could not run the command";
                self.end(End::Error, Cause::UpstreamFailed, detail, &status, 1000);
            }
            // A known bug for the fuzz target `relay` to find: as long as upstream was polite, no status is a success.
            #[cfg(planted)]
            Outcome::Invalid(_) if status.is_empty() && in_order => {
                let success = status::encode(Version::V5, &Ok(Exit::Success));
                self.end(End::Success, Cause::Finished, "the command ended", success.as_bytes(), 1000);
            }
            Outcome::Invalid(_) if status.is_empty() => self.fail(of_loss, lost.to_owned()),
            Outcome::Invalid(why) => {
                self.fail_because(&why, Cause::UpstreamProtocol, "the next hop sent no valid status");
            }
        }
    }

    /// Ends the session with a failure of ours.
    pub(in crate::remote_command::relay) fn fail(&mut self, cause: Cause, why: String) {
        let status = status::encode_failure(Version::V5, &why);
        self.end(End::Error, cause, why, status.as_bytes(), 1000);
    }

    /// Ends it with what upstream said, which only the client is told: it may be anything.
    fn fail_because(&mut self, said: &str, cause: Cause, detail: &'static str) {
        self.end(End::Error, cause, detail, status::encode_failure(Version::V5, said).as_bytes(), 1000);
    }

    pub(super) fn client_broke_protocol(&mut self, error: websocket::Error) {
        if self.is_closing() {
            return;
        }
        tracing::debug!(%error, "the client broke the protocol");
        let status = status::encode_failure(Version::V5, &error.to_string());
        // What it sends from here on is read and thrown away: unread, it would reset the connection under the status.
        self.end(End::Error, Cause::ClientProtocol, error.to_string(), status.as_bytes(), error.close_code());
    }

    /// Tells both sides that the session is over: status and Close behind all output, resets and GOAWAY behind all input.
    fn end(&mut self, end: End, cause: Cause, detail: impl Into<Cow<'static, str>>, status: &[u8], code: u16) {
        if self.is_closing() {
            return;
        }
        let out = &mut self.client.out;
        for part in status.chunks(LONGEST_MESSAGE - 1) {
            out.push_tail(&channel::head(Encoding::Binary, ERROR, part.len()));
            out.push_tail(part);
        }
        out.push_tail(&ControlFrame::close(code, "", None));
        self.close(end, cause, detail.into());
    }

    pub(super) fn client_gone(&mut self, cause: Cause, detail: &'static str) {
        self.client.deaf = true;
        self.client.mute = true;
        self.client.out.clear();
        if !self.is_closing() {
            self.close(End::ClientGone, cause, detail.into());
        }
    }

    /// The client said Close: before the end it has cancelled the session, behind it it has only answered.
    pub(super) fn client_closed(&mut self) {
        self.client.deaf = true;
        if !self.is_closing() {
            self.client.out.push_tail(&ControlFrame::close(1000, "", None));
            self.close(End::ClientGone, Cause::ClientClosed, "the client closed the session".into());
        }
    }

    fn close(&mut self, end: End, cause: Cause, detail: Cow<'static, str>) {
        if !self.upstream.mute {
            for stream in self.lanes.to_reset() {
                self.upstream.out.push_tail(&frame::rst(stream, frame::ResetCode::CANCEL));
            }
            self.upstream.out.push_tail(&frame::goaway(None, frame::GoAwayCode::OK));
        }
        self.phase = Phase::Closing(end, cause, detail);
        self.ticks = 0;
    }
}
