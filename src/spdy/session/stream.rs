//! One stream: two halves, and everything that can happen to them.
//!
//! ```text
//!   Send                                         Recv
//!
//!   Opening --SYN_REPLY in--+                    Open -----FIN in----+
//!   (ours)                  v                     |                  v
//!                          Open --FIN out--> Finished   Discard   Finished
//!   Offered                 ^                     v                  ^
//!   (the peer's) -reply out-+                    Discarding --FIN in-+
//! ```
//!
//! A stream is forgotten when both halves are finished, or when either side resets it. What comes for a forgotten
//! stream is ignored: it may have been under way.

use crate::spdy::frame::ResetCode;

/// What may go out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Send {
    /// This side opened the stream, and the peer has not replied: no DATA, no FIN.
    Opening,
    /// The peer opened the stream, and this side has not replied: no DATA, no FIN.
    Offered,
    Open,
    /// FIN is out.
    Finished,
}

/// What may come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recv {
    Open,
    /// Nobody here wants it any more.
    Discarding,
    /// FIN is in.
    Finished,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StreamState {
    pub(super) send: Send,
    pub(super) recv: Recv,
}

/// What happens to a stream.
#[derive(Clone, Copy, Debug)]
pub(super) enum Input {
    // From the peer.
    Reply {
        fin: bool,
    },
    /// DATA, or HEADERS, which is as good as empty DATA.
    Data {
        empty: bool,
        fin: bool,
    },
    Rst,
    // From the caller.
    SendReply,
    SendFin,
    SendReset(ResetCode),
    Discard,
    // From the clock.
    ReplyTimeout,
    // From the connection: the peer went away before it took the stream.
    NotTaken,
}

/// What follows. The default is nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Output {
    /// The payload is for the reader.
    pub(super) deliver: bool,
    /// To be written.
    pub(super) control: Option<Answer>,
    /// To be told.
    pub(super) notice: Option<Notice>,
    /// The stream is over.
    pub(super) forget: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
    Reply,
    Rst(ResetCode),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Notice {
    Replied,
    RepliedAndFinished,
    Finished,
    Reset,
    OpenReset,
    OpenProtocol,
    OpenTimeout,
    OpenNotTaken,
}

impl StreamState {
    pub(super) const OPENING: Self = Self { send: Send::Opening, recv: Recv::Open };

    /// A stream that the peer opened, perhaps with FIN.
    pub(super) fn offered(fin: bool) -> Self {
        Self { send: Send::Offered, recv: if fin { Recv::Finished } else { Recv::Open } }
    }

    /// Only the peer could still do something, and nobody cares.
    pub(super) fn is_abandoned(self) -> bool {
        self.send == Send::Finished && self.recv == Recv::Discarding
    }

    pub(super) fn on(&mut self, input: Input) -> Output {
        match input {
            Input::Reply { fin } => self.on_reply(fin),
            Input::Data { empty, fin } => self.on_data(empty, fin),
            Input::Rst => self.on_rst(),
            Input::SendReply => match self.send {
                Send::Offered => {
                    self.send = Send::Open;
                    Output { control: Some(Answer::Reply), ..Output::default() }
                }
                Send::Opening | Send::Open | Send::Finished => Output::default(),
            },
            Input::SendFin => match self.send {
                Send::Open => {
                    self.send = Send::Finished;
                    Output { forget: self.recv == Recv::Finished, ..Output::default() }
                }
                Send::Opening | Send::Offered | Send::Finished => Output::default(),
            },
            Input::SendReset(code) => self.on_send_reset(code),
            Input::Discard => match self.recv {
                Recv::Open => {
                    self.recv = Recv::Discarding;
                    Output::default()
                }
                Recv::Discarding | Recv::Finished => Output::default(),
            },
            Input::ReplyTimeout => match self.send {
                Send::Opening => Output {
                    control: Some(Answer::Rst(ResetCode::CANCEL)),
                    notice: Some(Notice::OpenTimeout),
                    forget: true,
                    ..Output::default()
                },
                Send::Offered | Send::Open | Send::Finished => Output::default(),
            },
            Input::NotTaken => match self.send {
                Send::Opening => Output { notice: Some(Notice::OpenNotTaken), forget: true, ..Output::default() },
                Send::Offered | Send::Open | Send::Finished => Output::default(),
            },
        }
    }

    fn on_reply(&mut self, fin: bool) -> Output {
        match self.send {
            Send::Opening => {
                self.send = Send::Open;
                if fin {
                    self.recv = Recv::Finished;
                }
                let notice = if fin { Notice::RepliedAndFinished } else { Notice::Replied };
                Output { notice: Some(notice), ..Output::default() }
            }
            // A second reply is ignored, as in spdystream (connection.go: handleReplyFrame), deliberately.
            Send::Offered | Send::Open | Send::Finished => Output::default(),
        }
    }

    fn on_data(&mut self, empty: bool, fin: bool) -> Output {
        match (self.send, self.recv) {
            // spdystream would drop the data; better to say so.
            (Send::Opening, _) => Output {
                control: Some(Answer::Rst(ResetCode::PROTOCOL_ERROR)),
                notice: Some(Notice::OpenProtocol),
                forget: true,
                ..Output::default()
            },
            (send, Recv::Open) => {
                if fin {
                    self.recv = Recv::Finished;
                }
                Output {
                    deliver: !empty,
                    notice: fin.then_some(Notice::Finished),
                    forget: fin && send == Send::Finished,
                    ..Output::default()
                }
            }
            (send, Recv::Discarding) if fin => {
                self.recv = Recv::Finished;
                Output { forget: send == Send::Finished, ..Output::default() }
            }
            // spdystream never resets behind its FIN, so nor do we, until the peer sends what nobody will read.
            (Send::Finished, Recv::Discarding) if !empty => {
                Output { control: Some(Answer::Rst(ResetCode::CANCEL)), forget: true, ..Output::default() }
            }
            (Send::Offered | Send::Open | Send::Finished, Recv::Discarding) => Output::default(),
            // spdystream lets data be written behind FIN (stream.go: Write), and kubectl's stdin does; ignored.
            (Send::Offered | Send::Open | Send::Finished, Recv::Finished) => Output::default(),
        }
    }

    fn on_rst(&mut self) -> Output {
        let notice = match (self.send, self.recv) {
            (Send::Opening, _) => Some(Notice::OpenReset),
            (Send::Finished, Recv::Discarding | Recv::Finished) => None,
            (Send::Offered | Send::Open | Send::Finished, _) => Some(Notice::Reset),
        };
        Output { notice, forget: true, ..Output::default() }
    }

    fn on_send_reset(&mut self, code: ResetCode) -> Output {
        match (self.send, self.recv) {
            (Send::Opening | Send::Offered | Send::Open, _) => {
                Output { control: Some(Answer::Rst(code)), forget: true, ..Output::default() }
            }
            // No RST behind FIN: see `on_data`.
            (Send::Finished, Recv::Open | Recv::Discarding) => {
                self.recv = Recv::Discarding;
                Output::default()
            }
            (Send::Finished, Recv::Finished) => Output { forget: true, ..Output::default() },
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    /// Every state with everything that can happen to it. After a change that is meant, write the test's output to
    /// `transitions.txt`.
    #[test]
    fn every_transition_is_as_in_the_table() {
        let inputs = [
            Input::Reply { fin: false },
            Input::Reply { fin: true },
            Input::Data { empty: false, fin: false },
            Input::Data { empty: false, fin: true },
            Input::Data { empty: true, fin: false },
            Input::Data { empty: true, fin: true },
            Input::Rst,
            Input::SendReply,
            Input::SendFin,
            Input::SendReset(ResetCode::CANCEL),
            Input::Discard,
            Input::ReplyTimeout,
            Input::NotTaken,
        ];
        let mut table = String::new();
        for send in [Send::Opening, Send::Offered, Send::Open, Send::Finished] {
            for recv in [Recv::Open, Recv::Discarding, Recv::Finished] {
                for input in inputs {
                    let mut state = StreamState { send, recv };
                    let output = state.on(input);
                    let before = format!("{send:?}/{recv:?}");
                    let after = match output.forget {
                        true => "forgotten".to_owned(),
                        false if state == (StreamState { send, recv }) => "same".to_owned(),
                        false => format!("{:?}/{:?}", state.send, state.recv),
                    };
                    let mut effects = Vec::new();
                    effects.extend(output.deliver.then(|| "deliver".to_owned()));
                    effects.extend(output.control.map(|answer| format!("write {answer:?}")));
                    effects.extend(output.notice.map(|notice| format!("tell {notice:?}")));
                    let line = format!("{before:<20} {:<34} {after:<20} {}", format!("{input:?}"), effects.join(", "));
                    writeln!(table, "{}", line.trim_end()).unwrap();
                }
            }
        }
        assert_eq!(table, include_str!("transitions.txt"), "\n{table}");
    }
}
