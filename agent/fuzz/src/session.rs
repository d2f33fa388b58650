//! Sequences of what can happen to a session: octets in pieces, time, loss, commands.

use std::time::{Duration, Instant};

use kvmeter::{
    agentx::{
        Config, Session, SessionError, State,
        codec::{Body, CloseReason, Frame, Header, Inbox, Pdu, PduType, frame},
    },
    snmp::{Oid, Value},
};

use super::objects::FixedObjects;

/// One thing that happens. Two octets say which, and how much of it.
#[derive(Clone, Copy, Debug)]
enum Input<'a> {
    Connect,
    Lose,
    Octets(&'a [u8]),
    /// The Response that the session waits for.
    Accept,
    Wait(Duration),
    Notify,
    Close,
}

/// Reads inputs off octets: a longer tail only adds inputs.
fn inputs(mut octets: &[u8]) -> impl Iterator<Item = Input<'_>> {
    std::iter::from_fn(move || {
        let (&[kind, amount], rest) = octets.split_first_chunk()?;
        octets = rest;
        Some(match kind % 8 {
            0 => Input::Connect,
            1 => Input::Lose,
            2 => Input::Wait(Duration::from_secs(amount.into())),
            3 => Input::Notify,
            4 => Input::Close,
            5 => Input::Accept,
            _ => {
                let len = rest.len().min(amount.into());
                let (piece, rest) = rest.split_at(len);
                octets = rest;
                Input::Octets(piece)
            }
        })
    })
}

/// The session, its connection, and what is expected of both.
struct Run {
    session: Session,
    inbox: Inbox,
    objects: FixedObjects,
    now: Instant,
}

/// Every request is answered exactly once, in order, with its own identifiers; the session says nothing else but
/// what it began itself; its output is bounded; it never asks to be woken up in the past for ever.
pub fn run(octets: &[u8]) {
    let config = Config::new(vec![Oid::of(&[1, 3, 6, 1, 2, 1, 236]), Oid::of(&[1, 3, 6, 1, 4])]);
    let mut run = Run {
        session: Session::new(config),
        inbox: Inbox::default(),
        objects: FixedObjects::small(),
        now: Instant::now(),
    };
    for input in inputs(octets) {
        run.apply(input);
    }
}

impl Run {
    fn apply(&mut self, input: Input<'_>) {
        match input {
            Input::Connect => {
                self.inbox.clear();
                self.session.connected(self.now).expect("Open can be built");
                assert_eq!(self.sent(), [PduType::Open]);
            }
            Input::Lose => self.lose(),
            Input::Octets(octets) => {
                // Octets come only on a connection.
                if self.session.state() != State::Disconnected {
                    self.inbox.fill().extend_from_slice(octets);
                    self.handle_inbox();
                }
            }
            Input::Accept => self.accept(),
            Input::Wait(time) => self.wait(time),
            Input::Notify => {
                let established = matches!(self.session.state(), State::Established { .. });
                let name = Oid::of(&[1, 3, 6, 1, 6, 3, 1, 1, 4, 1, 0]);
                let bindings = [(&name, Value::ObjectIdentifier(&name))];
                let sent = self.session.notify(bindings, self.now);
                assert_eq!(sent.is_ok(), established);
                let expected: &[PduType] = if established { &[PduType::Notify] } else { &[] };
                assert_eq!(self.sent(), expected);
            }
            Input::Close => {
                let open = self.session.state().session_id().is_some();
                self.session.close(CloseReason::SHUTDOWN);
                let expected: &[PduType] = if open { &[PduType::Close] } else { &[] };
                assert_eq!(self.sent(), expected);
                self.lose();
            }
        }
    }

    fn lose(&mut self) {
        self.session.disconnected();
        self.inbox.clear();
        assert_eq!(self.session.state(), State::Disconnected);
        assert_eq!(self.session.poll_timeout(), None);
        assert!(self.session.output().is_empty());
    }

    fn handle_inbox(&mut self) {
        loop {
            match self.inbox.next_frame() {
                Ok(Some(found)) => {
                    let header = found.header;
                    let handled = self.session.handle_pdu(&self.objects, found, self.now);
                    self.check_answer(&header, handled.is_err());
                    if handled.is_err() {
                        return self.lose();
                    }
                }
                Ok(None) => return,
                Err(error) => {
                    let lost = self.session.handle_frame_error(error);
                    assert!(matches!(lost, SessionError::Frame(_)));
                    self.check_answer(&error.header, true);
                    return self.lose();
                }
            }
        }
    }

    /// What is in the output after the PDU with this header.
    fn check_answer(&mut self, request: &Header, lost: bool) {
        let output = self.session.output().to_vec();
        // The answer, and a Close.
        assert!(output.len() <= frame::MAX_RESPONSE + Header::LEN + 4);
        let mut pdus = frames(&output).into_iter().peekable();
        if request.asks_for_response() {
            let answer = pdus.next().expect("a request is answered");
            assert_eq!(
                answer.header,
                Header { payload_length: answer.header.payload_length, ..request.response() }
            );
            let answer = Pdu::decode(answer).expect("a response decodes");
            assert!(matches!(answer.body, Body::Response { .. }));
        }
        // A Response may be followed by the next Register, the end of a session by Close.
        if let Some(next) = pdus.next() {
            let expected = match request.kind() {
                _ if lost => PduType::Close,
                Some(PduType::Response) => PduType::Register,
                kind => panic!("{:?} follows the answer to {kind:?}", next.header),
            };
            assert_eq!(next.header.kind(), Some(expected));
        }
        assert_eq!(pdus.next(), None, "nothing is said twice");
        self.session.consume_output(usize::MAX);
    }

    /// The master says yes to whatever is asked.
    fn accept(&mut self) {
        let (session_id, packet_id) = match self.session.state() {
            State::Opening { packet_id } => (77, packet_id),
            State::Registering { session_id, packet_id, .. } => (session_id, packet_id),
            State::Established { session_id, ping: Some(packet_id) } => (session_id, packet_id),
            _ => return,
        };
        let order = self.session.config().byte_order;
        let header = Header {
            session_id,
            packet_id,
            payload_length: 8,
            ..Header::new(PduType::Response, order)
        };
        let before = self.session.state();
        let response = Frame { header, payload: &[0; 8] };
        self.session.handle_pdu(&self.objects, response, self.now).expect("the master said yes");
        assert_ne!(self.session.state(), before, "the session goes on");
        self.check_answer(&header, false);
    }

    fn wait(&mut self, time: Duration) {
        let until = self.now + time;
        // A ping, then its timeout: there is no third thing to do without input.
        for _ in 0..3 {
            let Some(deadline) = self.session.poll_timeout() else { break };
            if deadline > until {
                break;
            }
            self.now = self.now.max(deadline);
            let session = self.session.state().session_id();
            if self.session.handle_timeout(self.now).is_err() {
                let expected: &[PduType] = if session.is_some() { &[PduType::Close] } else { &[] };
                assert_eq!(self.sent(), expected);
                self.lose();
            } else {
                assert_eq!(self.sent(), [PduType::Ping]);
            }
        }
        assert!(self.session.poll_timeout().is_none_or(|deadline| deadline > until));
        self.now = until;
    }

    /// Types of the PDUs in the output, which goes to the master.
    fn sent(&mut self) -> Vec<PduType> {
        let kinds = frames(self.session.output())
            .iter()
            .map(|frame| frame.header.kind().expect("a type that there is"))
            .collect();
        self.session.consume_output(usize::MAX);
        kinds
    }
}

/// The output is whole PDUs, with nothing after them.
fn frames(mut output: &[u8]) -> Vec<Frame<'_>> {
    let mut frames = Vec::new();
    while !output.is_empty() {
        let frame = frame::split(output).expect("a length that can be").expect("a whole PDU");
        output = &output[frame.pdu_len()..];
        frames.push(frame);
    }
    frames
}
