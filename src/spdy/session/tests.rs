use proptest::prelude::*;

use super::*;
use crate::spdy::codec::{Decoder, HeaderMode};

fn id(id: u32) -> StreamId {
    StreamId::new(id).unwrap()
}

fn session(role: Role) -> Session {
    Session::new(role, Limits::default(), Instant::now())
}

fn control(session: &mut Session) -> Vec<Control> {
    std::iter::from_fn(|| session.queue.pop()).collect()
}

fn events(session: &mut Session) -> Vec<Event> {
    std::iter::from_fn(|| session.poll_event()).collect()
}

fn syn(stream: u32) -> codec::Event {
    codec::Event::SynStream {
        stream: id(stream),
        associated: 0,
        priority: 0,
        fin: false,
        unidirectional: false,
        headers: Headers::default(),
    }
}

fn data(stream: u32, len: usize, fin: bool) -> codec::Event {
    codec::Event::Data { stream: id(stream), range: 0..len, fin }
}

/// A server with a stream that it has taken.
fn taken() -> Session {
    let mut server = session(Role::Server);
    server.handle_frame(syn(1)).unwrap();
    server.reply(id(1));
    events(&mut server);
    control(&mut server);
    server
}

#[test]
fn a_client_counts_odd_and_a_server_even() {
    let now = Instant::now();
    let open = |role| {
        let mut session = session(role);
        [session.open(&[], now).unwrap(), session.open(&[], now).unwrap()].map(StreamId::get)
    };
    assert_eq!(open(Role::Client), [1, 3]);
    assert_eq!(open(Role::Server), [2, 4]);
}

#[test]
fn a_stream_opens_with_its_reply() {
    let mut client = session(Role::Client);
    let stream = client.open(&[("streamType", "error")], Instant::now()).unwrap();
    assert!(!client.can_send(stream));
    client.finish(stream);
    client.handle_frame(codec::Event::SynReply { stream, fin: false, headers: Headers::default() }).unwrap();
    assert!(client.can_send(stream));
    assert_eq!(events(&mut client), [Event::Replied(stream)]);
    client.finish(stream);
    assert!(!client.can_send(stream));
    assert!(!client.is_idle());
    assert!(client.handle_frame(data(1, 3, true)).unwrap());
    assert_eq!(events(&mut client), [Event::Finished(stream)]);
    assert!(client.is_idle());
    assert!(!client.handle_frame(data(1, 3, true)).unwrap(), "data for a forgotten stream is ignored");
}

#[test]
fn pings_of_the_peers_parity_are_echoed() {
    let mut server = session(Role::Server);
    for id in [1, 2, u32::MAX, u32::MAX - 1] {
        server.handle_frame(codec::Event::Ping(id)).unwrap();
    }
    assert_eq!(control(&mut server), [Control::Ping(1), Control::Ping(u32::MAX)]);
    let mut client = session(Role::Client);
    for id in [1, 2] {
        client.handle_frame(codec::Event::Ping(id)).unwrap();
    }
    assert_eq!(control(&mut client), [Control::Ping(2)]);
}

#[test]
fn a_reused_number_is_reset_and_its_stream_is_over() {
    let mut server = taken();
    server.handle_frame(syn(1)).unwrap();
    assert_eq!(control(&mut server), [Control::Rst(id(1), ResetCode::PROTOCOL_ERROR)]);
    assert_eq!(events(&mut server), [Event::Reset(id(1), ResetCode::PROTOCOL_ERROR)]);
    server.handle_frame(syn(7)).unwrap();
    server.handle_frame(syn(5)).unwrap();
    assert_eq!(control(&mut server), [Control::Rst(id(5), ResetCode::PROTOCOL_ERROR)]);
    assert!(server.handle_frame(syn(2)).unwrap_err().is_protocol());
}

#[test]
fn streams_beyond_the_limit_are_refused() {
    let mut server = Session::new(Role::Server, Limits::default().streams(1), Instant::now());
    server.handle_frame(syn(1)).unwrap();
    server.handle_frame(syn(3)).unwrap();
    assert_eq!(control(&mut server), [Control::Rst(id(3), ResetCode::REFUSED_STREAM)]);
    assert_eq!(events(&mut server).len(), 1);
    assert!(server.open(&[], Instant::now()).unwrap_err().is_limit());
    server.reset(id(1), ResetCode::CANCEL);
    server.handle_frame(syn(5)).unwrap();
    assert_eq!(events(&mut server).len(), 1);
}

#[test]
fn stream_numbers_end() {
    let mut client = session(Role::Client);
    client.next = MAX_STREAM_ID;
    assert_eq!(client.open(&[], Instant::now()).unwrap().get(), MAX_STREAM_ID);
    assert!(client.open(&[], Instant::now()).unwrap_err().is_limit());
    let mut server = session(Role::Server);
    server.handle_frame(syn(MAX_STREAM_ID)).unwrap();
    server.handle_frame(syn(MAX_STREAM_ID)).unwrap();
}

#[test]
fn behind_our_goaway_streams_are_refused_and_old_ones_go_on() {
    let mut server = taken();
    server.go_away(GoAwayCode::OK);
    server.go_away(GoAwayCode::OK);
    server.handle_frame(syn(3)).unwrap();
    assert_eq!(
        control(&mut server),
        [Control::GoAway(Some(id(1)), GoAwayCode::OK), Control::Rst(id(3), ResetCode::REFUSED_STREAM)]
    );
    assert!(server.handle_frame(data(1, 1, false)).unwrap());
    assert!(server.open(&[], Instant::now()).unwrap_err().is_closed());
}

#[test]
fn behind_the_peers_goaway_the_streams_it_took_go_on() {
    let mut client = session(Role::Client);
    let [first, second] = [(); 2].map(|()| client.open(&[], Instant::now()).unwrap());
    client.handle_frame(codec::Event::GoAway { last_good: Some(first), code: GoAwayCode::OK }).unwrap();
    assert_eq!(events(&mut client), [Event::GoAway(GoAwayCode::OK), Event::OpenFailed(second, OpenFailure::GoAway)]);
    client.handle_frame(codec::Event::SynReply { stream: first, fin: false, headers: Headers::default() }).unwrap();
    assert!(client.handle_frame(data(1, 1, true)).unwrap());
    assert!(client.can_send(first));
    assert!(client.open(&[], Instant::now()).unwrap_err().is_closed());
}

#[test]
fn a_reply_that_does_not_come_fails_the_stream() {
    let start = Instant::now();
    let mut client = Session::new(Role::Client, Limits::default(), start);
    let stream = client.open(&[], start).unwrap();
    control(&mut client);
    let mut now = start;
    while now < start + Duration::from_secs(30) {
        assert_eq!(events(&mut client), []);
        now = client.poll_timeout().unwrap();
        client.handle_timeout(now).unwrap();
    }
    assert_eq!(now, start + Duration::from_secs(30));
    assert_eq!(events(&mut client), [Event::OpenFailed(stream, OpenFailure::Timeout)]);
    assert!(control(&mut client).contains(&Control::Rst(stream, ResetCode::CANCEL)));
}

#[test]
fn a_stream_given_up_before_it_was_written_leaves_no_trace() {
    let mut client = session(Role::Client);
    let stream = client.open(&[], Instant::now()).unwrap();
    client.reset(stream, ResetCode::CANCEL);
    assert_eq!(control(&mut client), []);
    assert!(client.is_idle());
}

#[test]
fn no_rst_goes_out_behind_fin_until_the_peer_sends_more() {
    let mut server = taken();
    server.finish(id(1));
    server.reset(id(1), ResetCode::CANCEL);
    assert_eq!(control(&mut server), []);
    assert!(server.is_idle());
    assert!(!server.handle_frame(data(1, 0, false)).unwrap());
    assert!(!server.handle_frame(data(1, 5, false)).unwrap());
    assert_eq!(control(&mut server), [Control::Rst(id(1), ResetCode::CANCEL)]);
    assert!(server.streams.is_empty() && server.abandoned == 0);
}

#[test]
fn a_silent_peer_is_pinged_at_10_s_and_dead_at_60_s() {
    let start = Instant::now();
    let mut client = Session::new(Role::Client, Limits::default(), start);
    for tens in 1..6 {
        let now = client.poll_timeout().unwrap();
        assert_eq!(now, start + Duration::from_secs(10 * tens));
        client.handle_timeout(now).unwrap();
        assert_eq!(control(&mut client), [Control::Ping(2 * tens as u32 - 1)]);
    }
    assert!(client.handle_timeout(start + Duration::from_secs(60)).unwrap_err().is_timeout());
}

#[test]
fn silence_does_not_count_while_nobody_listens() {
    let start = Instant::now();
    let at = |seconds| start + Duration::from_secs(seconds);
    let mut client = Session::new(Role::Client, Limits::default(), start);
    client.set_listening(false, at(50));
    client.handle_timeout(at(500)).unwrap();
    assert!(client.has_control(), "it is pinged all the same");
    client.set_listening(true, at(500));
    client.handle_timeout(at(509)).unwrap();
    assert!(client.handle_timeout(at(510)).is_err());
}

#[test]
fn a_server_does_not_speak_first_nor_wait_for_the_first_word() {
    let start = Instant::now();
    let mut server = Session::new(Role::Server, Limits::default(), start);
    server.set_listening(false, start);
    server.set_listening(true, start);
    assert_eq!(server.poll_timeout(), None);
    server.handle_timeout(start + Duration::from_secs(3600)).unwrap();
    assert!(!server.has_control());
    server.handle_read(start);
    assert_eq!(server.poll_timeout(), Some(start + Duration::from_secs(10)));
}

#[test]
fn a_flood_of_pings_backs_up() {
    let mut server = session(Role::Server);
    for _ in 0..1024 {
        assert!(!server.is_backed_up());
        server.handle_frame(codec::Event::Ping(1)).unwrap();
    }
    assert!(server.is_backed_up());
    let mut out = Vec::new();
    server.encode_control(&mut out, 100);
    assert_eq!(out.len(), 108);
    assert!(!server.is_backed_up());
}

#[test]
fn headers_that_no_peer_takes_are_not_sent() {
    let mut client = session(Role::Client);
    let long = "x".repeat(64 * 1024);
    assert!(client.open(&[("a", &long)], Instant::now()).unwrap_err().is_limit());
}

/// What a caller may do to either end of a connection.
#[derive(Clone, Copy, Debug)]
enum Operation {
    Open,
    Reply(u32),
    Data(u32),
    Finish(u32),
    Reset(u32),
    Discard(u32),
    GoAway,
    Tick,
    /// What one end wrote arrives at the other.
    Exchange,
}

fn operations() -> impl Strategy<Value = Vec<(bool, Operation)>> {
    let stream = 1..12u32;
    let operation = prop_oneof![
        4 => Just(Operation::Open),
        4 => stream.clone().prop_map(Operation::Reply),
        4 => stream.clone().prop_map(Operation::Data),
        3 => stream.clone().prop_map(Operation::Finish),
        2 => stream.clone().prop_map(Operation::Reset),
        2 => stream.prop_map(Operation::Discard),
        1 => Just(Operation::GoAway),
        1 => Just(Operation::Tick),
        8 => Just(Operation::Exchange),
    ];
    prop::collection::vec((any::<bool>(), operation), 0..80)
}

struct End {
    session: Session,
    decoder: Decoder,
    out: Vec<u8>,
}

proptest! {
    /// Whatever two of our own ends do, neither takes the other for a breaker of the protocol, and what one end
    /// forgets the other forgets too.
    #[test]
    fn two_ends_understand_each_other(operations in operations()) {
        let mut now = Instant::now();
        let mut ends = [Role::Client, Role::Server].map(|role| End {
            session: Session::new(role, Limits::default(), now),
            decoder: Decoder::new(codec::Limits::default(), HeaderMode::Inflate),
            out: Vec::new(),
        });
        let exchange = |ends: &mut [End; 2], now| {
            for from in [0, 1] {
                ends[from].session.encode_control(&mut Vec::new(), 0);
                let End { session, out, .. } = &mut ends[from];
                session.encode_control(out, usize::MAX);
                let bytes = std::mem::take(out);
                let to = &mut ends[1 - from];
                to.session.handle_read(now);
                let mut rest = &bytes[..];
                loop {
                    let step = to.decoder.step(rest).unwrap();
                    rest = &rest[step.consumed..];
                    if step.event == codec::Event::NeedMore {
                        break;
                    }
                    to.session.handle_frame(step.event).unwrap();
                }
                while to.session.poll_event().is_some() {}
            }
        };
        for (end, operation) in operations {
            let End { session, out, .. } = &mut ends[usize::from(end)];
            match operation {
                Operation::Open => {
                    let _ = session.open(&[("streamtype", "data")], now);
                }
                Operation::Reply(stream) => session.reply(id(stream)),
                Operation::Data(stream) if session.can_send(id(stream)) => {
                    session.encode_control(out, usize::MAX);
                    out.extend(crate::spdy::frame::data_head(id(stream), 2, false));
                    out.extend(b"hi");
                }
                Operation::Finish(stream) if session.can_send(id(stream)) => {
                    session.encode_control(out, usize::MAX);
                    out.extend(crate::spdy::frame::data_head(id(stream), 0, true));
                    session.finish(id(stream));
                }
                Operation::Data(_) | Operation::Finish(_) => {}
                Operation::Reset(stream) => session.reset(id(stream), ResetCode::CANCEL),
                Operation::Discard(stream) => session.discard(id(stream)),
                Operation::GoAway => session.go_away(GoAwayCode::OK),
                Operation::Tick => {
                    now += Duration::from_secs(9);
                    for end in &mut ends {
                        let _ = end.session.handle_timeout(now);
                    }
                }
                Operation::Exchange => exchange(&mut ends, now),
            }
        }
        // Everybody gives up everything.
        for stream in 1..400 {
            for end in &mut ends {
                end.session.reset(id(stream), ResetCode::CANCEL);
            }
        }
        for _ in 0..3 {
            exchange(&mut ends, now);
        }
        for end in &ends {
            prop_assert!(end.session.is_idle());
            let abandoned = end.session.streams.values().filter(|state| state.is_abandoned()).count();
            prop_assert_eq!(abandoned, end.session.abandoned);
        }
    }
}
