//! The subagent's side of one connection after the other, without a socket and without a clock.
//!
//! The session takes PDUs and instants, and gives octets, a deadline, and an error when the connection is to be
//! dropped. Its methods come in four kinds:
//!
//! * inputs, `connected`, `handle_*`, `disconnected`: something happened. Time must not go back.
//! * commands, `notify`, `close`: the agent wants something.
//! * outputs, `output` and `consume_output`, `poll_timeout`: what to send, and when to call
//!   [`handle_timeout`](Session::handle_timeout). Look at both after each input and command.
//! * `state`: for those who watch.
//!
//! An input that returns [`SessionError`] ends the connection: send the output that is there, close the socket, and call
//! [`disconnected`](Session::disconnected).

use std::{
    io,
    time::{Duration, Instant},
};

use thiserror::Error;

use super::{
    admin_pdus::{self, Origin},
    codec::{
        Body, ByteOrder, CloseReason, DecodeError, Frame, FrameError, Header, Pdu, PduType,
        PduWriter, ResError, ResponseWriter,
    },
    objects::Objects,
    request, set,
    state::State,
};
use crate::snmp::{Oid, Value};

/// So many PDUs in a row that cannot be parsed end the session (section 6.2.2, `reasonParseError`).
const MAX_PARSE_ERRORS: u32 = 8;

/// What a session says of itself, and how patient it is.
#[derive(Clone, Debug)]
pub struct Config {
    /// `o.id`: names the subagent; may be null.
    pub id: Oid,
    /// `o.descr`: a DisplayString of at most 255 octets.
    pub description: String,
    /// What to register. Requests for anything else do not come.
    pub subtrees: Vec<Oid>,
    /// Rows for the master's sysORTable, with their texts (section 6.2.12), once everything is registered.
    pub capabilities: Vec<(Oid, String)>,
    /// How long to wait for a Response, and (`o.timeout`, whole seconds from 1 to 255) how long the master is
    /// to wait for one.
    pub timeout: Duration,
    /// After so long without a word from the master it is asked whether it is there.
    pub ping_interval: Duration,
    /// Of the PDUs that begin here. Responses have the byte order of their request.
    pub byte_order: ByteOrder,
}

impl Config {
    /// A session that registers `subtrees`.
    #[must_use]
    pub fn new(subtrees: Vec<Oid>) -> Self {
        Self {
            id: Oid::of(&[0, 0]),
            description: concat!("kvmeter ", env!("CARGO_PKG_VERSION")).to_owned(),
            subtrees,
            capabilities: Vec::new(),
            timeout: Duration::from_secs(5),
            // A master that ends closes its socket, which is seen at once; the ping is for one that hangs.
            ping_interval: Duration::from_secs(30),
            byte_order: ByteOrder::Network,
        }
    }
}

/// Why the connection is to be dropped.
#[derive(Debug, Error)]
pub enum SessionError {
    /// Section 7.1.1.
    #[error("The master refused the session: {0}")]
    OpenRefused(ResError),
    /// Section 7.1.4.
    #[error("The master refused to register {subtree}: {error}{}", hint(*error))]
    RegisterRefused {
        /// The subtree.
        subtree: Box<Oid>,
        /// Its reason.
        error: ResError,
    },
    /// Section 7.1.8.
    #[error("The master closed the session: {0}")]
    Closed(CloseReason),
    /// A Response of the master says that the session is not there, or not well.
    #[error("The master no longer knows the session: {0}")]
    SessionGone(ResError),
    /// No Response came.
    #[error("The master did not answer {0} in time")]
    TimedOut(&'static str),
    /// The octets make no PDUs.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The frames make no PDUs.
    #[error("The master sent {MAX_PARSE_ERRORS} PDUs in a row that cannot be parsed")]
    ParseErrors(#[source] DecodeError),
    /// The session's own words cannot be encoded.
    #[error("A PDU for the master cannot be built; is the configured description too long?")]
    Encode(#[source] io::Error),
}

fn hint(error: ResError) -> &'static str {
    match error {
        ResError::DUPLICATE_REGISTRATION => "; does another subagent serve it?",
        ResError::REQUEST_DENIED => "; does the master's configuration allow it?",
        _ => "",
    }
}

/// A PDU was handled: for those who count.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Handled {
    /// `h.type`, if it is known.
    pub kind: Option<PduType>,
    /// `res.error` of the response: ours to a request, the master's to a PDU of ours.
    pub error: ResError,
}

/// A notification needs an established session. It is not sent, now or later.
#[derive(Clone, Copy, Debug, Eq, Error, PartialEq)]
#[error("There is no session with the master")]
pub struct NotEstablished;

/// See the module.
#[derive(Debug)]
pub struct Session {
    config: Config,
    state: State,
    /// Of the last PDU that began here.
    packet_id: u32,
    /// When the master is given up, or asked whether it is there; see [`State`].
    deadline: Option<Instant>,
    /// When the last PDU came.
    heard: Option<Instant>,
    parse_errors: u32,
    /// The SET that was tested last, until its CleanupSet.
    transaction: Option<set::Transaction>,
    /// The last notification, while it is not answered, and when it was made.
    notified: Option<(u32, Instant)>,
    output: Vec<u8>,
    /// Octets at the beginning of `output` that were sent.
    sent: usize,
}

impl Session {
    /// Memory that the output keeps after a large response.
    const OUTPUT_KEPT: usize = 64 * 1024;

    /// A session without a connection.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            state: State::Disconnected,
            packet_id: 0,
            deadline: None,
            heard: None,
            parse_errors: 0,
            transaction: None,
            notified: None,
            output: Vec::new(),
            sent: 0,
        }
    }

    /// How far the session is.
    #[must_use]
    pub fn state(&self) -> State {
        self.state
    }

    /// What it was made with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Octets to send.
    #[must_use]
    pub fn output(&self) -> &[u8] {
        self.output.get(self.sent..).unwrap_or_default()
    }

    /// So many octets of the output were sent.
    pub fn consume_output(&mut self, octets: usize) {
        self.sent = self.sent.saturating_add(octets);
        if self.sent >= self.output.len() {
            self.output.clear();
            self.output.shrink_to(Self::OUTPUT_KEPT);
            self.sent = 0;
        }
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), at the latest. While PDUs come this moves on.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self.state {
            State::Established { ping: None, .. } => {
                self.heard?.checked_add(self.config.ping_interval)
            }
            _ => self.deadline,
        }
    }

    /// A connection was made: sends Open.
    ///
    /// # Errors
    ///
    /// [`SessionError::Encode`].
    pub fn connected(&mut self, now: Instant) -> Result<(), SessionError> {
        self.disconnected();
        let origin = self.origin();
        let Config { timeout, id, description, .. } = &self.config;
        let open = admin_pdus::open(origin, *timeout, id, description);
        self.send(open)?;
        self.state = State::Opening { packet_id: origin.packet_id };
        self.await_response(now);
        Ok(())
    }

    /// The connection is gone, with what was to be sent on it.
    pub fn disconnected(&mut self) {
        self.consume_output(usize::MAX);
        self.state = State::Disconnected;
        self.deadline = None;
        self.heard = None;
        self.parse_errors = 0;
        self.transaction = None;
        self.notified = None;
    }

    /// A PDU came. If it is a request its response is now in the output; `objects` are what it is answered from.
    ///
    /// # Errors
    ///
    /// [`SessionError`] if the connection is to be dropped; what is in the output is still to be sent.
    pub fn handle_pdu<O: Objects + ?Sized>(
        &mut self,
        objects: &O,
        frame: Frame<'_>,
        now: Instant,
    ) -> Result<Handled, SessionError> {
        self.heard = Some(now);
        if let State::Established { ping, .. } = &mut self.state {
            *ping = None;
        }
        let header = frame.header;
        let pdu = match Pdu::decode(frame) {
            Ok(pdu) => pdu,
            Err(error) => return self.handle_parse_error(&header, error),
        };
        self.parse_errors = 0;
        let error = match &pdu.body {
            Body::Response { error, .. } => self.handle_response(&header, *error, now)?,
            Body::Close { reason } => {
                if self.state.session_id() == Some(header.session_id) {
                    return Err(SessionError::Closed(*reason));
                }
                ResError::NOT_OPEN
            }
            _ => self.respond(objects, &pdu),
        };
        Ok(Handled { kind: header.kind(), error })
    }

    /// The octets make no PDU from here on: says so, if a response is asked for, and ends the session.
    pub fn handle_frame_error(&mut self, error: FrameError) -> SessionError {
        if error.header.asks_for_response() {
            ResponseWriter::new(&mut self.output, &error.header).fail(ResError::PARSE_ERROR, 0);
        }
        self.close(CloseReason::PARSE_ERROR);
        SessionError::Frame(error)
    }

    /// Time has passed: at [`poll_timeout`](Self::poll_timeout) or later. Does nothing before it.
    ///
    /// # Errors
    ///
    /// [`SessionError`] if the master is given up; what is in the output is still to be sent.
    pub fn handle_timeout(&mut self, now: Instant) -> Result<(), SessionError> {
        if self.poll_timeout().is_none_or(|deadline| now < deadline) {
            return Ok(());
        }
        if let State::Established { session_id, ping: None } = self.state {
            let origin = self.origin();
            self.send(admin_pdus::ping(origin))?;
            self.state = State::Established { session_id, ping: Some(origin.packet_id) };
            self.await_response(now);
            return Ok(());
        }
        let awaited = self.state.awaited();
        self.close(CloseReason::TIMEOUTS);
        Err(SessionError::TimedOut(awaited))
    }

    /// Sends a notification (section 6.2.10): `bindings` begin with snmpTrapOID.0, and have no sysUpTime.0
    /// unless it is to differ from the master's. Returns the `h.packetID` of the Response to come.
    ///
    /// # Errors
    ///
    /// [`NotEstablished`].
    pub fn notify<'v>(
        &mut self,
        bindings: impl IntoIterator<Item = (&'v Oid, Value<'v>)>,
        now: Instant,
    ) -> Result<u32, NotEstablished> {
        let Origin { order, session_id, packet_id } = self.established_origin()?;
        let header = Header {
            session_id,
            transaction_id: packet_id,
            packet_id,
            ..Header::new(PduType::Notify, order)
        };
        let mut notify = PduWriter::new(&mut self.output, &header, &[]);
        for (name, value) in bindings {
            notify.value(name, value);
        }
        notify.finish();
        self.notified = Some((packet_id, now));
        Ok(packet_id)
    }

    /// Until when the next notification should wait, because the last one is not answered yet: the master sends
    /// one before it takes the next. `None` = it need not wait; a master that does not answer in time is not
    /// waited for.
    #[must_use]
    pub fn notify_after(&self) -> Option<Instant> {
        self.notified.and_then(|(_, at)| at.checked_add(self.config.timeout))
    }

    /// The last notification is not waited for any more.
    pub const fn give_up_notified(&mut self) {
        self.notified = None;
    }

    /// Ends the session from this side: sends Close, if there is a session.
    pub fn close(&mut self, reason: CloseReason) {
        if self.state.session_id().is_some() {
            let origin = self.origin();
            // Without a Close the master notices when the socket closes.
            if let Ok(close) = admin_pdus::close(origin, reason) {
                self.output.extend(close);
            }
        }
        self.state = State::Disconnected;
        self.deadline = None;
    }

    /// Section 7.2.2: answers a request, whatever is wrong with it.
    fn respond<O: Objects + ?Sized>(&mut self, objects: &O, pdu: &Pdu<'_>) -> ResError {
        let header = &pdu.header;
        let established = self.state.session_id() == Some(header.session_id);
        if matches!(pdu.body, Body::CleanupSet) {
            if !established {
                return ResError::NOT_OPEN;
            }
            if let Some(transaction) = self.transaction.take() {
                set::cleanup(objects, transaction);
            }
            return ResError::NO_ERROR;
        }
        let mut response = ResponseWriter::new(&mut self.output, header);
        let refused = if !established {
            Some(ResError::NOT_OPEN)
        } else if pdu.context.is_some() {
            Some(ResError::UNSUPPORTED_CONTEXT)
        } else {
            None
        };
        if let Some(error) = refused {
            response.fail(error, 0);
            return error;
        }
        let answered = match &pdu.body {
            Body::Get { ranges } => request::get(objects, ranges.clone(), &mut response),
            Body::GetNext { ranges } => request::get_next(objects, ranges.clone(), &mut response),
            Body::GetBulk { non_repeaters, max_repetitions, ranges } => request::get_bulk(
                objects,
                *non_repeaters,
                *max_repetitions,
                ranges.clone(),
                &mut response,
            ),
            Body::TestSet { bindings } => {
                // One that was never cleaned up is of a master that has forgotten it.
                self.transaction = None;
                set::test(objects, header.transaction_id, bindings.clone())
                    .map(|transaction| self.transaction = Some(transaction))
            }
            Body::CommitSet => {
                set::commit(objects, header.transaction_id, self.transaction.as_mut())
            }
            Body::UndoSet => set::undo(objects, header.transaction_id, self.transaction.as_mut()),
            Body::Ping | Body::CleanupSet | Body::Close { .. } | Body::Response { .. } => Ok(()),
        };
        match answered {
            Ok(()) => {
                response.finish();
                ResError::NO_ERROR
            }
            Err(failure) => {
                response.fail(failure.error, failure.index);
                failure.error
            }
        }
    }

    /// Section 7.2.2: a Response that cannot be parsed is dropped, a request is answered all the same.
    fn handle_parse_error(
        &mut self,
        header: &Header,
        error: DecodeError,
    ) -> Result<Handled, SessionError> {
        if header.asks_for_response() {
            ResponseWriter::new(&mut self.output, header).fail(ResError::PARSE_ERROR, 0);
        }
        self.parse_errors += 1;
        if self.parse_errors >= MAX_PARSE_ERRORS {
            self.close(CloseReason::PARSE_ERROR);
            return Err(SessionError::ParseErrors(error));
        }
        Ok(Handled { kind: header.kind(), error: ResError::PARSE_ERROR })
    }

    /// Section 7.2.2: a Response is matched by its `h.packetID`; one that nobody waits for changes nothing,
    /// unless it says that the session is gone.
    fn handle_response(
        &mut self,
        header: &Header,
        error: ResError,
        now: Instant,
    ) -> Result<ResError, SessionError> {
        let ours = self.state.session_id() == Some(header.session_id);
        match self.state {
            State::Opening { packet_id } if packet_id == header.packet_id => {
                if error != ResError::NO_ERROR {
                    self.close(CloseReason::OTHER);
                    return Err(SessionError::OpenRefused(error));
                }
                self.register(header.session_id, 0, now)?;
            }
            State::Registering { session_id, packet_id, subtree }
                if ours && packet_id == header.packet_id =>
            {
                if error != ResError::NO_ERROR {
                    self.close(CloseReason::OTHER);
                    let subtree = self.config.subtrees.get(subtree).copied().unwrap_or_default();
                    return Err(SessionError::RegisterRefused { subtree: subtree.into(), error });
                }
                self.register(session_id, subtree + 1, now)?;
            }
            State::Established { .. } if ours && error == ResError::NOT_OPEN => {
                self.state = State::Disconnected;
                return Err(SessionError::SessionGone(error));
            }
            _ => {}
        }
        if ours && self.notified.is_some_and(|(packet_id, _)| packet_id == header.packet_id) {
            self.notified = None;
        }
        Ok(error)
    }

    /// Registers the subtree with this number, or is done when there is none.
    fn register(
        &mut self,
        session_id: u32,
        subtree: usize,
        now: Instant,
    ) -> Result<(), SessionError> {
        self.state = State::Established { session_id, ping: None };
        if let Some(oid) = self.config.subtrees.get(subtree).copied() {
            let origin = self.origin();
            self.send(admin_pdus::register(origin, &oid))?;
            self.state = State::Registering { session_id, packet_id: origin.packet_id, subtree };
            self.await_response(now);
            return Ok(());
        }
        for (oid, text) in self.config.capabilities.clone() {
            // Its Response is not waited for: a master that refuses serves all the same.
            let origin = self.origin();
            self.send(admin_pdus::add_agent_caps(origin, &oid, &text))?;
        }
        Ok(())
    }

    /// The header fields of the next PDU that begins here.
    fn origin(&mut self) -> Origin {
        self.packet_id = self.packet_id.wrapping_add(1);
        Origin {
            order: self.config.byte_order,
            session_id: self.state.session_id().unwrap_or(0),
            packet_id: self.packet_id,
        }
    }

    /// The same for a command.
    fn established_origin(&mut self) -> Result<Origin, NotEstablished> {
        match self.state {
            State::Established { .. } => Ok(self.origin()),
            _ => Err(NotEstablished),
        }
    }

    fn send(&mut self, pdu: io::Result<Vec<u8>>) -> Result<(), SessionError> {
        self.output.extend(pdu.map_err(SessionError::Encode)?);
        Ok(())
    }

    /// A timeout that no clock can express is none.
    fn await_response(&mut self, now: Instant) {
        self.deadline = now.checked_add(self.config.timeout);
    }
}
